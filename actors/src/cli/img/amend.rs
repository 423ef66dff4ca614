//! `millpond img amend`: options of an image's format, changed in place.

use super::create::add_options;
use super::options::{cut, explain};
use super::progress::ShownProgress;
use crate::cli::getopt::Row;
use crate::cli::tool::{Failure, ImageName, Program, Tool, print, read_cache};
use millpond_graph::new_image::{Given, asks_for_help, known};
use millpond_messages::OpenFlags;
use millpond_messages::graph::{Amend, FindRoot, ListDrivers};
use std::process::ExitCode;

const HELP: &str = "\
Usage: {program} amend [-f FORMAT | --image-opts] [-t CACHE] [--force] [-p] [-q]
           [--object OBJECT] -o OPTIONS IMAGE

Changes what the format of IMAGE leaves to its users.

Options:
  -o, --options OPTIONS   What is changed: name=value,...; '-o help' lists what can be
  -f, --format FORMAT     The format of IMAGE, which is found out otherwise
      --image-opts        IMAGE is a list of options: key=value,...
  -t, --cache CACHE       How the host's page cache is used: writeback, unless said otherwise
      --force             Even what may lose data
      --object OBJECT     An object that the image needs, such as a secret
  -p, --progress          Show how far it is
  -q, --quiet             Do not
  -h, --help              Print this
";

#[derive(Clone, Copy)]
enum Name {
    Cache,
    Force,
    Format,
    Help,
    ImageOptions,
    Object,
    Options,
    Progress,
    Quiet,
}

const OPTIONS: &[Row<Name>] = &[
    Row::flag("help", Some('h'), Name::Help),
    Row::flag("quiet", Some('q'), Name::Quiet),
    Row::flag("progress", Some('p'), Name::Progress),
    Row::value("object", None, Name::Object),
    Row::value("format", Some('f'), Name::Format),
    Row::value("cache", Some('t'), Name::Cache),
    Row::value("options", Some('o'), Name::Options),
    Row::flag("image-opts", None, Name::ImageOptions),
    Row::flag("force", None, Name::Force),
];

#[derive(Default)]
struct Plan {
    image: ImageName,
    options: String,
    force: bool,
    shows_progress: bool,
    is_quiet: bool,
}

/// Changes what `arguments` say.
pub(super) fn run(program: Program<'_>, arguments: &[String]) -> Result<ExitCode, Failure> {
    let mut plan = Plan::default();
    let (mut objects, mut words) = (Vec::new(), Vec::new());
    let mut cache = "writeback".to_owned();
    for given in cut(program, "amend", OPTIONS, arguments) {
        let (option, value) = given?;
        match option {
            None => words.push(value),
            Some(Name::Help) => return Ok(explain(program, HELP)),
            Some(Name::Cache) => cache = value,
            Some(Name::Force) => plan.force = true,
            Some(Name::Format) => plan.image.format = Some(value),
            Some(Name::ImageOptions) => plan.image.is_options = true,
            Some(Name::Object) => objects.push(value),
            Some(Name::Options) => add_options(&mut plan.options, &value)?,
            Some(Name::Progress) => plan.shows_progress = true,
            Some(Name::Quiet) => plan.is_quiet = true,
        }
    }
    if plan.options.is_empty() {
        return Err(Failure::usage(program, "amend", "Must specify options (-o)"));
    }
    let asks = asks_for_help(&plan.options);
    let format = plan.image.format.clone();
    if let Some(format) = format.filter(|_| asks) {
        return Ok(Tool::run(program, &objects, async |tool| {
            describe(tool, &format).await
        }));
    }
    let [name] = <[String; 1]>::try_from(words).map_err(|_| Failure::new("Expecting one image file name"))?;
    plan.image.name = name;
    let unknown = || Failure::new(format!("Invalid cache option: {cache}"));
    (plan.image.flags, plan.image.writes_through) = read_cache(&cache).ok_or_else(unknown)?;
    plan.image.flags |= OpenFlags::RDWR | OpenFlags::RESIZE;
    Ok(Tool::run(program, &objects, async |tool| {
        amend(tool, &plan, asks).await
    }))
}

/// Prints what images of a format can be amended by.
async fn describe(tool: &Tool<'_>, format: &str) -> Result<ExitCode, Failure> {
    let drivers = tool.graph().ask(ListDrivers { read_only: true }).await?;
    if !drivers.iter().any(|driver| driver.name == format) && !known::FORMATS.contains(&format) {
        return Err(Failure::new(format!("Unknown file format '{format}'")));
    }
    let options = known::of_amendment(format);
    if options.is_empty() {
        return Err(unsupported(format));
    }
    print(&format!(
        "Amend options for '{format}':\n{}",
        known::help(options)
    ));
    Ok(ExitCode::SUCCESS)
}

fn unsupported(format: &str) -> Failure {
    Failure::new(format!(
        "Format driver '{format}' does not support option amendment"
    ))
}

async fn amend(tool: &Tool<'_>, plan: &Plan, asks: bool) -> Result<ExitCode, Failure> {
    let client = tool.open(&plan.image).await?;
    let node = tool.graph().ask(FindRoot(client.root())).await?;
    if asks {
        return describe(tool, &node.driver).await;
    }
    if known::of_amendment(&node.driver).is_empty() {
        return Err(unsupported(&node.driver));
    }
    let options = Given::of_amendment(&node.driver, &plan.options)?.to_amend()?;
    let progress = ShownProgress::new(plan.shows_progress && !plan.is_quiet);
    let request = Amend {
        node_name: node.name,
        options,
        force: plan.force,
    };
    tool.graph().ask(request).await?;
    progress.set(100.0);
    progress.complete();
    Ok(ExitCode::SUCCESS)
}
