//! What a range is made of, extent after extent.
//!
//! Each layer of a chain is asked for all that is left of the range. Until what it said ends, it is not asked again; a layer
//! with nothing in the rest of the range is left out for the rest of the walk. So what a chain is asked grows with its layers
//! and with the extents that they have, and not with both multiplied.

use std::rc::Rc;

use millpond_drivers::api::{At, Extent, Purpose};
use millpond_messages::io::{Operation, OperationKind};
use millpond_messages::{BlockStatus, ChildSlot, IoError, IoResult, Range, StatusFlags};
use millpond_ring::buffer::Buffers;

use super::elsewhere::send_there;
use super::passed::{Passed, ended_below, nodes, pass};
use super::status::{Wanted, decided, deeper, mark_end, passed_up, place, seen_from, short, within};
use crate::node::cell::edge::Behind;
use crate::node::cell::node::NodeCell;
use crate::node::gate::statistics::Asked;
use crate::node::order::mail::NodeAddress;

/// The most extents that one answer tells of.
const MOST: usize = 2048;

/// How often drivers are asked besides twice for each layer, before what was found is answered: nobody who waits for the
/// request waits for long, and a walk that begins anew has gone far enough to have been worth its beginning.
const BESIDES: usize = 256;

/// The extents of the start of a range, which was checked. They cover some of it, and all unless there are many.
pub async fn map(cell: &Rc<NodeCell>, range: Range, wanted: Wanted) -> IoResult<Box<[BlockStatus]>> {
    let range = match within(cell, range) {
        Ok(range) => range,
        Err(nothing) => return Ok([nothing].into()),
    };
    let asked = Asked::now(OperationKind::BlockStatus, range.len());
    let mut walk = Walk {
        wanted,
        layers: Vec::new(),
        next: Behind::Here(Rc::clone(cell)),
        depth: 1,
        passed: Passed::new(),
        asked: 0,
        extents: Vec::new(),
        is_cut_off: false,
    };
    let walked = walk.run(range).await;
    ended_below(asked, cell, nodes(&walk.passed), walked.is_err());
    let end = walked?;
    if let Some(last) = walk.extents.last_mut() {
        mark_end(cell, end - last.len, last);
    }
    Ok(walk.extents.into())
}

/// A layer that has something in the rest of the range, or may have.
struct Layer {
    node: Rc<NodeCell>,
    depth: u32,
    /// It has nothing before this offset.
    nothing_until: u64,
}

/// What a layer says of the start of a range.
enum Said {
    /// It has nothing there, up to an offset.
    Nothing(u64),
    /// The layer ends before that.
    Ended,
    /// It has an extent.
    Has(Extent),
}

struct Walk {
    wanted: Wanted,
    /// The layers that were asked, the topmost first, but for those with nothing left.
    layers: Vec<Layer>,
    /// What is behind all layers that were asked, and its depth.
    next: Behind,
    depth: u32,
    passed: Passed,
    /// How often a driver was asked.
    asked: usize,
    extents: Vec<BlockStatus>,
    /// Somebody below has answered for a part only, having done as much as one request may.
    is_cut_off: bool,
}

impl Walk {
    /// Walks through a range as far as one request may; answers where it has come to.
    async fn run(&mut self, range: Range) -> IoResult<u64> {
        let mut rest = range;
        while !rest.is_empty() && !self.is_done() {
            let before = self.extents.len();
            self.extent(rest).await?;
            let told = self.extents.get(before..).unwrap_or_default();
            let len: u64 = told.iter().map(|extent| extent.len).sum();
            if len == 0 {
                return Err(IoError::Corrupt);
            }
            rest = rest.after(len);
            self.layers.retain(|layer| layer.nothing_until < range.end());
        }
        Ok(rest.offset())
    }

    fn is_done(&self) -> bool {
        let layers = self.passed.len() + 1;
        self.is_cut_off || self.extents.len() >= MOST || self.asked >= 2 * layers + BESIDES
    }

    /// Tells of what is at the start of `rest`.
    async fn extent(&mut self, rest: Range) -> IoResult<()> {
        // Where the first layer of those above has something again.
        let mut limit = rest.end();
        for index in 0..self.layers.len() {
            let Some(layer) = self.layers.get_mut(index) else {
                break;
            };
            if layer.nothing_until <= rest.offset() {
                let (node, depth) = (Rc::clone(&layer.node), layer.depth);
                match self.ask(&node, rest).await? {
                    Said::Nothing(until) => {
                        if let Some(layer) = self.layers.get_mut(index) {
                            layer.nothing_until = until;
                        }
                        limit = limit.min(until);
                    }
                    said => {
                        return self
                            .tell(&node, depth, Range::between(rest.offset(), limit), said)
                            .await;
                    }
                }
            } else {
                limit = limit.min(layer.nothing_until);
            }
        }
        self.descend(rest, limit).await
    }

    /// Goes on with the layers that were not asked yet, as those that were have nothing up to `limit`.
    async fn descend(&mut self, rest: Range, mut limit: u64) -> IoResult<()> {
        loop {
            let range = Range::between(rest.offset(), limit);
            let depth = self.depth;
            let node = match &self.next {
                Behind::Here(node) => Rc::clone(node),
                Behind::There(address) => {
                    let address = address.clone();
                    return self.ask_there(&address, range, depth).await;
                }
                Behind::None => {
                    self.extents.push(nothing(range, StatusFlags::ZERO));
                    return Ok(());
                }
            };
            if depth > 1 && !self.wanted.whole_chain {
                self.extents.push(nothing(range, StatusFlags::empty()));
                return Ok(());
            }
            if depth > 1 {
                pass(&mut self.passed, Rc::clone(&node));
            }
            let said = self.ask(&node, rest).await?;
            self.next = node.backing_edge().map(|edge| edge.behind()).unwrap_or_default();
            self.depth = depth.saturating_add(1);
            let nothing_until = match said {
                Said::Nothing(until) => until,
                Said::Ended | Said::Has(_) => rest.offset(),
            };
            self.layers.push(Layer {
                node: Rc::clone(&node),
                depth,
                nothing_until,
            });
            match said {
                Said::Nothing(until) => limit = limit.min(until),
                said => return self.tell(&node, depth, range, said).await,
            }
        }
    }

    /// Asks the driver of a layer.
    async fn ask(&mut self, node: &Rc<NodeCell>, rest: Range) -> IoResult<Said> {
        let left = node.size().saturating_sub(rest.offset());
        if left == 0 {
            return Ok(Said::Ended);
        }
        self.asked += 1;
        let purpose = Purpose::Status {
            want_zero: self.wanted.zero,
        };
        let extent = node.driver()?.locate(purpose, rest.first(left)).await?;
        match extent.at {
            _ if extent.len == 0 => Err(IoError::Corrupt),
            At::Unallocated => Ok(Said::Nothing(rest.first(left).first(extent.len).end())),
            _ => Ok(Said::Has(extent)),
        }
    }

    /// Tells what a layer has at the start of `range`.
    async fn tell(&mut self, node: &Rc<NodeCell>, depth: u32, range: Range, said: Said) -> IoResult<()> {
        let extent = match said {
            Said::Has(extent) => extent,
            Said::Nothing(_) | Said::Ended => {
                self.extents.push(short(range, depth));
                return Ok(());
            }
        };
        let range = range.first(extent.len);
        match extent.at {
            At::Child { slot, offset } if node.abilities().transparent => {
                self.ask_child(node, depth, range, (slot, offset)).await
            }
            _ => {
                let mut status = Box::pin(decided(node, range, self.wanted, extent)).await?;
                status.depth = seen_from(status.depth, depth);
                self.extents.push(status);
                Ok(())
            }
        }
    }

    /// Lets the child of a transparent node speak of a range that lies at `at` in it.
    async fn ask_child(
        &mut self,
        node: &Rc<NodeCell>,
        depth: u32,
        range: Range,
        at: (ChildSlot, u64),
    ) -> IoResult<()> {
        let (slot, offset) = at;
        let edge = node.edge(slot).ok_or(IoError::NoMedium)?;
        // A filter shows the chain below its child, and a format the child alone.
        let question = self.question(Range::new(offset, range.len())?, node.kind().is_filter());
        let told = edge.pass_down(question).await.into_map()?;
        let (mut rest, mut offset) = (range, offset);
        for below in &told {
            let own = BlockStatus {
                flags: StatusFlags::DATA | StatusFlags::ALLOCATED | StatusFlags::OFFSET_VALID,
                len: rest.len(),
                map: place(node, slot, offset),
                depth: 1,
            };
            let mut status = passed_up(own, below);
            status.depth = seen_from(status.depth, depth);
            self.extents.push(status);
            rest = rest.after(status.len);
            offset = offset.saturating_add(status.len);
            if rest.is_empty() {
                break;
            }
        }
        self.is_cut_off |= !rest.is_empty();
        Ok(())
    }

    /// Lets a layer of another iothread speak of a range, and those below it.
    async fn ask_there(&mut self, address: &NodeAddress, range: Range, depth: u32) -> IoResult<()> {
        if !self.wanted.whole_chain {
            self.extents.push(nothing(range, StatusFlags::empty()));
            return Ok(());
        }
        let question = self.question(range, true);
        let told = send_there(address, question).await.into_map()?;
        let mut rest = range;
        for below in &told {
            let status = deeper(below, rest, depth);
            self.extents.push(status);
            rest = rest.after(status.len);
            if rest.is_empty() {
                break;
            }
        }
        self.is_cut_off |= !rest.is_empty();
        Ok(())
    }

    fn question(&self, range: Range, whole_chain: bool) -> Operation<Buffers> {
        Operation::Map {
            range,
            want_zero: self.wanted.zero,
            whole_chain,
        }
    }
}

/// What nobody has who was asked.
fn nothing(range: Range, flags: StatusFlags) -> BlockStatus {
    BlockStatus {
        flags,
        len: range.len(),
        map: None,
        depth: 0,
    }
}
