//! The copy itself: a fixed number of pieces under way, whatever the target does.

use std::cell::RefCell;
use std::pin::pin;

use futures_util::FutureExt;
use futures_util::future::{Either, LocalBoxFuture, ready, select};
use futures_util::stream::{FuturesUnordered, StreamExt};
use millpond_messages::error::errno::ENOMEM;
use millpond_messages::qapi::schema::IoOperationType;
use millpond_messages::{IoError, Range};
use millpond_ring::buffer::{Buffer, Buffers};

use crate::iothread::yield_once;
use crate::job::pace::{Cancelled, Gates, Pace};
use millpond_drivers::replica::left::{Left, Need, Next};

/// Storage that is read and written directly wants memory that begins at a multiple of this.
const ALIGNMENT: usize = 4096;

/// A request of a copy that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// A read is one of the source, a write one of the target.
    pub operation: IoOperationType,
    /// Why the request failed.
    pub error: IoError,
}

/// What is done about a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultVerdict {
    /// The piece is copied once more, after a pause if the job is to stand still.
    Again,
    /// The piece is left as it is.
    Pass,
    /// The copy ends with it.
    End,
}

/// What a job answers to the copy that it has made.
pub trait Copying: Gates {
    /// What the start of a range needs, and for how many bytes that holds: for 1 at least.
    fn look(&self, range: Range) -> impl Future<Output = Result<(u64, Need), Fault>>;

    /// Copies a piece. `room` has as many bytes as it, or none where no data is needed or the work wants no room.
    fn copy(
        &self,
        piece: Range,
        need: Need,
        room: Buffers,
    ) -> impl Future<Output = (Result<(), Fault>, Buffers)>;

    /// Whether pieces of data are given room for their bytes.
    fn needs_room(&self) -> bool {
        true
    }

    /// A piece is about to be copied: what its job moves counts from here on, so that no more pieces are begun than its speed
    /// allows.
    fn begins(&self, piece: Range, need: Need);

    /// What is to be done about a fault.
    fn failed(&self, fault: Fault) -> FaultVerdict;

    /// So many bytes were copied.
    fn passed(&self, bytes: u64);

    /// So many bytes need nothing. They count as copied, unless a job says otherwise.
    fn skipped(&self, bytes: u64) {
        self.passed(bytes);
    }

    /// Whether the source lives on another iothread by now.
    fn has_moved(&self) -> bool;
}

/// Why a copy ended before all was copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// The job is to end.
    Cancelled,
    /// A request failed, and the job is to end by that.
    Failed(Fault),
    /// The source lives on another iothread: nothing is under way, and the copy goes on there.
    Moved,
}

impl From<Cancelled> for Stopped {
    fn from(_: Cancelled) -> Self {
        Self::Cancelled
    }
}

/// A copy on the iothread of its source.
pub struct Copier<'a, W> {
    /// The job's part of it.
    pub work: &'a W,
    /// What is left to copy.
    pub left: &'a RefCell<Left>,
    /// The line to the job's control half.
    pub pace: &'a Pace,
    /// How many pieces are under way at most.
    pub most: usize,
}

/// A piece that has ended.
struct Ended {
    piece: Range,
    result: Result<(), Fault>,
    room: Buffers,
}

type Pieces<'a> = FuturesUnordered<LocalBoxFuture<'a, Ended>>;

/// A piece that is under way. Its first request is sent here and now, in the step that has seen all gates open: one that found
/// a gate closed would wait for the end of the section, and the job, which is to stand still with nothing under way, for that
/// request.
pub fn begun<'a, T: 'a>(piece: impl Future<Output = T> + 'a) -> LocalBoxFuture<'a, T> {
    let mut piece = Box::pin(piece);
    match piece.as_mut().now_or_never() {
        Some(ended) => Box::pin(ready(ended)),
        None => piece,
    }
}

impl<W: Copying> Copier<'_, W> {
    /// Copies until nothing is left. However it ends, no piece is under way then; but for a cancelled job whose storage does
    /// not answer.
    ///
    /// # Errors
    /// Why it ended before that.
    pub async fn run(&self) -> Result<(), Stopped> {
        let mut pieces = Pieces::new();
        let mut spare = Vec::new();
        let ended = self.copy_all(&mut pieces, &mut spare).await;
        while let Some(ended) = self.pace.unless_stuck(pieces.next()).await? {
            // What fails now does not change how the copy ends: it is left, as all else is.
            self.note(&ended);
        }
        ended
    }

    async fn copy_all<'a>(
        &'a self,
        pieces: &mut Pieces<'a>,
        spare: &mut Vec<Buffers>,
    ) -> Result<(), Stopped> {
        loop {
            if self.work.has_moved() {
                return Err(Stopped::Moved);
            }
            if self.pace.would_wait(self.work) {
                // A pause point is one only with nothing under way.
                while !pieces.is_empty() {
                    self.one_ends(pieces, spare).await?;
                }
                self.pace.point_at(self.work).await?;
                continue;
            }
            if pieces.len() >= self.most {
                self.one_ends(pieces, spare).await?;
                continue;
            }
            // Requests that are answered at once would leave the thread's other tasks no time.
            yield_once().await;
            if self.pace.would_wait(self.work) {
                continue;
            }
            let next = self.left.borrow_mut().take_next();
            match next {
                Next::Nothing => return Ok(()),
                Next::Wait => self.one_ends(pieces, spare).await?,
                Next::Look(range) => self.look(range, pieces, spare).await?,
                Next::Piece(piece, need) => {
                    self.work.begins(piece, need);
                    let room = self.room(piece, need, spare);
                    let copied = async move {
                        let (result, room) = match room {
                            Ok(room) => self.work.copy(piece, need, room).await,
                            Err(fault) => (Err(fault), Buffers::new()),
                        };
                        Ended { piece, result, room }
                    };
                    pieces.push(begun(copied));
                }
            }
        }
    }

    /// Asks what a range needs, while pieces go on.
    async fn look<'a>(
        &'a self,
        range: Range,
        pieces: &mut Pieces<'a>,
        spare: &mut Vec<Buffers>,
    ) -> Result<(), Stopped> {
        let mut looking = pin!(self.pace.unless_stuck(self.work.look(range)));
        let found = loop {
            if pieces.is_empty() {
                break looking.await?;
            }
            match select(looking.as_mut(), pieces.next()).await {
                Either::Left((found, _)) => break found?,
                Either::Right((ended, _)) => self.see_to(ended, spare)?,
            }
        };
        match found {
            Ok((len, need)) => {
                let skipped = self.left.borrow_mut().learn(len, need);
                self.work.skipped(skipped);
                Ok(())
            }
            // Whatever is there, its bytes are right; if it is to be passed over, so is one chunk of it.
            Err(fault) => match self.work.failed(fault) {
                FaultVerdict::Again => Ok(()),
                FaultVerdict::Pass => {
                    self.left.borrow_mut().learn(1, Need::Data);
                    Ok(())
                }
                FaultVerdict::End => Err(Stopped::Failed(fault)),
            },
        }
    }

    /// Waits until a piece ends. There is one.
    async fn one_ends(&self, pieces: &mut Pieces<'_>, spare: &mut Vec<Buffers>) -> Result<(), Stopped> {
        let ended = self.pace.unless_stuck(pieces.next()).await?;
        self.see_to(ended, spare)
    }

    fn see_to(&self, ended: Option<Ended>, spare: &mut Vec<Buffers>) -> Result<(), Stopped> {
        let Some(mut ended) = ended else { return Ok(()) };
        let fault = ended.result.err();
        if fault.is_some() && self.pace.is_paused() {
            // One fault has stopped the job, and is told; what was under way beside it is tried again with that.
            self.note(&ended);
            return Ok(());
        }
        let verdict = fault.map(|fault| (self.work.failed(fault), fault));
        if let Some((FaultVerdict::Pass, _)) = verdict {
            ended.result = Ok(());
        }
        self.note(&ended);
        if !ended.room.is_empty() {
            spare.push(ended.room);
        }
        match verdict {
            Some((FaultVerdict::End, fault)) => Err(Stopped::Failed(fault)),
            _ => Ok(()),
        }
    }

    fn note(&self, ended: &Ended) {
        let copied = ended.result.is_ok();
        self.left.borrow_mut().ended(ended.piece, copied);
        if copied {
            self.work.passed(ended.piece.len());
        }
    }

    /// Memory for the bytes of a piece: what another piece had, if it fits.
    fn room(&self, piece: Range, need: Need, spare: &mut Vec<Buffers>) -> Result<Buffers, Fault> {
        if need != Need::Data || !self.work.needs_room() {
            return Ok(Buffers::new());
        }
        let no_memory = Fault {
            operation: IoOperationType::Read,
            error: IoError::from_errno(ENOMEM),
        };
        let len = usize::try_from(piece.len()).map_err(|_| no_memory)?;
        if let Some(fits) = spare.iter().position(|room| room.len() == len) {
            return Ok(spare.swap_remove(fits));
        }
        // Of those of other lengths none is kept for a piece that may never come.
        spare.truncate(self.most.saturating_sub(1));
        let room = Buffer::try_aligned(len, ALIGNMENT).ok_or(no_memory)?;
        Ok(room.into())
    }
}
