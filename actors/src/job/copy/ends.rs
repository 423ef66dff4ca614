//! A source and a target, and how a piece gets from the one to the other.

use millpond_messages::io::Operation;
use millpond_messages::qapi::schema::IoOperationType;
use millpond_messages::{BlockStatus, IoError, NodeId, Range, RequestFlags, StatusFlags};
use millpond_ring::buffer::Buffers;

use super::copier::Fault;
use crate::node::HomeClient;
use millpond_drivers::replica::left::Need;
use millpond_drivers::replica::offload::Offload;

/// Where a copy reads and writes: it runs where the source lives.
pub struct Ends {
    /// The node that is read.
    pub source: HomeClient,
    /// The node that is written.
    pub target: HomeClient,
    /// Only what layers of the source above this node have is copied.
    pub above: NodeId,
    /// Data goes from file to file of the host where it can.
    pub offload: Offload,
    /// What is not cut, in bytes.
    pub chunk: u64,
}

fn fault(operation: IoOperationType) -> impl Fn(IoError) -> Fault {
    move |error| Fault { operation, error }
}

impl Ends {
    /// What the start of a range of the target needs, and for how many bytes that holds.
    ///
    /// # Errors
    /// The source cannot tell.
    pub async fn look(&self, range: Range) -> Result<(u64, Need), Fault> {
        let query = Operation::BlockStatus {
            range,
            want_zero: true,
            whole_chain: true,
            base: Some(self.above),
        };
        let failed = fault(IoOperationType::Read);
        let status = self.source.request(query).await.into_status().map_err(&failed)?;
        match status.len {
            0 => Err(failed(IoError::Corrupt)),
            len => Ok((len, need(&status))),
        }
    }

    /// Copies a piece.
    ///
    /// # Errors
    /// The read or the write failed.
    pub async fn copy(&self, piece: Range, need: Need, room: Buffers) -> (Result<(), Fault>, Buffers) {
        let (read, write) = (fault(IoOperationType::Read), fault(IoOperationType::Write));
        match need {
            Need::Nothing => (Ok(()), room),
            Need::Zeroes => {
                let (offset, len) = (piece.offset(), piece.len());
                let zeroed = self
                    .target
                    .write_zeroes(offset, len, RequestFlags::MAY_UNMAP)
                    .await;
                (zeroed.map_err(write), room)
            }
            Need::Data => {
                let ends = [&self.source, &self.target];
                if self.offload.copy(ends, piece, self.chunk).await {
                    return (Ok(()), room);
                }
                let (result, room) = self.source.read(piece.offset(), room).await;
                if let Err(error) = result {
                    return (Err(read(error)), room);
                }
                let (result, room) = self
                    .target
                    .write(piece.offset(), room, RequestFlags::empty())
                    .await;
                (result.map_err(write), room)
            }
        }
    }
}

fn need(status: &BlockStatus) -> Need {
    if !status.flags.contains(StatusFlags::ALLOCATED) {
        Need::Nothing
    } else if status.flags.contains(StatusFlags::ZERO) {
        Need::Zeroes
    } else {
        Need::Data
    }
}
