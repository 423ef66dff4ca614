//! What is left, and how a piece of it gets to the target.
//!
//! Who has a range for itself, a piece or a write to both ends, asks only the children for anything: so nobody waits in a
//! circle.

use std::cell::RefCell;
use std::sync::Arc;

use millpond_messages::error::errno::ENOMEM;
use millpond_messages::io::{CopyFault, MirrorStep};
use millpond_messages::{IoError, MirrorLine, Range, RequestFlags, StatusFlags};
use millpond_ring::buffer::{Buffer, Buffers};

use super::Manner;
use crate::api::Child;
use crate::replica::abandoned::Abandoned;
use crate::replica::copies::{Ranges, Use};
use crate::replica::left::{Left, Need, Next};
use crate::replica::offload::Offload;

/// The most that is zeroed in one go, in bytes: a write to it waits meanwhile.
pub const ZEROES_MOST: u64 = 16 << 20;
/// Storage that is read and written directly wants memory that begins at a multiple of this.
const ALIGNMENT: usize = 4096;
/// How many buffers are kept for pieces to come.
const SPARE: usize = 16;

/// What a mirror keeps, without what is bound to an iothread. Nothing is under way.
#[derive(Debug, Clone)]
pub struct MirrorState {
    pub left: Left,
    pub line: Option<Arc<MirrorLine>>,
    pub manner: Manner,
    pub is_abandoned: bool,
}

/// A mirror on its iothread.
pub struct Mirror {
    pub(super) source: Child,
    pub(super) target: Child,
    left: RefCell<Left>,
    line: RefCell<Option<Arc<MirrorLine>>>,
    pub(super) manner: Manner,
    /// Held by pieces, several at once, and by writes that go to both ends.
    pub(super) ranges: Ranges,
    /// One at a time finds out what to do next.
    turn: Ranges,
    /// Nobody waits for the target any more.
    abandoned: Abandoned,
    offload: Offload,
    spare: RefCell<Vec<Buffers>>,
}

/// A piece that was taken: it is left again unless it is copied.
struct Taken<'a> {
    mirror: &'a Mirror,
    piece: Range,
    is_copied: bool,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.mirror.left.borrow_mut().ended(self.piece, self.is_copied);
        self.mirror.tell();
    }
}

impl Mirror {
    pub fn new([source, target]: [Child; 2], state: MirrorState) -> Self {
        Self {
            source,
            target,
            left: RefCell::new(state.left),
            line: RefCell::new(state.line),
            manner: state.manner,
            ranges: Ranges::default(),
            turn: Ranges::default(),
            abandoned: Abandoned::new(state.is_abandoned),
            offload: Offload::new(true),
            spare: RefCell::default(),
        }
    }

    pub fn state(&self) -> MirrorState {
        MirrorState {
            left: self.left.borrow().clone(),
            line: self.line.borrow().clone(),
            manner: self.manner,
            is_abandoned: self.abandoned.is_so(),
        }
    }

    /// Goes on with what another mirror of the same disk had left.
    pub fn go_on(&self, left: Left) {
        self.left.replace(left);
        self.tell();
    }

    pub fn join(&self, line: Arc<MirrorLine>) {
        self.line.replace(Some(line));
        self.tell();
    }

    pub fn line(&self) -> Option<Arc<MirrorLine>> {
        self.line.borrow().clone()
    }

    /// A write has ended of which only the source is known to have it.
    pub fn written(&self, range: Range) {
        self.count_write();
        self.mark(range);
    }

    fn count_write(&self) {
        if let Some(line) = &*self.line.borrow() {
            line.count_write();
        }
    }

    /// A range is left to copy.
    pub fn mark(&self, range: Range) {
        self.left.borrow_mut().mark(range);
        self.tell();
    }

    /// A range was written on both ends.
    pub fn written_to_both(&self, range: Range) {
        self.count_write();
        self.left.borrow_mut().written_to_both(range);
        self.tell();
    }

    fn tell(&self) {
        if let Some(line) = &*self.line.borrow() {
            line.set_left(self.left.borrow().bytes());
        }
    }

    /// Writes wait for the target no more, neither those in flight nor those to come.
    pub fn abandon(&self) {
        self.abandoned.begin();
    }

    pub fn is_abandoned(&self) -> bool {
        self.abandoned.is_so()
    }

    /// Waits for a request to the target, unless that is given up.
    pub async fn unless_abandoned<T>(&self, request: impl Future<Output = T>) -> Option<T> {
        self.abandoned.unless_so(request).await
    }

    /// Copies the next piece, unless the target is given up.
    ///
    /// # Errors
    /// It was not copied, and is left.
    pub async fn copy_next(&self) -> Result<MirrorStep, CopyFault> {
        let copied = self.unless_abandoned(self.copy_piece()).await;
        copied.unwrap_or(Err(CopyFault::Target(IoError::Cancelled)))
    }

    async fn copy_piece(&self) -> Result<MirrorStep, CopyFault> {
        loop {
            let turn = self.turn.hold(0, 1, Use::Write).await;
            let (mut taken, need) = loop {
                let next = self.left.borrow_mut().take_next();
                match next {
                    Next::Nothing | Next::Wait => return Ok(MirrorStep::Nothing),
                    Next::Look(range) => {
                        if let Some(step) = self.look(range).await? {
                            return Ok(step);
                        }
                    }
                    Next::Piece(piece, need) => {
                        let is_copied = false;
                        let mirror = self;
                        break (
                            Taken {
                                mirror,
                                piece,
                                is_copied,
                            },
                            need,
                        );
                    }
                }
            };
            drop(turn);
            let piece = taken.piece;
            let alone = self.ranges.hold(piece.offset(), piece.len(), Use::Read).await;
            // A write that came before may have made data of what were zeroes.
            if self.left.borrow().is_old(piece) {
                continue;
            }
            let step = match need {
                Need::Data => {
                    self.copy(piece).await?;
                    MirrorStep::Copied(piece.len())
                }
                Need::Zeroes | Need::Nothing => {
                    self.zero(piece).await?;
                    MirrorStep::Zeroed(piece.len())
                }
            };
            drop(alone);
            taken.is_copied = true;
            return Ok(step);
        }
    }

    /// Finds out what the start of a range needs. Answers what that came to, where it was no work for a piece.
    async fn look(&self, range: Range) -> Result<Option<MirrorStep>, CopyFault> {
        let status = self.source.block_status(range, true, true).await;
        let status = status.map_err(CopyFault::Source)?;
        let part = range.first(status.len);
        if part.is_empty() {
            return Err(CopyFault::Source(IoError::Corrupt));
        }
        if status.flags.contains(StatusFlags::DATA) {
            self.left.borrow_mut().learn(part.len(), Need::Data);
            return Ok(None);
        }
        let is_hole = !status.flags.contains(StatusFlags::ALLOCATED);
        let step = match self.manner.skips_holes && is_hole {
            true => MirrorStep::Alike,
            false => MirrorStep::Zeroed,
        };
        let mut shown = 0;
        if self.manner.looks_at_target {
            let status = self.target.block_status(part, true, true).await;
            let status = status.map_err(CopyFault::Target)?;
            if status.flags.contains(StatusFlags::ZERO) {
                shown = self.whole_chunks(part.first(status.len)).len();
            }
        }
        if shown == 0 && self.manner.skips_holes && is_hole {
            shown = self.zero_hole(self.whole_chunks(part.first(ZEROES_MOST))).await?;
        }
        if shown == 0 {
            self.left.borrow_mut().learn(part.len(), Need::Zeroes);
            return Ok(None);
        }
        let alike = self.left.borrow_mut().learn(shown, Need::Nothing);
        self.tell();
        Ok((alike > 0).then(|| step(alike)))
    }

    /// Has the target read as zeroes where the source has nothing; answers how many bytes that are. None are where a write
    /// was there meanwhile.
    async fn zero_hole(&self, range: Range) -> Result<u64, CopyFault> {
        let alone = self.ranges.hold(range.offset(), range.len(), Use::Read).await;
        if self.left.borrow().look_is_old() {
            return Ok(0);
        }
        self.zero(range).await?;
        drop(alone);
        Ok(range.len())
    }

    /// The chunks at the start of a range, which begins with one, that are in it as a whole.
    fn whole_chunks(&self, range: Range) -> Range {
        let left = self.left.borrow();
        match range.end() >= left.chunks().len() {
            true => range,
            false => Range::between(
                range.offset(),
                range.end() / left.chunks().chunk() * left.chunks().chunk(),
            ),
        }
    }

    async fn copy(&self, piece: Range) -> Result<(), CopyFault> {
        let chunk = self.left.borrow().chunks().chunk();
        if self
            .offload
            .copy([&self.source, &self.target], piece, chunk)
            .await
        {
            return Ok(());
        }
        let room = self.room(piece.len())?;
        let (read, data) = self.source.read(piece.offset(), room).await;
        read.map_err(CopyFault::Source)?;
        let (written, data) = self
            .target
            .write(piece.offset(), data, RequestFlags::empty())
            .await;
        written.map_err(CopyFault::Target)?;
        let mut spare = self.spare.borrow_mut();
        if spare.len() < SPARE && !data.is_empty() {
            spare.push(data);
        }
        Ok(())
    }

    /// Memory for the bytes of a piece: what another piece had, if it fits.
    fn room(&self, len: u64) -> Result<Buffers, CopyFault> {
        let no_memory = CopyFault::Source(IoError::from_errno(ENOMEM));
        let len = usize::try_from(len).map_err(|_| no_memory)?;
        let mut spare = self.spare.borrow_mut();
        if let Some(fits) = spare.iter().position(|room| room.len() == len) {
            return Ok(spare.swap_remove(fits));
        }
        let room = Buffer::try_aligned(len, ALIGNMENT).ok_or(no_memory)?;
        Ok(room.into())
    }

    pub(super) const fn zero_flags(&self) -> RequestFlags {
        match self.manner.unmap {
            true => RequestFlags::MAY_UNMAP,
            false => RequestFlags::empty(),
        }
    }

    /// Has the target read as zeroes in a range.
    async fn zero(&self, range: Range) -> Result<(), CopyFault> {
        let mut rest = range;
        while !rest.is_empty() {
            let mut part = rest;
            if self.manner.looks_at_target {
                let status = self.target.block_status(rest, true, true).await;
                let status = status.map_err(CopyFault::Target)?;
                part = rest.first(status.len);
                if part.is_empty() {
                    return Err(CopyFault::Target(IoError::Corrupt));
                }
                if status.flags.contains(StatusFlags::ZERO) {
                    rest = rest.after(part.len());
                    continue;
                }
            }
            let zeroed = self.target.write_zeroes(part, self.zero_flags()).await;
            zeroed.map_err(CopyFault::Target)?;
            rest = rest.after(part.len());
        }
        Ok(())
    }
}
