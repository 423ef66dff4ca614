//! Memory that many requests come from, and the bounded table of what of it is registered with rings.

use std::sync::Arc;

use super::Buffer;

/// How many places a table has. A region takes one per [`MOST_PIECE`] bytes that it begins.
pub const PLACES: u16 = 1024;

/// The most bytes in one place: io_uring takes no longer buffer than 1 GiB.
pub const MOST_PIECE: usize = 1 << 30;

/// A contiguous range of memory that stays valid as long as this lives. It gives no access to the bytes: the
/// [`Buffer`]s on the range do. Its pages must stay where they are while it is registered: whoever unmaps or discards
/// them unregisters it first.
#[derive(Debug)]
pub struct Region {
    /// A handle on no bytes, right behind the range: it keeps the storage.
    end: Buffer,
    len: usize,
}

impl Region {
    /// The range of a buffer, which may be split and sent as before. `None` for an empty one.
    pub fn of(buffer: &mut Buffer) -> Option<Self> {
        let len = buffer.len();
        let end = buffer.split_off(len);
        (len > 0).then_some(Self { end, len })
    }

    /// The address of the byte at an offset, which must not be larger than the length in bytes.
    fn at(&self, offset: usize) -> *const u8 {
        self.end.as_ptr().wrapping_sub(self.len - offset)
    }
}

/// Why a table does not take a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegionError {
    /// All places are taken, or fewer are left than the region needs.
    #[error("too much memory is registered already")]
    Full,
    /// Some of its bytes are in a region of the table.
    #[error("the memory is registered already")]
    Overlaps,
}

/// A part of a region, with its place in a table.
#[derive(Clone, Debug)]
pub struct Piece {
    region: Arc<Region>,
    /// From the region's first byte.
    offset: usize,
    len: usize,
    place: u16,
}

impl Piece {
    /// The address of the first byte.
    pub fn address(&self) -> *const u8 {
        self.region.at(self.offset)
    }

    /// The length in bytes, from 1 to [`MOST_PIECE`].
    #[expect(clippy::len_without_is_empty, reason = "no piece is empty")]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Where it is in the table; below [`PLACES`].
    pub const fn place(&self) -> u16 {
        self.place
    }

    fn start(&self) -> usize {
        self.address().addr()
    }
}

/// Regions, none of which overlap.
#[derive(Debug, Default)]
pub struct Regions {
    /// The pieces in the order of their addresses.
    pieces: Vec<Piece>,
    /// Places that were taken once.
    free: Vec<u16>,
    /// This place and those above were never taken.
    fresh: u16,
}

impl Regions {
    /// Whether there is none.
    #[inline]
    pub const fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Adds a region; gives its pieces.
    ///
    /// # Errors
    /// There is no room for it, or some of it is there; nothing is added then.
    pub fn insert(&mut self, region: &Arc<Region>) -> Result<Vec<Piece>, RegionError> {
        let start = region.at(0).addr();
        let behind = start.saturating_add(region.len);
        let at = self.pieces.partition_point(|piece| piece.start() < behind);
        let before = at.checked_sub(1).and_then(|index| self.pieces.get(index));
        if before.is_some_and(|piece| piece.start().saturating_add(piece.len) > start) {
            return Err(RegionError::Overlaps);
        }
        let room = self.free.len() + usize::from(PLACES - self.fresh);
        if region.len.div_ceil(MOST_PIECE) > room {
            return Err(RegionError::Full);
        }
        let mut pieces = Vec::new();
        for offset in (0..region.len).step_by(MOST_PIECE) {
            pieces.push(Piece {
                region: Arc::clone(region),
                offset,
                len: MOST_PIECE.min(region.len - offset),
                place: self.take_place(),
            });
        }
        self.pieces.splice(at..at, pieces.iter().cloned());
        Ok(pieces)
    }

    fn take_place(&mut self) -> u16 {
        self.free.pop().unwrap_or_else(|| {
            self.fresh += 1;
            self.fresh - 1
        })
    }

    /// Takes a region out; gives its pieces, none if it is not there. Their places are free only when each was given to
    /// [`Regions::release`].
    pub fn remove(&mut self, region: &Arc<Region>) -> Vec<Piece> {
        let of_it = |piece: &mut Piece| Arc::ptr_eq(&piece.region, region);
        self.pieces.extract_if(.., of_it).collect()
    }

    /// Gives the place of a removed piece to whoever comes next.
    pub fn release(&mut self, piece: Piece) {
        self.free.push(piece.place);
    }

    /// The place of the piece that holds all of `len` bytes from an address, if one does.
    #[inline]
    pub fn find(&self, address: *const u8, len: usize) -> Option<u16> {
        let address = address.addr();
        let behind = self.pieces.partition_point(|piece| piece.start() <= address);
        let piece = self.pieces.get(behind.checked_sub(1)?)?;
        let offset = address - piece.start();
        (offset < piece.len && len <= piece.len - offset).then_some(piece.place)
    }

    /// All regions that are registered, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Region>> {
        let first = self.pieces.iter().filter(|piece| piece.offset == 0);
        first.map(|piece| &piece.region)
    }
}
