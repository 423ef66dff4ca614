//! The data half of a stream: what is read of its filter is copied, on the iothread of that.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::task::Waker;

use millpond_drivers::api::transfer;
use millpond_messages::io::Operation;
use millpond_messages::qapi::schema::{BlockErrorAction, IoOperationType};
use millpond_messages::{IoError, Range, RequestFlags, StatusFlags};
use millpond_ring::buffer::Buffers;

use super::copy;
use super::data::{Errors, NodeGates};
use crate::job::copy::{Copying, Fault, FaultVerdict, Need};
use crate::job::pace::Gates;
use crate::node::HomeClient;

/// The data half of a stream.
pub(super) struct CopyUp {
    /// The filter: what is read there is copied.
    pub node: HomeClient,
    /// Where images from which is copied are in the chain.
    pub sources: (u32, u32),
    pub gates: NodeGates,
    pub errors: Errors,
    /// The errno of the first error that was passed over, 0 for none.
    pub passed_over: Arc<AtomicI32>,
}

impl Gates for CopyUp {
    fn watch(&self, waker: &Waker) -> bool {
        self.gates.watch(waker)
    }
}

const fn reading(error: IoError) -> Fault {
    Fault {
        operation: IoOperationType::Read,
        error,
    }
}

impl Copying for CopyUp {
    async fn look(&self, range: Range) -> Result<(u64, Need), Fault> {
        let status = self.node.block_status(range.offset(), range.len(), false, true);
        let status = status.await.map_err(reading)?;
        let (above, bottom) = self.sources;
        let is_allocated = status.flags.contains(StatusFlags::ALLOCATED);
        let is_below = is_allocated && status.depth > above && status.depth <= bottom;
        // Nothing is left only where the length has changed meanwhile.
        let len = if status.len == 0 { range.len() } else { status.len };
        Ok((len, if is_below { Need::Data } else { Need::Nothing }))
    }

    async fn copy(&self, piece: Range, _: Need, room: Buffers) -> (Result<(), Fault>, Buffers) {
        let read = Operation::Read {
            offset: piece.offset(),
            buffers: room,
            flags: RequestFlags::PREFETCH,
        };
        let (result, room) = transfer(self.node.request(read).await);
        (result.map_err(reading), room)
    }

    fn begins(&self, piece: Range, _: Need) {
        self.errors.pace.moved(piece.len());
    }

    fn failed(&self, fault: Fault) -> FaultVerdict {
        match self.errors.action(fault.operation, fault.error) {
            BlockErrorAction::Stop => FaultVerdict::Again,
            BlockErrorAction::Report => FaultVerdict::End,
            BlockErrorAction::Ignore => {
                let (first, errno) = (&self.passed_over, fault.error.errno());
                // Only the first is told in the end.
                let _ = first.compare_exchange(0, errno, Ordering::AcqRel, Ordering::Acquire);
                FaultVerdict::Pass
            }
        }
    }

    fn passed(&self, bytes: u64) {
        self.errors.pace.advance(bytes);
    }

    fn has_moved(&self) -> bool {
        copy::has_moved(&self.node)
    }
}
