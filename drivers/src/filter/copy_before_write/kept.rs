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
use std::time::Duration;

use futures_util::future::{Either, select};
use millpond_messages::error::errno::{EACCES, ENOMEM, ETIMEDOUT};
use millpond_messages::{BlockStatus, ChunkSet, IoError, IoResult, Range, RequestFlags, StatusFlags};
use millpond_ring::Ring;
use millpond_ring::buffer::{Buffer, Buffers};

use crate::api::{Child, Transfer, bytes_in};
use crate::replica::copies::{Ranges, Use};

/// The most that is copied by one pair of requests, in bytes.
const PIECE: u64 = 1 << 20;

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
    /// A write went on without its old data being kept.
    pub is_lost: bool,
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
    is_lost: Cell<bool>,
    ranges: Ranges,
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
            is_lost: Cell::new(state.is_lost),
            ranges: Ranges::default(),
        }
    }

    pub fn state(&self) -> State {
        State {
            left: self.left.borrow().clone(),
            readable: self.readable.borrow().clone(),
            on_error: self.on_error,
            timeout: self.timeout,
            is_lost: self.is_lost.get(),
        }
    }

    /// Goes on with the state of another moment of the same disk. Nothing is in flight.
    pub fn go_on(&self, state: State) {
        self.left.replace(state.left);
        self.readable.replace(state.readable);
        self.is_lost.set(state.is_lost);
    }

    /// Whether a write to the range need not wait for anything.
    pub fn is_free(&self, range: Range, flags: RequestFlags) -> bool {
        flags.contains(RequestFlags::WRITE_UNCHANGED)
            || self.is_lost.get()
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
        let copied = match self.timeout {
            None => self.copy(range).await,
            Some(timeout) => {
                let copying = std::pin::pin!(self.copy(range));
                match select(copying, self.ring.sleep(timeout)).await {
                    Either::Left((copied, _)) => copied,
                    Either::Right(_) => Err(IoError::from_errno(ETIMEDOUT)),
                }
            }
        };
        match (copied, self.on_error) {
            (Err(_), OnError::BreakSnapshot) => {
                self.is_lost.set(true);
                Ok(())
            }
            (copied, _) => copied,
        }
    }

    /// Copies what is left of a range.
    pub async fn copy(&self, range: Range) -> IoResult<()> {
        let range = self.widened(range);
        let _alone = self.ranges.hold(range.offset(), range.len(), Use::Write).await;
        let mut from = range.offset();
        loop {
            // Looked at again after each wait: what was left may have been discarded.
            let run = self.left.borrow().next_run(from);
            let Some(run) = run.filter(|run| run.offset() < range.end()) else {
                return Ok(());
            };
            let run = Range::between(run.offset(), run.end().min(range.end()));
            from = run.end();
            self.copy_run(run).await?;
            self.left.borrow_mut().remove(run);
        }
    }

    async fn copy_run(&self, run: Range) -> IoResult<()> {
        let mut rest = run;
        while !rest.is_empty() {
            let status = self
                .source
                .block_status(rest.offset(), rest.len(), true, true)
                .await?;
            let part = rest.first(status.len);
            if part.is_empty() {
                return Err(IoError::Corrupt);
            }
            if status.flags.contains(StatusFlags::ZERO) {
                let flags = RequestFlags::MAY_UNMAP;
                self.target.write_zeroes(part.offset(), part.len(), flags).await?;
                rest = rest.after(part.len());
                continue;
            }
            let part = part.first(PIECE);
            let room = usize::try_from(part.len()).ok().and_then(Buffer::try_alloc);
            let room = room.ok_or(IoError::from_errno(ENOMEM))?;
            let (read, data) = self.source.read(part.offset(), Buffers::from(room)).await;
            read?;
            self.target
                .write(part.offset(), data, RequestFlags::empty())
                .await
                .0?;
            rest = rest.after(part.len());
        }
        Ok(())
    }

    fn check_readable(&self, range: Range) -> IoResult<()> {
        let absent = self.readable.borrow().next_absent(range.offset());
        let is_readable = absent.is_none_or(|absent| absent >= range.end());
        match is_readable && !self.is_lost.get() {
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
        self.check_readable(range)?;
        let (part, in_source) = self.place(range);
        let held = match in_source {
            true => Some(self.ranges.hold(part.offset(), part.len(), Use::Read).await),
            false => None,
        };
        let (part, in_source) = self.place(part);
        let child = if in_source { &self.source } else { &self.target };
        let mut status = child.block_status(part.offset(), part.len(), true, true).await?;
        drop(held);
        // Where the data lies is nobody's business: it moves.
        status.flags = status.flags & (StatusFlags::DATA | StatusFlags::ZERO);
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
