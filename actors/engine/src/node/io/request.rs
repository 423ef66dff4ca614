//! Questions about requests and their outcomes that no node is needed to answer.

use millpond_messages::io::{CopyRequest, Operation, Outcome, SnapshotRequest, Value};
use millpond_messages::{IoError, IoResult, RequestFlags};
use millpond_ring::buffer::Buffers;

/// Whether a request is about the data that a node shows, rather than about the node.
pub fn carries_data(operation: &Operation<Buffers>) -> bool {
    !matches!(
        operation,
        Operation::Flush | Operation::Length | Operation::AllocatedSize
    )
}

/// Whether a request is to have no other beside it in a range, so that the node must know of all that it has in flight.
pub fn is_serialised(operation: &Operation<Buffers>) -> bool {
    match operation {
        Operation::Write { flags, .. } | Operation::WriteZeroes { flags, .. } => {
            flags.contains(RequestFlags::SERIALISING)
        }
        Operation::Truncate { .. } => true,
        _ => false,
    }
}

/// The offset and the length of the range that a request is about, unchecked; zeroes for a request without a range.
pub fn extent_of(operation: &Operation<Buffers>) -> (u64, u64) {
    match operation {
        Operation::Read { offset, buffers, .. } | Operation::Write { offset, buffers, .. } => {
            (*offset, bytes_in(buffers))
        }
        Operation::Snapshot(SnapshotRequest::Read { offset, buffers }) => (*offset, bytes_in(buffers)),
        Operation::Snapshot(
            SnapshotRequest::Status { range }
            | SnapshotRequest::Discard { range }
            | SnapshotRequest::Copy { range },
        )
        | Operation::WriteZeroes { range, .. }
        | Operation::Discard { range }
        | Operation::Copy(CopyRequest::In { range, .. })
        | Operation::BlockStatus { range, .. }
        | Operation::Map { range, .. } => (range.offset(), range.len()),
        Operation::Copy(CopyRequest::Out(lender)) => (lender.range().offset(), lender.range().len()),
        Operation::Flush
        | Operation::Truncate { .. }
        | Operation::Snapshot(SnapshotRequest::Join(_))
        | Operation::Mirror(_)
        | Operation::Length
        | Operation::AllocatedSize => (0, 0),
    }
}

/// The outcome of a request that was refused before it began.
pub fn refused(error: IoError, operation: Operation<Buffers>) -> Outcome<Buffers> {
    let buffers = match operation {
        Operation::Read { buffers, .. }
        | Operation::Write { buffers, .. }
        | Operation::Snapshot(SnapshotRequest::Read { buffers, .. }) => Some(buffers),
        _ => None,
    };
    Outcome {
        result: Err(error),
        buffers,
    }
}

/// The outcome of a read or write.
pub fn with_buffers((result, buffers): (IoResult<()>, Buffers)) -> Outcome<Buffers> {
    Outcome {
        result: result.map(|()| Value::Done),
        buffers: Some(buffers),
    }
}

/// The outcome of a request that answers nothing but that it is done.
pub fn done(result: IoResult<()>) -> Outcome<Buffers> {
    Outcome::plain(result.map(|()| Value::Done))
}

/// The same request with FUA, so that it is durable when it is answered.
pub fn with_fua(operation: Operation<Buffers>) -> Operation<Buffers> {
    match operation {
        Operation::Write {
            offset,
            buffers,
            flags,
        } => Operation::Write {
            offset,
            buffers,
            flags: flags | RequestFlags::FUA,
        },
        Operation::WriteZeroes { range, flags } => Operation::WriteZeroes {
            range,
            flags: flags | RequestFlags::FUA,
        },
        Operation::Copy(CopyRequest::In { range, source, flags }) => Operation::Copy(CopyRequest::In {
            range,
            source,
            flags: flags | RequestFlags::FUA,
        }),
        other => other,
    }
}

/// The length of a gather list as an offset's type. A buffer's length fits by construction.
pub fn bytes_in(buffers: &Buffers) -> u64 {
    u64::try_from(buffers.len()).unwrap_or(u64::MAX)
}

/// A length that fits in memory, since it is at most that of a buffer that exists.
pub fn in_memory(len: u64) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}
