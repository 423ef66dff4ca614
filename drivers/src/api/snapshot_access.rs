//! A moment of a node's past that its driver keeps, while the node goes on.

use std::sync::Arc;

use millpond_messages::io::CopyFault;
use millpond_messages::{BlockStatus, ChunkSet, IoError, IoResult, MomentLine, Range};
use millpond_ring::buffer::Buffers;

use super::answer::Answer;
use super::child::Transfer;
use super::nothing::Nothing;

/// What can be asked of the moment that a driver keeps, see [`Driver::snapshot_access`](super::Driver::snapshot_access).
/// The ranges lie within the node.
pub trait SnapshotAccess {
    /// Fills `buffers` with what was at `offset` then.
    fn read_then(&self, offset: u64, buffers: Buffers) -> Answer<'_, Transfer> {
        let _ = offset;
        Answer::ready((Err(IoError::NotSupported), buffers))
    }

    /// What the start of a range was made of then.
    fn status_then(&self, range: Range) -> Answer<'_, IoResult<BlockStatus>> {
        let _ = range;
        Answer::ready(Err(IoError::NotSupported))
    }

    /// Nobody will ask for what was in a range then: it need not be kept any longer.
    fn discard_then(&self, range: Range) -> Answer<'_, IoResult<()>> {
        let _ = range;
        Answer::ready(Err(IoError::NotSupported))
    }

    /// Has what was in a range then where it is kept, rather than wait for the first write to it; answers how that ended.
    fn copy_then(&self, range: Range) -> Answer<'_, IoResult<Result<(), CopyFault>>> {
        let _ = range;
        Answer::ready(Err(IoError::NotSupported))
    }

    /// Nobody will ask for what is not in `set`, which need not be kept. Nothing has been kept yet.
    ///
    /// # Errors
    /// The driver keeps no moment.
    fn limit(&self, set: &ChunkSet) -> IoResult<()> {
        let _ = set;
        Err(IoError::NotSupported)
    }

    /// What has still to be copied to where it is kept.
    ///
    /// # Errors
    /// The driver keeps no moment.
    fn left(&self) -> IoResult<ChunkSet> {
        Err(IoError::NotSupported)
    }

    /// Has this line told when the moment is lost.
    fn join(&self, line: Arc<MomentLine>) -> Answer<'_, IoResult<()>> {
        drop(line);
        Answer::ready(Err(IoError::NotSupported))
    }
}

impl SnapshotAccess for Nothing {}
