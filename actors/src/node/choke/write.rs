//! Writes: a range is placed down the chain in a loop, copied around if need be, written, and settled.

use std::rc::Rc;

use drivers::buffer::Buffers;
use drivers::driver::{Ability, Driver, Target, Ticket, Transfer};
use messages::io::Operation;
use messages::{ChildSlot, DebugEvent, IoError, IoResult, RequestFlags};
use smallvec::SmallVec;

use super::super::cell::NodeCell;
use super::super::edge::Behind;
use super::super::mail::DetectZeroes;
use super::super::overlap::Tracking;
use super::{By, aligned, bytes_in, check_write, flush, in_memory, probed, read, tell, zeroes};

/// Where the start of a write goes.
struct Placed {
    len: u64,
    flags: RequestFlags,
    destination: Destination,
}

enum Destination {
    /// To a node's own driver.
    Own { node: Rc<NodeCell>, offset: u64 },
    /// Through an edge, perhaps with bytes copied along, and settled afterwards.
    Child(Allocation),
}

struct Allocation {
    node: Rc<NodeCell>,
    driver: Rc<dyn Driver>,
    /// The first byte of the write in `node`.
    at: u64,
    slot: ChildSlot,
    /// Where head, data and tail go in the child.
    offset: u64,
    head: u64,
    tail: u64,
    ticket: Option<Ticket>,
}

/// What a write holds and has passed on its way down.
#[derive(Default)]
struct Path {
    held: SmallVec<[Tracking; 1]>,
    /// Nodes passed, with the end of the write in each.
    passed: SmallVec<[(Rc<NodeCell>, u64); 3]>,
    /// A driver on the way cannot do FUA: a flush follows.
    flush: bool,
}

/// Stores `buffers` at `offset`.
pub async fn write(
    cell: &Rc<NodeCell>,
    offset: u64,
    buffers: Buffers,
    flags: RequestFlags,
    by: By<'_>,
) -> Transfer {
    let len = bytes_in(&buffers);
    if let Err(error) = check_write(cell, offset, len, true, by) {
        return (Err(error), buffers);
    }
    let settings = cell.settings();
    if flags.contains(RequestFlags::WRITE_COMPRESSED) && !cell.abilities().write_compressed {
        return (Err(IoError::NotSupported), buffers);
    }
    // A zero write carries no data: what is in the buffers does not count.
    if flags.contains(RequestFlags::ZERO_WRITE) {
        return (
            Box::pin(zeroes::write_zeroes(cell, offset, len, flags, by)).await,
            buffers,
        );
    }
    if settings.detect_zeroes != DetectZeroes::Off && buffers.is_zero() {
        let unmap = settings.detect_zeroes == DetectZeroes::Unmap;
        let flags = if unmap {
            flags | RequestFlags::MAY_UNMAP
        } else {
            flags
        };
        return (
            Box::pin(zeroes::write_zeroes(cell, offset, len, flags, by)).await,
            buffers,
        );
    }
    write_bytes(cell, offset, buffers, flags, by).await
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
    mut offset: u64,
    mut rest: Buffers,
    flags: RequestFlags,
    by: By<'_>,
    track_first: bool,
) -> Transfer {
    let mut written = Buffers::new();
    let mut flush_after = false;
    while !rest.is_empty() {
        let mut path = Path::default();
        let placed = match place(cell, offset, bytes_in(&rest), flags, track_first, &mut path).await {
            Ok(placed) => placed,
            Err(error) => return (Err(error), joined(written, rest)),
        };
        flush_after |= path.flush;
        let whole = placed.len >= bytes_in(&rest);
        let piece = if whole {
            std::mem::take(&mut rest)
        } else {
            rest.split_to(in_memory(placed.len))
        };
        let len = placed.len;
        let (result, piece) = store(placed, piece, by).await;
        written = if written.is_empty() {
            piece
        } else {
            joined(written, piece)
        };
        if result.is_err() {
            return (result, joined(written, rest));
        }
        for (node, end) in path.passed {
            node.wrote(end);
            tell(&node, DebugEvent::PwritevDone).await;
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
        let serialising = track && flags.contains(RequestFlags::SERIALISING);
        if track && (node.tracks() || serialising) {
            let end = at.saturating_add(len);
            let no_wait = flags.contains(RequestFlags::NO_WAIT);
            path.held
                .push(node.tracker().begin(at, end, serialising, no_wait).await?);
        }
        track = true;
        if flags.contains(RequestFlags::FUA) && node.abilities().fua != Ability::Native {
            flags.remove(RequestFlags::FUA);
            path.flush = true;
        }
        let driver = node.driver()?;
        let placement = driver.place(at, len, flags).await?;
        if placement.len == 0 {
            return Err(settle_failed(&driver, placement.ticket, IoError::Corrupt).await);
        }
        len = len.min(placement.len);
        path.passed.push((Rc::clone(&node), at.saturating_add(len)));
        let Target::Child { slot, offset } = placement.target else {
            path.passed.pop();
            return Ok(Placed {
                len,
                flags,
                destination: Destination::Own { node, offset: at },
            });
        };
        tell(&node, DebugEvent::Pwritev).await;
        let plain = placement.head == 0 && placement.tail == 0 && placement.ticket.is_none();
        match node.edge(slot).map(|edge| edge.behind()) {
            // A guarded child looks at the write as its own.
            Some(Behind::Here(child)) if plain && !probed::concerns(&child, offset) => node = child,
            Some(Behind::Here(_) | Behind::There(_)) => {
                let (head, tail, ticket) = (placement.head, placement.tail, placement.ticket);
                let child = Allocation {
                    node,
                    driver,
                    at,
                    slot,
                    offset,
                    head,
                    tail,
                    ticket,
                };
                return Ok(Placed {
                    len,
                    flags,
                    destination: Destination::Child(child),
                });
            }
            Some(Behind::None) | None => {
                return Err(settle_failed(&driver, placement.ticket, IoError::NoMedium).await);
            }
        }
        at = offset;
    }
}

/// Gives back a placement that cannot be used.
async fn settle_failed(driver: &Rc<dyn Driver>, ticket: Option<Ticket>, error: IoError) -> IoError {
    if let Some(ticket) = ticket
        && let Err(settling) = driver.settle(ticket, Err(error)).await
    {
        tracing::warn!(%settling, "what was allocated for a failed write could not be given back");
    }
    error
}

async fn store(placed: Placed, piece: Buffers, by: By<'_>) -> Transfer {
    match placed.destination {
        Destination::Own { node, offset } => {
            by.stands_at(&node);
            aligned::write(&node, offset, piece, placed.flags).await
        }
        Destination::Child(allocation) => {
            by.stands_at(&allocation.node);
            Box::pin(allocation.store(piece, placed.flags)).await
        }
    }
}

impl Allocation {
    async fn store(mut self, piece: Buffers, flags: RequestFlags) -> Transfer {
        let ticket = self.ticket.take();
        let (mut result, piece) = self.copy_and_write(piece, flags).await;
        if let Some(ticket) = ticket {
            let settled = self.driver.settle(ticket, result).await;
            result = result.and(settled);
        }
        (result, piece)
    }

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
        // What a format writes to its file is the format's own, whatever the guest asked of its data.
        let flags = flags.difference(RequestFlags::SERIALISING | RequestFlags::NO_WAIT);
        let operation = Operation::Write {
            offset: self.offset,
            buffers: gather,
            flags,
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
