//! The data half of a mirror: it has one piece copied after the other, a fixed number at a time, until it is to end.

use std::sync::Arc;
use std::task::Waker;

use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use millpond_messages::io::{CopyFault, MirrorRequest, MirrorStep, Operation, Outcome};
use millpond_messages::qapi::schema::IoOperationType;
use millpond_messages::{IoError, MirrorLine, MirrorMode, NodeId, Range, StatusFlags};

use super::plan::Manner;
use crate::iothread::yield_once;
use crate::job::block::copy::{has_moved, verdict};
use crate::job::block::data::NodeGates;
use crate::job::copy::{Fault, FaultVerdict, Stopped, begun};
use crate::job::pace::{Gates, Pace};
use crate::node::HomeClient;

/// How far a mirror is, wherever its data half runs.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Progress {
    /// Bytes that were copied.
    done: u64,
    /// Up to here it is known what is to be copied at first.
    found: u64,
    joined: bool,
    pub(super) is_ready: bool,
}

/// What follows the source, on its iothread.
pub(super) struct Data {
    /// The filter: it copies what it has marked.
    pub keeper: HomeClient,
    pub target: HomeClient,
    pub gates: NodeGates,
    pub pace: Pace,
    pub line: Arc<MirrorLine>,
    pub manner: Manner,
}

impl Gates for Data {
    fn watch(&self, waker: &Waker) -> bool {
        self.gates.watch(waker)
    }
}

/// How many pieces are under way at most while somebody writes.
const BESIDE_WRITES: usize = 2;

type Step = Result<MirrorStep, CopyFault>;
type Pieces<'a> = FuturesUnordered<LocalBoxFuture<'a, Step>>;

impl Data {
    /// Copies until the job is to end and nothing is left. However it ends, no piece is under way then; but for a cancelled
    /// job whose storage does not answer.
    pub async fn follow(&self, progress: &mut Progress) -> Result<(), Stopped> {
        self.find(progress).await?;
        let mut pieces = Pieces::new();
        let ended = self.copy(&mut pieces, progress).await;
        while let Some(step) = self.pace.unless_stuck(pieces.next()).await? {
            // What fails now does not change how the copy ends: it is left, as all else is.
            self.count(step, progress);
        }
        self.show(progress);
        ended
    }

    /// Marks what is to be copied at first.
    async fn find(&self, progress: &mut Progress) -> Result<(), Stopped> {
        let size = self.manner.size;
        while !progress.joined || progress.found < size {
            if has_moved(&self.keeper) {
                return Err(Stopped::Moved);
            }
            self.pace.point_at(self).await?;
            if let Err(error) = self.find_next(size, progress).await? {
                let operation = IoOperationType::Read;
                self.see_to(Fault { operation, error })?;
            }
            yield_once().await;
        }
        Ok(())
    }

    /// Takes one step of that.
    async fn find_next(&self, size: u64, progress: &mut Progress) -> Result<Result<(), IoError>, Stopped> {
        if !progress.joined {
            let joined = self.ask(MirrorRequest::Join(Arc::clone(&self.line))).await?;
            progress.joined = joined.is_ok();
            return Ok(joined);
        }
        let rest = Range::between(progress.found, size);
        let (part, is_left) = match self.manner.above {
            None => (rest, self.manner.copies_all),
            Some(above) => match self.look(rest, above).await? {
                Ok(found) => found,
                Err(error) => return Ok(Err(error)),
            },
        };
        if is_left && let Err(error) = self.ask(MirrorRequest::Add { range: part }).await? {
            return Ok(Err(error));
        }
        progress.found = part.end();
        Ok(Ok(()))
    }

    async fn ask(&self, request: MirrorRequest) -> Result<Result<(), IoError>, Stopped> {
        let asked = self.keeper.request(Operation::Mirror(request));
        Ok(self.pace.unless_stuck(asked).await?.into_done())
    }

    /// The start of a range that some layer above a node has, or that none has.
    async fn look(&self, range: Range, above: NodeId) -> Result<Result<(Range, bool), IoError>, Stopped> {
        let query = Operation::BlockStatus {
            range,
            want_zero: false,
            whole_chain: true,
            base: Some(above),
        };
        let status = self
            .pace
            .unless_stuck(self.keeper.request(query))
            .await?
            .into_status();
        Ok(status.and_then(|status| match range.first(status.len) {
            part if part.is_empty() => Err(IoError::Corrupt),
            part => Ok((part, status.flags.contains(StatusFlags::ALLOCATED))),
        }))
    }

    async fn copy<'a>(&'a self, pieces: &mut Pieces<'a>, progress: &mut Progress) -> Result<(), Stopped> {
        // Nothing could be taken: all that is left is under way.
        let mut is_dry = false;
        let mut writes = self.line.writes();
        loop {
            self.show(progress);
            if has_moved(&self.keeper) {
                return Err(Stopped::Moved);
            }
            if let Some(error) = self.line.take_fault() {
                let operation = IoOperationType::Write;
                self.see_to(Fault { operation, error })?;
            }
            if self.pace.is_to_end() && self.line.mode() == MirrorMode::Background {
                // The end is reached whatever is written, and nothing of that is lost while it is prepared.
                self.line.set_mode(MirrorMode::Closing);
            }
            if self.pace.would_wait(self) {
                // A pause point is one only with nothing under way.
                while !pieces.is_empty() {
                    self.one_ends(pieces, progress).await?;
                }
                self.pace.point_at(self).await?;
                is_dry = false;
                continue;
            }
            let written = self.line.writes();
            let most = self.most(written != writes);
            writes = written;
            if !is_dry && self.line.left() > 0 && pieces.len() < most {
                // Requests that are answered at once would leave the thread's other tasks no time.
                yield_once().await;
                if !self.pace.would_wait(self) {
                    let copied = self.keeper.request(Operation::Mirror(MirrorRequest::Copy));
                    pieces.push(begun(copied.map(Outcome::into_mirrored)));
                }
                continue;
            }
            if !pieces.is_empty() {
                is_dry = self.one_ends(pieces, progress).await?;
                continue;
            }
            is_dry = false;
            if self.line.left() == 0 && self.is_over(progress).await? {
                return Ok(());
            }
        }
    }

    /// How many pieces are under way at most: one where more would be begun than the speed allows, and few beside somebody who
    /// writes, whose requests wait for those of the copy on the same iothread.
    fn most(&self, is_written: bool) -> usize {
        match (self.pace.speed(), is_written) {
            (0, false) => self.manner.pieces,
            (0, true) => self.manner.pieces.min(BESIDE_WRITES),
            _ => 1,
        }
    }

    /// Waits until a piece ends. There is one. Answers whether nothing could be taken.
    async fn one_ends(&self, pieces: &mut Pieces<'_>, progress: &mut Progress) -> Result<bool, Stopped> {
        let Some(step) = self.pace.unless_stuck(pieces.next()).await? else {
            return Ok(false);
        };
        self.count(step, progress);
        if let Err(fault) = step {
            let operation = match fault {
                CopyFault::Source(_) => IoOperationType::Read,
                CopyFault::Target(_) => IoOperationType::Write,
            };
            let error = fault.error();
            // One fault has stopped the job, and is told; what was under way beside it is tried again with that.
            if !self.pace.is_paused() {
                self.see_to(Fault { operation, error })?;
            }
        }
        Ok(step == Ok(MirrorStep::Nothing))
    }

    fn count(&self, step: Step, progress: &mut Progress) {
        match step {
            Ok(MirrorStep::Copied(bytes)) => {
                self.pace.moved(bytes);
                progress.done = progress.done.saturating_add(bytes);
            }
            Ok(MirrorStep::Zeroed(bytes)) => progress.done = progress.done.saturating_add(bytes),
            Ok(MirrorStep::Alike(_) | MirrorStep::Nothing) | Err(_) => {}
        }
    }

    fn show(&self, progress: &Progress) {
        let total = progress.done.saturating_add(self.line.left());
        let number = |bytes| i64::try_from(bytes).unwrap_or(i64::MAX);
        self.pace.progress(number(progress.done), number(total));
    }

    /// Does what is to be done about a fault.
    fn see_to(&self, fault: Fault) -> Result<(), Stopped> {
        let policy = match fault.operation {
            IoOperationType::Read => self.manner.on_errors.source,
            IoOperationType::Write => self.manner.on_errors.target,
        };
        match verdict(&self.pace, policy, fault) {
            FaultVerdict::End => Err(Stopped::Failed(fault)),
            FaultVerdict::Again | FaultVerdict::Pass => Ok(()),
        }
    }

    /// Source and target are alike. Answers whether the job is to end with that; waits for something to do if not.
    async fn is_over(&self, progress: &mut Progress) -> Result<bool, Stopped> {
        if !progress.is_ready {
            if let Err(error) = self.pace.unless_stuck(self.target.flush()).await? {
                let operation = IoOperationType::Write;
                self.see_to(Fault { operation, error })?;
                return Ok(false);
            }
            progress.is_ready = true;
            self.pace.is_ready();
        }
        if self.pace.is_to_end() {
            return Ok(self.line.left() == 0);
        }
        let watch = |waker: &Waker| self.line.watch(waker);
        let is_work = || self.line.left() > 0;
        self.pace.rest_until(self, watch, is_work).await;
        Ok(false)
    }
}
