//! Zero writes and discards: cut to what the driver aligns to and takes at once, and serialised where a format needs it.

use std::rc::Rc;

use millpond_drivers::api::Ability;
use millpond_messages::error::errno::ENOMEM;
use millpond_messages::{DebugEvent, IoError, IoResult, OpenFlags, Range, RequestFlags};
use millpond_ring::buffer::{Buffer, Buffers};

use super::passage::{By, Passage};
use super::request::in_memory;
use super::{flush, length, probed, write};
use crate::node::cell::node::NodeCell;
use crate::node::gate::overlap::Tracking;

/// The most zeroes written from one buffer, in bytes.
const BOUNCE: u64 = 1 << 20;

/// Makes a range read as zeroes, which was checked.
pub async fn write_zeroes(cell: &Rc<NodeCell>, range: Range, passage: Passage<'_>) -> IoResult<()> {
    let Passage { flags, by, .. } = passage;
    if !by.may_serialise(cell, flags) {
        return Err(IoError::NotSupported);
    }
    if range.is_empty() {
        return Ok(());
    }
    cell.check_threshold(range.end());
    let offset = range.offset();
    if probed::concerns(cell, offset) && (offset > 0 || range.end() < probed::SIGNATURE_BYTES) {
        // A part of the first sector is written as any other bytes would be: zeroes may end a magic number too.
        let first = range.first(probed::SIGNATURE_BYTES - offset);
        write_guarded(cell, first, passage).await?;
        let rest = range.after(first.len());
        return Box::pin(write_zeroes(cell, rest, passage)).await;
    }
    by.stands_at(cell);
    length::reach(cell, range.end()).await?;
    let mut passed = flags;
    if !cell.flags().contains(OpenFlags::UNMAP) {
        passed.remove(RequestFlags::MAY_UNMAP);
    }
    passed.remove(RequestFlags::FUA);
    let alone = serialise(cell, range, flags).await?;
    zero_pieces(cell, range, passed, alone.is_some()).await?;
    drop(alone);
    if flags.contains(RequestFlags::FUA) {
        flush::flush(cell).await
    } else {
        Ok(())
    }
}

/// Makes a range read as zeroes that reads as zeroes already, as a piece of a request that has the range's blocks to itself.
pub async fn zero_unchanged(cell: &Rc<NodeCell>, range: Range) -> IoResult<()> {
    Box::pin(zero_pieces(cell, range, RequestFlags::WRITE_UNCHANGED, true)).await
}

/// Zeroes a range piece by piece. `has_blocks` tells whether the request has the blocks of the range to itself already.
async fn zero_pieces(
    cell: &Rc<NodeCell>,
    range: Range,
    flags: RequestFlags,
    has_blocks: bool,
) -> IoResult<()> {
    let abilities = cell.abilities();
    let alignment = abilities
        .limits
        .write_zeroes_alignment
        .max(cell.limits().request_alignment);
    let mut rest = range;
    while !rest.is_empty() {
        let piece = next_piece(rest, alignment, abilities.limits.max_write_zeroes);
        zero_piece(cell, piece, flags, has_blocks).await?;
        rest = rest.after(piece.len());
    }
    Ok(())
}

async fn write_guarded(cell: &Rc<NodeCell>, range: Range, passage: Passage<'_>) -> IoResult<()> {
    let buffer = Buffer::try_zeroed(in_memory(range.len())).ok_or(IoError::Os(ENOMEM))?;
    let kept = RequestFlags::FUA | RequestFlags::WRITE_UNCHANGED | RequestFlags::SERIALISING;
    let passage = passage.with(passage.flags & kept);
    write::write_bytes(cell, range.offset(), Buffers::from(buffer), passage)
        .await
        .0
}

/// The next part of a range: up to the first aligned offset, then whole aligned blocks, then what is left.
fn next_piece(rest: Range, alignment: u32, most: u64) -> Range {
    let align = u64::from(alignment).max(1);
    let past = rest.offset() % align;
    if past != 0 {
        return rest.first(align - past);
    }
    let whole = rest.len() / align * align;
    if whole == 0 {
        return rest;
    }
    let most = most / align * align;
    rest.first(if most == 0 { whole } else { whole.min(most) })
}

async fn zero_piece(
    cell: &Rc<NodeCell>,
    range: Range,
    flags: RequestFlags,
    has_blocks: bool,
) -> IoResult<()> {
    let block = u64::from(cell.limits().request_alignment);
    if cell.abilities().write_zeroes == Ability::Native && range.is_multiple_of(block) {
        let driver = cell.driver()?;
        let _alone = alone_on_blocks(cell, range, has_blocks).await?;
        cell.raise(DebugEvent::PwritevZero).await;
        match driver.write_zeroes(range, flags).await {
            // The buffers of zeroes that are written instead report themselves.
            Err(IoError::NotSupported) => {}
            result => {
                match flags.contains(RequestFlags::WRITE_UNCHANGED) {
                    true => cell.rewrite_done(range, result),
                    false => cell.write_done(range, result),
                }
                cell.raise(DebugEvent::PwritevDone).await;
                return result;
            }
        }
    }
    if flags.contains(RequestFlags::NO_FALLBACK) {
        return Err(IoError::NotSupported);
    }
    write_zero_buffers(cell, range, flags, has_blocks).await
}

async fn write_zero_buffers(
    cell: &Rc<NodeCell>,
    range: Range,
    flags: RequestFlags,
    has_blocks: bool,
) -> IoResult<()> {
    let flags = flags & RequestFlags::WRITE_UNCHANGED;
    let buffer = Buffer::try_zeroed(in_memory(range.len().min(BOUNCE))).ok_or(IoError::Os(ENOMEM))?;
    let mut buffers = Buffers::from(buffer);
    let mut rest = range;
    while !rest.is_empty() {
        let piece = rest.first(BOUNCE);
        buffers.truncate(in_memory(piece.len()));
        let (result, back) = write::write_piece(cell, piece.offset(), buffers, flags, has_blocks).await;
        result?;
        buffers = back;
        rest = rest.after(piece.len());
    }
    Ok(())
}

/// Forgets the driver's blocks that lie wholly within a range, which was checked. Succeeds without effect where the node does
/// not pass discards down.
pub async fn discard(cell: &Rc<NodeCell>, range: Range, by: By<'_>) -> IoResult<()> {
    let abilities = cell.abilities();
    if !cell.flags().contains(OpenFlags::UNMAP) || abilities.discard != Ability::Native {
        return Ok(());
    }
    cell.check_threshold(range.end());
    let discarded = discard_blocks(cell, range, by).await;
    // As in QEMU, what is not discarded because it is less than a block is dirty nevertheless.
    cell.bitmaps().mark(range);
    discarded
}

async fn discard_blocks(cell: &Rc<NodeCell>, range: Range, by: By<'_>) -> IoResult<()> {
    let abilities = cell.abilities();
    let blocks = whole_blocks(range, abilities.limits.discard_alignment, cell.size());
    if blocks.is_empty() {
        return Ok(());
    }
    by.stands_at(cell);
    let alone = serialise(cell, blocks, RequestFlags::empty()).await?;
    let driver = cell.driver()?;
    let most = match abilities.limits.max_discard {
        0 => u64::MAX,
        most => most,
    };
    let mut rest = blocks;
    while !rest.is_empty() {
        let piece = rest.first(most);
        let _alone = alone_on_blocks(cell, piece, alone.is_some()).await?;
        let result = driver.discard(piece).await;
        cell.discard_done(piece, result)?;
        rest = rest.after(piece.len());
    }
    Ok(())
}

/// The blocks that lie wholly within a range, and within the node. Its last block counts as whole where it ends in it.
fn whole_blocks(range: Range, alignment: u32, size: u64) -> Range {
    let align = u64::from(alignment).max(1);
    let start = range.offset().checked_next_multiple_of(align);
    let end = range.end().min(size);
    let end = if end >= size { end } else { end / align * align };
    Range::between(start.unwrap_or(end), end)
}

/// Waits for requests that overlap the clusters that a range touches, and holds back later ones, where a format needs that
/// or the request asks for it. Otherwise the request is only tracked, where the node tracks its requests.
async fn serialise(cell: &Rc<NodeCell>, range: Range, flags: RequestFlags) -> IoResult<Option<Tracking>> {
    let asked = flags.contains(RequestFlags::SERIALISING);
    let (granularity, serialising) = match cell.abilities().serialise_granularity {
        // The pieces are serialised one by one as they are written.
        0 if cell.tracks_blocks() => return Ok(None),
        0 if asked || cell.tracks() => (1, asked),
        0 => return Ok(None),
        _ => (cell.exclusive_unit(), true),
    };
    let touched = range.widened_to(granularity)?;
    let no_wait = flags.contains(RequestFlags::NO_WAIT);
    let begun = cell.tracker().begin(touched, serialising, no_wait);
    begun.await.map(Some)
}

/// Keeps a driver's own zeroing or discarding apart from a read-modify-write that would put old bytes back, unless the
/// request has the blocks to itself already: it would wait for itself.
async fn alone_on_blocks(cell: &Rc<NodeCell>, range: Range, has_blocks: bool) -> IoResult<Option<Tracking>> {
    if has_blocks || !cell.tracks_blocks() {
        return Ok(None);
    }
    cell.tracker().begin(range, true, false).await.map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(offset: u64, len: u64) -> Range {
        Range::new(offset, len).unwrap()
    }

    #[test]
    fn zero_writes_are_cut_at_alignment_and_limit() {
        let first = |offset, len, alignment, most| next_piece(range(offset, len), alignment, most).len();
        assert_eq!(first(100, 1000, 512, 0), 412);
        assert_eq!(first(512, 1300, 512, 0), 1024);
        assert_eq!(first(512, 1300, 512, 600), 512);
        assert_eq!(first(512, 100, 512, 0), 100);
        assert_eq!(first(7, 100, 0, 0), 100);
    }

    #[test]
    fn only_whole_blocks_are_discarded() {
        let blocks = |offset, len, size| whole_blocks(range(offset, len), 512, size);
        assert_eq!(blocks(100, 2000, 1 << 20), Range::between(512, 2048));
        assert!(blocks(100, 300, 1 << 20).is_empty());
        assert_eq!(blocks(512, 700, 1212), Range::between(512, 1212));
        assert_eq!(blocks(512, 4096, 1212), Range::between(512, 1212));
        assert!(blocks(2048, 4096, 1212).is_empty());
    }
}
