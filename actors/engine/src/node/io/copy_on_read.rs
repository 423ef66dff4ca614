//! Copy-on-read: a read that finds data below a node stores it in the node, so that the next read finds it there.
//!
//! Such a read has the clusters and blocks that it touches to itself from the look at what is allocated to the end of the
//! copy's write, so that no guest's write to them is overwritten by what was below it. The copy is a piece of the read: it
//! must not wait for what the read has to itself.

use std::rc::Rc;

use millpond_drivers::api::Transfer;
use millpond_messages::{DebugEvent, IoError, IoResult, OpenFlags, Range, RequestFlags, StatusFlags};
use millpond_ring::buffer::Buffers;

use super::request::{bytes_in, in_memory};
use super::{read, status, write, zeroes};
use crate::node::cell::node::NodeCell;

/// The most that is copied at once, in bytes.
const COPY_MAX: u64 = 1 << 20;

/// Some bytes of a read, and whether the node itself has them.
struct Piece {
    len: u64,
    allocated: bool,
}

/// Fills `buffers` from `offset` of a node that has something below it, and copies what the node itself does not have.
/// With PREFETCH the buffers are left as they are.
pub async fn copying_read(
    node: &Rc<NodeCell>,
    offset: u64,
    mut buffers: Buffers,
    flags: RequestFlags,
) -> Transfer {
    let result = copy_and_fill(node, offset, &mut buffers, flags).await;
    (result, buffers)
}

async fn copy_and_fill(
    node: &Rc<NodeCell>,
    offset: u64,
    buffers: &mut Buffers,
    flags: RequestFlags,
) -> IoResult<()> {
    let cluster = node.exclusive_unit();
    let range = Range::new(offset, bytes_in(buffers))?;
    let end = range.end();
    let no_wait = flags.contains(RequestFlags::NO_WAIT);
    let _alone = node
        .tracker()
        .begin(range.widened_to(cluster)?, true, no_wait)
        .await?;
    let wanted = !flags.contains(RequestFlags::PREFETCH);
    let mut at = offset;
    while at < end {
        let piece = look(node, at, end - at).await?;
        let into = wanted.then_some((&mut *buffers, in_memory(at - offset)));
        if piece.allocated || node.flags().contains(OpenFlags::INACTIVE) {
            fill(node, at, piece.len, into).await?;
        } else {
            let (first, last) = (at / cluster * cluster, at.saturating_add(piece.len));
            let last = last.checked_next_multiple_of(cluster).unwrap_or(last);
            let copied = copy(node, first, last.min(node.size())).await?;
            if let Some((buffers, place)) = into {
                take(
                    buffers,
                    place,
                    &copied,
                    in_memory(at - first),
                    in_memory(piece.len),
                );
            }
        }
        at = at.saturating_add(piece.len);
    }
    Ok(())
}

/// How much from `offset` on the node has allocated itself, or has not.
async fn look(node: &Rc<NodeCell>, offset: u64, len: u64) -> IoResult<Piece> {
    let status = status::block_status(
        node,
        Range::new(offset, len.min(COPY_MAX))?,
        status::Wanted::of_node(false),
    )
    .await?;
    if status.len == 0 {
        return Err(IoError::Corrupt);
    }
    Ok(Piece {
        len: status.len.min(len),
        allocated: status.flags.contains(StatusFlags::ALLOCATED),
    })
}

/// Reads a part that needs no copy, if the reader wants its bytes.
async fn fill(
    node: &Rc<NodeCell>,
    offset: u64,
    len: u64,
    into: Option<(&mut Buffers, usize)>,
) -> IoResult<()> {
    if let Some((buffers, place)) = into {
        let found = read::read_whole(node, Range::new(offset, len)?).await?;
        take(buffers, place, &found, 0, in_memory(len));
    }
    Ok(())
}

/// Reads whole clusters through to the nodes below, and stores them in the node.
async fn copy(node: &Rc<NodeCell>, first: u64, last: u64) -> IoResult<Buffers> {
    let found = read::read_whole(node, Range::between(first, last)).await?;
    node.raise(DebugEvent::CorWrite).await;
    if found.is_zero() {
        let len = bytes_in(&found);
        zeroes::zero_unchanged(node, Range::new(first, len)?).await?;
        return Ok(found);
    }
    let (result, found) = write::write_piece(node, first, found, RequestFlags::WRITE_UNCHANGED, true).await;
    result.map(|()| found)
}

/// Copies `len` bytes of `from` at `start` into `buffers` at `place`.
fn take(buffers: &mut Buffers, place: usize, from: &Buffers, start: usize, len: usize) {
    let mut bytes = vec![0; len];
    from.copy_to_slice(start, &mut bytes);
    buffers.copy_from_slice(place, &bytes);
}
