//! `millpond img bitmap`: changes of the dirty bitmaps that an image stores.

use super::options::{cut, explain};
use crate::cli::getopt::Row;
use crate::cli::tool::{Failure, ImageName, LARGEST, Program, Tool, number};
use millpond_messages::OpenFlags;
use millpond_messages::graph::{BitmapChange, BitmapEdit, BitmapName, EditBitmap, FindRoot, NamedNodes};
use std::process::ExitCode;

const HELP: &str = "\
Usage: {program} bitmap (--add [-g SIZE] | --remove | --remove-all | --clear | --enable |
           --disable | --merge SOURCE)... [-b FILE [-F FORMAT]]
           [-f FORMAT | --image-opts] [--object OBJECT] IMAGE BITMAP

Changes the dirty bitmap BITMAP of IMAGE, by one action after the other in the order in which
they are given.

Actions:
      --add               Make it: it is clean, and records writes from then on
      --remove            Forget it
      --remove-all        Forget all bitmaps of IMAGE; then there is no BITMAP
      --clear             Make it clean
      --enable            Record writes from then on
      --disable           Record writes no longer
      --merge SOURCE      Mark what is dirty in the bitmap SOURCE

Options:
  -g, --granularity SIZE  What a bit of a bitmap that is made stands for, in bytes
  -b, --source-file FILE  The image that has SOURCE, where that is not IMAGE
  -F, --source-format FORMAT
                          The format of FILE
  -f, --format FORMAT     The format of IMAGE, which is found out otherwise
      --image-opts        IMAGE is a list of options: key=value,...
      --object OBJECT     An object that the image needs, such as a secret
  -h, --help              Print this
";

#[derive(Clone, Copy)]
enum Name {
    Add,
    Clear,
    Disable,
    Enable,
    Format,
    Granularity,
    Help,
    ImageOptions,
    Merge,
    Object,
    Remove,
    RemoveAll,
    Source,
    SourceFormat,
}

const OPTIONS: &[Row<Name>] = &[
    Row::flag("help", Some('h'), Name::Help),
    Row::value("object", None, Name::Object),
    Row::flag("image-opts", None, Name::ImageOptions),
    Row::value("format", Some('f'), Name::Format),
    Row::flag("add", None, Name::Add),
    Row::flag("remove", None, Name::Remove),
    Row::flag("clear", None, Name::Clear),
    Row::flag("enable", None, Name::Enable),
    Row::flag("disable", None, Name::Disable),
    Row::value("merge", None, Name::Merge),
    Row::value("granularity", Some('g'), Name::Granularity),
    Row::value("source-file", Some('b'), Name::Source),
    Row::value("source-format", Some('F'), Name::SourceFormat),
    Row::flag("remove-all", None, Name::RemoveAll),
];

/// What is done to a bitmap.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Action {
    Add,
    Remove,
    RemoveAll,
    Clear,
    Enable,
    Disable,
    Merge(String),
}

#[derive(Default)]
struct Plan {
    image: ImageName,
    bitmap: String,
    source: Option<ImageName>,
    granularity: Option<u64>,
    actions: Vec<Action>,
}

/// Does to the bitmap what `arguments` say.
pub(super) fn run(program: Program<'_>, arguments: &[String]) -> Result<ExitCode, Failure> {
    let mut plan = Plan::default();
    let (mut objects, mut words) = (Vec::new(), Vec::new());
    let (mut source, mut source_format) = (None, None);
    for given in cut(program, "bitmap", OPTIONS, arguments) {
        let (option, value) = given?;
        match option {
            None => words.push(value),
            Some(Name::Help) => return Ok(explain(program, HELP)),
            Some(Name::Add) => plan.actions.push(Action::Add),
            Some(Name::Clear) => plan.actions.push(Action::Clear),
            Some(Name::Disable) => plan.actions.push(Action::Disable),
            Some(Name::Enable) => plan.actions.push(Action::Enable),
            Some(Name::Format) => plan.image.format = Some(value),
            Some(Name::Granularity) => plan.granularity = Some(number("granularity", &value, 0..=LARGEST)?),
            Some(Name::ImageOptions) => plan.image.is_options = true,
            Some(Name::Merge) => plan.actions.push(Action::Merge(value)),
            Some(Name::Object) => objects.push(value),
            Some(Name::Remove) => plan.actions.push(Action::Remove),
            Some(Name::RemoveAll) => plan.actions.push(Action::RemoveAll),
            Some(Name::Source) => source = Some(value),
            Some(Name::SourceFormat) => source_format = Some(value),
        }
    }
    plan.name(words, source, source_format)?;
    Ok(Tool::run(program, &objects, async |tool| work(tool, &plan).await))
}

impl Plan {
    /// Takes the names of what is meant, if they fit what is to be done.
    fn name(
        &mut self,
        words: Vec<String>,
        source: Option<String>,
        source_format: Option<String>,
    ) -> Result<(), Failure> {
        let takes_all = self.actions.contains(&Action::RemoveAll);
        let image = match (self.actions.is_empty(), takes_all, <[String; 2]>::try_from(words)) {
            (true, ..) => {
                return Err(Failure::new(
                    "Need at least one of --add, --remove, --clear, --enable, --disable, or --merge",
                ));
            }
            (_, false, Ok([image, bitmap])) => {
                self.bitmap = bitmap;
                image
            }
            (_, true, Err(words)) if words.len() == 1 && self.actions.len() == 1 => words.concat(),
            _ => return Err(Failure::new("Expecting filename and bitmap name")),
        };
        let is_merge = |action: &Action| matches!(action, Action::Merge(_));
        let refusal = if self.granularity.is_some() && !self.actions.contains(&Action::Add) {
            Some("granularity only supported with --add")
        } else if source_format.is_some() && source.is_none() {
            Some("-F only supported with -b")
        } else if source.is_some() && !self.actions.iter().any(is_merge) {
            Some("Merge bitmap source file only supported with --merge")
        } else {
            None
        };
        if let Some(text) = refusal {
            return Err(Failure::new(text));
        }
        self.image.name = image;
        self.image.flags = OpenFlags::RDWR | OpenFlags::NO_BACKING;
        self.source = source.map(|name| ImageName {
            format: source_format,
            flags: OpenFlags::NO_BACKING,
            ..ImageName::new(name)
        });
        Ok(())
    }
}

async fn work(tool: &Tool<'_>, plan: &Plan) -> Result<ExitCode, Failure> {
    let client = tool.open(&plan.image).await?;
    let node = tool.graph().ask(FindRoot(client.root())).await?.name;
    let mut source = node.clone();
    if let Some(image) = &plan.source {
        let client = tool.open(image).await?;
        source = tool.graph().ask(FindRoot(client.root())).await?.name;
    }
    for action in &plan.actions {
        let (verb, change) = match action {
            Action::Add => ("add", added(plan.granularity)),
            Action::Remove => ("remove", BitmapChange::Remove),
            Action::RemoveAll => {
                remove_all(tool, &node).await?;
                continue;
            }
            Action::Clear => ("clear", BitmapChange::Clear),
            Action::Enable => ("enable", BitmapChange::Enable),
            Action::Disable => ("disable", BitmapChange::Disable),
            Action::Merge(name) => {
                let from = BitmapName {
                    node: source.clone(),
                    name: name.clone(),
                };
                ("merge", BitmapChange::Merge(vec![from]))
            }
        };
        edit(tool, &node, &plan.bitmap, verb, change).await?;
    }
    Ok(ExitCode::SUCCESS)
}

fn added(granularity: Option<u64>) -> BitmapChange {
    BitmapChange::Add {
        // What does not fit is no power of two that could be taken. None at all leaves it to the format.
        granularity: granularity
            .filter(|size| *size != 0)
            .map(|size| u32::try_from(size).unwrap_or(u32::MAX)),
        persistent: true,
        disabled: false,
    }
}

async fn edit(
    tool: &Tool<'_>,
    node: &str,
    name: &str,
    verb: &str,
    change: BitmapChange,
) -> Result<(), Failure> {
    let bitmap = BitmapName {
        node: node.to_owned(),
        name: name.to_owned(),
    };
    let edit = EditBitmap(BitmapEdit { bitmap, change });
    let within = format!("Operation {verb} on bitmap {name} failed");
    let edited = tool.graph().ask(edit).await;
    edited.map_err(|error| Failure::from(error).within(&within))
}

/// Forgets all bitmaps of an image.
async fn remove_all(tool: &Tool<'_>, node: &str) -> Result<(), Failure> {
    let nodes = tool.graph().ask(NamedNodes { flat: true }).await?;
    let node_info = nodes
        .into_iter()
        .find(|info| info.node_name.as_deref() == Some(node));
    let bitmaps = node_info.and_then(|info| info.dirty_bitmaps).unwrap_or_default();
    for name in bitmaps.into_iter().filter_map(|bitmap| bitmap.name) {
        edit(tool, node, &name, "remove", BitmapChange::Remove).await?;
    }
    Ok(())
}
