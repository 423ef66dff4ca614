//! Transfers that a driver makes itself, in the alignment that it asks for.
//!
//! A read that is not aligned is read whole into a buffer of its own and copied. A write that is not becomes
//! read-modify-write, serialised against everything else on the blocks that it shares with others.

use std::rc::Rc;

use millpond_drivers::api::{Answer, Transfer};
use millpond_messages::error::errno::ENOMEM;
use millpond_messages::{DebugEvent, IoError, IoResult, Range, RequestFlags};
use millpond_ring::buffer::{Buffer, Buffers};

use super::passage::flags_below;
use super::request::{bytes_in, in_memory};
use crate::node::cell::node::NodeCell;
use crate::node::gate::overlap::Tracking;

/// The smallest aligned range that holds another: where it starts, and how far into it the other does.
struct Around {
    start: u64,
    head: u64,
    len: u64,
}

/// Reads from a node's own driver.
pub async fn read(node: &Rc<NodeCell>, offset: u64, buffers: Buffers, flags: RequestFlags) -> Transfer {
    let driver = match node.driver() {
        Ok(driver) => driver,
        Err(error) => return (Err(error), buffers),
    };
    if fits(node, offset, &buffers) {
        return limited_read(node, &driver, offset, buffers, flags).await;
    }
    read_bounced(node, offset, buffers, flags).await
}

/// Writes with a node's own driver. `has_blocks` tells whether the request has the blocks of its range to itself: then
/// waiting for others would be waiting for itself.
pub async fn write(
    node: &Rc<NodeCell>,
    offset: u64,
    buffers: Buffers,
    flags: RequestFlags,
    has_blocks: bool,
) -> Transfer {
    let driver = match node.driver() {
        Ok(driver) => driver,
        Err(error) => return (Err(error), buffers),
    };
    let range = match Range::new(offset, bytes_in(&buffers)) {
        Ok(range) => range,
        Err(error) => return (Err(error.into()), buffers),
    };
    let (result, buffers) = if fits(node, offset, &buffers) {
        let tracking = match track(node, range, flags, has_blocks).await {
            Ok(tracking) => tracking,
            Err(error) => return (Err(error), buffers),
        };
        let written = limited_write(node, &driver, offset, buffers, flags_below(flags)).await;
        drop(tracking);
        written
    } else {
        let result = read_modify_write(node, offset, &buffers, flags, has_blocks).await;
        (result, buffers)
    };
    node.write_done(range, result);
    node.raise(DebugEvent::PwritevDone).await;
    (result, buffers)
}

/// Begins a read with a node's own driver, if that needs no alignment and no splitting; gives the buffers back else.
pub fn read_now(
    node: &Rc<NodeCell>,
    offset: u64,
    buffers: Buffers,
) -> Result<Answer<'static, Transfer>, Buffers> {
    match node.driver() {
        Ok(driver) if fits(node, offset, &buffers) && buffers.len() <= most_in_one(node) => {
            Ok(driver.read(offset, buffers, RequestFlags::empty()))
        }
        _ => Err(buffers),
    }
}

/// Whether a write may go to a node's own driver as it is, without waiting for others. The answer holds back later writes
/// that would share a block with it, where the node tracks its blocks.
pub fn ready_to_write(node: &Rc<NodeCell>, offset: u64, buffers: &Buffers) -> Option<Option<Tracking>> {
    if node.observes() || !fits(node, offset, buffers) || buffers.len() > most_in_one(node) {
        return None;
    }
    if !node.tracks_blocks() {
        return Some(None);
    }
    let range = Range::new(offset, bytes_in(buffers)).ok()?;
    node.tracker().try_begin(range).map(Some)
}

fn fits(node: &NodeCell, offset: u64, buffers: &Buffers) -> bool {
    let limits = node.limits();
    let align = u64::from(limits.request_alignment);
    if align <= 1 && limits.mem_alignment <= 1 {
        return true;
    }
    offset.is_multiple_of(align)
        && bytes_in(buffers).is_multiple_of(align)
        && buffers.is_aligned(in_memory(u64::from(limits.mem_alignment)))
}

fn around(node: &NodeCell, offset: u64, len: u64) -> IoResult<Around> {
    let align = u64::from(node.limits().request_alignment).max(1);
    let start = offset / align * align;
    let end = offset
        .checked_add(len)
        .and_then(|end| end.checked_next_multiple_of(align));
    let end = end.ok_or(IoError::OutOfRange)?;
    Ok(Around {
        start,
        head: offset - start,
        len: end - start,
    })
}

/// A buffer aligned as the node's driver needs it.
fn aligned_buffer(node: &NodeCell, len: usize) -> IoResult<Buffer> {
    let align = in_memory(u64::from(node.limits().mem_alignment));
    Buffer::try_aligned(len, align).ok_or(IoError::Os(ENOMEM))
}

/// Splits a read that is longer than the driver takes at once.
async fn limited_read(
    node: &NodeCell,
    driver: &Rc<dyn millpond_drivers::api::Driver>,
    mut offset: u64,
    mut rest: Buffers,
    flags: RequestFlags,
) -> Transfer {
    let most = most_in_one(node);
    if rest.len() <= most {
        return Rc::clone(driver).read(offset, rest, flags).await;
    }
    let mut filled = Buffers::new();
    while !rest.is_empty() {
        let piece = rest.split_to(most.min(rest.len()));
        let len = bytes_in(&piece);
        let (result, piece) = Rc::clone(driver).read(offset, piece, flags).await;
        filled.append(piece);
        if result.is_err() {
            filled.append(rest);
            return (result, filled);
        }
        offset = offset.saturating_add(len);
    }
    (Ok(()), filled)
}

fn most_in_one(node: &NodeCell) -> usize {
    match node.limits().max_transfer {
        0 => usize::MAX,
        most => in_memory(u64::from(most)),
    }
}

async fn read_bounced(
    node: &Rc<NodeCell>,
    offset: u64,
    mut buffers: Buffers,
    flags: RequestFlags,
) -> Transfer {
    match read_around(node, offset, bytes_in(&buffers), flags).await {
        Ok((head, block)) => {
            if let Some(part) = block.get(in_memory(head)..) {
                buffers.copy_from_slice(0, part.get(..buffers.len()).unwrap_or(part));
            }
            (Ok(()), buffers)
        }
        Err(error) => (Err(error), buffers),
    }
}

/// Reads the aligned range around another: how far into it the other starts, and its bytes.
async fn read_around(
    node: &Rc<NodeCell>,
    offset: u64,
    len: u64,
    flags: RequestFlags,
) -> IoResult<(u64, Buffer)> {
    let around = around(node, offset, len)?;
    let block = aligned_buffer(node, in_memory(around.len))?;
    let driver = node.driver()?;
    let (result, block) = limited_read(node, &driver, around.start, Buffers::from(block), flags).await;
    result?;
    Ok((around.head, block.into_single()))
}

/// Notes a write on the node's blocks, and waits for those that it must not run beside, where the node tracks its blocks
/// and the request has them not to itself.
async fn track(
    node: &Rc<NodeCell>,
    range: Range,
    flags: RequestFlags,
    has_blocks: bool,
) -> IoResult<Option<Tracking>> {
    if has_blocks || !node.tracks_blocks() {
        return Ok(None);
    }
    let serialising = flags.contains(RequestFlags::SERIALISING);
    node.tracker().begin(range, serialising, false).await.map(Some)
}

/// Splits a write that is longer than the driver takes at once.
async fn limited_write(
    node: &Rc<NodeCell>,
    driver: &Rc<dyn millpond_drivers::api::Driver>,
    mut offset: u64,
    mut rest: Buffers,
    flags: RequestFlags,
) -> Transfer {
    node.raise(DebugEvent::Pwritev).await;
    let most = most_in_one(node);
    if rest.len() <= most {
        return Rc::clone(driver).write(offset, rest, flags).await;
    }
    let mut written = Buffers::new();
    while !rest.is_empty() {
        let piece = rest.split_to(most.min(rest.len()));
        let len = bytes_in(&piece);
        let (result, piece) = Rc::clone(driver).write(offset, piece, flags).await;
        written.append(piece);
        if result.is_err() {
            written.append(rest);
            return (result, written);
        }
        offset = offset.saturating_add(len);
    }
    (Ok(()), written)
}

/// Writes whole blocks: around the bytes of the request, the bytes that are there now.
async fn read_modify_write(
    node: &Rc<NodeCell>,
    offset: u64,
    buffers: &Buffers,
    flags: RequestFlags,
    has_blocks: bool,
) -> IoResult<()> {
    let range = around(node, offset, bytes_in(buffers))?;
    let no_wait = flags.contains(RequestFlags::NO_WAIT);
    let blocks = Range::new(range.start, range.len)?;
    let _alone = match has_blocks {
        true => None,
        false => Some(node.tracker().begin(blocks, true, no_wait).await?),
    };
    let (head, mut block) = if range.head == 0 && range.len == bytes_in(buffers) {
        (0, aligned_buffer(node, buffers.len())?)
    } else {
        let head = range.head != 0;
        let tail = range.head + bytes_in(buffers) != range.len;
        raise_edges(
            node,
            head,
            tail,
            (DebugEvent::PwritevRmwHead, DebugEvent::PwritevRmwTail),
        )
        .await;
        let block = read_around(node, offset, bytes_in(buffers), RequestFlags::empty()).await?;
        let after = (DebugEvent::PwritevRmwAfterHead, DebugEvent::PwritevRmwAfterTail);
        raise_edges(node, head, tail, after).await;
        block
    };
    node.raise(DebugEvent::Pwritev).await;
    if let Some(part) = block.get_mut(in_memory(head)..) {
        buffers.copy_to_slice(0, part);
    }
    let driver = node.driver()?;
    let flags = flags_below(flags);
    driver.write(range.start, Buffers::from(block), flags).await.0
}

/// Raises the events of the blocks that an unaligned write shares with what is around it.
async fn raise_edges(node: &NodeCell, head: bool, tail: bool, events: (DebugEvent, DebugEvent)) {
    if head {
        node.raise(events.0).await;
    }
    if tail {
        node.raise(events.1).await;
    }
}
