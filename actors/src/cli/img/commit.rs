//! `millpond img commit`: what an overlay has of its own, written to an image below it.

use std::process::ExitCode;

use millpond_messages::graph::{FindBackingImage, FindRoot, MakeEmpty};
use millpond_messages::qapi::QmpEvent;
use millpond_messages::qapi::schema::{BlockCommit, JobStatus};
use millpond_messages::{ErrorKind, IoError, OpenFlags};

use super::options::{cut, explain};
use super::progress::ShownProgress;
use crate::cli::getopt::Row;
use crate::cli::tool::{Failure, ImageName, LARGEST, Program, Tool, number, print, read_cache};
use crate::job::{Family, JobOrder};
use crate::node::Client;

const HELP: &str = "\
Usage: {program} commit [OPTION]... IMAGE

Writes what IMAGE has of its own to its backing image, and empties IMAGE.

Options:
  -f, --format FORMAT  The format of IMAGE, which is found out otherwise
      --image-opts     IMAGE is a list of options: key=value,...
  -t, --cache MODE     How the images are cached (writeback)
  -b, --base BASE      The image of the chain that is written to, rather than the next one;
                       IMAGE is left as it is then
  -d, --drop           IMAGE is not needed any more, and left as it is
  -r, --rate RATE      Bytes to be written in a second at most
  -p, --progress       Show how far it is
  -q, --quiet          Say nothing but errors
      --object OBJECT  An object that an image needs, such as a secret
  -h, --help           Print this
";

#[derive(Clone, Copy)]
enum Name {
    Base,
    Cache,
    Drop,
    Format,
    Help,
    ImageOptions,
    Object,
    Progress,
    Quiet,
    Rate,
}

const OPTIONS: &[Row<Name>] = &[
    Row::flag("help", Some('h'), Name::Help),
    Row::value("format", Some('f'), Name::Format),
    Row::flag("image-opts", None, Name::ImageOptions),
    Row::value("cache", Some('t'), Name::Cache),
    Row::flag("drop", Some('d'), Name::Drop),
    Row::value("base", Some('b'), Name::Base),
    Row::value("rate", Some('r'), Name::Rate),
    Row::flag("progress", Some('p'), Name::Progress),
    Row::flag("quiet", Some('q'), Name::Quiet),
    Row::value("object", None, Name::Object),
];

/// The job that copies.
const JOB: &str = "commit";

struct Plan {
    image: ImageName,
    cache: String,
    base: Option<String>,
    drops: bool,
    rate: u64,
    shows_progress: bool,
    is_quiet: bool,
}

pub(super) fn run(program: Program<'_>, arguments: &[String]) -> Result<ExitCode, Failure> {
    let mut plan = Plan {
        image: ImageName::default(),
        cache: "writeback".to_owned(),
        base: None,
        drops: false,
        rate: 0,
        shows_progress: false,
        is_quiet: false,
    };
    let (mut objects, mut words) = (Vec::new(), Vec::new());
    for given in cut(program, "commit", OPTIONS, arguments) {
        let (option, value) = given?;
        match option {
            None => words.push(value),
            Some(Name::Help) => return Ok(explain(program, HELP)),
            Some(Name::Base) => plan.base = Some(value),
            Some(Name::Cache) => plan.cache = value,
            Some(Name::Drop) => plan.drops = true,
            Some(Name::Format) => plan.image.format = Some(value),
            Some(Name::ImageOptions) => plan.image.is_options = true,
            Some(Name::Object) => objects.push(value),
            Some(Name::Progress) => plan.shows_progress = true,
            Some(Name::Quiet) => plan.is_quiet = true,
            Some(Name::Rate) => plan.rate = number("rate limit", &value, 0..=LARGEST)?,
        }
    }
    // An image that is named is left as it is, as it is not what stands on the base directly.
    plan.drops |= plan.base.is_some();
    match <[String; 1]>::try_from(words) {
        Ok([name]) => plan.image.name = name,
        Err(_) => return Err(Failure::usage(program, "commit", "Expecting one image file name")),
    }
    Ok(Tool::run(program, &objects, async |tool| {
        commit(tool, &mut plan).await
    }))
}

async fn commit(tool: &Tool<'_>, plan: &mut Plan) -> Result<ExitCode, Failure> {
    let (flags, writes_through) = read_cache(&plan.cache)
        .ok_or_else(|| Failure::new(format!("Invalid cache option: {}", plan.cache)))?;
    plan.image.flags = flags | OpenFlags::RDWR | OpenFlags::UNMAP;
    plan.image.writes_through = writes_through;
    let client = tool.open(&plan.image).await?;
    let progress = ShownProgress::new(plan.shows_progress && !plan.is_quiet);
    let top = tool.graph().ask(FindRoot(client.root())).await?.name;
    let base = find_base(tool, plan, &top).await?;
    merge(tool, plan, &top, base, &progress).await?;
    progress.complete();
    drop(progress);
    if !plan.drops {
        empty(tool, plan, client).await?;
    }
    if !plan.is_quiet {
        print("Image committed.\n");
    }
    Ok(ExitCode::SUCCESS)
}

/// The node that is written to.
async fn find_base(tool: &Tool<'_>, plan: &Plan, top: &str) -> Result<String, Failure> {
    let Some(filename) = &plan.base else {
        let next = super::chain::backing_of(tool, top).await?;
        return next.ok_or_else(|| Failure::new("Image does not have a backing file"));
    };
    let found = tool.graph().ask(FindBackingImage {
        top: top.to_owned(),
        filename: filename.clone(),
    });
    let missing = || {
        let text = format!(
            "Did not find '{filename}' in the backing chain of '{}'",
            plan.image.name
        );
        Failure::new(text)
    };
    let base = found.await?.ok_or_else(missing)?;
    Ok(base.name)
}

/// Has a job copy, and ends it. What stood on the overlay stands on the base then.
async fn merge(
    tool: &Tool<'_>,
    plan: &Plan,
    top: &str,
    base: String,
    progress: &ShownProgress,
) -> Result<(), Failure> {
    let daemon = tool.daemon();
    let mut events = daemon.events().subscribe();
    let speed = i64::try_from(plan.rate).unwrap_or(i64::MAX);
    let asked = BlockCommit {
        job_id: Some(JOB.to_owned()),
        device: top.to_owned(),
        base_node: Some(base),
        base: None,
        top_node: None,
        top: None,
        backing_file: None,
        backing_mask_protocol: None,
        speed: Some(speed),
        on_error: None,
        filter_node_name: None,
        auto_finalize: None,
        auto_dismiss: Some(false),
    };
    daemon.start_commit(asked).await?;
    loop {
        let status = match events.next().await.event.event {
            QmpEvent::JobStatusChange { id, status } if id == JOB => status,
            _ => continue,
        };
        let jobs = daemon.jobs();
        let list = jobs.list().await;
        let job = list.iter().find(|job| job.id == JOB);
        if let Some(job) = job {
            let (done, all) = (job.current_progress, job.total_progress);
            progress.of(done.unsigned_abs(), all.unsigned_abs());
        }
        match status {
            JobStatus::Ready => jobs.apply(Family::Job, JOB, JobOrder::Complete).await?,
            JobStatus::Concluded => {
                let error = job.and_then(|job| job.error.clone());
                jobs.apply(Family::Job, JOB, JobOrder::Dismiss).await?;
                return error.map_or(Ok(()), |error| {
                    Err(Failure::new(format!("Block job failed: {error}")))
                });
            }
            _ => {}
        }
    }
}

/// Lets the overlay forget what its backing image has by now, for good.
async fn empty(tool: &Tool<'_>, plan: &Plan, base: Client) -> Result<(), Failure> {
    let failed = |error| Failure::new(format!("Could not flush the backing image: {error}"));
    base.flush().await.map_err(failed)?;
    tool.graph().detach(base.root()).await?;
    let overlay = tool.open(&plan.image).await?;
    let facts = tool.graph().ask(FindRoot(overlay.root())).await?;
    let (node_name, filename) = (facts.name, facts.filename);
    match tool.graph().ask(MakeEmpty { node_name }).await {
        Err(error) if error.kind() == ErrorKind::Unsupported => Ok(()),
        emptied => emptied.map_err(|error| {
            let why = IoError::from_errno(error.errno());
            Failure::new(format!("Failed to empty {filename}: {why}"))
        }),
    }
}
