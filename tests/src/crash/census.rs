//! A second opinion on qcow2 images: a checker that shares no line with the driver's, slow and simple.

use std::collections::HashMap;

/// What is wrong with an image.
#[derive(Debug, Default)]
pub struct Census {
    /// What a user would lose data by.
    pub corruptions: Vec<String>,
    /// Clusters counted more often than they are used.
    pub leaks: u64,
    /// The image says that its refcounts are to be rebuilt.
    pub dirty: bool,
}

struct Image<'a> {
    bytes: &'a [u8],
    cluster: u64,
    references: HashMap<u64, u64>,
    found: Census,
}

const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;

impl Image<'_> {
    fn number(&self, offset: u64, width: usize) -> u64 {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let byte = |at: usize| self.bytes.get(start.saturating_add(at)).copied().unwrap_or(0);
        (0..width).fold(0, |value, at| value << 8 | u64::from(byte(at)))
    }

    fn fault(&mut self, text: String) {
        self.found.corruptions.push(text);
    }

    fn refer(&mut self, offset: u64, len: u64, what: &str) {
        if !offset.is_multiple_of(self.cluster) {
            self.fault(format!("{what} at {offset:#x} is not aligned"));
        }
        for cluster in offset / self.cluster..(offset + len).div_ceil(self.cluster) {
            *self.references.entry(cluster).or_default() += 1;
        }
    }

    /// Counts what the tables refer to; answers the entries that claim to be the only reference or not.
    fn walk(&mut self, l1: u64, l1_size: u64, version: u64) -> Vec<(u64, bool, String)> {
        let mut claims = Vec::new();
        for index in 0..l1_size {
            let entry = self.number(l1 + index * 8, 8);
            let table = entry & OFFSET;
            if table == 0 {
                continue;
            }
            self.refer(table, self.cluster, "an L2 table");
            claims.push((table, entry & COPIED != 0, format!("L1 entry {index}")));
            for at in 0..self.cluster / 8 {
                let entry = self.number(table + at * 8, 8);
                let name = format!("L2 entry {index}/{at}");
                if entry & COMPRESSED != 0 {
                    let bits = 62 - (self.cluster.trailing_zeros() - 8);
                    let offset = entry & ((1 << bits) - 1);
                    let sectors = (entry >> bits & ((1 << (62 - bits)) - 1)) + 1;
                    let end = (offset / 512 + sectors) * 512;
                    let first = offset / self.cluster * self.cluster;
                    self.refer(first, end - first, "compressed data");
                    continue;
                }
                if entry & 1 != 0 && version < 3 {
                    self.fault(format!("{name} is a zero cluster of an image of version 2"));
                }
                let host = entry & OFFSET;
                if host != 0 {
                    self.refer(host, self.cluster, &name);
                    claims.push((host, entry & COPIED != 0, name));
                }
            }
        }
        claims
    }

    fn compare(&mut self, reftable: u64, clusters: u64, order: u64, claims: Vec<(u64, bool, String)>) {
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
        let mut references: Vec<(u64, u64)> = self.references.drain().collect();
        references.sort_unstable();
        for (cluster, references) in references {
            let count = counts.remove(&cluster).unwrap_or(0);
            if count < references && !self.found.dirty {
                self.fault(format!(
                    "cluster {cluster}: refcount {count}, {references} references"
                ));
            }
            self.found.leaks += u64::from(count > references);
            counts.insert(cluster, 0);
            if references > 1 && !self.found.dirty {
                // No workload makes internal snapshots; compressed clusters alone share.
                let shared = claims.iter().any(|(at, ..)| at / self.cluster == cluster);
                if shared {
                    self.fault(format!("cluster {cluster} is used {references} times"));
                }
            }
        }
        self.found.leaks += counts.values().filter(|count| **count > 0).count() as u64;
        for (_, copied, name) in claims.into_iter().filter(|(_, copied, _)| !copied) {
            self.fault(format!("{name} has COPIED={copied} though nothing is shared"));
        }
    }
}

/// Looks at an image; an error says why it is none.
pub fn census(bytes: &[u8]) -> Result<Census, String> {
    let mut image = Image {
        bytes,
        cluster: 0,
        references: HashMap::new(),
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
    if incompatible & !1 != 0 || order > 6 {
        return Err(format!("features {incompatible:#x}, refcount order {order}"));
    }
    image.found.dirty = incompatible & 1 != 0;
    image.refer(0, 1, "the header");
    let (l1, l1_size) = (image.number(40, 8), image.number(36, 4));
    let size = image.number(24, 8);
    if l1_size
        .saturating_mul(image.cluster / 8)
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
    image.compare(reftable, clusters, order, claims);
    Ok(image.found)
}
