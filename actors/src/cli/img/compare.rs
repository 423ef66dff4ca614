//! `millpond img compare`: whether two images show the same disk.
//!
//! Both are asked what they are made of, and only what that does not settle is read: several pieces at once, looked at in the
//! order of the disk, so that the first difference is the one that is told.

use std::future::ready;
use std::process::ExitCode;

use futures_util::future::join;
use futures_util::stream::{TryStreamExt, try_unfold};
use millpond_messages::{BlockStatus, IoError, OpenFlags, SECTOR_SIZE, StatusFlags};
use millpond_ring::buffer::{Buffers, is_zero};

use super::copy::BufferPool;
use super::options::{cut, explain};
use super::progress::ShownProgress;
use crate::cli::getopt::Row;
use crate::cli::tool::{Failure, ImageName, Program, Tool, print, read_cache};
use crate::node::Client;

const HELP: &str = "\
Usage: {program} compare [OPTION]... IMAGE1 IMAGE2

Tells whether two images show the same disk. The exit code is 0 if they do, 1 if they do
not, and larger if that could not be found out. Where one is longer, the rest of it must be
zero.

Options:
  -f, --a-format FORMAT  The format of IMAGE1, which is found out otherwise
  -F, --b-format FORMAT  The format of IMAGE2
      --image-opts       Both are lists of options: key=value,...
  -s, --strict           They must be as long, and allocated alike, too
  -T, --cache MODE       How they are cached (writeback)
  -U, --force-share      Others may write to them meanwhile
  -p, --progress         Show how far it is
  -q, --quiet            Say nothing but errors
      --object OBJECT    An object that an image needs, such as a secret
  -h, --help             Print this
";

#[derive(Clone, Copy)]
enum Name {
    Cache,
    First,
    Help,
    ImageOptions,
    Object,
    Progress,
    Quiet,
    Second,
    Share,
    Strict,
}

const OPTIONS: &[Row<Name>] = &[
    Row::flag("help", Some('h'), Name::Help),
    Row::value("a-format", Some('f'), Name::First),
    Row::value("b-format", Some('F'), Name::Second),
    Row::flag("image-opts", None, Name::ImageOptions),
    Row::flag("strict", Some('s'), Name::Strict),
    Row::value("cache", Some('T'), Name::Cache),
    Row::flag("force-share", Some('U'), Name::Share),
    Row::flag("progress", Some('p'), Name::Progress),
    Row::flag("quiet", Some('q'), Name::Quiet),
    Row::value("object", None, Name::Object),
];

/// Bytes that are read of each image for one piece.
const PIECE: u64 = 2 << 20;
/// Pieces that are looked at at once.
const AT_ONCE: usize = 8;

/// The exit code where images differ.
const DIFFERENT: u8 = 1;
/// An image could not be opened, or an option was wrong.
const NOT_OPENED: u8 = 2;
/// It could not be had what an image is made of.
const NO_STATUS: u8 = 3;
/// An image could not be read.
const NOT_READ: u8 = 4;

struct Plan {
    names: Vec<String>,
    formats: [Option<String>; 2],
    is_options: bool,
    is_strict: bool,
    cache: String,
    force_share: bool,
    shows_progress: bool,
    is_quiet: bool,
}

pub(super) fn run(program: Program<'_>, arguments: &[String]) -> Result<ExitCode, Failure> {
    let mut plan = Plan {
        names: Vec::new(),
        formats: [None, None],
        is_options: false,
        is_strict: false,
        cache: "writeback".to_owned(),
        force_share: false,
        shows_progress: false,
        is_quiet: false,
    };
    let mut objects = Vec::new();
    for given in cut(program, "compare", OPTIONS, arguments) {
        let (option, value) = given?;
        match option {
            None => plan.names.push(value),
            Some(Name::Help) => return Ok(explain(program, HELP)),
            Some(Name::Cache) => plan.cache = value,
            Some(Name::First) => plan.formats[0] = Some(value),
            Some(Name::Second) => plan.formats[1] = Some(value),
            Some(Name::ImageOptions) => plan.is_options = true,
            Some(Name::Object) => objects.push(value),
            Some(Name::Progress) => plan.shows_progress = true,
            Some(Name::Quiet) => plan.is_quiet = true,
            Some(Name::Share) => plan.force_share = true,
            Some(Name::Strict) => plan.is_strict = true,
        }
    }
    if plan.names.len() != 2 {
        return Err(Failure::usage(
            program,
            "compare",
            "Expecting two image file names",
        ));
    }
    Ok(Tool::run(program, &[], async |tool| {
        let made = tool.make_objects(&objects).await;
        match made.map_err(|failure| failure.with_code(NOT_OPENED))? {
            Some(code) => Ok(code),
            None => compare(tool, &plan).await,
        }
    }))
}

async fn compare(tool: &Tool<'_>, plan: &Plan) -> Result<ExitCode, Failure> {
    let (flags, writes_through) = read_cache(&plan.cache).ok_or_else(|| {
        let text = format!("Invalid source cache option: {}", plan.cache);
        Failure::new(text).with_code(NOT_OPENED)
    })?;
    let progress = ShownProgress::new(plan.shows_progress && !plan.is_quiet);
    let mut sides = Vec::new();
    for (name, format) in plan.names.iter().zip(&plan.formats) {
        sides.push(open(tool, plan, name, format, (flags, writes_through)).await?);
    }
    let [first, second] = sides.as_slice() else {
        return Err(Failure::new("two images are needed"));
    };
    let pair = Pair {
        sides: [first, second],
        is_strict: plan.is_strict,
        pool: BufferPool::default(),
    };
    let told = pair.compare(&progress, |line| {
        if !plan.is_quiet {
            print(&format!("{line}\n"));
        }
    });
    match told.await {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(Verdict::Different) => Ok(ExitCode::from(DIFFERENT)),
        Err(Verdict::Failed(failure)) => Err(*failure),
    }
}

async fn open<'a>(
    tool: &Tool<'_>,
    plan: &Plan,
    name: &'a str,
    format: &Option<String>,
    (flags, writes_through): (OpenFlags, bool),
) -> Result<Side<'a>, Failure> {
    let image = ImageName {
        name: name.to_owned(),
        format: format.clone(),
        is_options: plan.is_options,
        flags,
        writes_through,
        force_share: plan.force_share,
    };
    let opened = tool.open(&image).await;
    let client = opened.map_err(|failure| failure.with_code(NOT_OPENED))?;
    let unknown = |error: IoError| {
        let text = format!("Can't get size of {name}: {error}");
        Failure::new(text).with_code(NOT_READ)
    };
    let bytes = client.length().await.map_err(unknown)?;
    Ok(Side {
        name,
        client,
        bytes,
        length: bytes.next_multiple_of(SECTOR_SIZE),
    })
}

/// Why a comparison ends before its end.
enum Verdict {
    /// The images differ, which was told.
    Different,
    /// The comparison could not go on.
    Failed(Box<Failure>),
}

impl From<Failure> for Verdict {
    fn from(failure: Failure) -> Self {
        Self::Failed(Box::new(failure))
    }
}

/// One of the images.
struct Side<'a> {
    name: &'a str,
    client: Client,
    bytes: u64,
    /// The same in whole sectors.
    length: u64,
}

impl Side<'_> {
    async fn status(&self, offset: u64, len: u64) -> Result<BlockStatus, Failure> {
        let failed = || {
            let text = format!("Sector allocation test failed for {}", self.name);
            Failure::new(text).with_code(NO_STATUS)
        };
        let len = len.min(self.bytes - offset);
        let status = self.client.block_status(offset, len, true, true).await;
        let mut status = status.map_err(|_| failed())?;
        status.len = status.len.next_multiple_of(SECTOR_SIZE);
        match status.len {
            0 => Err(failed()),
            _ => Ok(status),
        }
    }

    async fn read(&self, pool: &BufferPool, offset: u64, len: u64) -> Result<Buffers, Failure> {
        let failed = |error: IoError| {
            let text = format!("Error while reading offset {offset} of {}: {error}", self.name);
            Failure::new(text).with_code(NOT_READ)
        };
        let mut room = pool.take(len as usize).map_err(failed)?;
        // The last sector of a disk that ends within one is filled with zeroes.
        let mut behind = room.split_off(len.min(self.bytes - offset) as usize);
        behind.fill_zero(0..behind.len());
        let (result, mut bytes) = self.client.read(offset, room).await;
        result.map_err(failed)?;
        behind.into_iter().for_each(|buffer| bytes.push_joined(buffer));
        Ok(bytes)
    }
}

/// What has to be looked at to know whether a piece is the same in both.
#[derive(Clone, Copy)]
enum Look {
    /// They have the same contents.
    Same,
    /// The bytes of both.
    Both,
    /// Whether that of them is zero.
    IsZero(usize),
}

/// A part of the longer disk.
struct Piece {
    offset: u64,
    len: u64,
    look: Look,
    /// What is told when it is this one's turn.
    notice: Option<&'static str>,
    /// It ends the comparison.
    verdict: Option<String>,
}

struct Pair<'a> {
    sides: [&'a Side<'a>; 2],
    is_strict: bool,
    pool: BufferPool,
}

impl Pair<'_> {
    async fn compare(&self, progress: &ShownProgress, tell: impl Fn(&str)) -> Result<(), Verdict> {
        let [first, second] = self.sides.map(|side| side.length);
        if self.is_strict && first != second {
            tell("Strict mode: Image size mismatch!");
            return Err(Verdict::Different);
        }
        let whole = first.max(second);
        let pieces = try_unfold(0, |offset| self.next(offset));
        let looked_at = pieces.map_ok(|piece| self.look_at(piece)).try_buffered(AT_ONCE);
        let settled = looked_at.try_for_each(|(piece, difference)| {
            piece.notice.into_iter().for_each(&tell);
            ready(
                difference.and_then(|difference| match piece.verdict.or(difference) {
                    Some(text) => {
                        tell(&text);
                        Err(Verdict::Different)
                    }
                    None => {
                        progress.add(piece.len as f32 / whole as f32 * 100.0);
                        Ok(())
                    }
                }),
            )
        });
        settled.await?;
        tell("Images are identical.");
        Ok(())
    }

    /// The piece at an offset, and where the next one begins.
    async fn next(&self, offset: u64) -> Result<Option<(Piece, u64)>, Verdict> {
        let [first, second] = self.sides.map(|side| side.length);
        let common = first.min(second);
        let piece = if offset < common {
            self.in_both(offset, common).await?
        } else if offset < first.max(second) {
            self.in_one(offset, usize::from(second > first)).await?
        } else {
            return Ok(None);
        };
        let end = offset + piece.len;
        Ok(Some((piece, end)))
    }

    async fn in_both(&self, offset: u64, common: u64) -> Result<Piece, Verdict> {
        let asked = self.sides.map(|side| side.status(offset, side.length - offset));
        let [first, second] = asked;
        let (first, second) = join(first, second).await;
        let (first, second) = (first?, second?);
        let mut len = first.len.min(second.len).min(common - offset);
        let differs = self.is_strict && told(&first) != told(&second);
        let has = |status: &BlockStatus, flag| status.flags.contains(flag);
        let zero = StatusFlags::ZERO;
        let look = match [&first, &second].map(|status| has(status, StatusFlags::ALLOCATED)) {
            _ if has(&first, zero) && has(&second, zero) => Look::Same,
            [false, false] => Look::Same,
            [true, true] => Look::Both,
            [true, false] => Look::IsZero(0),
            [false, true] => Look::IsZero(1),
        };
        if !matches!(look, Look::Same) {
            len = len.min(PIECE);
        }
        Ok(Piece {
            offset,
            len,
            look: if differs { Look::Same } else { look },
            notice: None,
            verdict: differs.then(|| format!("Strict mode: Offset {offset} block status mismatch!")),
        })
    }

    /// A piece that only the longer image has.
    async fn in_one(&self, offset: u64, side: usize) -> Result<Piece, Verdict> {
        let [first, second] = self.sides;
        let longer = if side == 0 { first } else { second };
        let status = longer.status(offset, longer.length - offset).await?;
        let is_data =
            status.flags.contains(StatusFlags::ALLOCATED) && !status.flags.contains(StatusFlags::ZERO);
        let starts = offset == first.length.min(second.length);
        let (len, look) = match is_data {
            true => (status.len.min(PIECE), Look::IsZero(side)),
            false => (status.len, Look::Same),
        };
        Ok(Piece {
            offset,
            len,
            look,
            notice: starts.then_some("Warning: Image size mismatch!"),
            verdict: None,
        })
    }

    /// The piece again, with the text about the first difference in it. What is told of the piece comes before the failure of a
    /// read in it.
    async fn look_at(&self, piece: Piece) -> Result<(Piece, Result<Option<String>, Verdict>), Verdict> {
        let difference = self.difference_in(&piece).await;
        Ok((piece, difference))
    }

    async fn difference_in(&self, piece: &Piece) -> Result<Option<String>, Verdict> {
        let (offset, len) = (piece.offset, piece.len);
        let differs_at = match piece.look {
            Look::Same => None,
            Look::Both => {
                let [first, second] = self.sides.map(|side| side.read(&self.pool, offset, len));
                let (first, second) = join(first, second).await;
                let (first, second) = (first?, second?);
                let at = first_difference(&first, &second);
                self.pool.give_back(first, len as usize);
                self.pool.give_back(second, len as usize);
                at
            }
            Look::IsZero(side) => {
                let [first, second] = self.sides;
                let side = if side == 0 { first } else { second };
                let bytes = side.read(&self.pool, offset, len).await?;
                let at = first_data(&bytes);
                self.pool.give_back(bytes, len as usize);
                at
            }
        };
        Ok(differs_at.map(|at| format!("Content mismatch at offset {}!", offset + at)))
    }
}

/// What of a status is compared where also the allocation must be the same.
fn told(status: &BlockStatus) -> StatusFlags {
    status.flags & (StatusFlags::ALLOCATED | StatusFlags::DATA | StatusFlags::ZERO)
}

/// Where the first sector starts that is not the same.
fn first_difference(first: &Buffers, second: &Buffers) -> Option<u64> {
    let (first, second) = (bytes(first), bytes(second));
    if first == second {
        return None;
    }
    let sectors = first.chunks(SECTOR_SIZE as usize);
    let mut pairs = sectors.zip(second.chunks(SECTOR_SIZE as usize));
    let differs = pairs.position(|(first, second)| first != second);
    differs.map(|index| index as u64 * SECTOR_SIZE)
}

/// Where the first sector starts that is not zero.
fn first_data(buffers: &Buffers) -> Option<u64> {
    let bytes = bytes(buffers);
    if is_zero(&bytes) {
        return None;
    }
    let mut sectors = bytes.chunks(SECTOR_SIZE as usize);
    let data = sectors.position(|sector| !is_zero(sector));
    data.map(|index| index as u64 * SECTOR_SIZE)
}

/// The bytes as they lie, or a copy where they lie in several places.
fn bytes(buffers: &Buffers) -> std::borrow::Cow<'_, [u8]> {
    match buffers.iter().next() {
        Some(buffer) if buffers.count() == 1 => std::borrow::Cow::Borrowed(buffer),
        _ => std::borrow::Cow::Owned(buffers.to_vec()),
    }
}
