//! `millpond img rebase`: another image put below an overlay, which shows what it showed before.

mod differences;

use std::process::ExitCode;

use millpond_messages::graph::{
    DescribeImage, EditForJob, FindBackingImage, FindRoot, JobEdit, NodeFacts, RootRequest, RootUser,
};
use millpond_messages::path::full_backing_filename;
use millpond_messages::{IoError, NodeId, OpenFlags, Permissions};

use self::differences::{Below, Differences};
use super::chain::chain_of;
use super::options::{cut, explain};
use super::progress::ShownProgress;
use crate::cli::getopt::Row;
use crate::cli::tool::{Failure, ImageName, Program, Tool, read_cache};
use crate::node::Client;

const HELP: &str = "\
Usage: {program} rebase [OPTION]... (-b IMAGE | -u) OVERLAY

Has OVERLAY stand on another image. What differs between what is below it now and that
image is written to OVERLAY, so that its disk stays what it is.

Options:
  -f, --format FORMAT          The format of OVERLAY, which is found out otherwise
      --image-opts             OVERLAY is a list of options: key=value,...
  -t, --cache MODE             How OVERLAY is cached (writeback)
  -b, --backing IMAGE          What it stands on from now on; '' for nothing
  -F, --backing-format FORMAT  The format of that IMAGE
  -T, --backing-cache MODE     How what is below is cached (writeback)
  -u, --backing-unsafe         Change the name that OVERLAY has for it, and look at no data
  -c, --compress               Compress what is written
  -U, --force-share            Others may write to the images meanwhile
  -p, --progress               Show how far it is
  -q, --quiet                  Say nothing but errors
      --object OBJECT          An object that an image needs, such as a secret
  -h, --help                   Print this
";

#[derive(Clone, Copy)]
enum Name {
    Backing,
    BackingCache,
    BackingFormat,
    Cache,
    Compress,
    Format,
    Help,
    ImageOptions,
    Object,
    Progress,
    Quiet,
    Share,
    Unsafe,
}

const OPTIONS: &[Row<Name>] = &[
    Row::flag("help", Some('h'), Name::Help),
    Row::value("format", Some('f'), Name::Format),
    Row::flag("image-opts", None, Name::ImageOptions),
    Row::value("cache", Some('t'), Name::Cache),
    Row::flag("compress", Some('c'), Name::Compress),
    Row::value("backing", Some('b'), Name::Backing),
    Row::value("backing-format", Some('F'), Name::BackingFormat),
    Row::value("backing-cache", Some('T'), Name::BackingCache),
    Row::flag("backing-unsafe", Some('u'), Name::Unsafe),
    Row::flag("force-share", Some('U'), Name::Share),
    Row::flag("progress", Some('p'), Name::Progress),
    Row::flag("quiet", Some('q'), Name::Quiet),
    Row::value("object", None, Name::Object),
];

struct Plan {
    image: ImageName,
    cache: String,
    backing: Option<String>,
    backing_format: Option<String>,
    backing_cache: String,
    is_unsafe: bool,
    compresses: bool,
    shows_progress: bool,
}

pub(super) fn run(program: Program<'_>, arguments: &[String]) -> Result<ExitCode, Failure> {
    let mut plan = Plan {
        image: ImageName::default(),
        cache: "writeback".to_owned(),
        backing: None,
        backing_format: None,
        backing_cache: "writeback".to_owned(),
        is_unsafe: false,
        compresses: false,
        shows_progress: false,
    };
    let (mut objects, mut words, mut is_quiet) = (Vec::new(), Vec::new(), false);
    for given in cut(program, "rebase", OPTIONS, arguments) {
        let (option, value) = given?;
        match option {
            None => words.push(value),
            Some(Name::Help) => return Ok(explain(program, HELP)),
            Some(Name::Backing) => plan.backing = Some(value),
            Some(Name::BackingCache) => plan.backing_cache = value,
            Some(Name::BackingFormat) => plan.backing_format = Some(value),
            Some(Name::Cache) => plan.cache = value,
            Some(Name::Compress) => plan.compresses = true,
            Some(Name::Format) => plan.image.format = Some(value),
            Some(Name::ImageOptions) => plan.image.is_options = true,
            Some(Name::Object) => objects.push(value),
            Some(Name::Progress) => plan.shows_progress = true,
            Some(Name::Quiet) => is_quiet = true,
            Some(Name::Share) => plan.image.force_share = true,
            Some(Name::Unsafe) => plan.is_unsafe = true,
        }
    }
    plan.shows_progress &= !is_quiet;
    let usage = |text| Failure::usage(program, "rebase", text);
    match <[String; 1]>::try_from(words) {
        Ok([name]) => plan.image.name = name,
        Err(_) => return Err(usage("Expecting one image file name")),
    }
    if !plan.is_unsafe && plan.backing.is_none() {
        return Err(usage("Must specify backing file (-b) or use unsafe mode (-u)"));
    }
    Ok(Tool::run(program, &objects, async |tool| {
        rebase(tool, &mut plan).await
    }))
}

async fn rebase(tool: &Tool<'_>, plan: &mut Plan) -> Result<ExitCode, Failure> {
    let progress = ShownProgress::new(plan.shows_progress);
    let mode = |mode: &str, what: &str| {
        read_cache(mode).ok_or_else(|| Failure::new(format!("Invalid {what} option: {mode}")))
    };
    let (flags, writes_through) = mode(&plan.cache, "cache")?;
    let below = mode(&plan.backing_cache, "source cache")?;
    plan.image.flags = flags | OpenFlags::RDWR;
    plan.image.flags.set(OpenFlags::NO_BACKING, plan.is_unsafe);
    plan.image.writes_through = writes_through;
    let client = tool.open(&plan.image).await?;
    let facts = tool.graph().ask(FindRoot(client.root())).await?;
    let chain = chain_of(tool, &facts.name).await?;
    let overlay = chain
        .iter()
        .find(|node| !node.is_filter)
        .unwrap_or(&facts)
        .clone();
    if plan.compresses && !overlay.takes_compressed {
        return Err(Failure::new("Compression not supported for this file format"));
    }
    check_format(tool, plan).await?;
    if !plan.is_unsafe {
        let differences = Differences {
            overlay: client.clone(),
            length: facts.size,
            block: block(tool, plan, &overlay).await,
            compresses: plan.compresses,
            old: old_backing(tool, &chain).await?,
            new: new_backing(tool, plan, &overlay, below).await?,
        };
        differences.write(&progress).await?;
        // What the overlay has by now is on disk before it stands on something else.
        let failed = |error| Failure::new(format!("Could not flush '{}': {error}", plan.image.name));
        client.flush().await.map_err(failed)?;
    }
    record(tool, plan, &overlay).await?;
    progress.complete();
    Ok(ExitCode::SUCCESS)
}

async fn check_format(tool: &Tool<'_>, plan: &Plan) -> Result<(), Failure> {
    use millpond_messages::graph::ListDrivers;
    let Some(format) = &plan.backing_format else {
        return Ok(());
    };
    let drivers = tool.graph().ask(ListDrivers { read_only: true }).await?;
    match drivers.iter().any(|driver| driver.name == *format) {
        true => Ok(()),
        false => Err(Failure::new(format!("Invalid format name: '{format}'"))),
    }
}

/// What the overlay allocates in one go, in bytes: whole clusters where they are compressed.
async fn block(tool: &Tool<'_>, plan: &Plan, overlay: &NodeFacts) -> u64 {
    let node_name = overlay.name.clone();
    let info = tool.graph().ask(DescribeImage { node_name }).await.ok();
    let size = info.map_or(0, |info| match plan.compresses || info.subcluster_size == 0 {
        true => info.cluster_size,
        false => info.subcluster_size,
    });
    size.max(u64::from(overlay.limits.request_alignment))
        .max(millpond_messages::SECTOR_SIZE)
}

/// Takes hold of what is below the overlay now.
async fn old_backing(tool: &Tool<'_>, chain: &[NodeFacts]) -> Result<Option<Below>, Failure> {
    let overlay = chain.iter().position(|node| !node.is_filter);
    match chain.get(overlay.map_or(0, |overlay| overlay + 1)) {
        Some(node) => hold(tool, node).await.map(Some),
        None => Ok(None),
    }
}

async fn hold(tool: &Tool<'_>, node: &NodeFacts) -> Result<Below, Failure> {
    let user = RootUser::Embedder(String::new());
    let request = RootRequest::new(node.name.as_str(), user, Permissions::CONSISTENT_READ);
    let client = tool.graph().attach(request).await?;
    Ok(Below {
        length: node.size,
        client,
        shared: None,
    })
}

/// Opens what is below the overlay from now on, or takes hold of it where it is in the chain already.
async fn new_backing(
    tool: &Tool<'_>,
    plan: &Plan,
    overlay: &NodeFacts,
    (flags, writes_through): (OpenFlags, bool),
) -> Result<Option<Below>, Failure> {
    let Some(name) = plan.backing.as_ref().filter(|name| !name.is_empty()) else {
        return Ok(None);
    };
    let path = full_backing_filename(&overlay.filename, name)
        .map_err(|error| Failure::new(format!("Could not resolve backing filename: {error}")))?;
    let found = tool.graph().ask(FindBackingImage {
        top: overlay.name.clone(),
        filename: path.clone(),
    });
    if let Some(node) = found.await? {
        let below = hold(tool, &node).await?;
        return Ok(Some(below.in_chain(node.id)));
    }
    let image = ImageName {
        name: path,
        format: plan.backing_format.clone(),
        is_options: false,
        flags,
        writes_through,
        force_share: plan.image.force_share,
    };
    let opening = image.to_open(tool.program())?;
    let user = RootUser::Embedder(tool.program().0.to_owned());
    let told = format!("Could not open new backing file '{name}'");
    let client = tool.graph().open_held(opening, user).await;
    let client: Client = client.map_err(|error| Failure::from(error).within(&told))?;
    let unknown = |error: IoError| Failure::new(format!("Could not get size of '{name}': {error}"));
    Ok(Some(Below {
        length: client.length().await.map_err(unknown)?,
        client,
        shared: None::<NodeId>,
    }))
}

/// Stores in the overlay's header what it stands on.
async fn record(tool: &Tool<'_>, plan: &Plan, overlay: &NodeFacts) -> Result<(), Failure> {
    let name = plan.backing.as_deref().unwrap_or_default();
    let told = |why: &str| Failure::new(format!("Could not change the backing file to '{name}': {why}"));
    let backing = plan.backing.clone().filter(|name| !name.is_empty());
    // A format that is guessed each time can be chosen by who writes to the backing image.
    if backing.is_some() && plan.backing_format.is_none() && overlay.driver == "qcow2" {
        return Err(told("backing format must be specified"));
    }
    let stored = tool.graph().ask(EditForJob(JobEdit::StoreBacking {
        node_name: overlay.name.clone(),
        backing_format: backing.as_ref().and(plan.backing_format.clone()),
        backing_file: backing,
    }));
    stored
        .await
        .map_err(|error| match IoError::from_errno(error.errno()) {
            IoError::NoSpace => told("No space left in the file header"),
            other => told(&other.to_string()),
        })
}
