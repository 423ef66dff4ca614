//! `millpond img measure`: how large the file of an image will be that is yet to be made.

use super::create::add_options;
use super::options::{cut, explain};
use super::output::{OutputForm, print_json};
use crate::cli::getopt::Row;
use crate::cli::tool::{Failure, ImageName, LARGEST, Program, ShownSnapshot, Tool, number, print};
use crate::image;
use crate::measure::Measured;
use millpond_graph::new_image::{Given, known};
use millpond_messages::ImageMeasure;
use millpond_messages::graph::{FindRoot, ListDrivers};
use serde_json::json;
use std::process::ExitCode;

const HELP: &str = "\
Usage: {program} measure [-O FORMAT] [-o OPTIONS] [--output human|json] [--object OBJECT]
           (-s SIZE | [-f FORMAT | --image-opts] [-l SNAPSHOT] [-U] IMAGE)

Shows how large the file of a new image will be: one with a disk of SIZE bytes, or a copy of
IMAGE.

Options:
  -O, --target-format FORMAT
                          The format of the new image: raw, unless said otherwise
  -o, --options OPTIONS   What the format leaves to its users: name=value,...
  -s, --size SIZE         The length of the disk
  -f, --format FORMAT     The format of IMAGE, which is found out otherwise
      --image-opts        IMAGE is a list of options: key=value,...
  -l, --snapshot SNAPSHOT A snapshot inside IMAGE, by id or name or as
                          snapshot.id=ID,snapshot.name=NAME
  -U, --force-share       Others may write to IMAGE meanwhile
      --object OBJECT     An object that an image needs, such as a secret
      --output human|json For whom it is shown: people, unless said otherwise
  -h, --help              Print this
";

#[derive(Clone, Copy)]
enum Name {
    ForceShare,
    Format,
    Help,
    ImageOptions,
    Object,
    Options,
    Output,
    Size,
    Snapshot,
    Target,
}

const OPTIONS: &[Row<Name>] = &[
    Row::flag("help", Some('h'), Name::Help),
    Row::value("target-format", Some('O'), Name::Target),
    Row::value("format", Some('f'), Name::Format),
    Row::flag("image-opts", None, Name::ImageOptions),
    Row::value("options", Some('o'), Name::Options),
    Row::value("snapshot", Some('l'), Name::Snapshot),
    Row::value("object", None, Name::Object),
    Row::value("output", None, Name::Output),
    Row::value("size", Some('s'), Name::Size),
    Row::flag("force-share", Some('U'), Name::ForceShare),
];

struct Plan {
    image: ImageName,
    size: Option<u64>,
    snapshot: Option<ShownSnapshot>,
    target: String,
    options: String,
    output: OutputForm,
}

/// Measures what `arguments` say.
pub(super) fn run(program: Program<'_>, arguments: &[String]) -> Result<ExitCode, Failure> {
    let mut plan = Plan {
        image: ImageName::default(),
        size: None,
        snapshot: None,
        target: "raw".to_owned(),
        options: String::new(),
        output: OutputForm::default(),
    };
    let (mut objects, mut words) = (Vec::new(), Vec::new());
    for given in cut(program, "measure", OPTIONS, arguments) {
        let (option, value) = given?;
        match option {
            None => words.push(value),
            Some(Name::Help) => return Ok(explain(program, HELP)),
            Some(Name::ForceShare) => plan.image.force_share = true,
            Some(Name::Format) => plan.image.format = Some(value),
            Some(Name::ImageOptions) => plan.image.is_options = true,
            Some(Name::Object) => objects.push(value),
            Some(Name::Options) => add_options(&mut plan.options, &value)?,
            Some(Name::Output) => plan.output = OutputForm::parse(program, "measure", &value)?,
            Some(Name::Size) => plan.size = Some(number("image size", &value, 0..=LARGEST)?),
            Some(Name::Snapshot) => plan.snapshot = Some(ShownSnapshot::read(program, value, '\'')?),
            Some(Name::Target) => plan.target = value,
        }
    }
    let mut words = words.into_iter();
    let name = words.next();
    if words.next().is_some() {
        return Err(Failure::new("At most one filename argument is allowed."));
    }
    let about_image = plan.image.is_options || plan.image.format.is_some() || plan.snapshot.is_some();
    let refusal = match (&name, plan.size) {
        (None, _) if about_image => Some("--image-opts, -f, and -l require a filename argument."),
        (None, None) => Some("Either --size N or one filename must be specified."),
        (Some(_), Some(_)) => Some("--size N cannot be used together with a filename."),
        _ => None,
    };
    if let Some(text) = refusal {
        return Err(Failure::new(text));
    }
    plan.image.name = name.unwrap_or_default();
    Ok(Tool::run(program, &objects, async |tool| {
        measure(tool, plan).await
    }))
}

async fn measure(tool: &Tool<'_>, plan: Plan) -> Result<ExitCode, Failure> {
    let measured = match plan.size {
        Some(size) => Measured::Empty(size),
        None => Measured::CopyOf(open(tool, &plan).await?),
    };
    let drivers = tool.graph().ask(ListDrivers { read_only: false }).await?;
    image::maker(&drivers, &plan.target, "file format", "Format driver")?;
    if !plan.options.is_empty() {
        Given::of_format(&plan.target, &plan.options).map_err(|error| {
            Failure::from(error).tell(tool.program());
            Failure::new(format!("Invalid options for file format '{}'", plan.target))
        })?;
    }
    check_words(&plan)?;
    let graph = tool.graph();
    let found = graph
        .measure_image(&plan.target, &plan.options, &measured)
        .await?;
    match plan.output {
        OutputForm::Json => {
            let mut value = json!({
                "required": found.required,
                "fully-allocated": found.fully_allocated,
            });
            if let (Some(bitmaps), Some(members)) = (found.bitmaps, value.as_object_mut()) {
                members.insert("bitmaps".to_owned(), bitmaps.into());
            }
            print_json(&value);
        }
        OutputForm::Human => print(&to_text(&found)),
    }
    Ok(ExitCode::SUCCESS)
}

/// Refuses what a measurement refuses in words of its own.
fn check_words(plan: &Plan) -> Result<(), Failure> {
    let given = Given::of_format(&plan.target, &plan.options)?;
    let preallocation = given.get("preallocation");
    let unknown = preallocation.filter(|mode| !known::PREALLOCATIONS.contains(mode));
    if let Some(mode) = unknown {
        return Err(Failure::new(format!("invalid parameter value: {mode}")));
    }
    match given.get("compat") {
        None | Some("0.10" | "1.1" | "v2" | "v3") => Ok(()),
        Some(version) => Err(Failure::new(format!("Invalid compatibility level: '{version}'"))),
    }
}

fn to_text(found: &ImageMeasure) -> String {
    let mut text = format!(
        "required size: {}\nfully allocated size: {}\n",
        found.required, found.fully_allocated
    );
    if let Some(bitmaps) = found.bitmaps {
        text.push_str(&format!("bitmaps size: {bitmaps}\n"));
    }
    text
}

/// Opens the image that is to be copied, or the snapshot inside it; answers the node's name.
async fn open(tool: &Tool<'_>, plan: &Plan) -> Result<String, Failure> {
    let client = tool.open(&plan.image).await?;
    let node = tool.graph().ask(FindRoot(client.root())).await?.name;
    if let Some(snapshot) = &plan.snapshot {
        snapshot.show(tool, &node).await?;
    }
    Ok(node)
}
