//! `millpond img diff`: the ranges of the disk in which two images, or two snapshots, are not the same.
//!
//! Where the newer image stands on the older one, what it has of its own is what has changed: no data is read. Elsewhere
//! both are asked what they are made of, and what that does not settle is read.

use std::future::ready;
use std::process::ExitCode;

use futures_util::future::join;
use futures_util::stream::{TryStreamExt, try_unfold};
use millpond_messages::graph::{FindBackingImage, FindRoot};
use millpond_messages::{IoError, IoResult, NodeId, Range, StatusFlags};
use millpond_ring::buffer::{Buffers, is_zero};
use serde_json::json;

use super::copy::BufferPool;
use super::options::{cut, explain};
use super::output::OutputForm;
use crate::cli::getopt::Row;
use crate::cli::tool::{Failure, ImageName, Program, ShownSnapshot, Tool, print};
use crate::node::Client;

const HELP: &str = "\
Usage: {program} diff [OPTION]... OLD NEW

Tells in which ranges of the disk NEW is not the same as OLD, and whether it has data or
zeroes there. Where NEW stands on OLD, that is all that was written to NEW, whether it
changed anything or not. The exit code is 0 if there is no such range, and 1 if there is.

Options:
  -f, --a-format FORMAT  The format of OLD, which is found out otherwise
  -F, --b-format FORMAT  The format of NEW
      --image-opts       Both are lists of options: key=value,...
      --a-snapshot NAME  The snapshot in OLD of that id or name, rather than what it is now
      --b-snapshot NAME  The snapshot in NEW
      --exact            Read what was written, and leave out what did not change by it
      --output FORM      human or json
  -U, --force-share      Others may write to the images meanwhile
      --object OBJECT    An object that an image needs, such as a secret
  -h, --help             Print this
";

#[derive(Clone, Copy)]
enum Name {
    Exact,
    Format(usize),
    Help,
    ImageOptions,
    Object,
    Output,
    Share,
    Snapshot(usize),
}

const OPTIONS: &[Row<Name>] = &[
    Row::flag("help", Some('h'), Name::Help),
    Row::value("a-format", Some('f'), Name::Format(0)),
    Row::value("b-format", Some('F'), Name::Format(1)),
    Row::flag("image-opts", None, Name::ImageOptions),
    Row::value("a-snapshot", None, Name::Snapshot(0)),
    Row::value("b-snapshot", None, Name::Snapshot(1)),
    Row::flag("exact", None, Name::Exact),
    Row::value("output", None, Name::Output),
    Row::flag("force-share", Some('U'), Name::Share),
    Row::value("object", None, Name::Object),
];

/// Bytes that are read of each image for one piece.
const PIECE: u64 = 2 << 20;
/// Pieces that are looked at at once.
const AT_ONCE: usize = 8;
/// What is read is compared in blocks of so many bytes.
const BLOCK: usize = 4096;
/// The exit code where images differ.
const DIFFERENT: u8 = 1;
/// It could not be found out.
const TROUBLE: u8 = 2;

#[derive(Default)]
struct Plan {
    images: [ImageName; 2],
    snapshots: [Option<ShownSnapshot>; 2],
    is_exact: bool,
    output: OutputForm,
}

pub(super) fn run(program: Program<'_>, arguments: &[String]) -> Result<ExitCode, Failure> {
    let mut plan = Plan::default();
    let (mut objects, mut words) = (Vec::new(), Vec::new());
    for given in cut(program, "diff", OPTIONS, arguments) {
        let (option, value) = given?;
        match option {
            None => words.push(value),
            Some(Name::Help) => return Ok(explain(program, HELP)),
            Some(Name::Exact) => plan.is_exact = true,
            Some(Name::Format(which)) => plan.images[which].format = Some(value),
            Some(Name::ImageOptions) => plan.images.iter_mut().for_each(|image| image.is_options = true),
            Some(Name::Object) => objects.push(value),
            Some(Name::Output) => plan.output = OutputForm::parse(program, "diff", &value)?,
            Some(Name::Share) => plan.images.iter_mut().for_each(|image| image.force_share = true),
            Some(Name::Snapshot(which)) => {
                plan.snapshots[which] = Some(ShownSnapshot::read(program, value, '\'')?)
            }
        }
    }
    let names: [String; 2] = words
        .try_into()
        .map_err(|_| Failure::usage(program, "diff", "Expecting two image file names").with_code(TROUBLE))?;
    for (image, name) in plan.images.iter_mut().zip(names) {
        image.name = name;
    }
    Ok(Tool::run(program, &objects, async |tool| {
        diff(tool, &plan)
            .await
            .map_err(|failure| failure.with_code(TROUBLE))
    }))
}

async fn diff(tool: &Tool<'_>, plan: &Plan) -> Result<ExitCode, Failure> {
    let [old, new] = &plan.images;
    let [old_snapshot, new_snapshot] = &plan.snapshots;
    let (old_side, _) = open(tool, old, old_snapshot.as_ref()).await?;
    let (new_side, node) = open(tool, new, new_snapshot.as_ref()).await?;
    let stands_on = match (old_snapshot, new_snapshot, old.is_options) {
        (None, None, false) => base(tool, &node, &old.name).await?,
        _ => None,
    };
    let pair = Pair {
        old: old_side,
        new: new_side,
        base: stands_on,
        is_exact: plan.is_exact,
        pool: BufferPool::default(),
    };
    let mut shown = Shown::new(plan.output);
    pair.differences(|change| shown.add(change))
        .await
        .map_err(failed)?;
    match shown.finish() {
        true => Ok(ExitCode::from(DIFFERENT)),
        false => Ok(ExitCode::SUCCESS),
    }
}

fn failed(error: IoError) -> Failure {
    Failure::new(format!("error while reading: {error}"))
}

async fn open(
    tool: &Tool<'_>,
    image: &ImageName,
    snapshot: Option<&ShownSnapshot>,
) -> Result<(Side, String), Failure> {
    let client = tool.open(image).await?;
    let node = tool.graph().ask(FindRoot(client.root())).await?.name;
    if let Some(snapshot) = snapshot {
        snapshot.show(tool, &node).await?;
    }
    let length = client.length().await.map_err(failed)?;
    Ok((Side { client, length }, node))
}

/// The node of the chain of the newer image that is the older one.
async fn base(tool: &Tool<'_>, new: &str, old: &str) -> Result<Option<NodeId>, Failure> {
    let found = tool.graph().ask(FindBackingImage {
        top: new.to_owned(),
        filename: old.to_owned(),
    });
    Ok(found.await?.map(|node| node.id))
}

/// A range in which the disks are not the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Change {
    range: Range,
    /// The newer one is zero there.
    is_zero: bool,
}

/// The changes that are told, neighbours as one.
struct Shown {
    output: OutputForm,
    last: Option<Change>,
    any: bool,
}

impl Shown {
    fn new(output: OutputForm) -> Self {
        print(match output {
            OutputForm::Human => "Offset          Length          Now\n",
            OutputForm::Json => "[",
        });
        Self {
            output,
            last: None,
            any: false,
        }
    }

    fn add(&mut self, change: Change) {
        match &mut self.last {
            Some(last) if last.range.end() == change.range.offset() && last.is_zero == change.is_zero => {
                last.range = Range::between(last.range.offset(), change.range.end());
            }
            last => {
                if let Some(last) = last.replace(change) {
                    self.print(last);
                }
            }
        }
    }

    fn print(&mut self, change: Change) {
        let (start, length, zero) = (change.range.offset(), change.range.len(), change.is_zero);
        let line = match self.output {
            OutputForm::Human => {
                let now = if zero { "zero" } else { "data" };
                format!(
                    "{:<16}{:<16}{now}\n",
                    format!("{start:#x}"),
                    format!("{length:#x}")
                )
            }
            OutputForm::Json => {
                let comma = if self.any { ",\n" } else { "" };
                format!(
                    "{comma}{}",
                    json!({"start": start, "length": length, "zero": zero})
                )
            }
        };
        print(&line);
        self.any = true;
    }

    /// Tells the last one; answers whether there was any.
    fn finish(mut self) -> bool {
        if let Some(last) = self.last.take() {
            self.print(last);
        }
        if let OutputForm::Json = self.output {
            print("]\n");
        }
        self.any
    }
}

struct Side {
    client: Client,
    length: u64,
}

/// What is known of a range without a look at its data.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Known {
    Same,
    Changed {
        is_zero: bool,
    },
    /// Its data has to be read.
    Unknown,
}

struct Pair {
    old: Side,
    new: Side,
    /// The older image in the chain of the newer one.
    base: Option<NodeId>,
    is_exact: bool,
    pool: BufferPool,
}

impl Pair {
    /// Tells of all changes in the order of the disk.
    async fn differences(&self, mut tell: impl FnMut(Change)) -> IoResult<()> {
        let pieces = try_unfold(0, |offset| self.next(offset));
        let looked_at = pieces
            .map_ok(|(range, known)| self.look_at(range, known))
            .try_buffered(AT_ONCE);
        looked_at
            .try_for_each(|changes| {
                changes.into_iter().for_each(&mut tell);
                ready(Ok(()))
            })
            .await
    }

    async fn next(&self, offset: u64) -> IoResult<Option<((Range, Known), u64)>> {
        let mut rest = Range::between(offset, self.old.length.max(self.new.length));
        if rest.is_empty() {
            return Ok(None);
        }
        if offset < self.old.length {
            rest = Range::between(offset, self.old.length);
        }
        // Behind the end of the older image there is nothing but zeroes to compare with.
        let both = self.old.length.min(self.new.length);
        let (len, known) = match self.base {
            Some(base) if offset < both => self.written(rest, base).await?,
            _ => self.by_status(rest).await?,
        };
        let mut range = rest.first(len);
        if known == Known::Unknown {
            range = range.first(PIECE);
        }
        match range.is_empty() {
            true => Err(IoError::Corrupt),
            false => Ok(Some(((range, known), range.end()))),
        }
    }

    /// What is at the start of a range, by whether any image above the older one has it.
    async fn written(&self, rest: Range, base: NodeId) -> IoResult<(u64, Known)> {
        let there = Range::between(rest.offset(), rest.end().min(self.new.length));
        let status = self
            .new
            .client
            .block_status_above(there.offset(), there.len(), true, base)
            .await?;
        let is_zero = status.flags.contains(StatusFlags::ZERO);
        let known = match status.flags.contains(StatusFlags::ALLOCATED) {
            false => Known::Same,
            true if self.is_exact => Known::Unknown,
            true => Known::Changed { is_zero },
        };
        Ok((status.len, known))
    }

    async fn by_status(&self, rest: Range) -> IoResult<(u64, Known)> {
        let (old, new) = join(self.old.zeroes(rest), self.new.zeroes(rest)).await;
        let ((old, old_len), (new, new_len)) = (old?, new?);
        let known = if old && new { Known::Same } else { Known::Unknown };
        Ok((old_len.min(new_len), known))
    }

    async fn look_at(&self, range: Range, known: Known) -> IoResult<Vec<Change>> {
        match known {
            Known::Same => return Ok(Vec::new()),
            Known::Changed { is_zero } => return Ok(vec![Change { range, is_zero }]),
            Known::Unknown => {}
        }
        let (old, new) = join(self.old.read(range, &self.pool), self.new.read(range, &self.pool)).await;
        let (old, new) = (old?.into_single(), new?.into_single());
        let mut changes = Vec::new();
        let mut rest = range;
        for (old, new) in old.chunks(BLOCK).zip(new.chunks(BLOCK)) {
            let block = rest.first(new.len() as u64);
            rest = rest.after(block.len());
            if old != new {
                changes.push(Change {
                    range: block,
                    is_zero: is_zero(new),
                });
            }
        }
        self.pool.give_back(old.into(), range.len() as usize);
        self.pool.give_back(new.into(), range.len() as usize);
        Ok(changes)
    }
}

impl Side {
    /// The part of a range that the image has: behind its end all is zero.
    fn there(&self, range: Range) -> Range {
        Range::between(range.offset(), range.end().min(self.length))
    }

    /// Whether the start of a range reads as zeroes, and for how many bytes that holds.
    async fn zeroes(&self, rest: Range) -> IoResult<(bool, u64)> {
        let there = self.there(rest);
        if there.is_empty() {
            return Ok((true, rest.len()));
        }
        let status = self
            .client
            .block_status(there.offset(), there.len(), true, true)
            .await?;
        Ok((status.flags.contains(StatusFlags::ZERO), status.len))
    }

    async fn read(&self, range: Range, pool: &BufferPool) -> IoResult<Buffers> {
        let mut room = pool.take(range.len() as usize)?;
        let mut behind = room.split_off(self.there(range).len() as usize);
        behind.fill_zero(0..behind.len());
        let mut bytes = Buffers::new();
        if !room.is_empty() {
            let (result, read) = self.client.read(range.offset(), room).await;
            result?;
            bytes = read;
        }
        behind.into_iter().for_each(|buffer| bytes.push_joined(buffer));
        Ok(bytes)
    }
}
