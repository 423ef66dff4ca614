//! What an image has besides the disk: its bitmaps and snapshots, read by no line of the driver's.

use super::census::{COMPRESSED, Image, OFFSET};

/// A bitmap as an image has it.
#[derive(Debug, Clone)]
pub struct FoundBitmap {
    /// Its name.
    pub name: String,
    /// The bytes that a bit stands for.
    pub granularity: u64,
    /// The image says that nobody knows what is dirty.
    pub in_use: bool,
    /// It records writes.
    pub is_recording: bool,
    /// What is dirty, a bit each.
    pub bits: Vec<bool>,
}

/// A snapshot as an image has it.
#[derive(Debug, Clone)]
pub struct FoundSnapshot {
    /// Its name.
    pub name: String,
    /// What the disk was.
    pub contents: Vec<u8>,
}

/// Kinds of header extensions.
const BITMAPS: u64 = 0x2385_2875;
const KEYS: u64 = 0x0537_be77;

impl Image<'_> {
    fn text(&self, offset: u64, len: u64) -> String {
        String::from_utf8_lossy(self.part(offset, len)).into_owned()
    }

    /// Reads the snapshots, and counts what they refer to.
    pub(super) fn find_snapshots(&mut self, version: u64) {
        let (count, start) = (self.number(60, 4), self.number(64, 8));
        let mut at = start;
        for index in 0..count {
            at = at.next_multiple_of(8);
            let (l1, entries) = (self.number(at, 8), self.number(at + 8, 4));
            let (id, name) = (self.number(at + 12, 2), self.number(at + 14, 2));
            let extra = self.number(at + 36, 4);
            if extra < 16 {
                self.fault(format!("snapshot {index} has {extra} bytes of extra data"));
                return;
            }
            let size = self.number(at + 48, 8);
            let name = self.text(at + 40 + extra + id, name);
            at += 40 + extra + id + self.number(at + 14, 2);
            self.refer(l1, entries * 8, "a snapshot's L1 table");
            self.walk(l1, entries, version);
            let contents = self.contents(l1, size);
            self.found.snapshots.push(FoundSnapshot { name, contents });
        }
        if count > 0 {
            self.refer(start, at - start, "the snapshot table");
        }
    }

    /// What a disk reads as by an L1 table that knows of no compressed clusters.
    fn contents(&self, l1: u64, size: u64) -> Vec<u8> {
        let per_table = self.cluster / self.entry;
        let mut bytes = vec![0; size as usize];
        for (cluster, part) in (0_u64..).zip(bytes.chunks_mut(self.cluster as usize)) {
            let table = self.number(l1 + cluster / per_table * 8, 8) & OFFSET;
            if table == 0 {
                continue;
            }
            let place = table + cluster % per_table * self.entry;
            let entry = self.number(place, 8);
            let host = entry & OFFSET;
            if entry & (COMPRESSED | 1) != 0 || host == 0 {
                continue;
            }
            let subclusters = if self.entry == 16 {
                self.number(place + 8, 8)
            } else {
                u64::MAX
            };
            let len = (self.cluster / 32).min(part.len() as u64);
            for (at, part) in part.chunks_mut(len as usize).enumerate() {
                if subclusters >> at & 1 != 0 {
                    let stored = self.part(host + at as u64 * len, part.len() as u64);
                    part[..stored.len()].copy_from_slice(stored);
                }
            }
        }
        bytes
    }

    /// Where the header extension of a kind has its data.
    fn extension(&self, kind: u64, version: u64) -> Option<u64> {
        let mut at = if version < 3 { 72 } else { self.number(100, 4) };
        loop {
            match self.number(at, 4) {
                0 => return None,
                found if found == kind => return Some(at + 8),
                _ => at += 8 + self.number(at + 4, 4).next_multiple_of(8),
            }
        }
    }

    /// Counts what the header of keys takes.
    pub(super) fn refer_to_keys(&mut self, version: u64) {
        if let Some(place) = self.extension(KEYS, version) {
            let (offset, len) = (self.number(place, 8), self.number(place + 8, 8));
            self.refer(offset, len, "the header of keys");
            self.found.keys = Some(offset);
        }
    }

    /// Reads the bitmaps, and counts what they refer to.
    pub(super) fn find_bitmaps(&mut self) {
        // They count where the image says that they belong to what it is now.
        let is_current = self.number(88, 8) & 1 != 0;
        let Some(extension) = self.extension(BITMAPS, 3).filter(|_| is_current) else {
            return;
        };
        let (count, len) = (self.number(extension, 4), self.number(extension + 8, 8));
        let start = self.number(extension + 16, 8);
        self.refer(start, len, "the bitmap directory");
        let mut at = start;
        for _ in 0..count {
            let name = self.number(at + 18, 2);
            self.find_bitmap(at, name);
            at += (24 + self.number(at + 20, 4) + name).next_multiple_of(8);
        }
        if at != start + len {
            self.fault(format!(
                "the bitmap directory ends at {at:#x}, not at {:#x}",
                start + len
            ));
        }
    }

    fn find_bitmap(&mut self, at: u64, name_len: u64) {
        let (table, entries) = (self.number(at, 8), self.number(at + 8, 4));
        let (flags, granularity) = (self.number(at + 12, 4), 1 << self.number(at + 17, 1));
        let name = self.text(at + 24 + self.number(at + 20, 4), name_len);
        self.refer(table, entries * 8, "a bitmap's table");
        let mut bits = Vec::new();
        for index in 0..entries {
            let entry = self.number(table + index * 8, 8);
            let host = entry & OFFSET;
            if host == 0 {
                bits.resize(bits.len() + self.cluster as usize * 8, entry & 1 != 0);
                continue;
            }
            self.refer(host, self.cluster, "bits of a bitmap");
            for byte in 0..self.cluster {
                let byte = self.number(host + byte, 1);
                bits.extend((0..8).map(|bit| byte >> bit & 1 != 0));
            }
        }
        self.found.bitmaps.push(FoundBitmap {
            name,
            granularity,
            in_use: flags & 1 != 0,
            is_recording: flags & 2 != 0,
            bits,
        });
    }
}
