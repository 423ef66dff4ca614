//! Sizes that follow from an image's header and stay as they are while it is open.

use super::entry::ZERO;
use super::index::L1Index;
use super::space::{GuestOffset, HostCluster};

/// Cluster, table and refcount block sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Geometry {
    /// log2 of the cluster size: 9 to 21.
    pub cluster_bits: u32,
    /// log2 of the bits in a refcount: 0 to 6.
    pub refcount_order: u32,
    /// log2 of the entries of an L2 slice, the unit of the L2 cache.
    pub slice_bits: u32,
    /// The format's version: 2 or 3.
    pub version: u32,
    /// log2 of the bytes of an L2 entry: 3, or 4 where clusters have subclusters.
    pub entry_bits: u32,
    /// The bit of an L2 entry that makes a cluster read as zeroes, 0 where subclusters say that.
    pub zero_flag: u64,
    /// Guest data is in a file of its own, where each cluster has the offset that it has on the disk.
    pub external: bool,
}

impl Geometry {
    /// The geometry for checked header fields. `slice_size` is in bytes, a power of two from 512 to a cluster.
    pub const fn new(cluster_bits: u32, refcount_order: u32, slice_size: u32, version: u32) -> Self {
        Self {
            cluster_bits,
            refcount_order,
            slice_bits: slice_size.trailing_zeros() - 3,
            version,
            entry_bits: 3,
            zero_flag: ZERO,
            external: false,
        }
    }

    /// The same with extended L2 entries.
    pub const fn with_extended_l2(self) -> Self {
        Self {
            slice_bits: self.slice_bits - 1,
            entry_bits: 4,
            zero_flag: 0,
            ..self
        }
    }

    /// Whether clusters have subclusters.
    pub const fn has_subclusters(&self) -> bool {
        self.entry_bits != 3
    }

    /// Words of an L2 entry: the first says where the cluster is.
    pub const fn entry_words(&self) -> usize {
        1 << (self.entry_bits - 3)
    }

    /// Bytes in a cluster.
    pub const fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Bytes of the last cluster that `len` bytes from a cluster's start on take, 0 where they take all of it.
    pub const fn part(&self, len: u64) -> u64 {
        len & (self.cluster_size() - 1)
    }

    /// Bytes in `count` clusters.
    pub const fn bytes(&self, count: u64) -> u64 {
        count << self.cluster_bits
    }

    /// Clusters that hold `len` bytes from a cluster's start on.
    pub const fn clusters(&self, len: u64) -> u64 {
        len.div_ceil(self.cluster_size())
    }

    /// log2 of the entries of an L2 table.
    pub const fn l2_bits(&self) -> u32 {
        self.cluster_bits - self.entry_bits
    }

    /// log2 of the guest bytes that one L2 table maps.
    pub const fn l2_span_bits(&self) -> u32 {
        self.l2_bits() + self.cluster_bits
    }

    /// Entries of an L2 slice.
    pub const fn slice_entries(&self) -> usize {
        1 << self.slice_bits
    }

    /// Bytes of an L2 slice.
    pub const fn slice_size(&self) -> u64 {
        1 << (self.slice_bits + self.entry_bits)
    }

    /// L1 entries that a disk of `size` bytes needs.
    pub const fn l1_entries(&self, size: u64) -> u64 {
        size.div_ceil(1 << self.l2_span_bits())
    }

    /// The L1 entry that maps guest `offset`.
    pub const fn l1_index(&self, offset: GuestOffset) -> L1Index {
        L1Index(offset.get() >> self.l2_span_bits())
    }

    /// Bytes from guest `offset` to the end of what the same L2 table maps.
    pub const fn rest_of_table(&self, offset: GuestOffset) -> u64 {
        let span = 1_u64 << self.l2_span_bits();
        span - (offset.get() & (span - 1))
    }

    /// The L2 entry that maps guest `offset`, within its table.
    pub const fn l2_index(&self, offset: GuestOffset) -> u64 {
        offset.cluster(self).get() & ((1 << self.l2_bits()) - 1)
    }

    /// The entry that maps guest `offset`, within its slice.
    pub const fn slice_index(&self, offset: GuestOffset) -> usize {
        (offset.cluster(self).get() as usize) & (self.slice_entries() - 1)
    }

    /// Where the slice that maps guest `offset` lies from its table's start, in bytes.
    pub const fn slice_start(&self, offset: GuestOffset) -> u64 {
        (self.l2_index(offset) >> self.slice_bits) * self.slice_size()
    }

    /// log2 of the refcounts of a refcount block.
    pub const fn refblock_bits(&self) -> u32 {
        self.cluster_bits + 3 - self.refcount_order
    }

    /// Refcounts of a refcount block.
    pub const fn refblock_entries(&self) -> u64 {
        1 << self.refblock_bits()
    }

    /// The refcount block with the count of a cluster, by its number, and where in the block that is.
    pub const fn refblock_of(&self, cluster: HostCluster) -> (u64, usize) {
        let bits = self.refblock_bits();
        (
            cluster.get() >> bits,
            (cluster.get() & ((1 << bits) - 1)) as usize,
        )
    }

    /// The first cluster that the refcount block of this number counts.
    pub const fn refblock_start(&self, block: u64) -> HostCluster {
        HostCluster::new(block << self.refblock_bits())
    }

    /// The largest refcount that its width can say.
    pub const fn refcount_max(&self) -> u64 {
        if self.refcount_order == 6 {
            i64::MAX as u64
        } else {
            (1 << (1 << self.refcount_order)) - 1
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_geometry() {
        let g = Geometry::new(16, 4, 4096, 3);
        assert_eq!(
            (g.cluster_size(), g.slice_entries(), g.refblock_entries()),
            (65536, 512, 32768)
        );
        assert_eq!(g.refcount_max(), 65535);
        assert_eq!(g.l1_entries(1 << 30), 2);
        let offset = GuestOffset::new((512 << 20) + 513 * 65536 + 7);
        assert_eq!(
            (g.l1_index(offset), g.l2_index(offset), g.slice_index(offset)),
            (L1Index(1), 513, 1)
        );
        assert_eq!((g.slice_start(offset), g.part(65_543)), (4096, 7));
        assert_eq!(g.rest_of_table(offset), (512 << 20) - 513 * 65536 - 7);
        assert_eq!(g.refblock_of(HostCluster::new(32_770)), (1, 2));
        assert_eq!(g.refblock_start(1), HostCluster::new(32_768));
    }
}
