//! `millpond img check`: whether an image's metadata is sound, and repairs of it.

use super::options::{cut, explain};
use super::output::{OutputForm, print_json};
use crate::cli::getopt::Row;
use crate::cli::tool::{Failure, ImageName, Program, Tool, print, read_cache};
use millpond_messages::graph::{CheckImage, FindRoot};
use millpond_messages::qapi::Object;
use millpond_messages::{CheckResult, Error, ErrorKind, OpenFlags, Repair};
use serde_json::Value;
use std::process::ExitCode;

const HELP: &str = "\
Usage: {program} check [-f FORMAT | --image-opts] [-T CACHE] [-r leaks|all] [-U] [-q]
           [--object OBJECT] [--output human|json] IMAGE

Checks the metadata of IMAGE.

Options:
  -f, --format FORMAT     The format of IMAGE, which is found out otherwise
      --image-opts        IMAGE is a list of options: key=value,...
  -T, --cache CACHE       How the host's page cache is used: writeback, unless said otherwise
  -U, --force-share       Others may write to it meanwhile
  -r, --repair leaks|all  Repair clusters that nothing refers to, or all that is wrong
      --object OBJECT     An object that the image needs, such as a secret
      --output human|json For whom the result is: people, unless said otherwise
  -q, --quiet             Say nothing, but by the exit code
  -h, --help              Print this

Exit codes: 0 nothing is wrong, 1 the check has failed, 2 the image is damaged, 3 clusters
are leaked, which costs space alone, 63 the format has nothing to check.
";

/// The check could not be done.
const FAILED: u8 = 1;
/// The image is damaged.
const CORRUPT: u8 = 2;
/// Clusters of the image are leaked.
const LEAKS: u8 = 3;
/// The format has nothing to check.
const UNSUPPORTED: u8 = 63;

#[derive(Clone, Copy)]
enum Name {
    Cache,
    ForceShare,
    Format,
    Help,
    ImageOptions,
    Object,
    Output,
    Quiet,
    Repair,
}

const OPTIONS: &[Row<Name>] = &[
    Row::flag("help", Some('h'), Name::Help),
    Row::flag("quiet", Some('q'), Name::Quiet),
    Row::value("format", Some('f'), Name::Format),
    Row::value("cache", Some('T'), Name::Cache),
    Row::value("repair", Some('r'), Name::Repair),
    Row::value("output", None, Name::Output),
    Row::value("object", None, Name::Object),
    Row::flag("image-opts", None, Name::ImageOptions),
    Row::flag("force-share", Some('U'), Name::ForceShare),
];

#[derive(Default)]
struct Plan {
    image: ImageName,
    repair: Repair,
    output: OutputForm,
    is_quiet: bool,
}

/// Checks the image that `arguments` name.
pub(super) fn run(program: Program<'_>, arguments: &[String]) -> Result<ExitCode, Failure> {
    let mut plan = Plan::default();
    let (mut objects, mut words) = (Vec::new(), Vec::new());
    let mut cache = "writeback".to_owned();
    for given in cut(program, "check", OPTIONS, arguments) {
        let (option, value) = given?;
        match option {
            None => words.push(value),
            Some(Name::Help) => return Ok(explain(program, HELP)),
            Some(Name::Cache) => cache = value,
            Some(Name::ForceShare) => plan.image.force_share = true,
            Some(Name::Format) => plan.image.format = Some(value),
            Some(Name::ImageOptions) => plan.image.is_options = true,
            Some(Name::Object) => objects.push(value),
            Some(Name::Output) => plan.output = OutputForm::parse(program, "check", &value)?,
            Some(Name::Quiet) => plan.is_quiet = true,
            Some(Name::Repair) => plan.repair = repair(program, &value)?,
        }
    }
    let [name] = <[String; 1]>::try_from(words)
        .map_err(|_| Failure::usage(program, "check", "Expecting one image file name"))?;
    plan.image.name = name;
    let unknown = || Failure::new(format!("Invalid source cache option: {cache}"));
    let (flags, writes_through) = read_cache(&cache).ok_or_else(unknown)?;
    plan.image.flags = flags | OpenFlags::UNMAP | OpenFlags::CHECK;
    plan.image.writes_through = writes_through;
    plan.image
        .flags
        .set(OpenFlags::RDWR | OpenFlags::RESIZE, plan.repair.is_wanted());
    Ok(Tool::run(program, &objects, async |tool| {
        check(tool, &plan).await
    }))
}

fn repair(program: Program<'_>, word: &str) -> Result<Repair, Failure> {
    match word {
        "leaks" => Ok(Repair {
            leaks: true,
            errors: false,
        }),
        "all" => Ok(Repair {
            leaks: true,
            errors: true,
        }),
        _ => {
            let text = format!("--repair (-r) expects 'leaks' or 'all' not '{word}'");
            Err(Failure::usage(program, "check", text))
        }
    }
}

async fn check(tool: &Tool<'_>, plan: &Plan) -> Result<ExitCode, Failure> {
    let client = tool.open(&plan.image).await?;
    let node = tool.graph().ask(FindRoot(client.root())).await?;
    let request = CheckImage {
        node_name: node.name,
        repair: plan.repair,
    };
    let result = tool.graph().ask(request).await.map_err(failure)?;
    match plan.output {
        _ if plan.is_quiet => {}
        OutputForm::Json => print_json(&to_json(&plan.image.name, &node.driver, &result)),
        OutputForm::Human => print(&to_text(&result)),
    }
    let code = match result {
        CheckResult {
            check_errors: 1.., ..
        } => FAILED,
        CheckResult { corruptions: 1.., .. } => CORRUPT,
        CheckResult { leaks: 1.., .. } => LEAKS,
        _ => 0,
    };
    Ok(ExitCode::from(code))
}

fn failure(error: Error) -> Failure {
    let code = match error.kind() {
        ErrorKind::Unsupported => UNSUPPORTED,
        _ => FAILED,
    };
    Failure::from(error).with_code(code)
}

/// The result as programs read it: what is zero is left out.
fn to_json(filename: &str, format: &str, result: &CheckResult) -> Value {
    let mut members = Object::new();
    members.insert("filename".to_owned(), filename.into());
    members.insert("format".to_owned(), format.into());
    members.insert("check-errors".to_owned(), result.check_errors.into());
    let counts = [
        ("image-end-offset", result.image_end_offset),
        ("corruptions", result.corruptions),
        ("leaks", result.leaks),
        ("corruptions-fixed", result.corruptions_fixed),
        ("leaks-fixed", result.leaks_fixed),
        ("total-clusters", result.fragments.total_clusters),
        ("allocated-clusters", result.fragments.allocated_clusters),
        ("fragmented-clusters", result.fragments.fragmented_clusters),
        ("compressed-clusters", result.fragments.compressed_clusters),
    ];
    let found = counts.into_iter().filter(|(_, count)| *count != 0);
    members.extend(found.map(|(name, count)| (name.to_owned(), count.into())));
    Value::Object(members)
}

/// The result as people read it.
fn to_text(result: &CheckResult) -> String {
    let mut text = String::new();
    if result.corruptions_fixed > 0 || result.leaks_fixed > 0 {
        text.push_str(&format!(
            "The following inconsistencies were found and repaired:\n\n    {} leaked clusters\n    {} corruptions\n\n\
            Double checking the fixed image now...\n",
            result.leaks_fixed, result.corruptions_fixed
        ));
    }
    let is_sound = result.corruptions == 0 && result.leaks == 0 && result.check_errors == 0;
    if is_sound {
        text.push_str("No errors were found on the image.\n");
    }
    if result.corruptions > 0 {
        text.push_str(&format!(
            "\n{} errors were found on the image.\nData may be corrupted, or further writes to the image may corrupt it.\n",
            result.corruptions
        ));
    }
    if result.leaks > 0 {
        text.push_str(&format!(
            "\n{} leaked clusters were found on the image.\nThis means waste of disk space, but no harm to data.\n",
            result.leaks
        ));
    }
    if result.check_errors > 0 {
        let count = result.check_errors;
        text.push_str(&format!(
            "\n{count} internal errors have occurred during the check.\n"
        ));
    }
    let fragments = &result.fragments;
    if fragments.total_clusters > 0 && fragments.allocated_clusters > 0 {
        let percent = |part: u64, of: u64| part as f64 * 100.0 / of as f64;
        text.push_str(&format!(
            "{}/{} = {:.2}% allocated, {:.2}% fragmented, {:.2}% compressed clusters\n",
            fragments.allocated_clusters,
            fragments.total_clusters,
            percent(fragments.allocated_clusters, fragments.total_clusters),
            percent(fragments.fragmented_clusters, fragments.allocated_clusters),
            percent(fragments.compressed_clusters, fragments.allocated_clusters),
        ));
    }
    if result.image_end_offset > 0 {
        text.push_str(&format!("Image end offset: {}\n", result.image_end_offset));
    }
    text
}
