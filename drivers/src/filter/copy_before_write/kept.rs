//! The moment that a node keeps: which chunks of it are only in the source still, and how they get from there to the target.
//!
//! ```text
//!   chunk      in `left`                        not in `left`
//!   a write    copies it first (alone with it)  goes on
//!   a read of  reads the source (shared: a      reads the target
//!   the moment write waits for that)
//! ```
//! A chunk leaves `left` once it is in the target. Whoever has a range for itself asks only the children for anything: so
//! nobody waits in a circle.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{Either, select};
use millpond_messages::error::errno::{EACCES, ENOMEM, ETIMEDOUT};
use millpond_messages::io::CopyFault;
use millpond_messages::{
    BlockStatus, ChunkSet, IoError, IoResult, MomentLine, Range, RequestFlags, StatusFlags,
};
use millpond_ring::Ring;
use millpond_ring::buffer::{Buffer, Buffers};

use crate::api::{Child, Transfer, bytes_in};
use crate::replica::abandoned::Abandoned;
use crate::replica::copies::{Ranges, Use};
use crate::replica::offload::Offload;

/// The most that is copied by one pair of requests, in bytes.
const PIECE: u64 = 1 << 20;
/// The most that one copy has for itself, in bytes: zeroes are copied in larger pieces than data.
const HELD_MOST: u64 = 16 << 20;

/// What becomes of a write whose old data cannot be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnError {
    /// The write fails as well.
    #[default]
    BreakGuestWrite,
    /// It goes on, and the moment is lost.
    BreakSnapshot,
}

/// What a node keeps, without what is bound to an iothread.
#[derive(Debug, Clone)]
pub struct State {
    /// What has to be copied before it is written.
    pub left: ChunkSet,
    /// What can be asked for.
    pub readable: ChunkSet,
    pub on_error: OnError,
    /// How long a write waits at most; forever if there is nothing.
    pub timeout: Option<Duration>,
    /// Why a write went on without its old data being kept.
    pub lost: Option<IoError>,
    /// Who is told of that.
    pub line: Option<Arc<MomentLine>>,
    /// What is written to the target asks for this.
    pub write_flags: RequestFlags,
    /// What was copied is discarded in the source.
    pub discards_source: bool,
    /// Data goes from file to file of the host where it can.
    pub copies_range: bool,
}

/// The moment, with what copies it.
pub struct Kept {
    source: Child,
    target: Child,
    ring: Ring,
    left: RefCell<ChunkSet>,
    readable: RefCell<ChunkSet>,
    on_error: OnError,
    timeout: Option<Duration>,
    lost: Cell<Option<IoError>>,
    line: RefCell<Option<Arc<MomentLine>>>,
    write_flags: RequestFlags,
    discards_source: bool,
    offload: Offload,
    ranges: Ranges,
    /// Nobody waits for the target any more: the moment is lost.
    abandoned: Abandoned,
}

impl Kept {
    pub fn new([source, target]: [Child; 2], ring: Ring, state: State) -> Self {
        Self {
            source,
            target,
            ring,
            left: RefCell::new(state.left),
            readable: RefCell::new(state.readable),
            on_error: state.on_error,
            timeout: state.timeout,
            lost: Cell::new(state.lost),
            line: RefCell::new(state.line),
            write_flags: state.write_flags,
            discards_source: state.discards_source,
            // A copy that was given up may go on in the kernel, and would copy what has been written since.
            offload: Offload::new(state.copies_range && state.timeout.is_none()),
            ranges: Ranges::default(),
            abandoned: Abandoned::default(),
        }
    }

    /// Gives the moment up: writes wait for the target no more, neither those in flight nor those to come.
    pub fn abandon(&self) {
        self.lost.set(Some(IoError::Cancelled));
        self.abandoned.begin();
    }

    /// Tells a job when the moment is lost.
    pub fn join(&self, line: Arc<MomentLine>) {
        if let Some(error) = self.lost.get() {
            line.lose(error);
        }
        self.line.replace(Some(line));
    }

    fn lose(&self, error: IoError) {
        self.lost.set(Some(error));
        if let Some(line) = &*self.line.borrow() {
            line.lose(error);
        }
    }

    pub fn state(&self) -> State {
        State {
            left: self.left.borrow().clone(),
            readable: self.readable.borrow().clone(),
            on_error: self.on_error,
            timeout: self.timeout,
            lost: self.lost.get(),
            line: self.line.borrow().clone(),
            write_flags: self.write_flags,
            discards_source: self.discards_source,
            copies_range: self.offload.is_on(),
        }
    }

    /// What is still to be copied.
    pub fn left(&self) -> ChunkSet {
        self.left.borrow().clone()
    }

    /// Keeps nothing but what is in `set`. Nothing has been copied yet.
    pub fn limit(&self, set: &ChunkSet) {
        let mut wanted = self.left.borrow().clone();
        wanted.remove(Range::between(0, u64::MAX));
        wanted.merge(set);
        self.left.replace(wanted.clone());
        self.readable.replace(wanted);
    }

    /// Goes on with the state of another moment of the same disk. Nothing is in flight.
    pub fn go_on(&self, state: State) {
        self.left.replace(state.left);
        self.readable.replace(state.readable);
        self.lost.set(state.lost);
    }

    /// Whether a write to the range need not wait for anything.
    pub fn is_free(&self, range: Range, flags: RequestFlags) -> bool {
        flags.contains(RequestFlags::WRITE_UNCHANGED)
            || self.lost.get().is_some()
            || !self.left.borrow().touches(self.widened(range))
    }

    fn widened(&self, range: Range) -> Range {
        // Within a disk, whose length fits in an offset whatever its chunks are.
        range.widened_to(self.left.borrow().chunk()).unwrap_or(range)
    }

    /// Keeps what a write is about to change.
    pub async fn before_write(&self, range: Range, flags: RequestFlags) -> IoResult<()> {
        if self.is_free(range, flags) {
            return Ok(());
        }
        let kept = self.abandoned.unless_so(self.keep(range)).await;
        kept.unwrap_or(Ok(()))
    }

    async fn keep(&self, range: Range) -> IoResult<()> {
        let copied = match self.timeout {
            None => self.copy(range).await,
            Some(timeout) => {
                let copying = std::pin::pin!(self.copy(range));
                match select(copying, self.ring.sleep(timeout)).await {
                    Either::Left((copied, _)) => copied,
                    Either::Right(_) => Err(CopyFault::Target(IoError::from_errno(ETIMEDOUT))),
                }
            }
        };
        match (copied, self.on_error) {
            (Err(fault), OnError::BreakSnapshot) => {
                self.lose(fault.error());
                Ok(())
            }
            (copied, _) => copied.map_err(CopyFault::error),
        }
    }

    /// Copies what is left of a range for whoever wants it in the target, unless that is given up.
    ///
    /// # Errors
    /// Some of it was not copied, and is left.
    pub async fn copy_unless_abandoned(&self, range: Range) -> Result<(), CopyFault> {
        let copied = self.abandoned.unless_so(self.copy(range)).await;
        copied.unwrap_or(Err(CopyFault::Target(IoError::Cancelled)))
    }

    /// Copies what is left of a range, piece by piece: a write to another part of it waits for one piece at most.
    ///
    /// # Errors
    /// Some of it was not copied, and is left.
    async fn copy(&self, range: Range) -> Result<(), CopyFault> {
        let range = self.widened(range);
        let mut from = range.offset();
        while let Some(run) = self.next_left(Range::between(from, range.end())) {
            let wanted = run.first(HELD_MOST);
            let alone = self.ranges.hold(wanted.offset(), wanted.len(), Use::Write).await;
            // Others may have copied it, or forgotten it, while it was waited for.
            from = match self.next_left(wanted) {
                None => wanted.end(),
                Some(run) => {
                    let copied = run.first(self.copy_piece(run).await?);
                    self.left.borrow_mut().remove(copied);
                    copied.end()
                }
            };
            drop(alone);
        }
        Ok(())
    }

    /// The first run of a range that is left.
    fn next_left(&self, range: Range) -> Option<Range> {
        let run = self.left.borrow().next_run(range.offset())?;
        let run = Range::between(run.offset(), run.end().min(range.end()));
        (!run.is_empty()).then_some(run)
    }

    /// Copies the start of a range; answers how many bytes of it.
    async fn copy_piece(&self, range: Range) -> Result<u64, CopyFault> {
        let (reading, writing) = (CopyFault::Source, CopyFault::Target);
        let status = self.source.block_status(range, true, true);
        let status = status.await.map_err(reading)?;
        let part = range.first(status.len);
        if part.is_empty() {
            return Err(reading(IoError::Corrupt));
        }
        // Whole chunks are written, as a target that compresses wants them: one is data if any of it is.
        let chunk = self.left.borrow().chunk();
        let zeroes = match part.len() == range.len() {
            true => part,
            false => part.first(part.len() / chunk * chunk),
        };
        if status.flags.contains(StatusFlags::ZERO) && !zeroes.is_empty() {
            let flags = RequestFlags::MAY_UNMAP;
            let zeroed = self.target.write_zeroes(zeroes, flags).await;
            zeroed.map_err(writing)?;
            return Ok(self.given_back(zeroes).await);
        }
        let part = range
            .first(part.len().next_multiple_of(chunk))
            .first(PIECE.max(chunk));
        if self.write_flags.is_empty() && self.offload.copy([&self.source, &self.target], part, chunk).await {
            return Ok(self.given_back(part).await);
        }
        let room = usize::try_from(part.len()).ok().and_then(Buffer::try_alloc);
        let room = room.ok_or(reading(IoError::from_errno(ENOMEM)))?;
        let (read, data) = self.source.read(part.offset(), Buffers::from(room)).await;
        read.map_err(reading)?;
        let (written, _) = self.target.write(part.offset(), data, self.write_flags).await;
        written.map_err(writing)?;
        Ok(self.given_back(part).await)
    }

    /// Gives the space of what was copied back, if that is wanted; answers how many bytes those are.
    async fn given_back(&self, copied: Range) -> u64 {
        if self.discards_source {
            // A source that cannot give space back is no failure of the copy.
            let _ = self.source.discard(copied).await;
        }
        copied.len()
    }

    fn check_readable(&self, range: Range) -> IoResult<()> {
        let absent = self.readable.borrow().next_absent(range.offset());
        let is_readable = absent.is_none_or(|absent| absent >= range.end());
        match is_readable && self.lost.get().is_none() {
            true => Ok(()),
            false => Err(IoError::from_errno(EACCES)),
        }
    }

    /// The start of a range that lies in one place, and whether that is the source.
    fn place(&self, range: Range) -> (Range, bool) {
        let left = self.left.borrow();
        let in_source = left.contains(range.offset());
        let end = match in_source {
            true => left.next_absent(range.offset()),
            false => left.next(range.offset()),
        };
        (
            Range::between(range.offset(), end.unwrap_or(u64::MAX).min(range.end())),
            in_source,
        )
    }

    /// Fills `rest` with what was at `offset` then.
    pub async fn read(&self, mut offset: u64, mut rest: Buffers) -> Transfer {
        let mut filled = Buffers::new();
        let result = loop {
            if rest.is_empty() {
                break Ok(());
            }
            let piece = match self.read_next(offset, &mut rest).await {
                Ok(piece) => piece,
                Err(error) => break Err(error),
            };
            offset = offset.saturating_add(bytes_in(&piece));
            filled.append(piece);
        };
        filled.append(rest);
        (result, filled)
    }

    async fn read_next(&self, offset: u64, rest: &mut Buffers) -> IoResult<Buffers> {
        let range = Range::new(offset, bytes_in(rest))?;
        self.check_readable(range)?;
        let (part, in_source) = self.place(range);
        let held = match in_source {
            true => Some(self.ranges.hold(part.offset(), part.len(), Use::Read).await),
            false => None,
        };
        // It may have been copied, and written, while a copy was waited for.
        let (part, in_source) = self.place(part);
        let child = if in_source { &self.source } else { &self.target };
        let piece = rest.split_to(usize::try_from(part.len()).unwrap_or(usize::MAX));
        let (result, piece) = child.read(part.offset(), piece).await;
        drop(held);
        // The moment may have been lost meanwhile, or the range discarded.
        match result.and_then(|()| self.check_readable(part)) {
            Ok(()) => Ok(piece),
            Err(error) => {
                rest.append(piece);
                Err(error)
            }
        }
    }

    /// What the start of a range was made of then.
    pub async fn status(&self, range: Range) -> IoResult<BlockStatus> {
        let found = self.abandoned.unless_so(self.find_status(range)).await;
        found.unwrap_or(Err(IoError::Cancelled))
    }

    async fn find_status(&self, range: Range) -> IoResult<BlockStatus> {
        self.check_readable(range)?;
        let (part, in_source) = self.place(range);
        let held = match in_source {
            true => Some(self.ranges.hold(part.offset(), part.len(), Use::Read).await),
            false => None,
        };
        let (part, in_source) = self.place(part);
        let child = if in_source { &self.source } else { &self.target };
        let mut status = child.block_status(part, true, true).await?;
        drop(held);
        // Where the data lies is nobody's business: it moves.
        status.flags &= StatusFlags::DATA | StatusFlags::ZERO;
        status.flags |= StatusFlags::ALLOCATED;
        status.map = None;
        Ok(status)
    }

    /// Forgets what was in a range then.
    pub async fn discard(&self, range: Range) {
        self.readable.borrow_mut().remove(range);
        let range = {
            let mut left = self.left.borrow_mut();
            left.remove(range);
            range.widened_to(left.chunk()).unwrap_or(range)
        };
        // Those that read there have ended when this is answered.
        drop(self.ranges.hold(range.offset(), range.len(), Use::Write).await);
    }
}
