//! Where a write goes: its range is placed down the chain in a loop, from driver to driver.

use std::rc::Rc;

use millpond_drivers::api::{Ability, AllocationTicket, Answer, Driver, Placement, Target};
use millpond_messages::{ChildSlot, DebugEvent, IoError, IoResult, Range, RequestFlags};
use smallvec::SmallVec;

use super::passage::{Passage, flags_below};
use super::passed::{Passed, nodes, pass_writing};
use super::{length, probed};
use crate::node::cell::edge::Behind;
use crate::node::cell::node::NodeCell;
use crate::node::gate::overlap::Tracking;
use crate::node::order::outcome::DetectZeroes;

/// Where the start of a write goes.
pub struct Placed {
    pub len: u64,
    pub flags: RequestFlags,
    pub destination: Destination,
    /// The ticket to settle afterwards, and the driver that gave it.
    pub ticket: Option<(Rc<dyn Driver>, AllocationTicket)>,
}

/// Where a part of a write ends up.
pub enum Destination {
    /// To a node's own driver.
    Own { node: Rc<NodeCell>, offset: u64 },
    /// Through an edge, perhaps with bytes copied along.
    Child(Gathered),
}

/// A write through an edge, with what is copied along from the node.
pub struct Gathered {
    pub node: Rc<NodeCell>,
    /// The first byte of the write in `node`.
    pub at: u64,
    pub slot: ChildSlot,
    /// Where head, data and tail go in the child.
    pub offset: u64,
    pub head: u64,
    pub tail: u64,
}

impl Destination {
    /// The node whose own driver stores the data, where that is known here.
    pub fn own(&self) -> Option<&Rc<NodeCell>> {
        match self {
            Self::Own { node, .. } => Some(node),
            Self::Child(_) => None,
        }
    }

    /// The node whose driver gets the data, or passes it on.
    pub fn node(&self) -> &Rc<NodeCell> {
        match self {
            Self::Own { node, .. } | Self::Child(Gathered { node, .. }) => node,
        }
    }
}

/// What a write holds and has passed on its way down.
#[derive(Default)]
pub struct Path {
    pub held: SmallVec<[Tracking; 1]>,
    pub passed: Passed,
    /// The node that the write has come to; None once it was placed.
    pub at: Option<Rc<NodeCell>>,
    /// Whether a flush must follow, because a driver on the way cannot do FUA.
    pub flush: bool,
}

impl Path {
    /// The nodes that were passed on the way.
    pub fn nodes(&self) -> impl Iterator<Item = &Rc<NodeCell>> {
        nodes(&self.passed)
    }

    /// Gives up the tracking at a node that tracks the transfers of its own driver: it tracks this write again with the blocks
    /// that it shares with others, and would wait for what is held for the same write here.
    fn leave_to(&mut self, placed: &Placed, tracked: bool) {
        if let Destination::Own { node, .. } = &placed.destination
            && placed.ticket.is_none()
            && tracked
            && node.tracks_blocks()
        {
            self.held.pop();
        }
    }

    /// Leaves FUA to a flush at the end, unless `node` can do it.
    fn pass_fua(&mut self, node: &NodeCell, flags: &mut RequestFlags) {
        if flags.contains(RequestFlags::FUA) && node.abilities().fua != Ability::Native {
            flags.remove(RequestFlags::FUA);
            self.flush = true;
        }
    }
}

/// A write on its way down: the node that it has come to, its range there, and what it asks for.
struct Descent {
    node: Rc<NodeCell>,
    range: Range,
    flags: RequestFlags,
}

/// Where a driver's answer leads.
enum Next {
    /// On to another node.
    Node(Descent),
    /// To where the range is to be written.
    Found(Placed),
}

/// Finds the place of the start of a range, waiting for whatever is in the way.
///
/// # Errors
/// A driver's, or what was placed cannot be used.
pub async fn place(
    cell: &Rc<NodeCell>,
    range: Range,
    passage: Passage<'_>,
    path: &mut Path,
) -> IoResult<Placed> {
    let mut descent = Descent {
        node: Rc::clone(cell),
        range,
        flags: passage.flags,
    };
    let mut track = passage.track;
    loop {
        let (node, range) = (&descent.node, descent.range);
        path.at = Some(Rc::clone(node));
        if track {
            // A piece of a request that the node has seen counts with that.
            node.check_threshold(range.end());
        }
        length::reach(node, range.end()).await?;
        let serialising = descent.flags.contains(RequestFlags::SERIALISING);
        let tracked = track && (node.tracks() || serialising);
        if tracked {
            let no_wait = descent.flags.contains(RequestFlags::NO_WAIT);
            path.held
                .push(node.tracker().begin(range, serialising, no_wait).await?);
        }
        track = true;
        path.pass_fua(&descent.node, &mut descent.flags);
        let driver = descent.node.driver()?;
        let placement = driver.place(range, descent.flags).await?;
        let passes_on = matches!(placement.target, Target::Child { .. }) && placement.len > 0;
        if passes_on {
            descent.node.raise(DebugEvent::Pwritev).await;
        }
        match descent.follow(driver, placement, path) {
            Ok(Next::Node(next)) => {
                descent = next;
                // The write is serialised at the node that it was sent to. Below it is a write like any other.
                descent.flags.remove(RequestFlags::SERIALISING);
            }
            Ok(Next::Found(placed)) => {
                path.leave_to(&placed, tracked);
                return Ok(placed);
            }
            Err(unusable) => return Err(unusable.settle().await),
        }
    }
}

/// Finds the place in one step. `None` where something has to be waited for, or a driver refuses: then nothing has happened.
pub fn place_now(cell: &Rc<NodeCell>, range: Range, path: &mut Path) -> Option<Result<Placed, Unusable>> {
    let mut descent = Descent {
        node: Rc::clone(cell),
        range,
        flags: RequestFlags::empty(),
    };
    loop {
        let (node, range) = (&descent.node, descent.range);
        if node.observes() || length::falls_short(node, range.end()) {
            return None;
        }
        node.check_threshold(range.end());
        let tracked = node.tracks();
        if tracked {
            path.held.push(node.tracker().try_begin(range)?);
        }
        let driver = node.driver().ok()?;
        let Answer::Ready(placement) = driver.place(range, descent.flags) else {
            return None;
        };
        let placement = placement?.ok()?;
        match descent.follow(driver, placement, path) {
            Ok(Next::Node(next)) => descent = next,
            Ok(Next::Found(placed)) => {
                path.leave_to(&placed, tracked);
                return Some(Ok(placed));
            }
            Err(unusable) => return Some(Err(unusable)),
        }
    }
}

impl Descent {
    /// Goes where the node's driver points.
    #[inline]
    fn follow(
        mut self,
        driver: Rc<dyn Driver>,
        placement: Placement,
        path: &mut Path,
    ) -> Result<Next, Unusable> {
        if placement.len == 0 {
            return Err(self.unusable(driver, placement, IoError::Corrupt));
        }
        self.range = self.range.first(placement.len);
        let Target::Child { slot, offset } = placement.target else {
            return Ok(Next::Found(self.here()));
        };
        let whole = placement.head == 0 && placement.tail == 0;
        match self.node.edge(slot).map(|edge| edge.behind()) {
            Some(Behind::Here(child)) if whole && !is_looked_at(&child, offset, self.range.len()) => {
                if placement.ticket.is_none() {
                    let Ok(range) = self.range.moved_to(offset) else {
                        return Err(self.unusable(driver, placement, IoError::OutOfRange));
                    };
                    pass_writing(&mut path.passed, self.node, self.range.offset());
                    return Ok(Next::Node(Self {
                        node: child,
                        range,
                        flags: self.flags,
                    }));
                }
                // The child's own driver stores all of it: nothing on the way there cuts it, or looks at it.
                if child.kind().is_protocol() {
                    return Ok(Next::Found(self.stored_by(
                        child,
                        offset,
                        (driver, placement),
                        path,
                    )));
                }
                Ok(Next::Found(self.over(slot, offset, (driver, placement), path)))
            }
            Some(Behind::Here(_) | Behind::There(_)) => {
                Ok(Next::Found(self.over(slot, offset, (driver, placement), path)))
            }
            Some(Behind::None) | None => Err(self.unusable(driver, placement, IoError::NoMedium)),
        }
    }

    /// The node's own driver stores the write.
    #[inline]
    fn here(self) -> Placed {
        Placed {
            len: self.range.len(),
            flags: self.flags,
            destination: Destination::Own {
                node: self.node,
                offset: self.range.offset(),
            },
            ticket: None,
        }
    }

    /// The child's own driver stores the write, at an offset there.
    fn stored_by(
        self,
        child: Rc<NodeCell>,
        offset: u64,
        (driver, placement): (Rc<dyn Driver>, Placement),
        path: &mut Path,
    ) -> Placed {
        let mut flags = flags_below(self.flags);
        path.pass_fua(&child, &mut flags);
        child.check_threshold(offset.saturating_add(self.range.len()));
        pass_writing(&mut path.passed, self.node, self.range.offset());
        Placed {
            len: self.range.len(),
            flags,
            destination: Destination::Own { node: child, offset },
            ticket: placement.ticket.map(|ticket| (driver, ticket)),
        }
    }

    /// The write is sent over an edge.
    fn over(
        self,
        slot: ChildSlot,
        offset: u64,
        (driver, placement): (Rc<dyn Driver>, Placement),
        path: &mut Path,
    ) -> Placed {
        pass_writing(&mut path.passed, Rc::clone(&self.node), self.range.offset());
        Placed {
            len: self.range.len(),
            flags: self.flags,
            destination: Destination::Child(Gathered {
                node: self.node,
                at: self.range.offset(),
                slot,
                offset,
                head: placement.head,
                tail: placement.tail,
            }),
            ticket: placement.ticket.map(|ticket| (driver, ticket)),
        }
    }

    #[cold]
    fn unusable(self, driver: Rc<dyn Driver>, placement: Placement, error: IoError) -> Unusable {
        Unusable {
            node: self.node,
            driver,
            ticket: placement.ticket,
            error,
        }
    }
}

/// Whether a write must be sent to a child as a request, because the child looks at its bytes, or has to be made longer for
/// it.
#[inline]
fn is_looked_at(child: &NodeCell, offset: u64, len: u64) -> bool {
    child.settings().detect_zeroes != DetectZeroes::Off
        || probed::concerns(child, offset)
        || length::falls_short(child, offset.saturating_add(len))
}

/// A placement that cannot be used.
pub struct Unusable {
    /// The node whose driver made the placement.
    pub node: Rc<NodeCell>,
    driver: Rc<dyn Driver>,
    ticket: Option<AllocationTicket>,
    error: IoError,
}

impl Unusable {
    /// Gives the placement back to its driver. The answer is the error that the write ends with.
    pub async fn settle(self) -> IoError {
        if let Some(ticket) = self.ticket
            && let Err(settling) = self.driver.settle(ticket, Err(self.error)).await
        {
            tracing::warn!(%settling, "what was allocated for a failed write could not be given back");
        }
        self.error
    }
}
