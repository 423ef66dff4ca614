//! The data half of a backup: what is left is copied, piece by piece, on the iothread of the filter.

use std::sync::Arc;
use std::task::Waker;

use millpond_messages::io::{CopyFault, Operation, SnapshotRequest};
use millpond_messages::qapi::schema::{BlockdevOnError, IoOperationType, MirrorSyncMode};
use millpond_messages::{MomentLine, Range, StatusFlags};
use millpond_ring::buffer::Buffers;

use super::copy;
use super::data::NodeGates;
use crate::job::copy::{Copying, Fault, FaultVerdict, Need};
use crate::job::pace::{Gates, Pace};
use crate::node::HomeClient;

/// The smallest chunk that is copied by itself, in bytes; the filter's are no smaller.
pub(super) const CHUNK: u64 = 65_536;

/// What is done about errors of either side.
#[derive(Clone, Copy)]
pub(super) struct OnErrors {
    pub source: BlockdevOnError,
    pub target: BlockdevOnError,
}

/// The nodes of a backup, and whether its moment is kept.
pub(super) struct Moment {
    pub gates: NodeGates,
    pub line: Arc<MomentLine>,
}

impl Gates for Moment {
    fn watch(&self, waker: &Waker) -> bool {
        self.line.watch(waker);
        self.gates.watch(waker)
    }

    fn is_in_vain(&self) -> bool {
        self.line.lost().is_some()
    }
}

/// The data half of a backup.
pub(super) struct Data {
    /// The filter: it copies what it is told to.
    pub keeper: HomeClient,
    /// The target, where zeroes that it shows anyway need not be written.
    pub target: Option<HomeClient>,
    pub moment: Moment,
    pub pace: Pace,
    pub sync: MirrorSyncMode,
    pub on_errors: OnErrors,
}

impl Data {
    async fn ask(&self, request: SnapshotRequest<Buffers>) -> millpond_messages::io::Outcome<Buffers> {
        self.keeper.request(Operation::Snapshot(request)).await
    }

    /// Of the uppermost layer alone: what it does not have is not copied, by writes neither.
    async fn look_at_top(&self, range: Range) -> Result<(u64, Need), Fault> {
        let status = self.keeper.block_status(range.offset(), range.len(), true, true);
        let status = status.await.map_err(reading)?;
        let is_in_top = status.flags.contains(StatusFlags::ALLOCATED) && status.depth == 1;
        let need = if !is_in_top {
            self.forget(range.first(status.len)).await?;
            Need::Nothing
        } else if status.flags.contains(StatusFlags::ZERO) {
            Need::Zeroes
        } else {
            Need::Data
        };
        Ok((status.len, need))
    }

    /// Has the filter copy nothing of what lies in a range as a whole.
    async fn forget(&self, range: Range) -> Result<(), Fault> {
        let whole = range.end() / CHUNK * CHUNK;
        let range = Range::between(range.offset(), whole);
        let forgotten = self.ask(SnapshotRequest::Discard { range }).await;
        forgotten.into_done().map_err(reading)
    }

    /// How much of the start of a range, which was zeroes then, the target shows as zeroes already, by itself: nobody but
    /// this job writes there, so that it stays so.
    async fn zero_already(&self, range: Range) -> Option<u64> {
        let target = self.target.as_ref()?;
        let status = target.block_status(range.offset(), range.len(), true, false);
        // A target that cannot tell is written.
        let status = status.await.ok()?;
        let is_whole = status.len >= range.len() || status.len >= CHUNK;
        (is_whole && status.flags.contains(StatusFlags::ZERO)).then_some(status.len.min(range.len()))
    }
}

const fn reading(error: millpond_messages::IoError) -> Fault {
    Fault {
        operation: IoOperationType::Read,
        error,
    }
}

impl Gates for Data {
    fn watch(&self, waker: &Waker) -> bool {
        self.moment.watch(waker)
    }

    fn is_in_vain(&self) -> bool {
        self.moment.is_in_vain()
    }
}

impl Copying for Data {
    async fn look(&self, range: Range) -> Result<(u64, Need), Fault> {
        if let Some(error) = self.moment.line.lost() {
            return Err(reading(error));
        }
        if self.sync == MirrorSyncMode::Top {
            return self.look_at_top(range).await;
        }
        let status = self
            .ask(SnapshotRequest::Status { range })
            .await
            .into_status()
            .map_err(reading)?;
        if !status.flags.contains(StatusFlags::ZERO) {
            return Ok((status.len, Need::Data));
        }
        let zeroes = range.first(status.len);
        match self.zero_already(zeroes).await {
            None => Ok((status.len, Need::Zeroes)),
            Some(len) => {
                self.forget(zeroes.first(len)).await?;
                Ok((len, Need::Nothing))
            }
        }
    }

    async fn copy(&self, piece: Range, _: Need, room: Buffers) -> (Result<(), Fault>, Buffers) {
        let copied = self
            .ask(SnapshotRequest::Copy { range: piece })
            .await
            .into_copied();
        let fault = |fault: CopyFault| Fault {
            operation: match fault {
                CopyFault::Source(_) => IoOperationType::Read,
                CopyFault::Target(_) => IoOperationType::Write,
            },
            error: fault.error(),
        };
        (copied.map_err(fault), room)
    }

    fn begins(&self, piece: Range, need: Need) {
        if need == Need::Data {
            self.pace.moved(piece.len());
        }
    }

    fn needs_room(&self) -> bool {
        false
    }

    fn failed(&self, fault: Fault) -> FaultVerdict {
        // No second try brings the moment back.
        if self.moment.is_in_vain() {
            return FaultVerdict::End;
        }
        let policy = match fault.operation {
            IoOperationType::Read => self.on_errors.source,
            IoOperationType::Write => self.on_errors.target,
        };
        copy::verdict(&self.pace, policy, fault)
    }

    fn passed(&self, bytes: u64) {
        self.pace.advance(bytes);
    }

    fn skipped(&self, bytes: u64) {
        match self.sync {
            MirrorSyncMode::Top => self.pace.skip(bytes),
            _ => self.pace.advance(bytes),
        }
    }

    fn has_moved(&self) -> bool {
        copy::has_moved(&self.keeper)
    }
}
