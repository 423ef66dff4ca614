//! Writes: a range is placed down the chain in a loop, copied around if need be, written, and settled.

use std::rc::Rc;

use millpond_drivers::api::{Ability, Answer, Driver, Placement, Target, Ticket, Transfer};
use millpond_messages::io::{Operation, OperationKind};
use millpond_messages::{ChildSlot, DebugEvent, IoError, IoResult, Range, RequestFlags};
use millpond_ring::buffer::Buffers;
use smallvec::SmallVec;

use super::{
    By, Passed, aligned, bytes_in, flush, in_memory, length, nodes, pass, probed, read, tell, zeroes,
};
use crate::node::cell::edge::Behind;
use crate::node::cell::node::NodeCell;
use crate::node::gate::overlap::Tracking;
use crate::node::gate::statistics::Asked;
use crate::node::order::mail::DetectZeroes;

/// Where the start of a write goes.
pub(super) struct Placed {
    pub len: u64,
    pub flags: RequestFlags,
    pub destination: Destination,
    /// What is settled afterwards, and with whom.
    pub ticket: Option<(Rc<dyn Driver>, Ticket)>,
}

pub(super) enum Destination {
    /// To a node's own driver.
    Own { node: Rc<NodeCell>, offset: u64 },
    /// Through an edge, perhaps with bytes copied along.
    Child(Gathered),
}

pub(super) struct Gathered {
    node: Rc<NodeCell>,
    /// The first byte of the write in `node`.
    at: u64,
    slot: ChildSlot,
    /// Where head, data and tail go in the child.
    offset: u64,
    head: u64,
    tail: u64,
}

/// What a write holds and has passed on its way down.
#[derive(Default)]
pub(super) struct Path {
    pub held: SmallVec<[Tracking; 1]>,
    pub passed: Passed,
    /// Where it has got to, as long as it is on its way.
    at: Option<Rc<NodeCell>>,
    /// A driver on the way cannot do FUA: a flush follows.
    flush: bool,
}

impl Path {
    /// The nodes that were passed on the way.
    pub fn nodes(&self) -> impl Iterator<Item = &Rc<NodeCell>> {
        nodes(&self.passed)
    }

    /// A node that tracks the transfers of its own driver does so anew, with the blocks that they share with others: it
    /// would wait for what is held for the same write here.
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

/// Stores `buffers` at `offset`, which was checked.
pub async fn write(
    cell: &Rc<NodeCell>,
    offset: u64,
    buffers: Buffers,
    flags: RequestFlags,
    by: By<'_>,
) -> Transfer {
    let len = bytes_in(&buffers);
    let settings = cell.settings();
    if flags.contains(RequestFlags::WRITE_COMPRESSED) && !cell.takes_compressed() {
        return (Err(IoError::NotSupported), buffers);
    }
    if !by.may_serialise(cell, flags) {
        return (Err(IoError::NotSupported), buffers);
    }
    // A zero write carries no data: what is in the buffers does not count.
    if flags.contains(RequestFlags::ZERO_WRITE) {
        return (Box::pin(zero(cell, offset, len, flags, by)).await, buffers);
    }
    if settings.detect_zeroes != DetectZeroes::Off && buffers.is_zero() {
        let unmap = settings.detect_zeroes == DetectZeroes::Unmap;
        let flags = if unmap {
            flags | RequestFlags::MAY_UNMAP
        } else {
            flags
        };
        return (Box::pin(zero(cell, offset, len, flags, by)).await, buffers);
    }
    write_bytes(cell, offset, buffers, flags, by).await
}

async fn zero(cell: &Rc<NodeCell>, offset: u64, len: u64, flags: RequestFlags, by: By<'_>) -> IoResult<()> {
    zeroes::write_zeroes(cell, Range::new(offset, len)?, flags, by).await
}

/// Writes what was checked, as it is.
pub(super) async fn write_bytes(
    cell: &Rc<NodeCell>,
    offset: u64,
    buffers: Buffers,
    flags: RequestFlags,
    by: By<'_>,
) -> Transfer {
    if probed::concerns(cell, offset) && !buffers.is_empty() {
        let alone = match probed::guard(cell, offset, &buffers, flags).await {
            Ok(alone) => alone,
            Err(error) => return (Err(error), buffers),
        };
        let written = transfer(cell, offset, buffers, flags, by, false).await;
        drop(alone);
        return written;
    }
    // All of the range at once, though it may be written piece by piece. Where the transfers of the node's own driver are
    // tracked it is left to those, which would wait for this.
    if flags.contains(RequestFlags::SERIALISING) && !cell.tracks_blocks() && !buffers.is_empty() {
        let range = match Range::new(offset, bytes_in(&buffers)) {
            Ok(range) => range,
            Err(error) => return (Err(error.into()), buffers),
        };
        // Before: growing waits for all that is in flight where the node ends.
        if let Err(error) = length::reach(cell, range.end()).await {
            return (Err(error), buffers);
        }
        let no_wait = flags.contains(RequestFlags::NO_WAIT);
        let alone = match cell.tracker().begin(range, true, no_wait).await {
            Ok(alone) => alone,
            Err(error) => return (Err(error), buffers),
        };
        let written = transfer(cell, offset, buffers, flags_below(flags), by, false).await;
        drop(alone);
        return written;
    }
    transfer(cell, offset, buffers, flags, by, true).await
}

/// Writes what a request that is tracked already consists of.
pub(super) async fn write_piece(
    cell: &Rc<NodeCell>,
    offset: u64,
    buffers: Buffers,
    flags: RequestFlags,
) -> Transfer {
    transfer(cell, offset, buffers, flags, By::PARENT, false).await
}

async fn transfer(
    cell: &Rc<NodeCell>,
    offset: u64,
    rest: Buffers,
    flags: RequestFlags,
    by: By<'_>,
    track_first: bool,
) -> Transfer {
    go_on(cell, None, offset, rest, flags, by, track_first).await
}

/// Writes all of `rest`, of which the first part may have its place already.
pub(super) async fn go_on(
    cell: &Rc<NodeCell>,
    mut first: Option<(Placed, Path)>,
    mut offset: u64,
    mut rest: Buffers,
    flags: RequestFlags,
    by: By<'_>,
    track_first: bool,
) -> Transfer {
    let mut written = Buffers::new();
    let mut flush_after = false;
    while !rest.is_empty() {
        let asked = Asked::now(OperationKind::Write, bytes_in(&rest));
        let (placed, path) = match first.take() {
            Some(first) => first,
            None => {
                let mut path = Path::default();
                match place(cell, offset, bytes_in(&rest), flags, track_first, &mut path).await {
                    Ok(placed) => (placed, path),
                    Err(error) => {
                        asked.ended_below(cell, path.nodes().chain(&path.at), true);
                        return (Err(error), joined(written, rest));
                    }
                }
            }
        };
        flush_after |= path.flush;
        let whole = placed.len >= bytes_in(&rest);
        let piece = if whole {
            std::mem::take(&mut rest)
        } else {
            rest.split_to(in_memory(placed.len))
        };
        let len = placed.len;
        let own = placed.destination.own().cloned();
        let (result, piece) = store(placed, piece, by).await;
        let passed = path.nodes().chain(&own);
        asked.cut(len).ended_below(cell, passed, result.is_err());
        written = if written.is_empty() {
            piece
        } else {
            joined(written, piece)
        };
        for (node, end) in path.passed {
            node.ended_write(end, result);
            tell(&node, DebugEvent::PwritevDone).await;
        }
        if result.is_err() {
            return (result, joined(written, rest));
        }
        offset = offset.saturating_add(len);
    }
    if flush_after {
        let result = Box::pin(flush::flush(cell)).await;
        return (result, written);
    }
    (Ok(()), written)
}

fn joined(mut first: Buffers, second: Buffers) -> Buffers {
    first.append(second);
    first
}

async fn place(
    cell: &Rc<NodeCell>,
    offset: u64,
    len: u64,
    mut flags: RequestFlags,
    track_first: bool,
    path: &mut Path,
) -> IoResult<Placed> {
    let (mut node, mut at, mut len) = (Rc::clone(cell), offset, len);
    let mut track = track_first;
    loop {
        path.at = Some(Rc::clone(&node));
        length::reach(&node, at.saturating_add(len)).await?;
        let serialising = flags.contains(RequestFlags::SERIALISING);
        let tracked = track && (node.tracks() || serialising);
        if tracked {
            let range = Range::new(at, len)?;
            let no_wait = flags.contains(RequestFlags::NO_WAIT);
            path.held
                .push(node.tracker().begin(range, serialising, no_wait).await?);
        }
        track = true;
        path.pass_fua(&node, &mut flags);
        let driver = node.driver()?;
        let placement = driver.place(Range::new(at, len)?, flags).await?;
        let passes_on = matches!(placement.target, Target::Child { .. }) && placement.len > 0;
        if passes_on {
            tell(&node, DebugEvent::Pwritev).await;
        }
        match follow(node, driver, at, len, flags, placement, path) {
            Ok(Way::Down(child, child_at, within)) => {
                (node, at, len) = (child, child_at, within);
                // It is serialised where it was sent to, and any other write below.
                flags.remove(RequestFlags::SERIALISING);
            }
            Ok(Way::Reached(placed)) => {
                path.leave_to(&placed, tracked);
                return Ok(placed);
            }
            Err(unusable) => return Err(unusable.settle().await),
        }
    }
}

/// The same in one step; `None` where something has to be waited for, or a driver refuses: nothing has happened then.
pub(super) fn place_at_once(
    cell: &Rc<NodeCell>,
    range: Range,
    path: &mut Path,
) -> Option<Result<Placed, Unusable>> {
    let (mut node, mut at, mut len) = (Rc::clone(cell), range.offset(), range.len());
    let flags = RequestFlags::empty();
    loop {
        if node.hears() || length::falls_short(&node, at.saturating_add(len)) {
            return None;
        }
        let tracked = node.tracks();
        if tracked {
            path.held
                .push(node.tracker().try_begin(Range::new(at, len).ok()?)?);
        }
        let driver = node.driver().ok()?;
        let Answer::Ready(placement) = driver.place(Range::new(at, len).ok()?, flags) else {
            return None;
        };
        let placement = placement?.ok()?;
        match follow(node, driver, at, len, flags, placement, path) {
            Ok(Way::Down(child, child_at, within)) => (node, at, len) = (child, child_at, within),
            Ok(Way::Reached(placed)) => {
                path.leave_to(&placed, tracked);
                return Some(Ok(placed));
            }
            Err(unusable) => return Some(Err(unusable)),
        }
    }
}

/// Where a driver's answer leads.
enum Way {
    /// To another node, at an offset there, for so many bytes.
    Down(Rc<NodeCell>, u64, u64),
    /// To where the range is to be written.
    Reached(Placed),
}

/// Goes where the driver of `node` points.
fn follow(
    node: Rc<NodeCell>,
    driver: Rc<dyn Driver>,
    at: u64,
    len: u64,
    flags: RequestFlags,
    placement: Placement,
    path: &mut Path,
) -> Result<Way, Unusable> {
    let Placement {
        len: within,
        target,
        head,
        tail,
        ticket,
    } = placement;
    let unusable = |node, driver, ticket, error| {
        Err(Unusable {
            node,
            driver,
            ticket,
            error,
        })
    };
    if within == 0 {
        return unusable(node, driver, ticket, IoError::Corrupt);
    }
    let len = len.min(within);
    let Target::Child { slot, offset } = target else {
        return Ok(Way::Reached(Placed {
            len,
            flags,
            destination: Destination::Own { node, offset: at },
            ticket: None,
        }));
    };
    let passed_end = at.saturating_add(len);
    let whole = head == 0 && tail == 0;
    // A guarded child looks at the write as its own, and so does one that has to be made longer for it.
    let end = offset.saturating_add(len);
    let guarded = |child: &NodeCell| probed::concerns(child, offset) || length::falls_short(child, end);
    match node.edge(slot).map(|edge| edge.behind()) {
        Some(Behind::Here(child)) if whole && ticket.is_none() && !guarded(&child) => {
            pass(&mut path.passed, node, passed_end);
            Ok(Way::Down(child, offset, len))
        }
        // All of it goes where the child's own driver stores it: nothing on the way there cuts it, or looks at it.
        Some(Behind::Here(child)) if whole && stores_as_it_is(&child) && !guarded(&child) => {
            pass(&mut path.passed, node, passed_end);
            let mut flags = flags_below(flags);
            path.pass_fua(&child, &mut flags);
            Ok(Way::Reached(Placed {
                len,
                flags,
                destination: Destination::Own { node: child, offset },
                ticket: ticket.map(|ticket| (driver, ticket)),
            }))
        }
        Some(Behind::Here(_) | Behind::There(_)) => {
            pass(&mut path.passed, Rc::clone(&node), passed_end);
            Ok(Way::Reached(Placed {
                len,
                flags,
                destination: Destination::Child(Gathered {
                    node,
                    at,
                    slot,
                    offset,
                    head,
                    tail,
                }),
                ticket: ticket.map(|ticket| (driver, ticket)),
            }))
        }
        Some(Behind::None) | None => unusable(node, driver, ticket, IoError::NoMedium),
    }
}

/// Whether a node's own driver stores what is written there.
fn stores_as_it_is(node: &NodeCell) -> bool {
    node.kind().is_protocol() && node.settings().detect_zeroes == DetectZeroes::Off
}

/// What is written below is another matter than how the request is ordered where it was sent to.
pub(super) fn flags_below(flags: RequestFlags) -> RequestFlags {
    flags.difference(RequestFlags::SERIALISING | RequestFlags::NO_WAIT)
}

/// A placement that cannot be used.
pub(super) struct Unusable {
    /// Whose driver made it.
    pub node: Rc<NodeCell>,
    driver: Rc<dyn Driver>,
    ticket: Option<Ticket>,
    error: IoError,
}

impl Unusable {
    /// Gives it back; the error is what the write ends with.
    pub async fn settle(self) -> IoError {
        if let Some(ticket) = self.ticket
            && let Err(settling) = self.driver.settle(ticket, Err(self.error)).await
        {
            tracing::warn!(%settling, "what was allocated for a failed write could not be given back");
        }
        self.error
    }
}

impl Destination {
    /// The node whose own driver stores the data, where that is known here.
    fn own(&self) -> Option<&Rc<NodeCell>> {
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

async fn store(placed: Placed, piece: Buffers, by: By<'_>) -> Transfer {
    let (mut result, piece) = match placed.destination {
        Destination::Own { node, offset } => {
            by.stands_at(&node);
            aligned::write(&node, offset, piece, placed.flags).await
        }
        Destination::Child(gathered) => {
            by.stands_at(&gathered.node);
            Box::pin(gathered.copy_and_write(piece, placed.flags)).await
        }
    };
    if let Some((driver, ticket)) = placed.ticket {
        let settled = driver.settle(ticket, result).await;
        result = result.and(settled);
    }
    (result, piece)
}

impl Gathered {
    async fn copy_and_write(&self, piece: Buffers, flags: RequestFlags) -> Transfer {
        let len = bytes_in(&piece);
        let copies = self.head > 0 || self.tail > 0;
        if copies {
            self.tell(DebugEvent::CowRead).await;
        }
        let before = self.copied(self.at.saturating_sub(self.head), self.head).await;
        let behind = match &before {
            Ok(_) => self.copied(self.at.saturating_add(len), self.tail).await,
            Err(error) => Err(*error),
        };
        let (mut gather, behind) = match (before, behind) {
            (Ok(before), Ok(behind)) => (before, behind),
            (Err(error), _) | (_, Err(error)) => return (Err(error), piece),
        };
        gather.append(piece);
        gather.append(behind);
        if copies {
            self.tell(DebugEvent::CowWrite).await;
        }
        let operation = Operation::Write {
            offset: self.offset,
            buffers: gather,
            flags: flags_below(flags),
        };
        let Some(edge) = self.node.edge(self.slot) else {
            return (Err(IoError::NoMedium), Buffers::new());
        };
        let (result, buffers) = edge.pass_down(operation).await.into_parts();
        let Some(mut buffers) = buffers else {
            return (result.and(Err(IoError::Cancelled)), Buffers::new());
        };
        drop(buffers.split_to(in_memory(self.head)));
        buffers.truncate(in_memory(len));
        (result, buffers)
    }

    /// Tells the node's child of an event.
    async fn tell(&self, event: DebugEvent) {
        let held = self.node.edge(self.slot).and_then(|edge| edge.debug_event(event));
        if let Some(held) = held {
            held.await;
        }
    }

    async fn copied(&self, from: u64, len: u64) -> IoResult<Buffers> {
        if len == 0 {
            Ok(Buffers::new())
        } else {
            read::read_whole(&self.node, from, len).await
        }
    }
}
