//! Refcounts: reading and setting them, finding free clusters, and room for more of them.
//!
//! All of it happens in memory; the write-back brings it to the file in an order that never leaves a cluster in use
//! without a count.

use std::ops::Range;

use millpond_messages::IoError;
use millpond_messages::error::errno::EFBIG;

use crate::format::qcow2::header::MAX_REFTABLE_BYTES;
use crate::format::qcow2::layout::entry::refblock;
use crate::format::qcow2::layout::space::{HostCluster, HostOffset};
use crate::format::qcow2::state::{Blocked, Need, State, Step};

/// The refcount at `index` of a block of counts `1 << order` bits wide. Narrow ones start at a byte's low end.
pub(crate) fn get(block: &[u8], order: u32, index: usize) -> u64 {
    if order < 3 {
        let byte = block.get(index >> (3 - order)).copied().unwrap_or(0);
        return u64::from(byte >> shift(order, index)) & mask(order);
    }
    let bytes = 1 << (order - 3);
    let field = block.get(index * bytes..(index + 1) * bytes).unwrap_or_default();
    field.iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// Sets it. The value fits.
pub(crate) fn set(block: &mut [u8], order: u32, index: usize, value: u64) {
    if order < 3 {
        if let Some(byte) = block.get_mut(index >> (3 - order)) {
            let shift = shift(order, index);
            *byte = *byte & !((mask(order) as u8) << shift) | (value as u8) << shift;
        }
        return;
    }
    let bytes = 1 << (order - 3);
    if let Some(field) = block.get_mut(index * bytes..(index + 1) * bytes) {
        field.copy_from_slice(&value.to_be_bytes()[8 - bytes..]);
    }
}

const fn shift(order: u32, index: usize) -> u32 {
    ((index & ((1 << (3 - order)) - 1)) << order) as u32
}

const fn mask(order: u32) -> u64 {
    (1 << (1 << order)) - 1
}

/// The bytes that hold the counts of `entries`.
pub(crate) const fn byte_range(order: u32, entries: Range<usize>) -> Range<usize> {
    (entries.start << order) / 8..(entries.end << order).div_ceil(8)
}

/// The first count of `range` that is zero, or is not.
fn find(block: &[u8], order: u32, range: Range<usize>, zero: bool) -> Option<usize> {
    if order == 4 {
        let counts = block.as_chunks::<2>().0.get(range.clone())?;
        return counts
            .iter()
            .position(|count| (*count == [0; 2]) == zero)
            .map(|at| range.start + at);
    }
    range
        .into_iter()
        .find(|&index| (get(block, order, index) == 0) == zero)
}

/// How many of the first `entries` counts are not zero.
fn used(block: &[u8], order: u32, entries: usize) -> u64 {
    if order == 4 {
        let counts = block.as_chunks::<2>().0.iter().take(entries);
        return counts.map(|count| u64::from(*count != [0; 2])).sum();
    }
    (0..entries)
        .map(|index| u64::from(get(block, order, index) != 0))
        .sum()
}

/// Refcounts as they are in the cache, with the block that was looked into last at hand.
pub struct Refcounts<'a> {
    state: &'a State,
    /// The number of a block and what it has, if it is there.
    last: Option<(u64, Option<&'a [u8]>)>,
}

impl Refcounts<'_> {
    /// The refcount of a cluster.
    pub fn of(&mut self, cluster: HostCluster) -> Step<u64> {
        let (block, index) = self.state.geometry.refblock_of(cluster);
        let bytes = match self.last {
            Some((last, bytes)) if last == block => bytes,
            _ => {
                let offset = self.state.refblock_offset(block);
                let bytes = offset.map(|offset| self.state.refblock(block, offset));
                let bytes = bytes.transpose()?;
                self.last = Some((block, bytes));
                bytes
            }
        };
        Ok(bytes.map_or(0, |bytes| get(bytes, self.state.geometry.refcount_order, index)))
    }
}

impl State {
    /// Where the refcount block of this number is, if there is one.
    pub fn refblock_offset(&self, block: u64) -> Option<HostOffset> {
        refblock(self.reftable.get(block as usize).copied().unwrap_or(0))
    }

    fn refblock(&self, block: u64, offset: HostOffset) -> Step<&[u8]> {
        self.refblocks
            .get(offset)
            .map(Vec::as_slice)
            .ok_or(Blocked::Need(Need::Refblock(block)))
    }

    /// How often a cluster of the file is referenced.
    pub fn refcount(&self, cluster: HostCluster) -> Step<u64> {
        self.refcounts().of(cluster)
    }

    /// The refcounts of many clusters, one after the other.
    pub const fn refcounts(&self) -> Refcounts<'_> {
        Refcounts {
            state: self,
            last: None,
        }
    }

    /// How many clusters of a refcount block are in use.
    pub fn used_in_block(&self, block: u64) -> Step<u64> {
        let Some(offset) = self.refblock_offset(block) else {
            return Ok(0);
        };
        let entries = self.geometry.refblock_entries() as usize;
        Ok(used(
            self.refblock(block, offset)?,
            self.geometry.refcount_order,
            entries,
        ))
    }

    /// Sets the refcounts of `count` clusters of one refcount block, which is in the cache.
    pub fn set_refcounts(&mut self, cluster: HostCluster, count: u64, value: u64) -> Step<()> {
        let (block, index) = self.geometry.refblock_of(cluster);
        let Some(offset) = self.refblock_offset(block) else {
            return Err(Blocked::Fail(IoError::Corrupt));
        };
        let order = self.geometry.refcount_order;
        let entries = index..index + count as usize;
        let Some(bytes) = self.refblocks.change(offset, byte_range(order, entries.clone())) else {
            return Err(Blocked::Need(Need::Refblock(block)));
        };
        entries.for_each(|entry| set(bytes, order, entry, value));
        if value == 0 {
            self.close_compressed(cluster, count);
            self.free_hint = self.free_hint.min(cluster);
        }
        Ok(())
    }

    /// Allocates at most `most` clusters in a row, at least one: the first free ones there are.
    pub fn allocate(&mut self, most: u64) -> Step<(HostCluster, u64)> {
        let order = self.geometry.refcount_order;
        let mut cluster = self.free_hint;
        loop {
            self.check_cluster_number(cluster)?;
            let (block, index) = self.geometry.refblock_of(cluster);
            let Some(offset) = self.refblock_offset(block) else {
                self.add_refblock(block, cluster)?;
                continue;
            };
            let bytes = self.refblock(block, offset)?;
            let entries = self.geometry.refblock_entries();
            let Some(first) = find(bytes, order, index..entries as usize, true) else {
                cluster = self.geometry.refblock_start(block + 1);
                // Kept, so that a search through more blocks than the cache holds gets on.
                self.free_hint = cluster;
                continue;
            };
            let end = (first as u64).saturating_add(most).min(entries) as usize;
            let end = find(bytes, order, first..end, false).unwrap_or(end);
            let found = self.geometry.refblock_start(block) + first as u64;
            let count = (end - first) as u64;
            self.check_free_of_metadata(found, count)?;
            self.set_refcounts(found, count, 1)?;
            self.free_hint = found + count;
            return Ok((found, count));
        }
    }

    /// Allocates exactly `count` clusters in a row, for a table: behind everything else, where few blocks must be looked at.
    pub fn allocate_row(&mut self, count: u64) -> Step<HostCluster> {
        let mut first = self.file_end.round_up(&self.geometry).cluster(&self.geometry);
        let mut cluster = first;
        while cluster < first + count {
            self.check_cluster_number(cluster)?;
            if self.refcount(cluster)? != 0 {
                first = cluster + 1;
            }
            cluster += 1;
        }
        self.check_free_of_metadata(first, count)?;
        // Blocks that are missing go behind the row, so that they do not break it.
        let blocks = self.geometry.refblock_of(first).0..=self.geometry.refblock_of(first + count - 1).0;
        for block in blocks {
            if self.refblock_offset(block).is_none() {
                self.add_refblock(block, first + count)?;
            }
        }
        for cluster in first.row(count) {
            self.refcount(cluster)?;
        }
        for cluster in first.row(count) {
            self.set_refcounts(cluster, 1, 1)?;
        }
        self.file_end = self.file_end.max((first + count).offset(&self.geometry));
        Ok(first)
    }

    /// Adds the refcount block of this number, which is missing, in the first free cluster from `from` on.
    pub fn add_refblock(&mut self, block: u64, from: HostCluster) -> Step<()> {
        // The header is in the first cluster, whatever is counted there.
        let mut cluster = from.max(HostCluster::new(1));
        loop {
            self.check_cluster_number(cluster)?;
            let (home, _) = self.geometry.refblock_of(cluster);
            // The clusters of a block that is missing are free.
            if home == block {
                break;
            }
            if self.refblock_offset(home).is_none() {
                self.add_refblock(home, cluster)?;
            } else if self.refcount(cluster)? == 0 {
                break;
            } else {
                cluster += 1;
            }
        }
        self.check_free_of_metadata(cluster, 1)?;
        let index = block as usize;
        if index >= (MAX_REFTABLE_BYTES / 8) as usize {
            return Err(Blocked::Fail(IoError::Os(EFBIG)));
        }
        self.refblocks.make_room();
        if index >= self.reftable.len() {
            self.reftable.resize(index + 1, 0);
        }
        let offset = cluster.offset(&self.geometry);
        self.refblocks.remove(offset);
        self.refblocks
            .insert(offset, vec![0; self.geometry.cluster_size() as usize]);
        self.refblocks
            .change(offset, 0..self.geometry.cluster_size() as usize);
        if let Some(entry) = self.reftable.get_mut(index) {
            *entry = offset.get();
        }
        self.reftable_dirty.insert(block);
        self.mark_range(offset, self.geometry.cluster_size());
        self.file_end = self.file_end.max(offset + self.geometry.cluster_size());
        self.set_refcounts(cluster, 1, 1)
    }

    /// Entries hold offsets of 56 bits.
    fn check_cluster_number(&self, cluster: HostCluster) -> Step<()> {
        if cluster.get() >> (56 - self.geometry.cluster_bits) != 0 {
            return Err(Blocked::Fail(IoError::Os(EFBIG)));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_width_reads_back() {
        for order in 0..=6 {
            let mut block = vec![0_u8; 512];
            let entries = (512 * 8) >> order;
            let value = |index: usize| (index as u64).wrapping_mul(0x9e37_79b9) & (mask(order.min(5)));
            (0..entries).for_each(|index| set(&mut block, order, index, value(index)));
            assert!(
                (0..entries).all(|index| get(&block, order, index) == value(index)),
                "order {order}"
            );
        }
    }

    #[test]
    fn narrow_counts_start_at_the_low_end() {
        let mut block = vec![0_u8; 4];
        set(&mut block, 1, 5, 3);
        assert_eq!(block, [0, 0b1100, 0, 0]);
        assert_eq!(byte_range(1, 5..6), 1..2);
        assert_eq!(byte_range(4, 5..7), 10..14);
    }

    #[test]
    fn free_counts_are_found() {
        for order in [0, 3, 4] {
            let mut block = vec![0_u8; 64];
            (0..5).for_each(|index| set(&mut block, order, index, 1));
            assert_eq!(find(&block, order, 1..20, true), Some(5));
            assert_eq!(
                (used(&block, order, 32), used(&block, order, 3)),
                (5, 3),
                "order {order}"
            );
            assert_eq!(find(&block, order, 5..20, false), None);
        }
    }
}
