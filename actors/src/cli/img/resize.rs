//! `millpond img resize`: an image's disk made longer or shorter.

use super::options::{cut, explain};
use crate::cli::getopt::{self, Row};
use crate::cli::tool::{Failure, ImageName, LARGEST, Program, Tool, print, size_option};
use millpond_messages::graph::{FindRoot, Truncate};
use millpond_messages::io::Preallocation;
use millpond_messages::{OpenFlags, RequestFlags};
use std::process::ExitCode;

const HELP: &str = "\
Usage: {program} resize [-f FORMAT | --image-opts] [--preallocation MODE] [--shrink]
           [--object OBJECT] [-q] IMAGE [+|-]SIZE

Makes the disk of IMAGE SIZE bytes long, or longer or shorter by SIZE bytes. Suffixes
k, M, G, T, P and E are powers of 1024.

Options:
  -f, --format FORMAT     The format of IMAGE, which is found out otherwise
      --image-opts        IMAGE is a list of options: key=value,...
      --preallocation MODE
                          What becomes of the new space: off, metadata, falloc or full
      --shrink            What is beyond a smaller size may be lost
      --object OBJECT     An object that the image needs, such as a secret
  -q, --quiet             Say nothing of success
  -h, --help              Print this
";

#[derive(Clone, Copy)]
enum Name {
    Format,
    Help,
    ImageOptions,
    Object,
    Preallocation,
    Quiet,
    Shrink,
}

const OPTIONS: &[Row<Name>] = &[
    Row::flag("help", Some('h'), Name::Help),
    Row::value("format", Some('f'), Name::Format),
    Row::flag("image-opts", None, Name::ImageOptions),
    Row::value("preallocation", None, Name::Preallocation),
    Row::flag("shrink", None, Name::Shrink),
    Row::flag("quiet", Some('q'), Name::Quiet),
    Row::value("object", None, Name::Object),
];

/// The length that is wanted.
#[derive(Clone, Copy, Debug)]
enum Wanted {
    Length(u64),
    More(u64),
    Less(u64),
}

#[derive(Default)]
struct Plan {
    image: ImageName,
    objects: Vec<String>,
    preallocation: Preallocation,
    shrinks: bool,
    is_quiet: bool,
}

pub(super) fn run(program: Program<'_>, arguments: &[String]) -> Result<ExitCode, Failure> {
    let usage = |text| Failure::usage(program, "resize", text);
    let (less, arguments) = take_less(arguments);
    let mut plan = Plan::default();
    let mut words = Vec::new();
    for given in cut(program, "resize", OPTIONS, &arguments) {
        let (option, value) = given?;
        match option {
            None => words.push(value),
            Some(Name::Help) => return Ok(explain(program, HELP)),
            Some(Name::Format) => plan.image.format = Some(value),
            Some(Name::ImageOptions) => plan.image.is_options = true,
            Some(Name::Object) => plan.objects.push(value),
            Some(Name::Preallocation) => plan.preallocation = preallocation(&value)?,
            Some(Name::Quiet) => plan.is_quiet = true,
            Some(Name::Shrink) => plan.shrinks = true,
        }
    }
    words.extend(less);
    let wanted = match words.as_slice() {
        [name, size] => {
            plan.image.name.clone_from(name);
            wanted(size)?
        }
        [_, _, _, ..] => return Err(usage("Extra argument(s) in command line")),
        _ => return Err(usage("Expecting image file name and size")),
    };
    plan.image.flags = OpenFlags::RDWR | OpenFlags::RESIZE;
    let objects = std::mem::take(&mut plan.objects);
    Ok(Tool::run(program, &objects, async |tool| {
        resize(tool, &plan, wanted).await
    }))
}

/// Takes out what makes an image shorter, which looks like an option: the word behind the image's name.
fn take_less(arguments: &[String]) -> (Option<String>, Vec<String>) {
    let mut arguments = arguments.to_vec();
    let name = arguments.len() - getopt::parse_leading(OPTIONS, &arguments).rest.len();
    let is_there = arguments.get(name + 1).is_some_and(|size| is_less(size));
    (is_there.then(|| arguments.remove(name + 1)), arguments)
}

fn is_less(size: &str) -> bool {
    size.strip_prefix('-')
        .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}

fn preallocation(word: &str) -> Result<Preallocation, Failure> {
    serde_json::from_value(word.into())
        .map_err(|_| Failure::new(format!("Invalid preallocation mode '{word}'")))
}

fn wanted(text: &str) -> Result<Wanted, Failure> {
    let (kind, size): (fn(u64) -> Wanted, _) = match text.split_at_checked(1) {
        Some(("+", size)) => (Wanted::More, size),
        Some(("-", size)) => (Wanted::Less, size),
        _ => (Wanted::Length, text),
    };
    size_option("size", size).map(kind)
}

async fn resize(tool: &Tool<'_>, plan: &Plan, wanted: Wanted) -> Result<ExitCode, Failure> {
    let client = tool.open(&plan.image).await?;
    let node = tool.graph().ask(FindRoot(client.root())).await?;
    let now = node.size;
    let length = match wanted {
        Wanted::Length(length) => Some(length),
        Wanted::More(more) => now.checked_add(more),
        Wanted::Less(less) => now.checked_sub(less),
    };
    let length = length
        .filter(|length| (1..=LARGEST).contains(length))
        .ok_or_else(|| Failure::new("New image size must be positive"))?;
    if length <= now && plan.preallocation != Preallocation::Off {
        return Err(Failure::new("Preallocation can only be used for growing images"));
    }
    if length < now && !plan.shrinks {
        let program = tool.program();
        program.tell("Use the --shrink option to perform a shrink operation.");
        program.warn(
            "Shrinking an image will delete all data beyond the shrunken image's end. Before performing such an \
            operation, make sure there is no important data there.",
        );
        return Ok(ExitCode::FAILURE);
    }
    let change = Truncate {
        node_name: node.name,
        size: length,
        exact: false,
        preallocation: plan.preallocation,
        flags: RequestFlags::empty(),
    };
    tool.graph().ask(change).await?;
    if !plan.is_quiet {
        print("Image resized.\n");
    }
    Ok(ExitCode::SUCCESS)
}
