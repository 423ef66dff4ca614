//! Entries of L1 and L2 tables: bit layout and what each kind of L2 entry means.

use millpond_messages::SECTOR_SIZE;

use super::geometry::Geometry;
use super::space::HostOffset;

/// The cluster is referenced exactly once, so it may be written in place.
pub(crate) const COPIED: u64 = 1 << 63;
/// The entry is a compressed cluster's descriptor.
pub(crate) const COMPRESSED: u64 = 1 << 62;
/// The cluster reads as zeroes (version 3 on).
pub(crate) const ZERO: u64 = 1;
/// Where an L1 entry's table is.
const L1_OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// Where a normal L2 entry's cluster is.
const L2_OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// Bits of an L2 entry that must be zero, unless it is a compressed cluster's.
pub(crate) const L2_RESERVED: u64 = 0x3f00_0000_0000_01fe;
/// Bits of a refcount table's entry that must be zero.
pub(crate) const REFTABLE_RESERVED: u64 = 0x1ff;
/// Where a refcount table entry's block is.
const REFTABLE_OFFSET: u64 = 0xffff_ffff_ffff_fe00;

/// What an L2 entry says of its guest cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cluster {
    /// Nothing: the backing file shows through.
    Unallocated,
    /// It reads as zeroes, and has no storage.
    ZeroPlain,
    /// Zeroes, with a cluster reserved at this offset.
    ZeroAllocated(HostOffset),
    /// Data at this offset.
    Normal(HostOffset),
    /// It is stored compressed, in sectors of its own.
    Compressed,
}

impl Geometry {
    /// Reads an L2 entry, of an extended one the first word. In version 2 the zero bit has no meaning; callers check for it where that is an error.
    pub fn cluster(&self, entry: u64) -> Cluster {
        if entry & COMPRESSED != 0 {
            return Cluster::Compressed;
        }
        match (entry & self.zero_flag != 0, entry & L2_OFFSET) {
            (true, 0) => Cluster::ZeroPlain,
            (true, offset) => Cluster::ZeroAllocated(HostOffset::new(offset)),
            // All that is in a data file is the image's own, so there the flag tells its first cluster from none.
            (false, 0) if self.external && entry & COPIED != 0 => Cluster::Normal(HostOffset::default()),
            (false, 0) => Cluster::Unallocated,
            (false, offset) => Cluster::Normal(HostOffset::new(offset)),
        }
    }
}

/// Where a compressed cluster's bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Compressed {
    /// First byte in the file, on no particular boundary.
    pub offset: HostOffset,
    /// An upper bound of the stored length: up to the end of the last 512-byte sector it touches.
    pub len: u64,
}

/// The offset that the bits of `mask` hold; 0 stands for none.
fn offset(entry: u64, mask: u64) -> Option<HostOffset> {
    Some(HostOffset::new(entry & mask)).filter(|_| entry & mask != 0)
}

/// Where the L2 table of an L1 entry is, or the cluster of a bitmap table's entry, if it has one.
pub(crate) fn l2_table(entry: u64) -> Option<HostOffset> {
    offset(entry, L1_OFFSET)
}

/// Where the block of a refcount table's entry is, if it has one.
pub(crate) fn refblock(entry: u64) -> Option<HostOffset> {
    offset(entry, REFTABLE_OFFSET)
}

/// The entry for a table or cluster at `host` that nothing else refers to.
pub(crate) const fn own(host: HostOffset) -> u64 {
    host.get() | COPIED
}

/// Where the count of sectors begins in a compressed cluster's descriptor; the offset is below.
const fn sectors_shift(geometry: &Geometry) -> u32 {
    62 - (geometry.cluster_bits - 8)
}

/// Whether a descriptor has room for the offsets in front of `end`.
pub(crate) const fn compressed_may_end_at(geometry: &Geometry, end: HostOffset) -> bool {
    end.get() >> sectors_shift(geometry) == 0
}

/// The entry for `len` compressed bytes at `host`.
pub(crate) const fn compressed_entry(geometry: &Geometry, host: HostOffset, len: u64) -> u64 {
    let host = host.get();
    let sectors = (host + len - 1) / SECTOR_SIZE - host / SECTOR_SIZE;
    COMPRESSED | sectors << sectors_shift(geometry) | host
}

/// Reads a compressed cluster's descriptor.
pub(crate) fn compressed(geometry: &Geometry, entry: u64) -> Compressed {
    let shift = sectors_shift(geometry);
    let offset = entry & ((1 << shift) - 1);
    let sectors = ((entry & !(COPIED | COMPRESSED)) >> shift) + 1;
    Compressed {
        offset: HostOffset::new(offset),
        len: sectors * SECTOR_SIZE - offset % SECTOR_SIZE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_told_apart() {
        let geometry = Geometry::new(16, 4, 4096, 3);
        let cluster = |entry| geometry.cluster(entry);
        assert_eq!(
            (cluster(0), cluster(COPIED)),
            (Cluster::Unallocated, Cluster::Unallocated)
        );
        assert_eq!(cluster(1), Cluster::ZeroPlain);
        let host = HostOffset::new(0x50000);
        assert_eq!(cluster(COPIED | 0x50001), Cluster::ZeroAllocated(host));
        assert_eq!(cluster(COPIED | 0x50000), Cluster::Normal(host));
        assert_eq!(cluster(COMPRESSED | 0x50001), Cluster::Compressed);
    }

    #[test]
    fn a_data_file_has_a_first_cluster() {
        let geometry = Geometry {
            external: true,
            ..Geometry::new(16, 4, 4096, 3)
        };
        let first = Cluster::Normal(HostOffset::default());
        assert_eq!(
            [COPIED, 0, COPIED | ZERO].map(|entry| geometry.cluster(entry)),
            [first, Cluster::Unallocated, Cluster::ZeroPlain]
        );
    }

    #[test]
    fn a_descriptor_covers_whole_sectors() {
        let geometry = Geometry::new(16, 4, 4096, 3);
        // 64 KiB clusters: 54 bits of offset, 8 bits of sectors.
        let entry = COMPRESSED | (2 << 54) | 0x50123;
        let expected = Compressed {
            offset: HostOffset::new(0x50123),
            len: 3 * 512 - 0x123,
        };
        assert_eq!(compressed(&geometry, entry), expected);
        let written = compressed_entry(&geometry, expected.offset, expected.len - 5);
        assert_eq!((written, expected.len - 5), (entry, 1240));
    }
}
