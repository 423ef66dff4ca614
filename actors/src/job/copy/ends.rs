//! A source and a target, and how a piece gets from the one to the other.

use millpond_messages::io::Operation;
use millpond_messages::qapi::schema::IoOperationType;
use millpond_messages::{BlockStatus, IoError, NodeId, Range, RequestFlags, StatusFlags};
use millpond_ring::buffer::Buffers;

use super::copier::Fault;
use super::left::Need;
use crate::node::HomeClient;

/// Which of the layers of the source are copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layers {
    /// All of them: what the source shows.
    All,
    /// Those above this node.
    Above(NodeId),
}

/// Where a copy reads and writes: it runs where the source lives.
pub struct Ends {
    /// The node that is read.
    pub source: HomeClient,
    /// The node that is written.
    pub target: HomeClient,
    /// Which layers of the source.
    pub layers: Layers,
    /// What every write of data asks for.
    pub write_flags: RequestFlags,
    /// What every zero write asks for.
    pub zero_flags: RequestFlags,
    /// The target reads as zeroes where nothing was copied yet.
    pub target_is_zero: bool,
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
        let base = match self.layers {
            Layers::All => None,
            Layers::Above(base) => Some(base),
        };
        let query = Operation::BlockStatus {
            range,
            want_zero: true,
            whole_chain: true,
            base,
        };
        let failed = fault(IoOperationType::Read);
        let status = self.source.request(query).await.into_status().map_err(&failed)?;
        match status.len {
            0 => Err(failed(IoError::Corrupt)),
            len => Ok((len, self.need(&status))),
        }
    }

    fn need(&self, status: &BlockStatus) -> Need {
        let is_zero = status.flags.contains(StatusFlags::ZERO);
        let is_elsewhere = self.layers != Layers::All && !status.flags.contains(StatusFlags::ALLOCATED);
        if is_elsewhere || (is_zero && self.target_is_zero) {
            Need::Nothing
        } else if is_zero {
            Need::Zeroes
        } else {
            Need::Data
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
                let zeroed = self.target.write_zeroes(offset, len, self.zero_flags).await;
                (zeroed.map_err(write), room)
            }
            Need::Data => {
                let (result, room) = self.source.read(piece.offset(), room).await;
                if let Err(error) = result {
                    return (Err(read(error)), room);
                }
                let (result, room) = self.target.write(piece.offset(), room, self.write_flags).await;
                (result.map_err(write), room)
            }
        }
    }
}
