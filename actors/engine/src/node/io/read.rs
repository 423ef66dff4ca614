//! Reads: a range is resolved down the chain in a loop, then read from where it is.

use std::rc::Rc;

use millpond_drivers::api::{Answer, At, Extent, Purpose, Transfer};
use millpond_messages::io::{Operation, OperationKind};
use millpond_messages::{IoError, IoResult, Range, RequestFlags};
use millpond_ring::buffer::{Buffer, Buffers};
use smallvec::SmallVec;

use super::aligned;
use super::copy_on_read::copying_read;
use super::elsewhere::send_there;
use super::passage::{By, Passage};
use super::passed::{Passed, ended_below, nodes, pass};
use super::request::{bytes_in, in_memory};
use crate::node::cell::edge::Behind;
use crate::node::cell::node::NodeCell;
use crate::node::gate::overlap::Tracking;
use crate::node::gate::statistics::Asked;
use crate::node::order::mail::NodeAddress;

/// Where the start of a range is, at the bottom of the chain.
pub(super) enum Found {
    /// A driver reads it itself.
    Here { node: Rc<NodeCell>, offset: u64 },
    /// A node copies it up as it is read.
    Copied { node: Rc<NodeCell>, offset: u64 },
    /// A node of another iothread goes on from here.
    There { address: NodeAddress, offset: u64 },
    /// The range reads as zeroes.
    Zero,
}

/// What a read has passed and holds on its way down to where its range is.
#[derive(Default)]
pub(super) struct Way {
    /// The trackings that it holds until it ends, so that the data stays where the read found it.
    pub held: SmallVec<[Tracking; 1]>,
    pub passed: Passed,
}

/// Fills `buffers` from `offset`, which was checked.
pub async fn read(cell: &Rc<NodeCell>, offset: u64, buffers: Buffers, passage: Passage<'_>) -> Transfer {
    transfer(cell, offset, buffers, passage).await
}

/// Reads bytes that a write to the same node copies along. The write is tracked already, so the read must not be.
pub async fn read_whole(cell: &Rc<NodeCell>, range: Range) -> IoResult<Buffers> {
    let Some(buffer) = Buffer::try_alloc(in_memory(range.len())) else {
        return Err(IoError::Os(millpond_messages::error::errno::ENOMEM));
    };
    let passage = Passage::piece(RequestFlags::empty(), false);
    let (result, buffers) = transfer(cell, range.offset(), Buffers::from(buffer), passage).await;
    result.map(|()| buffers)
}

async fn transfer(cell: &Rc<NodeCell>, mut offset: u64, mut rest: Buffers, passage: Passage<'_>) -> Transfer {
    let mut filled = Buffers::new();
    while !rest.is_empty() {
        let mut way = Way::default();
        let asked = Asked::now(OperationKind::Read, bytes_in(&rest));
        let (len, found) = match resolve(cell, (offset, bytes_in(&rest)), passage, &mut way).await {
            Ok(resolved) => resolved,
            Err(error) => {
                ended_below(asked, cell, nodes(&way.passed), true);
                return (Err(error), joined(filled, rest));
            }
        };
        let whole = len >= bytes_in(&rest);
        let piece = if whole {
            std::mem::take(&mut rest)
        } else {
            rest.split_to(in_memory(len))
        };
        let (result, piece) = fetch(found, piece, passage).await;
        ended_below(asked.cut(len), cell, nodes(&way.passed), result.is_err());
        if filled.is_empty() && whole {
            return (result, piece);
        }
        filled.append(piece);
        if result.is_err() {
            return (result, joined(filled, rest));
        }
        offset = offset.saturating_add(len);
    }
    (Ok(()), filled)
}

fn joined(mut filled: Buffers, rest: Buffers) -> Buffers {
    filled.append(rest);
    filled
}

async fn fetch(found: Found, mut piece: Buffers, passage: Passage<'_>) -> Transfer {
    let Passage { flags, by, .. } = passage;
    match found {
        Found::Zero => {
            let len = piece.len();
            piece.fill_zero(0..len);
            (Ok(()), piece)
        }
        Found::Here { node, offset } => {
            by.stands_at(&node);
            aligned::read(&node, offset, piece, flags).await
        }
        Found::Copied { node, offset } => {
            by.stands_at(&node);
            Box::pin(copying_read(&node, offset, piece, flags)).await
        }
        Found::There { address, offset } => {
            let operation = Operation::Read {
                offset,
                buffers: piece,
                flags,
            };
            millpond_drivers::api::transfer(send_there(&address, operation).await)
        }
    }
}

/// Follows a range down the chain: how many bytes of it are in one place, and which.
pub(super) async fn resolve(
    cell: &Rc<NodeCell>,
    (offset, len): (u64, u64),
    passage: Passage<'_>,
    way: &mut Way,
) -> IoResult<(u64, Found)> {
    let mut descent = Descent::new(cell, Range::new(offset, len)?, passage);
    loop {
        // The node is noted before anything can fail at it.
        pass(&mut way.passed, Rc::clone(&descent.node));
        if let Some(found) = descent.arrive() {
            return Ok(found);
        }
        if descent.is_tracked() {
            let tracker = descent.node.tracker();
            way.held.push(tracker.begin(descent.range, false, false).await?);
        }
        let driver = descent.node.driver()?;
        let extent = driver.locate(Purpose::Read, descent.range).await?;
        match descent.follow(extent)? {
            Next::Found(len, found) => return Ok((len, found)),
            Next::Node(child) => descent.node = child,
        }
    }
}

/// Resolves a range in one step. `None` where something has to be waited for, or fails: then nothing has happened.
pub(super) fn resolve_now(cell: &Rc<NodeCell>, range: Range, way: &mut Way) -> Option<(u64, Found)> {
    let mut descent = Descent::new(cell, range, Passage::new(RequestFlags::empty(), By::PARENT));
    let found = loop {
        if let Some(found) = descent.arrive() {
            break found;
        }
        if descent.is_tracked() {
            way.held.push(descent.node.tracker().try_begin(descent.range)?);
        }
        let driver = descent.node.driver().ok()?;
        let Answer::Ready(extent) = driver.locate(Purpose::Read, descent.range) else {
            return None;
        };
        match descent.follow(extent?.ok()?).ok()? {
            Next::Found(len, found) => break (len, found),
            Next::Node(child) => pass(&mut way.passed, std::mem::replace(&mut descent.node, child)),
        }
    };
    pass(&mut way.passed, descent.node);
    Some(found)
}

/// Where a driver's answer leads.
enum Next {
    /// To the end of the way, for so many bytes.
    Found(u64, Found),
    /// The range is to be looked for in this node.
    Node(Rc<NodeCell>),
}

/// A range on its way down the chain.
struct Descent {
    /// The node that has the range now.
    node: Rc<NodeCell>,
    /// Where the range is there, as far as it is known to be in one place.
    range: Range,
    flags: RequestFlags,
    /// Whether the node tracks what passes it.
    track: bool,
}

impl Descent {
    fn new(cell: &Rc<NodeCell>, range: Range, passage: Passage<'_>) -> Self {
        Self {
            node: Rc::clone(cell),
            range,
            flags: passage.flags,
            track: passage.track,
        }
    }

    /// The end of the way, if that is known before the node's driver is asked.
    fn arrive(&mut self) -> Option<(u64, Found)> {
        // A node's bytes past its end are zeroes to whoever stands above it.
        let left = self.node.size().saturating_sub(self.range.offset());
        if left == 0 {
            return Some((self.range.len(), Found::Zero));
        }
        self.range = self.range.first(left);
        let copied = self.track && self.node.copies_up(self.flags);
        copied.then(|| (self.range.len(), self.copied()))
    }

    fn copied(&self) -> Found {
        Found::Copied {
            node: Rc::clone(&self.node),
            offset: self.range.offset(),
        }
    }

    /// Whether the range is to be tracked at the node.
    fn is_tracked(&mut self) -> bool {
        let track = std::mem::replace(&mut self.track, true);
        track && self.node.tracks()
    }

    /// Goes where the driver points: to the end of the way, or one node further.
    fn follow(&mut self, extent: Extent) -> IoResult<Next> {
        if extent.len == 0 {
            return Err(IoError::Corrupt);
        }
        self.range = self.range.first(extent.len);
        let (len, at) = (self.range.len(), self.range.offset());
        let (behind, next) = match extent.at {
            At::Own | At::Special => {
                let node = Rc::clone(&self.node);
                return Ok(Next::Found(len, Found::Here { node, offset: at }));
            }
            At::Zero { .. } => return Ok(Next::Found(len, Found::Zero)),
            At::Child { slot, offset } => (self.node.edge(slot).map(|edge| edge.behind()), offset),
            At::Unallocated => match self.node.backing_edge().map(|edge| edge.behind()) {
                None | Some(Behind::None) => return Ok(Next::Found(len, Found::Zero)),
                behind => (behind, at),
            },
        };
        match behind.unwrap_or_default() {
            Behind::Here(child) => {
                self.range = self.range.moved_to(next)?;
                Ok(Next::Node(child))
            }
            Behind::There(address) => {
                let offset = next;
                Ok(Next::Found(len, Found::There { address, offset }))
            }
            Behind::None => Err(IoError::NoMedium),
        }
    }
}
