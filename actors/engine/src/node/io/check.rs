//! What is checked of a request before any driver sees it: the node's flags, the range, what the driver can do.

use millpond_messages::io::{CopyRequest, MirrorRequest, Operation, SnapshotRequest};
use millpond_messages::{IoError, IoResult, OpenFlags, Range, RequestFlags, check_range};
use millpond_ring::buffer::Buffers;

use super::passage::By;
use super::request::{carries_data, extent_of};
use crate::node::cell::node::NodeCell;

/// Whether a request may be asked of the node at all.
pub fn check(cell: &NodeCell, operation: &Operation<Buffers>, by: By<'_>) -> IoResult<()> {
    if cell.flags().contains(OpenFlags::NO_IO) && by.is_admitted() && carries_data(operation) {
        return Err(IoError::NotPermitted);
    }
    let (offset, len) = extent_of(operation);
    let range = Range::new(offset, len)?;
    match operation {
        Operation::Read { .. } | Operation::Copy(CopyRequest::Out(_)) => check_within(cell, range, true, by),
        Operation::Snapshot(SnapshotRequest::Join(_)) => Ok(()),
        Operation::Snapshot(request) => {
            let carries_data = matches!(request, SnapshotRequest::Read { .. });
            check_within(cell, range, carries_data, By::USER)
        }
        Operation::Write { flags, .. } => {
            check_write(cell, range, true, by)?;
            let compressed = flags.contains(RequestFlags::WRITE_COMPRESSED);
            if compressed && !cell.abilities().write_compressed {
                return Err(IoError::NotSupported);
            }
            Ok(())
        }
        Operation::WriteZeroes { .. } | Operation::Discard { .. } => check_write(cell, range, false, by),
        Operation::Copy(CopyRequest::In { .. }) => check_write(cell, range, true, by),
        Operation::BlockStatus { .. } | Operation::Map { .. } => Ok(check_range(range, false)?),
        Operation::Mirror(MirrorRequest::Add { range }) => check_within(cell, *range, false, By::USER),
        Operation::Flush
        | Operation::Truncate { .. }
        | Operation::Mirror(_)
        | Operation::Length
        | Operation::AllocatedSize => Ok(()),
    }
}

/// Checks a request that changes the node.
pub fn check_write(cell: &NodeCell, range: Range, carries_data: bool, by: By<'_>) -> IoResult<()> {
    if cell.is_read_only() {
        return Err(IoError::ReadOnly);
    }
    if cell.flags().contains(OpenFlags::INACTIVE) {
        return Err(IoError::NotPermitted);
    }
    check_within(cell, range, carries_data, by)
}

/// Checks where a request's range ends.
pub fn check_within(cell: &NodeCell, range: Range, carries_data: bool, by: By<'_>) -> IoResult<()> {
    check_range(range, carries_data)?;
    if !by.may_pass_end() && range.end() > cell.size() {
        return Err(IoError::OutOfRange);
    }
    Ok(())
}
