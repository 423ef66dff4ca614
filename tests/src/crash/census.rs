//! A second opinion on qcow2 images: a checker that shares no line with the driver's, slow and simple.

use std::collections::HashMap;

use super::found::{FoundBitmap, FoundSnapshot};
use super::link::Stored;

/// What is wrong with an image, and what it has besides the disk.
#[derive(Debug, Default)]
pub struct Census {
    /// What a user would lose data by.
    pub corruptions: Vec<String>,
    /// Clusters counted more often than they are used.
    pub leaks: u64,
    /// The image says that its refcounts are to be rebuilt.
    pub dirty: bool,
    /// Its bitmaps.
    pub bitmaps: Vec<FoundBitmap>,
    /// Its snapshots.
    pub snapshots: Vec<FoundSnapshot>,
    /// Where the header of its keys begins.
    pub keys: Option<u64>,
}

pub(super) struct Image<'a> {
    bytes: &'a [u8],
    pub(super) cluster: u64,
    /// Bytes of an L2 entry.
    pub(super) entry: u64,
    /// The data is in a file of its own, where nothing is counted.
    is_external: bool,
    references: HashMap<u64, u64>,
    /// No two tables share anything, whatever the refcounts say.
    unshared: bool,
    pub(super) found: Census,
}

/// A table's entry that says whether it is the only reference: where it leads, what it says, and what it is called.
type Claim = (u64, bool, String);

pub(super) const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COPIED: u64 = 1 << 63;
pub(super) const COMPRESSED: u64 = 1 << 62;

impl Image<'_> {
    pub(super) fn number(&self, offset: u64, width: usize) -> u64 {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let byte = |at: usize| self.bytes.get(start.saturating_add(at)).copied().unwrap_or(0);
        (0..width).fold(0, |value, at| value << 8 | u64::from(byte(at)))
    }

    pub(super) fn part(&self, offset: u64, len: u64) -> &[u8] {
        let start = usize::try_from(offset)
            .unwrap_or(usize::MAX)
            .min(self.bytes.len());
        let end = start.saturating_add(len as usize).min(self.bytes.len());
        &self.bytes[start..end]
    }

    pub(super) fn fault(&mut self, text: String) {
        self.found.corruptions.push(text);
    }

    pub(super) fn refer(&mut self, offset: u64, len: u64, what: &str) {
        if !offset.is_multiple_of(self.cluster) {
            self.fault(format!("{what} at {offset:#x} is not aligned"));
        }
        for cluster in offset / self.cluster..(offset + len).div_ceil(self.cluster) {
            *self.references.entry(cluster).or_default() += 1;
        }
    }

    /// Counts what the tables refer to; answers the entries that claim to be the only reference or not.
    pub(super) fn walk(&mut self, l1: u64, l1_size: u64, version: u64) -> Vec<Claim> {
        let mut claims = Vec::new();
        for index in 0..l1_size {
            let entry = self.number(l1 + index * 8, 8);
            let table = entry & OFFSET;
            if table == 0 {
                continue;
            }
            self.refer(table, self.cluster, "an L2 table");
            claims.push((table, entry & COPIED != 0, format!("L1 entry {index}")));
            let entries = self.cluster / self.entry;
            for at in 0..entries {
                let guest = (index * entries + at) * self.cluster;
                claims.extend(self.look_at_entry(table + at * self.entry, guest, version));
            }
        }
        claims
    }

    /// Counts what an L2 entry refers to, and answers what it claims.
    fn look_at_entry(&mut self, place: u64, guest: u64, version: u64) -> Option<Claim> {
        let entry = self.number(place, 8);
        let name = format!("the L2 entry of {guest:#x}");
        let host = entry & OFFSET;
        if self.entry == 16 {
            self.look_at_subclusters(entry, self.number(place + 8, 8), &name);
        }
        if entry & COMPRESSED != 0 {
            let bits = 62 - (self.cluster.trailing_zeros() - 8);
            let offset = entry & ((1 << bits) - 1);
            let sectors = (entry >> bits & ((1 << (62 - bits)) - 1)) + 1;
            let end = (offset / 512 + sectors) * 512;
            let first = offset / self.cluster * self.cluster;
            self.refer(first, end - first, "compressed data");
            return None;
        }
        if entry & 1 != 0 && version < 3 {
            self.fault(format!("{name} is a zero cluster of an image of version 2"));
        }
        if self.is_external {
            // A cluster may be the first of its file: the flag says that there is one.
            if host != 0 && entry & COPIED == 0 || entry & COPIED != 0 && host != guest {
                self.fault(format!("{name} leads to {host:#x} of the data file: {entry:#x}"));
            }
            return None;
        }
        if host == 0 {
            return None;
        }
        self.refer(host, self.cluster, &name);
        Some((host, entry & COPIED != 0, name))
    }

    /// Looks at what an entry says of its subclusters.
    fn look_at_subclusters(&mut self, entry: u64, subclusters: u64, name: &str) {
        let (stored, zero) = (subclusters & 0xffff_ffff, subclusters >> 32);
        let has_cluster = entry & OFFSET != 0 || self.is_external && entry & COPIED != 0;
        let wrong = if entry & COMPRESSED != 0 {
            subclusters != 0
        } else {
            entry & 1 != 0 || stored & zero != 0 || stored != 0 && !has_cluster
        };
        if wrong {
            self.fault(format!("{name} has subclusters {subclusters:#018x}: {entry:#x}"));
        }
    }

    /// The refcounts, but for those that are 0.
    fn counts(&mut self, reftable: u64, clusters: u64, order: u64) -> HashMap<u64, u64> {
        let per_block = (self.cluster * 8) >> order;
        let mut counts = HashMap::new();
        for block in 0..clusters * self.cluster / 8 {
            let offset = self.number(reftable + block * 8, 8) & !511;
            if offset == 0 {
                continue;
            }
            self.refer(offset, self.cluster, "a refcount block");
            for at in 0..per_block {
                let count = if order < 3 {
                    let per_byte = 8 >> order;
                    let byte = self.number(offset + at / per_byte, 1);
                    byte >> ((at % per_byte) << order) & ((1 << (1 << order)) - 1)
                } else {
                    self.number(offset + (at << (order - 3)), 1 << (order - 3))
                };
                if count != 0 {
                    counts.insert(block * per_block + at, count);
                }
            }
        }
        counts
    }

    fn compare(&mut self, counts: &HashMap<u64, u64>, claims: Vec<Claim>) {
        let mut references: Vec<(u64, u64)> = std::mem::take(&mut self.references).into_iter().collect();
        references.sort_unstable();
        let references_of: HashMap<u64, u64> = references.iter().copied().collect();
        let count_of = |cluster: &u64| counts.get(cluster).copied().unwrap_or(0);
        for (cluster, references) in references {
            let count = count_of(&cluster);
            if count < references && !self.found.dirty {
                self.fault(format!(
                    "cluster {cluster}: refcount {count}, {references} references"
                ));
            }
            self.found.leaks += u64::from(count > references);
        }
        let unused = counts
            .keys()
            .filter(|cluster| !references_of.contains_key(*cluster));
        self.found.leaks += unused.count() as u64;
        for (at, copied, name) in claims {
            let cluster = at / self.cluster;
            let used = references_of.get(&cluster).copied().unwrap_or(0);
            let wrong = if self.unshared {
                // Compressed clusters alone share, and make no such claim.
                !copied || (used > 1 && !self.found.dirty)
            } else if self.found.dirty {
                copied && used > 1
            } else {
                copied != (count_of(&cluster) == 1)
            };
            if wrong {
                self.fault(format!("{name} has COPIED={copied} and is used {used} times"));
            }
        }
    }
}

/// Incompatible features: the image is dirty, has its data elsewhere, and has subclusters.
const DIRTY: u64 = 1;
const DATA_FILE: u64 = 1 << 2;
const EXTENDED_L2: u64 = 1 << 4;

/// Looks at an image; an error says why it is none.
pub fn census(stored: &Stored) -> Result<Census, String> {
    let bytes = stored.bytes.as_slice();
    let mut image = Image {
        bytes,
        cluster: 0,
        entry: 8,
        is_external: false,
        references: HashMap::new(),
        unshared: false,
        found: Census::default(),
    };
    if bytes.get(..4) != Some(b"QFI\xfb") {
        return Err("no magic".into());
    }
    let (version, bits) = (image.number(4, 4), image.number(20, 4));
    if !(2..=3).contains(&version) || !(9..=21).contains(&bits) {
        return Err(format!("version {version}, cluster bits {bits}"));
    }
    image.cluster = 1 << bits;
    let (incompatible, order) = if version == 3 {
        (image.number(72, 8), image.number(96, 4))
    } else {
        (0, 4)
    };
    image.is_external = incompatible & DATA_FILE != 0;
    let known = DIRTY | DATA_FILE | EXTENDED_L2;
    if incompatible & !known != 0 || order > 6 || image.is_external != stored.data.is_some() {
        return Err(format!("features {incompatible:#x}, refcount order {order}"));
    }
    if incompatible & EXTENDED_L2 != 0 {
        image.entry = 16;
    }
    image.found.dirty = incompatible & DIRTY != 0;
    image.refer(0, 1, "the header");
    image.refer_to_keys(version);
    let (l1, l1_size) = (image.number(40, 8), image.number(36, 4));
    let size = image.number(24, 8);
    if l1_size
        .saturating_mul(image.cluster / image.entry)
        .saturating_mul(image.cluster)
        < size
    {
        image.fault(format!("an L1 table of {l1_size} entries for {size} bytes"));
    }
    if l1_size > 0 {
        image.refer(l1, l1_size * 8, "the L1 table");
    }
    let (reftable, clusters) = (image.number(48, 8), image.number(56, 4));
    image.refer(reftable, clusters * image.cluster, "the refcount table");
    let claims = image.walk(l1, l1_size, version);
    image.find_snapshots(version);
    if version == 3 {
        image.find_bitmaps();
    }
    // What is done to snapshots is done to an image that is marked dirty for it; lazy refcounts are its users' everyday.
    let lazy = version == 3 && image.number(80, 8) & 1 != 0;
    image.unshared = image.found.snapshots.is_empty() && (!image.found.dirty || lazy);
    let counts = image.counts(reftable, clusters, order);
    image.compare(&counts, claims);
    Ok(image.found)
}
