//! Copying from one node to another what some layers of a chain have.

use millpond_messages::error::errno::ENOMEM;
use millpond_messages::qapi::schema::{BlockErrorAction, IoOperationType};
use millpond_messages::{BlockStatus, IoError, IoResult, NodeId, Range, RequestFlags, Result, StatusFlags};
use millpond_ring::buffer::{Buffer, Buffers};

use super::data::{CHUNK, Errors, NodeGates, cancelled, failed, yield_now};
use crate::node::HomeClient;

/// What is copied, and by which rules.
pub(super) struct Copy {
    pub source: HomeClient,
    pub target: HomeClient,
    /// Only what layers above this node have is copied.
    pub above: NodeId,
    pub gates: NodeGates,
    pub errors: Errors,
}

/// A piece of the range was not copied.
struct Failure {
    operation: IoOperationType,
    error: IoError,
}

/// Copies a range piece by piece; data stays data, and what reads as zeroes is made to read so. A piece that fails is tried
/// again, unless the job's policy says that it ends.
///
/// # Errors
/// A request's, or the job was cancelled.
pub(super) async fn copy_range(copy: &Copy, range: Range) -> Result<()> {
    let pace = &copy.errors.pace;
    let mut offset = range.offset();
    while offset < range.end() {
        pace.point_at(&copy.gates).await.map_err(cancelled)?;
        yield_now().await;
        let rest = Range::between(offset, range.end()).first(CHUNK);
        match copy.errors.unless_stuck(copy_piece(copy, rest)).await? {
            Ok(len) => {
                pace.advance(len);
                offset = offset.saturating_add(len);
            }
            Err(Failure { operation, error }) => {
                if copy.errors.action(operation, error) == BlockErrorAction::Report {
                    return Err(failed(error));
                }
            }
        }
    }
    Ok(())
}

/// Copies the start of a range, as far as it is of one kind; answers how far that is.
async fn copy_piece(copy: &Copy, range: Range) -> Result<u64, Failure> {
    let reading = |error| Failure {
        operation: IoOperationType::Read,
        error,
    };
    let writing = |error| Failure {
        operation: IoOperationType::Write,
        error,
    };
    let status = copy
        .source
        .block_status_above(range.offset(), range.len(), true, copy.above)
        .await;
    let BlockStatus { flags, len, .. } = status.map_err(reading)?;
    if len == 0 {
        return Err(reading(IoError::Corrupt));
    }
    let range = range.first(len);
    if flags.contains(StatusFlags::ALLOCATED) {
        if flags.contains(StatusFlags::ZERO) {
            let unmap = RequestFlags::MAY_UNMAP;
            let zeroed = copy.target.write_zeroes(range.offset(), range.len(), unmap).await;
            zeroed.map_err(writing)?;
        } else {
            let buffers = buffers(range).map_err(reading)?;
            let (read, buffers) = copy.source.read(range.offset(), buffers).await;
            read.map_err(reading)?;
            let flags = RequestFlags::empty();
            let (written, _) = copy.target.write(range.offset(), buffers, flags).await;
            written.map_err(writing)?;
        }
        copy.errors.pace.moved(range.len());
    }
    Ok(range.len())
}

/// Memory for a range.
pub(super) fn buffers(range: Range) -> IoResult<Buffers> {
    let no_memory = IoError::from_errno(ENOMEM);
    let len = usize::try_from(range.len()).map_err(|_| no_memory)?;
    Ok(Buffers::from(Buffer::try_alloc(len).ok_or(no_memory)?))
}
