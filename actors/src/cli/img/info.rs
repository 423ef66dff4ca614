//! `millpond img info`: what is known of an image, or of all images of a backing chain.
//!
//! No data of an image is read, and no file that an image names is opened unless the whole chain is asked for; then one image is
//! open at a time.

use super::described::{Described, describe};
use super::options::{cut, explain};
use super::output::{OutputForm, print_json};
use crate::cli::getopt::Row;
use crate::cli::tool::{Failure, ImageName, Program, Tool, print, read_cache};
use millpond_messages::OpenFlags;
use std::collections::HashSet;
use std::process::ExitCode;

const HELP: &str = "\
Usage: {program} info [-f FORMAT | --image-opts] [-b] [-U] [-t CACHE] [--limits]
           [--object OBJECT] [--output human|json] IMAGE

Shows what is known of IMAGE. The files that it names are left alone, unless -b is given.

Options:
  -f, --format FORMAT     The format of IMAGE, which is found out otherwise
      --image-opts        IMAGE is a list of options: key=value,...
  -b, --backing-chain     Show the images below it as well
  -U, --force-share       Others may write to it meanwhile
  -t, --cache CACHE       How the host's page cache is used: none, writeback, ...
      --limits            Show what the image asks of requests
      --object OBJECT     An object that the image needs, such as a secret
      --output human|json For whom it is shown: people, unless said otherwise
  -h, --help              Print this
";

#[derive(Clone, Copy)]
enum Name {
    Cache,
    Chain,
    ForceShare,
    Format,
    Help,
    ImageOptions,
    Limits,
    Object,
    Output,
}

const OPTIONS: &[Row<Name>] = &[
    Row::flag("help", Some('h'), Name::Help),
    Row::value("format", Some('f'), Name::Format),
    Row::value("output", None, Name::Output),
    Row::flag("backing-chain", Some('b'), Name::Chain),
    Row::value("object", None, Name::Object),
    Row::flag("image-opts", None, Name::ImageOptions),
    Row::flag("force-share", Some('U'), Name::ForceShare),
    Row::value("cache", Some('t'), Name::Cache),
    Row::flag("limits", None, Name::Limits),
];

#[derive(Default)]
struct Plan {
    image: ImageName,
    output: OutputForm,
    with_chain: bool,
    with_limits: bool,
}

/// Shows the image that `arguments` name.
pub(super) fn run(program: Program<'_>, arguments: &[String]) -> Result<ExitCode, Failure> {
    let mut plan = Plan::default();
    let (mut objects, mut words) = (Vec::new(), Vec::new());
    for given in cut(program, "info", OPTIONS, arguments) {
        let (option, value) = given?;
        match option {
            None => words.push(value),
            Some(Name::Help) => return Ok(explain(program, HELP)),
            Some(Name::Cache) => {
                let cache = read_cache(&value);
                let unknown = || Failure::new(format!("Invalid cache option: {value}"));
                (plan.image.flags, plan.image.writes_through) = cache.ok_or_else(unknown)?;
            }
            Some(Name::Chain) => plan.with_chain = true,
            Some(Name::ForceShare) => plan.image.force_share = true,
            Some(Name::Format) => plan.image.format = Some(value),
            Some(Name::ImageOptions) => plan.image.is_options = true,
            Some(Name::Limits) => plan.with_limits = true,
            Some(Name::Object) => objects.push(value),
            Some(Name::Output) => plan.output = OutputForm::parse(program, "info", &value)?,
        }
    }
    let [name] = <[String; 1]>::try_from(words)
        .map_err(|_| Failure::usage(program, "info", "Expecting one image file name"))?;
    plan.image.name = name;
    plan.image.flags |= OpenFlags::NO_BACKING | OpenFlags::NO_IO;
    Ok(Tool::run(program, &objects, async |tool| show(tool, plan).await))
}

async fn show(tool: &Tool<'_>, plan: Plan) -> Result<ExitCode, Failure> {
    let images = look(tool, &plan).await?;
    match (plan.output, plan.with_chain) {
        (OutputForm::Json, true) => print_json(&images.iter().map(Described::to_json).collect()),
        (OutputForm::Json, false) => images.iter().for_each(|image| print_json(&image.to_json())),
        (OutputForm::Human, _) => {
            let texts: Vec<String> = images.iter().map(Described::to_text).collect();
            print(&texts.join("\n"));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The image, and where that is asked for those below it.
async fn look(tool: &Tool<'_>, plan: &Plan) -> Result<Vec<Described>, Failure> {
    let mut image = plan.image.clone();
    let (mut images, mut names) = (Vec::new(), HashSet::new());
    loop {
        if !names.insert(image.name.clone()) {
            let text = format!("Backing file '{}' creates an infinite loop.", image.name);
            return Err(Failure::new(text));
        }
        let client = tool.open(&image).await?;
        let described = describe(tool, &client, plan.with_limits).await;
        tool.graph().detach(client.root()).await?;
        let described = described?;
        let next = described.info.full_backing_filename.clone();
        image.format = described.info.backing_filename_format.clone();
        images.push(described);
        match next.filter(|_| plan.with_chain) {
            Some(next) => {
                image.name = next;
                image.is_options = false;
            }
            None => return Ok(images),
        }
    }
}
