//! A table of 32-bit entries in an image, of which the pieces are in memory that were asked for last.
//!
//! A disk of many TiB has a table of many MiB, and a hostile image says that it has one of GiB: so a piece is read when an
//! entry of it is wanted, and only so many are kept.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;

use millpond_messages::{IoError, IoResult, RequestFlags};

use crate::api::Child;
use crate::format::wait::KeyedWait;

/// Entries of a piece: as many as fill a page.
const PIECE_ENTRIES: u64 = 1024;
/// Pieces that are kept, 4 MiB of them.
const MAX_PIECES: usize = 1024;
/// Changed pieces beyond which writers wait for a write-back. Half of those that are kept, so that there is always one
/// that may make room.
const MAX_CHANGED: usize = MAX_PIECES / 2;
const ENTRY_BYTES: u64 = 4;

/// A piece of the table.
pub(super) struct Piece {
    entries: Vec<u32>,
    /// It differs from the file.
    changed: bool,
    /// What it was is on its way to the file.
    under_way: bool,
    /// When an entry was last asked for.
    used: u64,
}

/// A changed piece as it is to be written.
pub(super) struct Changed {
    number: u64,
    bytes: Vec<u8>,
}

/// A table of places, a page of which is read when it is needed.
pub(super) struct PagedTable {
    start: u64,
    entries: u64,
    pieces: RefCell<HashMap<u64, Piece>>,
    loads: KeyedWait<u64>,
    clock: Cell<u64>,
}

impl PagedTable {
    /// A table of so many entries that begins at `start` in its file, with pieces that are in memory already.
    pub fn new(start: u64, entries: u64, pieces: HashMap<u64, Piece>) -> Self {
        Self {
            start,
            entries,
            pieces: RefCell::new(pieces),
            loads: KeyedWait::default(),
            clock: Cell::new(0),
        }
    }

    /// How many entries there are.
    pub const fn len(&self) -> u64 {
        self.entries
    }

    /// An entry, if it is in memory.
    pub fn get(&self, index: u64) -> Option<u32> {
        let (mut pieces, used) = (self.pieces.borrow_mut(), self.clock.get() + 1);
        let piece = pieces.get_mut(&(index / PIECE_ENTRIES))?;
        self.clock.set(used);
        piece.used = used;
        piece.entries.get((index % PIECE_ENTRIES) as usize).copied()
    }

    /// Changes an entry, if it is in memory; whether it is.
    pub fn set(&self, index: u64, value: u32) -> bool {
        let mut pieces = self.pieces.borrow_mut();
        let piece = pieces.get_mut(&(index / PIECE_ENTRIES));
        let Some(piece) = piece else { return false };
        let Some(entry) = piece.entries.get_mut((index % PIECE_ENTRIES) as usize) else {
            return false;
        };
        *entry = value;
        piece.changed = true;
        true
    }

    /// Reads the piece with an entry. Others may have put it out of memory again when this is over.
    ///
    /// # Errors
    /// There is no such entry, or the read's.
    pub async fn load(&self, file: &Child, index: u64) -> IoResult<()> {
        let number = index / PIECE_ENTRIES;
        let first = number * PIECE_ENTRIES;
        let count = self.entries.saturating_sub(first).min(PIECE_ENTRIES);
        if index >= self.entries {
            return Err(IoError::OutOfRange);
        }
        let Some(_held) = self.loads.try_hold(number) else {
            self.loads.wait(number).await;
            return Ok(());
        };
        if self.pieces.borrow().contains_key(&number) {
            return Ok(());
        }
        let read = file.read_vec(self.place(number)?, (count * ENTRY_BYTES) as usize);
        let bytes = read.await?.to_vec();
        let chunks = bytes.as_chunks::<4>().0.iter();
        let piece = Piece {
            entries: chunks.map(|chunk| u32::from_le_bytes(*chunk)).collect(),
            changed: false,
            under_way: false,
            used: self.clock.get(),
        };
        self.make_room();
        self.pieces.borrow_mut().insert(number, piece);
        Ok(())
    }

    /// Where a piece is in the file.
    fn place(&self, number: u64) -> IoResult<u64> {
        let place = number.checked_mul(PIECE_ENTRIES * ENTRY_BYTES);
        let place = place.and_then(|offset| offset.checked_add(self.start));
        place.ok_or(IoError::OutOfRange)
    }

    /// Puts the piece out of memory that was not asked for the longest, where there are too many.
    fn make_room(&self) {
        let mut pieces = self.pieces.borrow_mut();
        if pieces.len() < MAX_PIECES {
            return;
        }
        let is_idle = |piece: &Piece| !piece.changed && !piece.under_way;
        let idle = pieces.iter().filter(|(_, piece)| is_idle(piece));
        let oldest = idle.min_by_key(|(_, piece)| piece.used);
        if let Some(number) = oldest.map(|(number, _)| *number) {
            pieces.remove(&number);
        }
    }

    /// Something has changed that the file lacks.
    pub fn is_changed(&self) -> bool {
        let pieces = self.pieces.borrow();
        pieces.values().any(|piece| piece.changed || piece.under_way)
    }

    /// So much has changed that it is to be written before more does.
    pub fn is_strained(&self) -> bool {
        let pieces = self.pieces.borrow();
        pieces.len() >= MAX_CHANGED && pieces.values().filter(|piece| piece.changed).count() >= MAX_CHANGED
    }

    /// What has changed, which counts as unchanged from now on. [`PagedTable::written`] says what came of it: where nothing
    /// did, as the write was dropped, it is taken again. So only one may have taken something at a time.
    pub fn take_changed(&self) -> Vec<Changed> {
        let mut pieces = self.pieces.borrow_mut();
        let changed = pieces
            .iter_mut()
            .filter(|(_, piece)| piece.changed || piece.under_way);
        let taken = changed.map(|(number, piece)| {
            piece.changed = false;
            piece.under_way = true;
            let bytes = piece.entries.iter().flat_map(|entry| entry.to_le_bytes());
            Changed {
                number: *number,
                bytes: bytes.collect(),
            }
        });
        taken.collect()
    }

    /// Writes what was taken.
    ///
    /// # Errors
    /// A write's.
    pub async fn write(&self, file: &Child, taken: &[Changed]) -> IoResult<()> {
        for changed in taken {
            let place = self.place(changed.number)?;
            file.write_slice(place, &changed.bytes, RequestFlags::empty())
                .await?;
        }
        Ok(())
    }

    /// What was taken is in the file, or else still has to be written.
    pub fn written(&self, taken: &[Changed], is_written: bool) {
        let mut pieces = self.pieces.borrow_mut();
        for changed in taken {
            if let Some(piece) = pieces.get_mut(&changed.number) {
                piece.under_way = false;
                piece.changed |= !is_written;
            }
        }
    }

    /// The pieces in memory, for another table over the same file.
    pub fn take_pieces(&self) -> HashMap<u64, Piece> {
        self.pieces.take()
    }
}
