//! `millpond img convert`: images copied into a new one, or into one that is there.

mod bitmaps;
mod plan;
mod source;
mod target;

use std::process::ExitCode;

use millpond_messages::graph::DescribeImage;
use millpond_messages::{IoError, SECTOR_SIZE};

use self::plan::{ConvertPlan, Read};
use super::copy::{BufferPool, Copy, CopyFault, Kind, Scan, Shape, Sparse, Way};
use super::pace::CopyPace;
use super::progress::ShownProgress;
use crate::cli::tool::{Failure, Program, Tool};
use crate::node::Client;
use millpond_messages::graph::NodeFacts;

/// Bytes of data in one piece, unless an image would have more.
const PIECE: u64 = 2 << 20;
/// The most bytes of data in one piece.
const MOST_PIECE: u64 = 16 << 20;

pub(super) fn run(program: Program<'_>, arguments: &[String]) -> Result<ExitCode, Failure> {
    let mut plan = match plan::read(program, arguments)? {
        Read::Plan(plan) => plan,
        Read::Done(code) => return Ok(code),
    };
    let objects = std::mem::take(&mut plan.objects);
    Ok(Tool::run(program, &objects, async |tool| {
        convert(tool, &plan).await
    }))
}

async fn convert(tool: &Tool<'_>, plan: &ConvertPlan) -> Result<ExitCode, Failure> {
    let cache = plan.source_cache()?;
    let progress = ShownProgress::new(plan.shows_progress && !plan.is_quiet);
    let sources = source::open_all(tool, plan, cache).await?;
    source::load_snapshot(tool, plan, &sources).await?;
    let length = sources.last().map_or(0, |opened| opened.source.end());
    let new = match plan.creates {
        true => Some(target::prepare(tool, plan, length).await?),
        false => None,
    };
    let backing = match &new {
        Some(new) => new.backing.clone(),
        None => plan.backing.clone(),
    };
    check_backing(plan, backing.as_deref())?;
    if let Some(new) = new.as_ref().filter(|_| plan.compresses) {
        new.check_compression()?;
    }
    if plan.copies_bitmaps {
        bitmaps::check(tool, plan, &sources).await?;
    }
    let (target, facts) = target::open(tool, plan, new).await?;
    if plan.copies_bitmaps {
        bitmaps::check_target(tool, &facts).await?;
    }
    if plan.compresses && !facts.takes_compressed {
        return Err(Failure::new("Compression not supported for this file format"));
    }
    let backing_length = match backing {
        Some(_) => target::backing_length(tool, &facts.name).await,
        None => None,
    };
    if !plan.creates {
        check_room(&target, length).await?;
    }
    if plan.is_zero && backing.is_some() {
        let text = "Cannot use --target-is-zero when the destination image has a backing file";
        // QEMU's tool says so, and exits as if it had been done.
        return Err(Failure::new(text).with_code(0));
    }
    let names: Vec<String> = sources.iter().map(|opened| opened.node.clone()).collect();
    let form = Form {
        facts: &facts,
        has_backing: backing.is_some(),
        backing_length,
    };
    let shape = form.shape(tool, plan, sources).await?;
    let way = form.way(plan, &shape);
    copy(tool, plan, &target, (&shape, way), &progress).await?;
    if let Some(source) = names.first().filter(|_| plan.copies_bitmaps) {
        bitmaps::copy(tool, plan, source, &facts.name).await?;
    }
    progress.complete();
    Ok(ExitCode::SUCCESS)
}

/// Several images in a row have no backing file in common.
fn check_backing(plan: &ConvertPlan, backing: Option<&str>) -> Result<(), Failure> {
    if backing.is_some() && plan.sources.len() > 1 {
        let text =
            "Having a backing file for the target makes no sense when concatenating multiple input images";
        return Err(Failure::new(text));
    }
    Ok(())
}

async fn check_room(target: &Client, length: u64) -> Result<(), Failure> {
    let unknown = |error: IoError| Failure::new(format!("unable to get output image length: {error}"));
    match target
        .length()
        .await
        .map_err(unknown)?
        .next_multiple_of(SECTOR_SIZE)
        < length
    {
        true => Err(Failure::new("output file is smaller than input file")),
        false => Ok(()),
    }
}

/// What of the target decides how it is written.
struct Form<'a> {
    facts: &'a NodeFacts,
    has_backing: bool,
    backing_length: Option<u64>,
}

impl Form<'_> {
    /// What is copied, and how it is cut.
    async fn shape(
        &self,
        tool: &Tool<'_>,
        plan: &ConvertPlan,
        opened: Vec<source::OpenedSource>,
    ) -> Result<Shape, Failure> {
        let node_name = self.facts.name.clone();
        let info = tool.graph().ask(DescribeImage { node_name }).await.ok();
        if plan.compresses && info.is_none() {
            return Err(Failure::new("could not get block driver info"));
        }
        let compresses = plan.compresses || info.is_some_and(|info| info.needs_compressed_writes);
        let best = opened.iter().map(|opened| opened.best_transfer);
        let best = best.chain([u64::from(self.facts.limits.opt_transfer)]).max();
        let mut most = best.unwrap_or_default().clamp(PIECE, MOST_PIECE);
        let mut cluster = None;
        if compresses {
            let size = info.map_or(0, |info| info.cluster_size);
            if !(1..=most).contains(&size) {
                return Err(Failure::new("invalid cluster size"));
            }
            (most, cluster) = (size, Some(size));
        }
        Ok(Shape {
            sources: opened.into_iter().map(|opened| opened.source).collect(),
            has_backing: self.has_backing,
            backing_length: self.backing_length,
            most,
            writes_zeroes: plan.least_zeroes == 0,
            cluster,
            salvages: plan.salvages,
        })
    }

    fn way(&self, plan: &ConvertPlan, shape: &Shape) -> Way {
        let least = plan.least_zeroes / SECTOR_SIZE;
        let block = u64::from(self.facts.limits.request_alignment).div_ceil(SECTOR_SIZE);
        let sparse = (least > 0).then(|| Sparse {
            least: least as usize,
            // The largest power of two that is no larger.
            alignment: (1 << least.ilog2()).max(block),
        });
        let is_empty = plan.creates && sparse.is_some() && !self.has_backing && self.facts.has_zero_init;
        Way {
            sparse,
            has_zero_init: plan.is_zero || is_empty,
            compresses: shape.cluster.is_some(),
            in_order: !plan.is_unordered,
            at_once: plan.at_once,
            offload: plan.offloads.then_some(SECTOR_SIZE),
        }
    }
}

async fn copy(
    tool: &Tool<'_>,
    plan: &ConvertPlan,
    target: &Client,
    (shape, way): (&Shape, Way),
    progress: &ShownProgress,
) -> Result<(), Failure> {
    let told = |fault: CopyFault| Failure::new(fault.to_string());
    let warn = |text: &str| {
        if !plan.is_quiet {
            tool.program().warn(text);
        }
    };
    let counts = |kind: Kind| kind == Kind::Data || (kind == Kind::Zero && shape.writes_zeroes);
    let is_shown = plan.shows_progress && !plan.is_quiet;
    let mut all = 0;
    if is_shown {
        let quiet = |_| {};
        let mut scan = Scan::new(shape, &quiet);
        while let Some(piece) = scan
            .next()
            .await
            .map_err(|error| told(CopyFault::Status(error)))?
        {
            all += if counts(piece.kind) { piece.range.len() } else { 0 };
        }
    }
    let done = std::cell::Cell::new(0);
    let copy = Copy {
        shape,
        target,
        way,
        pace: CopyPace::new(plan.rate),
        warn: &warn,
        begins: &|piece| {
            if !is_shown {
                // What there is to copy was not counted: who asks is told how far along the disk the copy is.
                progress.of(piece.range.end(), shape.total());
            } else if counts(piece.kind) {
                done.set(done.get() + piece.range.len());
                progress.of(done.get(), all);
            }
        },
        pool: BufferPool::default(),
    };
    copy.run().await.map_err(told)
}
