//! Committing: what a node has allocated is written to its backing node.

use std::rc::Rc;

use millpond_messages::io::Operation;
use millpond_messages::{IoError, IoResult, Range, RequestFlags, StatusFlags};

use crate::node::cell::node::NodeCell;
use crate::node::io::{read, status};

/// The most bytes that are held in memory at a time.
const BUFFER_MAX: u64 = 1 << 20;

/// Writes what the node has allocated in a range to its backing node. Zeroes are not read: they become zero writes.
pub async fn commit(cell: &Rc<NodeCell>, mut offset: u64, len: u64) -> IoResult<()> {
    let edge = cell.backing_edge().ok_or(IoError::NotSupported)?;
    let end = offset.checked_add(len).ok_or(IoError::OutOfRange)?;
    while offset < end {
        let status =
            status::block_status(cell, Range::between(offset, end), status::Wanted::of_node(true)).await?;
        if status.len == 0 {
            break;
        }
        let is_zero = status.flags.contains(StatusFlags::ZERO);
        let len = if is_zero {
            status.len
        } else {
            status.len.min(BUFFER_MAX)
        };
        if status.flags.contains(StatusFlags::ALLOCATED) {
            let operation = if is_zero {
                let flags = RequestFlags::MAY_UNMAP;
                let range = Range::new(offset, len)?;
                Operation::WriteZeroes { range, flags }
            } else {
                let buffers = read::read_whole(cell, Range::new(offset, len)?).await?;
                let flags = RequestFlags::empty();
                Operation::Write {
                    offset,
                    buffers,
                    flags,
                }
            };
            edge.pass_down(operation).await.into_parts().0?;
        }
        offset += len;
    }
    Ok(())
}
