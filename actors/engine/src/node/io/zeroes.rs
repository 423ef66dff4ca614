//! Zero writes and discards: cut to what the driver aligns to and takes at once, and serialised where a format needs it.

use std::rc::Rc;

use millpond_drivers::api::Ability;
use millpond_messages::error::errno::ENOMEM;
use millpond_messages::{DebugEvent, IoError, IoResult, OpenFlags, RequestFlags};
use millpond_ring::buffer::{Buffer, Buffers};

use super::{By, flush, in_memory, length, probed, tell, write};
use crate::node::cell::node::NodeCell;
use crate::node::gate::overlap::Tracking;

/// The most zeroes written from one buffer, in bytes.
const BOUNCE: u64 = 1 << 20;

/// Makes a range read as zeroes, which was checked.
pub async fn write_zeroes(
    cell: &Rc<NodeCell>,
    offset: u64,
    len: u64,
    flags: RequestFlags,
    by: By<'_>,
) -> IoResult<()> {
    if !by.may_serialise(cell, flags) {
        return Err(IoError::NotSupported);
    }
    if len == 0 {
        return Ok(());
    }
    let end = offset.saturating_add(len);
    if probed::concerns(cell, offset) && (offset > 0 || end < probed::SIGNATURE_BYTES) {
        // A part of the first sector is written as any other bytes would be: zeroes may end a magic number too.
        let first = end.min(probed::SIGNATURE_BYTES) - offset;
        write_guarded(cell, offset, first, flags, by).await?;
        let rest = len - first;
        if rest == 0 {
            return Ok(());
        }
        return Box::pin(write_zeroes(cell, probed::SIGNATURE_BYTES, rest, flags, by)).await;
    }
    by.stands_at(cell);
    length::reach(cell, end).await?;
    let mut passed = flags;
    if !cell.flags().contains(OpenFlags::UNMAP) {
        passed.remove(RequestFlags::MAY_UNMAP);
    }
    passed.remove(RequestFlags::FUA);
    let alone = serialise(cell, offset, len, flags).await?;
    zero_pieces(cell, offset, len, passed).await?;
    drop(alone);
    if flags.contains(RequestFlags::FUA) {
        flush::flush(cell).await
    } else {
        Ok(())
    }
}

/// Makes a range read as zeroes that reads as zeroes already, as a piece of a request that is tracked.
pub(super) async fn zero_unchanged(cell: &Rc<NodeCell>, offset: u64, len: u64) -> IoResult<()> {
    Box::pin(zero_pieces(cell, offset, len, RequestFlags::WRITE_UNCHANGED)).await
}

async fn zero_pieces(cell: &Rc<NodeCell>, offset: u64, len: u64, flags: RequestFlags) -> IoResult<()> {
    let abilities = cell.abilities();
    let alignment = abilities
        .limits
        .write_zeroes_alignment
        .max(cell.limits().request_alignment);
    let mut done = 0;
    while done < len {
        let at = offset.saturating_add(done);
        let piece = next_piece(at, len - done, alignment, abilities.limits.max_write_zeroes);
        let result = zero_piece(cell, at, piece, flags, abilities.write_zeroes).await;
        cell.ended_write(at.saturating_add(piece), result);
        result?;
        done = done.saturating_add(piece);
    }
    Ok(())
}

async fn write_guarded(
    cell: &Rc<NodeCell>,
    offset: u64,
    len: u64,
    flags: RequestFlags,
    by: By<'_>,
) -> IoResult<()> {
    let buffer = Buffer::try_zeroed(in_memory(len)).ok_or(IoError::Os(ENOMEM))?;
    let flags = flags & (RequestFlags::FUA | RequestFlags::WRITE_UNCHANGED | RequestFlags::SERIALISING);
    write::write_bytes(cell, offset, Buffers::from(buffer), flags, by)
        .await
        .0
}

/// The next part of a range: up to the first aligned offset, then whole aligned blocks, then what is left.
fn next_piece(at: u64, left: u64, alignment: u32, most: u64) -> u64 {
    let align = u64::from(alignment).max(1);
    let past = at % align;
    if past != 0 {
        return left.min(align - past);
    }
    let whole = left / align * align;
    if whole == 0 {
        return left;
    }
    let most = most / align * align;
    if most == 0 { whole } else { whole.min(most) }
}

async fn zero_piece(
    cell: &Rc<NodeCell>,
    offset: u64,
    len: u64,
    flags: RequestFlags,
    ability: Ability,
) -> IoResult<()> {
    let block = u64::from(cell.limits().request_alignment).max(1);
    if ability == Ability::Native && offset.is_multiple_of(block) && len.is_multiple_of(block) {
        let driver = cell.driver()?;
        let _alone = alone_on_blocks(cell, offset, len).await?;
        tell(cell, DebugEvent::PwritevZero).await;
        match driver.write_zeroes(offset, len, flags).await {
            Err(IoError::NotSupported) => {}
            result => {
                tell(cell, DebugEvent::PwritevDone).await;
                return result;
            }
        }
    }
    if flags.contains(RequestFlags::NO_FALLBACK) {
        return Err(IoError::NotSupported);
    }
    write_zero_buffers(cell, offset, len, flags).await
}

async fn write_zero_buffers(
    cell: &Rc<NodeCell>,
    mut offset: u64,
    mut left: u64,
    flags: RequestFlags,
) -> IoResult<()> {
    let flags = flags & RequestFlags::WRITE_UNCHANGED;
    let buffer = Buffer::try_zeroed(in_memory(left.min(BOUNCE))).ok_or(IoError::Os(ENOMEM))?;
    let mut buffers = Buffers::from(buffer);
    while left > 0 {
        let len = left.min(BOUNCE);
        buffers.truncate(in_memory(len));
        let (result, back) = write::write_piece(cell, offset, buffers, flags).await;
        result?;
        buffers = back;
        offset = offset.saturating_add(len);
        left -= len;
    }
    Ok(())
}

/// Forgets a range, which was checked, as far as the driver's blocks fit into it. Succeeds without effect where discards are not passed down.
pub async fn discard(cell: &Rc<NodeCell>, offset: u64, len: u64, by: By<'_>) -> IoResult<()> {
    let abilities = cell.abilities();
    if !cell.flags().contains(OpenFlags::UNMAP) || abilities.discard != Ability::Native {
        return Ok(());
    }
    let Some((start, end)) = whole_blocks(offset, len, abilities.limits.discard_alignment, cell.size())
    else {
        return Ok(());
    };
    by.stands_at(cell);
    let _alone = serialise(cell, start, end - start, RequestFlags::empty()).await?;
    let driver = cell.driver()?;
    let most = match abilities.limits.max_discard {
        0 => end - start,
        most => most,
    };
    let mut at = start;
    while at < end {
        let piece = most.min(end - at);
        let _alone = alone_on_blocks(cell, at, piece).await?;
        let result = driver.discard(at, piece).await;
        cell.counters().driver_discarded(piece, result.is_err());
        let result = match result {
            Err(IoError::NotSupported) => Ok(()),
            result => result,
        };
        cell.ended_write(0, result);
        result?;
        at = at.saturating_add(piece);
    }
    Ok(())
}

/// The blocks that lie wholly within a range, and within the node. Its last block counts as whole where it ends in it.
fn whole_blocks(offset: u64, len: u64, alignment: u32, size: u64) -> Option<(u64, u64)> {
    let align = u64::from(alignment).max(1);
    let start = offset.checked_next_multiple_of(align)?;
    let end = offset.checked_add(len)?.min(size);
    let end = if end >= size { end } else { end / align * align };
    (start < end).then_some((start, end))
}

/// Waits for what overlaps the clusters that a range touches, and holds back what comes later, where a format needs it or
/// the request asks for it. Others are noted where the node notes what it has in flight.
async fn serialise(
    cell: &Rc<NodeCell>,
    offset: u64,
    len: u64,
    flags: RequestFlags,
) -> IoResult<Option<Tracking>> {
    let asked = flags.contains(RequestFlags::SERIALISING);
    let (granularity, serialising) = match cell.abilities().serialise_granularity {
        // The pieces are serialised one by one, below.
        0 if cell.tracks_blocks() => return Ok(None),
        0 if asked || cell.tracks() => (1, asked),
        0 => return Ok(None),
        granularity => (granularity, true),
    };
    let start = offset / granularity * granularity;
    let end = offset
        .saturating_add(len)
        .checked_next_multiple_of(granularity)
        .ok_or(IoError::OutOfRange)?;
    let no_wait = flags.contains(RequestFlags::NO_WAIT);
    let begun = cell.tracker().begin(start, end, serialising, no_wait);
    begun.await.map(Some)
}

/// Keeps a driver's own zeroing or discarding apart from a read-modify-write that would put old bytes back.
async fn alone_on_blocks(cell: &Rc<NodeCell>, offset: u64, len: u64) -> IoResult<Option<Tracking>> {
    if !cell.tracks_blocks() {
        return Ok(None);
    }
    cell.tracker()
        .begin(offset, offset.saturating_add(len), true, false)
        .await
        .map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_writes_are_cut_at_alignment_and_limit() {
        assert_eq!(next_piece(100, 1000, 512, 0), 412);
        assert_eq!(next_piece(512, 1300, 512, 0), 1024);
        assert_eq!(next_piece(512, 1300, 512, 600), 512);
        assert_eq!(next_piece(512, 100, 512, 0), 100);
        assert_eq!(next_piece(7, 100, 0, 0), 100);
    }

    #[test]
    fn only_whole_blocks_are_discarded() {
        assert_eq!(whole_blocks(100, 2000, 512, 1 << 20), Some((512, 2048)));
        assert_eq!(whole_blocks(100, 300, 512, 1 << 20), None);
        assert_eq!(whole_blocks(512, 700, 512, 1212), Some((512, 1212)));
        assert_eq!(whole_blocks(512, 4096, 512, 1212), Some((512, 1212)));
        assert_eq!(whole_blocks(2048, 4096, 512, 1212), None);
    }
}
