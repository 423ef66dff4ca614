//! A write-back cache of fixed-size metadata tables, keyed by where they are in the file.
//!
//! A table is clean, dirty (changed since its last snapshot for writing), in writing, or both of the latter. Only a
//! table that is neither dirty nor in writing may be pushed out: until then the file has older contents.

use std::cell::Cell;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::ops::Range;

use crate::format::qcow2::layout::space::HostOffset;
use millpond_ring::buffer::Buffer;

/// What a cache holds.
pub(crate) trait Table {
    /// The bytes on disk of entries `range`.
    fn to_disk(&self, range: Range<usize>) -> Buffer;

    /// How many entries there are.
    fn entries(&self) -> usize;

    /// Entries that are written together: a change of one makes all of its group be written.
    const GROUP: usize;
    /// Bytes of an entry.
    const ENTRY: usize;
}

impl Table for Vec<u64> {
    const GROUP: usize = 512;
    const ENTRY: usize = 8;

    fn to_disk(&self, range: Range<usize>) -> Buffer {
        let entries = self.get(range).unwrap_or_default();
        let mut bytes = Buffer::alloc(entries.len() * Self::ENTRY);
        crate::format::qcow2::layout::bytes::store_be(entries, &mut bytes);
        bytes
    }

    fn entries(&self) -> usize {
        self.len()
    }
}

impl Table for Vec<u8> {
    const GROUP: usize = 4096;
    const ENTRY: usize = 1;

    fn to_disk(&self, range: Range<usize>) -> Buffer {
        Buffer::from_slice(self.get(range).unwrap_or_default())
    }

    fn entries(&self) -> usize {
        self.len()
    }
}

struct Slot<T> {
    key: HostOffset,
    table: T,
    /// Used since the hand came by.
    used: Cell<bool>,
    /// Used since the last cleaning.
    recent: Cell<bool>,
    dirty: Option<Range<usize>>,
    writing: Option<Range<usize>>,
}

/// Multiplies: keys are offsets, and whoever crafts an image gains nothing by making a few of them collide, since the
/// cache is small.
#[derive(Default)]
pub(crate) struct OffsetHasher(u64);

impl Hasher for OffsetHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u64(u64::from(byte)));
    }

    fn write_u64(&mut self, value: u64) {
        let mixed = (self.0 ^ (value >> 9)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ (mixed >> 32);
    }
}

/// Tables in memory; those that were not used lately make room.
pub(crate) struct Cache<T> {
    slots: Vec<Slot<T>>,
    index: HashMap<HostOffset, usize, BuildHasherDefault<OffsetHasher>>,
    capacity: usize,
    hand: usize,
    dirty: usize,
}

/// A part of a table to be written.
#[derive(Debug)]
pub(crate) struct Piece {
    /// Where it goes in the file.
    pub offset: HostOffset,
    /// What. Aligned as direct I/O wants it where the piece is no smaller than that.
    pub bytes: Buffer,
}

impl<T: Table> Cache<T> {
    /// An empty cache for `capacity` tables.
    pub fn new(capacity: usize) -> Self {
        Self {
            slots: Vec::new(),
            index: HashMap::default(),
            capacity,
            hand: 0,
            dirty: 0,
        }
    }

    /// Changes how many tables are kept. Those too many go as others come.
    pub fn set_capacity(&mut self, capacity: usize) {
        self.capacity = capacity;
    }

    /// Tables that are dirty.
    pub fn dirty(&self) -> usize {
        self.dirty
    }

    /// Tables it may hold.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// How many more tables there is room for without pushing any out.
    pub fn room(&self) -> usize {
        self.capacity.saturating_sub(self.slots.len())
    }

    /// Whether the table at `key` is there.
    pub fn has(&self, key: HostOffset) -> bool {
        self.index.contains_key(&key)
    }

    fn slot(&self, key: HostOffset) -> Option<&Slot<T>> {
        self.index.get(&key).and_then(|&at| self.slots.get(at))
    }

    /// The table at `key`.
    pub fn get(&self, key: HostOffset) -> Option<&T> {
        let slot = self.slot(key)?;
        slot.used.set(true);
        slot.recent.set(true);
        Some(&slot.table)
    }

    /// The table at `key`, whose entries `range` the caller is about to change.
    pub fn change(&mut self, key: HostOffset, range: Range<usize>) -> Option<&mut T> {
        let slot = self.index.get(&key).and_then(|&at| self.slots.get_mut(at))?;
        slot.used.set(true);
        slot.recent.set(true);
        if slot.dirty.is_none() {
            self.dirty += 1;
        }
        slot.dirty = Some(union(slot.dirty.take(), range));
        Some(&mut slot.table)
    }

    /// Makes room for another table by pushing clean ones out. False if there is none, because all that might go are
    /// dirty or in writing.
    pub fn make_room(&mut self) -> bool {
        while self.slots.len() >= self.capacity {
            if !self.push_out() {
                return false;
            }
        }
        true
    }

    fn push_out(&mut self) -> bool {
        // Twice round: the first takes the used marks away.
        for _ in 0..2 * self.slots.len() {
            self.hand = if self.hand >= self.slots.len() {
                0
            } else {
                self.hand
            };
            let Some(slot) = self.slots.get(self.hand) else {
                return false;
            };
            if slot.dirty.is_none() && slot.writing.is_none() && !slot.used.replace(false) {
                let key = slot.key;
                self.remove(key);
                return true;
            }
            self.hand += 1;
        }
        false
    }

    /// Adds a table as it is in the file, or nothing if one is there already.
    pub fn insert(&mut self, key: HostOffset, table: T) {
        if self.index.contains_key(&key) {
            return;
        }
        self.index.insert(key, self.slots.len());
        self.slots.push(Slot {
            key,
            table,
            used: Cell::new(true),
            recent: Cell::new(true),
            dirty: None,
            writing: None,
        });
    }

    /// Drops the table at `key`, dirty or not.
    pub fn remove(&mut self, key: HostOffset) {
        let Some(at) = self.index.remove(&key) else { return };
        let slot = self.slots.swap_remove(at);
        if slot.dirty.is_some() {
            self.dirty -= 1;
        }
        if let Some(moved) = self.slots.get(at) {
            self.index.insert(moved.key, at);
        }
    }

    /// Takes a snapshot of all that is dirty, in the file's order, and counts it as in writing.
    pub fn snapshot(&mut self) -> Vec<Piece> {
        // One snapshot is written at a time: what an earlier one still has in writing was given up.
        self.written(false);
        let mut pieces = Vec::with_capacity(self.dirty);
        if self.dirty == 0 {
            return pieces;
        }
        for slot in &mut self.slots {
            let Some(dirty) = slot.dirty.take() else { continue };
            let start = dirty.start / T::GROUP * T::GROUP;
            let end = dirty.end.next_multiple_of(T::GROUP).min(slot.table.entries());
            let offset = slot.key + (start * T::ENTRY) as u64;
            pieces.push(Piece {
                offset,
                bytes: slot.table.to_disk(start..end),
            });
            slot.writing = Some(union(slot.writing.take(), dirty));
        }
        self.dirty = 0;
        pieces.sort_unstable_by_key(|piece| piece.offset);
        pieces
    }

    /// The last snapshot was written, or was not: then it is dirty again.
    pub fn written(&mut self, success: bool) {
        for slot in &mut self.slots {
            let Some(range) = slot.writing.take() else {
                continue;
            };
            if !success {
                if slot.dirty.is_none() {
                    self.dirty += 1;
                }
                slot.dirty = Some(union(slot.dirty.take(), range));
            }
        }
    }

    /// Drops what was not used since the last call.
    pub fn clean(&mut self) {
        let idle =
            |slot: &Slot<T>| !slot.recent.replace(false) && slot.dirty.is_none() && slot.writing.is_none();
        let keys: Vec<HostOffset> = self
            .slots
            .iter()
            .filter(|slot| idle(slot))
            .map(|slot| slot.key)
            .collect();
        keys.into_iter().for_each(|key| self.remove(key));
        self.slots.shrink_to_fit();
    }
}

fn union(range: Option<Range<usize>>, more: Range<usize>) -> Range<usize> {
    match range {
        Some(range) => range.start.min(more.start)..range.end.max(more.end),
        None => more,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(offset: u64) -> HostOffset {
        HostOffset::new(offset)
    }

    #[test]
    fn only_clean_tables_are_pushed_out() {
        let mut cache = Cache::new(2);
        cache.insert(at(0x1000), vec![0_u64; 512]);
        cache.insert(at(0x2000), vec![0_u64; 512]);
        cache.change(at(0x1000), 3..4).unwrap()[3] = 7;
        assert!(cache.make_room());
        assert!(cache.get(at(0x1000)).is_some() && cache.get(at(0x2000)).is_none());
        cache.insert(at(0x3000), vec![0; 512]);
        cache.change(at(0x3000), 0..1).unwrap();
        assert!(!cache.make_room());
        let pieces = cache.snapshot();
        assert_eq!(
            pieces.iter().map(|piece| piece.offset).collect::<Vec<_>>(),
            [at(0x1000), at(0x3000)]
        );
        assert_eq!(pieces[0].bytes[24..32], 7_u64.to_be_bytes());
        assert!(!cache.make_room(), "a table in writing must stay");
        cache.change(at(0x1000), 9..10).unwrap();
        cache.written(true);
        assert!(cache.make_room());
        assert!(cache.get(at(0x1000)).is_some(), "changed while it was written");
        assert_eq!(cache.dirty(), 1);
    }

    #[test]
    fn a_failed_write_leaves_tables_dirty() {
        let mut cache = Cache::new(2);
        cache.insert(at(0x10000), vec![0_u8; 65536]);
        cache.change(at(0x10000), 5000..5002).unwrap();
        let pieces = cache.snapshot();
        assert_eq!((pieces[0].offset, pieces[0].bytes.len()), (at(0x11000), 4096));
        cache.written(false);
        assert_eq!((cache.dirty(), cache.snapshot()[0].offset), (1, at(0x11000)));
    }
}
