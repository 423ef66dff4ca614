//! `millpond img snapshot`: snapshots inside an image, listed, made, applied and deleted.

use super::human;
use super::options::{cut, explain};
use crate::cli::getopt::Row;
use crate::cli::tool::{Failure, ImageName, Program, Tool, print};
use millpond_messages::graph::{ChangeSnapshots, FindRoot, NamedNodes};
use millpond_messages::qapi::SnapshotInfo;
use millpond_messages::{
    Error, ErrorKind, InternalSnapshot, IoError, OpenFlags, SnapshotChange, SnapshotName,
};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

const HELP: &str = "\
Usage: {program} snapshot [-f FORMAT | --image-opts] [-l | -c NAME | -a NAME | -d NAME]
           [-U] [-q] [--object OBJECT] IMAGE

Lists the snapshots inside IMAGE, unless something is to be done with one.

Options:
  -l, --list              List them
  -c, --create NAME       Make one of what the disk is now
  -a, --apply NAME        Make the disk what it was then
  -d, --delete NAME       Forget it
  -f, --format FORMAT     The format of IMAGE, which is found out otherwise
      --image-opts        IMAGE is a list of options: key=value,...
  -U, --force-share       Others may write to it meanwhile
      --object OBJECT     An object that the image needs, such as a secret
  -q, --quiet             Say nothing of success
  -h, --help              Print this
";

#[derive(Clone, Copy)]
enum Name {
    Apply,
    Create,
    Delete,
    ForceShare,
    Format,
    Help,
    ImageOptions,
    List,
    Object,
    Quiet,
}

const OPTIONS: &[Row<Name>] = &[
    Row::flag("help", Some('h'), Name::Help),
    Row::flag("quiet", Some('q'), Name::Quiet),
    Row::value("object", None, Name::Object),
    Row::value("format", Some('f'), Name::Format),
    Row::flag("image-opts", None, Name::ImageOptions),
    Row::flag("force-share", Some('U'), Name::ForceShare),
    Row::flag("list", Some('l'), Name::List),
    Row::value("apply", Some('a'), Name::Apply),
    Row::value("create", Some('c'), Name::Create),
    Row::value("delete", Some('d'), Name::Delete),
];

/// What is to be done.
enum Action {
    List,
    Create(String),
    Apply(String),
    Delete(String),
}

/// Does to the image's snapshots what `arguments` say.
pub(super) fn run(program: Program<'_>, arguments: &[String]) -> Result<ExitCode, Failure> {
    let usage = |text: &str| Failure::usage(program, "snapshot", text);
    let mut image = ImageName::default();
    let (mut objects, mut words, mut action) = (Vec::new(), Vec::new(), None);
    for given in cut(program, "snapshot", OPTIONS, arguments) {
        let (option, value) = given?;
        let asked = match option {
            None => {
                words.push(value);
                continue;
            }
            Some(Name::Help) => return Ok(explain(program, HELP)),
            Some(Name::ForceShare) => {
                image.force_share = true;
                continue;
            }
            Some(Name::Format) => {
                image.format = Some(value);
                continue;
            }
            Some(Name::ImageOptions) => {
                image.is_options = true;
                continue;
            }
            Some(Name::Object) => {
                objects.push(value);
                continue;
            }
            // Nothing is told of success anyway.
            Some(Name::Quiet) => continue,
            Some(Name::List) => Action::List,
            Some(Name::Apply) => Action::Apply(value),
            Some(Name::Create) => Action::Create(value),
            Some(Name::Delete) => Action::Delete(value),
        };
        if action.replace(asked).is_some() {
            return Err(usage("Cannot mix '-l', '-a', '-c', '-d'"));
        }
    }
    let action = action.unwrap_or(Action::List);
    let [name] = <[String; 1]>::try_from(words).map_err(|_| usage("Expecting one image file name"))?;
    image.name = name;
    image.flags = OpenFlags::UNMAP;
    image.flags.set(OpenFlags::RDWR, !matches!(action, Action::List));
    Ok(Tool::run(program, &objects, async |tool| {
        work(tool, &image, action).await
    }))
}

async fn work(tool: &Tool<'_>, image: &ImageName, action: Action) -> Result<ExitCode, Failure> {
    let client = tool.open(image).await?;
    let node = tool.graph().ask(FindRoot(client.root())).await?.name;
    let (change, verb, name) = match action {
        Action::List => {
            let list = list(tool, &node).await?;
            if !list.is_empty() {
                print(&format!("Snapshot list:\n{}", human::snapshots(&list, "")));
            }
            return Ok(ExitCode::SUCCESS);
        }
        Action::Create(name) => (SnapshotChange::Create(new_snapshot(&name)), "create", name),
        Action::Apply(name) => (SnapshotChange::Apply(name.clone()), "apply", name),
        Action::Delete(name) => {
            let list = list(tool, &node).await?;
            let Some(found) = list.into_iter().find(|snapshot| snapshot.name == name) else {
                let text = format!("Could not delete snapshot '{name}': snapshot not found");
                return Err(Failure::new(text));
            };
            let meant = SnapshotName {
                id: Some(found.id),
                name: Some(name.clone()),
            };
            (SnapshotChange::Delete(meant), "delete", name)
        }
    };
    let is_new = matches!(change, SnapshotChange::Create(_));
    let request = ChangeSnapshots {
        device: node,
        change,
        any_name: true,
    };
    let within = format!("Could not {verb} snapshot '{name}'");
    match tool.graph().ask(request).await {
        Ok(_) => Ok(ExitCode::SUCCESS),
        // Of one that is not made QEMU tells the number of the error.
        Err(error) if is_new => Err(Failure::new(format!("{within}: {}", number_of(&error)))),
        Err(error) => Err(Failure::from(error).within(&within)),
    }
}

fn number_of(error: &Error) -> IoError {
    match error.kind() {
        ErrorKind::Io(error) => error,
        _ => IoError::from_errno(error.errno()),
    }
}

/// The snapshots in the image of a node.
async fn list(tool: &Tool<'_>, node: &str) -> Result<Vec<SnapshotInfo>, Failure> {
    let nodes = tool.graph().ask(NamedNodes { flat: true }).await?;
    let node = nodes
        .into_iter()
        .find(|info| info.node_name.as_deref() == Some(node));
    Ok(node.and_then(|node| node.image.snapshots).unwrap_or_default())
}

/// A snapshot of this name, made now, without the state of a machine.
fn new_snapshot(name: &str) -> InternalSnapshot {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    InternalSnapshot {
        name: name.to_owned(),
        date_sec: u32::try_from(now.as_secs()).unwrap_or(u32::MAX),
        date_nsec: now.subsec_nanos(),
        icount: Some(0),
        ..InternalSnapshot::default()
    }
}
