//! Block status: what a range is made of, in one node or down the whole chain, in a loop.

use std::rc::Rc;

use millpond_drivers::api::{At, Extent, Purpose};
use millpond_messages::io::{Operation, OperationKind};
use millpond_messages::{BlockStatus, IoError, IoResult, NodeId, Range, StatusFlags};
use millpond_ring::buffer::Buffers;

use super::elsewhere::send_there;
use super::passed::{Passed, ended_below, nodes, pass};
use crate::node::cell::edge::Behind;
use crate::node::cell::node::NodeCell;
use crate::node::gate::statistics::Asked;

/// What a status is to tell.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// Tell data from zeroes, at the cost of a system call.
    pub zero: bool,
    /// Answer what a reader would see, with a depth that says which layer decides; else the answer is about one node alone.
    pub whole_chain: bool,
    /// The node above which the chain ends.
    pub base: Option<NodeId>,
}

impl Wanted {
    /// The status of one node alone.
    pub const fn of_node(zero: bool) -> Self {
        Self {
            zero,
            whole_chain: false,
            base: None,
        }
    }

    const fn of(self, range: Range) -> Operation<Buffers> {
        Operation::BlockStatus {
            range,
            want_zero: self.zero,
            whole_chain: self.whole_chain,
            base: self.base,
        }
    }

    /// Whether the chain ends above what is behind an edge.
    fn ends_above(self, behind: &Behind) -> bool {
        let below = match behind {
            Behind::Here(cell) => Some(cell.id()),
            Behind::There(address) => Some(address.node),
            Behind::None => None,
        };
        below.is_some() && below == self.base
    }
}

/// The status of the start of a range, which was checked.
pub async fn block_status(cell: &Rc<NodeCell>, range: Range, wanted: Wanted) -> IoResult<BlockStatus> {
    let range = match within(cell, range) {
        Ok(range) => range,
        Err(nothing) => return Ok(nothing),
    };
    let asked = Asked::now(OperationKind::BlockStatus, range.len());
    let mut passed = Passed::new();
    let status = chain_status(cell, range, wanted, &mut passed).await;
    ended_below(asked, cell, nodes(&passed), status.is_err());
    let mut status = status?;
    mark_end(cell, range.offset(), &mut status);
    Ok(status)
}

/// The part of a range that is within the node, or what is to be said where there is none.
pub fn within(cell: &NodeCell, range: Range) -> Result<Range, BlockStatus> {
    let nothing = |flags| BlockStatus {
        flags,
        len: 0,
        map: None,
        depth: 0,
    };
    match cell.size().saturating_sub(range.offset()) {
        0 => Err(nothing(StatusFlags::EOF)),
        _ if range.is_empty() => Err(nothing(StatusFlags::empty())),
        left => Ok(range.first(left)),
    }
}

/// Says of a status that begins at `offset` whether it ends at the end of the node.
pub fn mark_end(cell: &NodeCell, offset: u64, status: &mut BlockStatus) {
    if offset.saturating_add(status.len) >= cell.size() {
        status.flags |= StatusFlags::EOF;
    }
}

async fn chain_status(
    cell: &Rc<NodeCell>,
    mut range: Range,
    wanted: Wanted,
    passed: &mut Passed,
) -> IoResult<BlockStatus> {
    let (mut node, mut depth) = (Rc::clone(cell), 1_u32);
    loop {
        let left = node.size().saturating_sub(range.offset());
        if left == 0 {
            return Ok(short(range, depth));
        }
        let purpose = Purpose::Status {
            want_zero: wanted.zero,
        };
        range = range.first(left);
        let extent = node.driver()?.locate(purpose, range).await?;
        if extent.len == 0 {
            return Err(IoError::Corrupt);
        }
        range = range.first(extent.len);
        if extent.at != At::Unallocated {
            let mut status = Box::pin(decided(&node, range, wanted, extent)).await?;
            status.depth = seen_from(status.depth, depth);
            return Ok(status);
        }
        let behind = node.backing_edge().map(|edge| edge.behind()).unwrap_or_default();
        let mut status = BlockStatus {
            flags: StatusFlags::empty(),
            len: range.len(),
            map: None,
            depth: 0,
        };
        if matches!(behind, Behind::None) {
            status.flags |= StatusFlags::ZERO;
            return Ok(status);
        }
        if !wanted.whole_chain || wanted.ends_above(&behind) {
            return Ok(status);
        }
        depth = depth.saturating_add(1);
        match behind {
            Behind::Here(child) => {
                pass(passed, Rc::clone(&child));
                node = child;
            }
            Behind::There(address) => {
                let below = send_there(&address, wanted.of(range)).await.into_status()?;
                return Ok(deeper(&below, range, depth));
            }
            Behind::None => return Err(IoError::NoMedium),
        }
    }
}

/// A layer that the one above deferred to, and that is too short for it: the zeroes beyond its end are its own.
pub fn short(range: Range, depth: u32) -> BlockStatus {
    BlockStatus {
        flags: StatusFlags::ZERO | StatusFlags::ALLOCATED,
        len: range.len(),
        map: None,
        depth,
    }
}

/// The answer of a layer of another iothread, seen from here.
pub fn deeper(below: &BlockStatus, range: Range, depth: u32) -> BlockStatus {
    if below.len == 0 {
        return short(range, depth);
    }
    BlockStatus {
        flags: below.flags.difference(StatusFlags::EOF),
        len: below.len.min(range.len()),
        map: below.map,
        depth: seen_from(below.depth, depth),
    }
}

/// A layer's depth, seen from the top of a chain in which the one that told it is at `depth`.
pub fn seen_from(told: u32, depth: u32) -> u32 {
    match told {
        0 => 0,
        told => told.saturating_add(depth - 1),
    }
}

/// What one node says of a range that its driver has at `extent`; a transparent one lets its child speak.
pub async fn decided(
    node: &Rc<NodeCell>,
    range: Range,
    wanted: Wanted,
    extent: Extent,
) -> IoResult<BlockStatus> {
    let data = StatusFlags::DATA | StatusFlags::ALLOCATED;
    let mapped = StatusFlags::OFFSET_VALID;
    let (offset, len) = (range.offset(), range.len());
    let (flags, map) = match extent.at {
        // Only a driver that stores bytes itself has a place for them.
        At::Own if node.kind().is_protocol() => (data | mapped, Some((node.id(), offset))),
        At::Own => (data, None),
        At::Special => (data | StatusFlags::COMPRESSED, None),
        At::Zero { reserved: None } if node.kind().is_protocol() => (
            StatusFlags::ZERO | StatusFlags::ALLOCATED | mapped,
            Some((node.id(), offset)),
        ),
        At::Zero { reserved: None } => (StatusFlags::ZERO | StatusFlags::ALLOCATED, None),
        At::Zero {
            reserved: Some((slot, at)),
        } => (
            StatusFlags::ZERO | StatusFlags::ALLOCATED | mapped,
            place(node, slot, at),
        ),
        At::Unallocated => unreachable!("what no layer has is not decided by one"),
        At::Child { slot, offset: at } => {
            let mut flags = data | mapped;
            flags.set(StatusFlags::RAW, node.abilities().transparent);
            flags.set(StatusFlags::RECURSE, extent.recurse);
            let own = BlockStatus {
                flags,
                len,
                map: place(node, slot, at),
                depth: 1,
            };
            if own.flags.contains(StatusFlags::RAW) {
                return child_status(node, slot, at, own, wanted).await;
            }
            if own.flags.contains(StatusFlags::RECURSE) && wanted.zero {
                return with_zero_of_child(node, slot, at, own).await;
            }
            return Ok(own);
        }
    };
    Ok(BlockStatus {
        flags,
        len,
        map,
        depth: 1,
    })
}

pub fn place(
    node: &NodeCell,
    slot: millpond_messages::ChildSlot,
    offset: u64,
) -> Option<(millpond_messages::NodeId, u64)> {
    match node.edge(slot)?.behind() {
        Behind::Here(child) => Some((child.id(), offset)),
        Behind::There(address) => Some((address.node, offset)),
        Behind::None => None,
    }
}

async fn ask_child(
    node: &NodeCell,
    slot: millpond_messages::ChildSlot,
    offset: u64,
    len: u64,
    wanted: Wanted,
) -> IoResult<BlockStatus> {
    let edge = node.edge(slot).ok_or(IoError::NoMedium)?;
    edge.pass_down(wanted.of(Range::new(offset, len)?))
        .await
        .into_status()
}

/// A transparent node's status is its child's, for a filter that of the chain below the child as well.
async fn child_status(
    node: &NodeCell,
    slot: millpond_messages::ChildSlot,
    offset: u64,
    own: BlockStatus,
    wanted: Wanted,
) -> IoResult<BlockStatus> {
    let is_filter = node.kind().is_filter();
    let behind = node.edge(slot).map(|edge| edge.behind()).unwrap_or_default();
    if is_filter && wanted.ends_above(&behind) {
        // A filter has no data of its own.
        return Ok(BlockStatus {
            flags: StatusFlags::empty(),
            map: None,
            depth: 0,
            ..own
        });
    }
    let wanted = Wanted {
        whole_chain: is_filter,
        base: wanted.base.filter(|_| is_filter),
        ..wanted
    };
    let below = ask_child(node, slot, offset, own.len, wanted).await?;
    Ok(passed_up(own, &below))
}

/// What a transparent node says, whose child says `below` of the start of what it has at `own`.
pub fn passed_up(own: BlockStatus, below: &BlockStatus) -> BlockStatus {
    if below.len == 0 {
        return BlockStatus {
            flags: StatusFlags::ZERO | StatusFlags::ALLOCATED,
            ..own
        };
    }
    // The filter itself counts as a layer only for what its child does not have.
    let depth = if below.depth > 1 {
        below.depth.saturating_add(1)
    } else {
        below.depth
    };
    BlockStatus {
        flags: below.flags.difference(StatusFlags::EOF),
        len: own.len.min(below.len),
        map: below.map,
        depth,
    }
}

/// Data of a format whose file may know that it is zeroes.
async fn with_zero_of_child(
    node: &NodeCell,
    slot: millpond_messages::ChildSlot,
    offset: u64,
    own: BlockStatus,
) -> IoResult<BlockStatus> {
    let Ok(below) = ask_child(node, slot, offset, own.len, Wanted::of_node(true)).await else {
        return Ok(own);
    };
    let ends_in_zeroes = StatusFlags::EOF | StatusFlags::ZERO;
    if below.len == 0 || below.flags.contains(ends_in_zeroes) {
        // Beyond its end the file reads as zeroes.
        return Ok(BlockStatus {
            flags: own.flags | StatusFlags::ZERO,
            ..own
        });
    }
    let zero = below.flags & StatusFlags::ZERO;
    Ok(BlockStatus {
        flags: own.flags | zero,
        len: own.len.min(below.len),
        ..own
    })
}
