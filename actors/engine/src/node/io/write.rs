//! Writes: each part of a range is placed, copied around if need be, written, and settled.

use std::rc::Rc;

use millpond_drivers::api::Transfer;
use millpond_messages::io::{Operation, OperationKind};
use millpond_messages::{DebugEvent, IoError, IoResult, Range, RequestFlags};
use millpond_ring::buffer::Buffers;

use super::passage::{By, Passage, flags_below};
use super::passed::ended_below;
use super::place::{Destination, Gathered, Path, Placed, place};
use super::request::{bytes_in, in_memory};
use super::{aligned, flush, length, probed, read, zeroes};
use crate::node::cell::node::NodeCell;
use crate::node::gate::overlap::Tracking;
use crate::node::gate::statistics::Asked;
use crate::node::order::outcome::DetectZeroes;

/// Stores `buffers` at `offset`, which was checked.
pub async fn write(cell: &Rc<NodeCell>, offset: u64, buffers: Buffers, passage: Passage<'_>) -> Transfer {
    let flags = passage.flags;
    let settings = cell.settings();
    if flags.contains(RequestFlags::WRITE_COMPRESSED) && !cell.takes_compressed() {
        return (Err(IoError::NotSupported), buffers);
    }
    if !passage.by.may_serialise(cell, flags) {
        return (Err(IoError::NotSupported), buffers);
    }
    let mut zero_flags = flags;
    // A write with ZERO_WRITE carries no data: the bytes in its buffers do not count.
    if !flags.contains(RequestFlags::ZERO_WRITE) {
        if settings.detect_zeroes == DetectZeroes::Off || !buffers.is_zero() {
            return write_bytes(cell, offset, buffers, passage).await;
        }
        zero_flags.set(
            RequestFlags::MAY_UNMAP,
            flags.contains(RequestFlags::MAY_UNMAP) || settings.detect_zeroes == DetectZeroes::Unmap,
        );
    }
    let zeroed = match Range::new(offset, bytes_in(&buffers)) {
        Ok(range) => Box::pin(zeroes::write_zeroes(cell, range, passage.with(zero_flags))).await,
        Err(error) => Err(error.into()),
    };
    (zeroed, buffers)
}

/// Writes bytes to a range that was checked, without looking for zeroes in them.
pub async fn write_bytes(
    cell: &Rc<NodeCell>,
    offset: u64,
    buffers: Buffers,
    passage: Passage<'_>,
) -> Transfer {
    let flags = passage.flags;
    if probed::concerns(cell, offset) && !buffers.is_empty() {
        let alone = match guard(cell, offset, &buffers, flags).await {
            Ok(alone) => alone,
            Err(error) => return (Err(error), buffers),
        };
        let written = go_on(cell, None, offset, buffers, passage.tracked()).await;
        drop(alone);
        return written;
    }
    // The whole range is tracked at once, though it may be written piece by piece. Where the node tracks the transfers of its
    // own driver that is left to them, because they would wait for this tracking.
    if flags.contains(RequestFlags::SERIALISING) && !cell.tracks_blocks() && !buffers.is_empty() {
        let alone = match stand_alone(cell, offset, bytes_in(&buffers), flags).await {
            Ok(alone) => alone,
            Err(error) => return (Err(error), buffers),
        };
        let below = passage.with(flags_below(flags)).tracked();
        let written = go_on(cell, None, offset, buffers, below).await;
        drop(alone);
        return written;
    }
    go_on(cell, None, offset, buffers, passage).await
}

/// Waits for all that a serialising write overlaps, and holds back what comes later.
async fn stand_alone(cell: &Rc<NodeCell>, offset: u64, len: u64, flags: RequestFlags) -> IoResult<Tracking> {
    let range = Range::new(offset, len)?;
    cell.check_threshold(range.end());
    // The node grows before the write is tracked, because growing waits for all requests in flight at the node's end.
    length::reach(cell, range.end()).await?;
    let no_wait = flags.contains(RequestFlags::NO_WAIT);
    cell.tracker().begin(range, true, no_wait).await
}

/// Lets a write to the first sector of a guarded node through, and keeps others from the sector until it has ended.
///
/// # Errors
/// `NotPermitted` where the sector would look like a format's.
async fn guard(
    cell: &Rc<NodeCell>,
    offset: u64,
    buffers: &Buffers,
    flags: RequestFlags,
) -> IoResult<Tracking> {
    let range = Range::new(offset, bytes_in(buffers))?;
    cell.check_threshold(range.end());
    // One tracking serves for both the guard and a serialising write, which must not wait for itself.
    let guarded = if flags.contains(RequestFlags::SERIALISING) {
        range.end().max(probed::SIGNATURE_BYTES)
    } else {
        probed::SIGNATURE_BYTES
    };
    let no_wait = flags.contains(RequestFlags::NO_WAIT);
    let alone = cell
        .tracker()
        .begin(Range::between(0, guarded), true, no_wait)
        .await?;
    let mut sector = probed::Sector::default();
    if offset > 0 || range.end() < probed::SIGNATURE_BYTES {
        let old = read::read_whole(cell, Range::between(0, probed::SIGNATURE_BYTES)).await?;
        sector.put(0, &old);
    }
    sector.put(in_memory(offset), buffers);
    if sector.looks_like_a_format() {
        return Err(IoError::NotPermitted);
    }
    Ok(alone)
}

/// Writes a piece of a request that is tracked already. `has_blocks` is as for [`Passage::piece`].
pub async fn write_piece(
    cell: &Rc<NodeCell>,
    offset: u64,
    buffers: Buffers,
    flags: RequestFlags,
    has_blocks: bool,
) -> Transfer {
    go_on(cell, None, offset, buffers, Passage::piece(flags, has_blocks)).await
}

/// Writes all of `rest`, of which the first part may have its place already.
pub async fn go_on(
    cell: &Rc<NodeCell>,
    mut first: Option<(Placed, Path)>,
    mut offset: u64,
    mut rest: Buffers,
    passage: Passage<'_>,
) -> Transfer {
    let mut written = Buffers::new();
    let mut flush_after = false;
    while !rest.is_empty() {
        let asked = Asked::now(OperationKind::Write, bytes_in(&rest));
        let (placed, path) = match first.take() {
            Some(first) => first,
            None => match place_next(cell, (offset, bytes_in(&rest)), passage, asked).await {
                Ok(placed) => placed,
                Err(error) => return (Err(error), joined(written, rest)),
            },
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
        let has_blocks = passage.has_blocks && own.as_ref().is_some_and(|node| Rc::ptr_eq(node, cell));
        let (result, piece) = store(placed, piece, passage.by, has_blocks).await;
        ended_below(asked.cut(len), cell, path.nodes().chain(&own), result.is_err());
        written = if written.is_empty() {
            piece
        } else {
            joined(written, piece)
        };
        for passed in &path.passed {
            // What is copied up into a node leaves it as it was.
            match passage.flags.contains(RequestFlags::WRITE_UNCHANGED) && Rc::ptr_eq(&passed.node, cell) {
                true => passed.rewrite_done(len, result),
                false => passed.write_done(len, result),
            }
        }
        for node in path.nodes() {
            node.raise(DebugEvent::PwritevDone).await;
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

/// Places the next part. A part that fails is counted at the nodes that it got to.
pub(super) async fn place_next(
    cell: &Rc<NodeCell>,
    (offset, len): (u64, u64),
    passage: Passage<'_>,
    asked: Asked,
) -> IoResult<(Placed, Path)> {
    let mut path = Path::default();
    match place(cell, Range::new(offset, len)?, passage, &mut path).await {
        Ok(placed) => Ok((placed, path)),
        Err(error) => {
            ended_below(asked, cell, path.nodes().chain(&path.at), true);
            Err(error)
        }
    }
}

fn joined(mut first: Buffers, second: Buffers) -> Buffers {
    first.append(second);
    first
}

async fn store(placed: Placed, piece: Buffers, by: By<'_>, has_blocks: bool) -> Transfer {
    let (mut result, piece) = match placed.destination {
        Destination::Own { node, offset } => {
            by.stands_at(&node);
            aligned::write(&node, offset, piece, placed.flags, has_blocks).await
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
            self.raise(DebugEvent::CowRead).await;
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
            self.raise(DebugEvent::CowWrite).await;
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

    /// Raises a debug event at the child.
    async fn raise(&self, event: DebugEvent) {
        let held = self.node.edge(self.slot).and_then(|edge| edge.debug_event(event));
        if let Some(held) = held {
            held.await;
        }
    }

    async fn copied(&self, from: u64, len: u64) -> IoResult<Buffers> {
        if len == 0 {
            Ok(Buffers::new())
        } else {
            read::read_whole(&self.node, Range::new(from, len)?).await
        }
    }
}
