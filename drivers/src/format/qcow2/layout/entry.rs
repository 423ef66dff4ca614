//! Entries of L1 and L2 tables: bit layout and what each kind of L2 entry means.

use super::geometry::Geometry;

/// The cluster is referenced exactly once, so it may be written in place.
pub(crate) const COPIED: u64 = 1 << 63;
/// The entry is a compressed cluster's descriptor.
pub(crate) const COMPRESSED: u64 = 1 << 62;
/// The cluster reads as zeroes (version 3 on).
pub(crate) const ZERO: u64 = 1;
/// Where an L1 entry's table is.
pub(crate) const L1_OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// Where a normal L2 entry's cluster is.
pub(crate) const L2_OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// Where a refcount table entry's block is.
pub(crate) const REFTABLE_OFFSET: u64 = 0xffff_ffff_ffff_fe00;

/// What an L2 entry says of its guest cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cluster {
    /// Nothing: the backing file shows through.
    Unallocated,
    /// It reads as zeroes, and has no storage.
    ZeroPlain,
    /// Zeroes, with a cluster reserved at this offset.
    ZeroAllocated(u64),
    /// Data at this offset.
    Normal(u64),
    /// It is stored compressed, in sectors of its own.
    Compressed,
}

/// Reads an L2 entry. In version 2 the zero bit has no meaning; callers check for it where that is an error.
pub(crate) fn cluster(entry: u64) -> Cluster {
    if entry & COMPRESSED != 0 {
        return Cluster::Compressed;
    }
    match (entry & ZERO != 0, entry & L2_OFFSET) {
        (true, 0) => Cluster::ZeroPlain,
        (true, offset) => Cluster::ZeroAllocated(offset),
        (false, 0) => Cluster::Unallocated,
        (false, offset) => Cluster::Normal(offset),
    }
}

/// Where a compressed cluster's bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Compressed {
    /// First byte in the file, on no particular boundary.
    pub offset: u64,
    /// An upper bound of the stored length: up to the end of the last 512-byte sector it touches.
    pub len: u64,
}

/// Reads a compressed cluster's descriptor.
pub(crate) fn compressed(geometry: &Geometry, entry: u64) -> Compressed {
    let shift = 62 - (geometry.cluster_bits - 8);
    let offset = entry & ((1 << shift) - 1);
    let sectors = ((entry & !(COPIED | COMPRESSED)) >> shift) + 1;
    Compressed {
        offset,
        len: sectors * 512 - (offset & 511),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_told_apart() {
        assert_eq!(cluster(0), Cluster::Unallocated);
        assert_eq!(cluster(1), Cluster::ZeroPlain);
        assert_eq!(cluster(COPIED | 0x50001), Cluster::ZeroAllocated(0x50000));
        assert_eq!(cluster(COPIED | 0x50000), Cluster::Normal(0x50000));
        assert_eq!(cluster(COMPRESSED | 0x50001), Cluster::Compressed);
    }

    #[test]
    fn a_descriptor_covers_whole_sectors() {
        let geometry = Geometry::new(16, 4, 4096, 3);
        // 64 KiB clusters: 54 bits of offset, 8 bits of sectors.
        let entry = COMPRESSED | (2 << 54) | 0x50123;
        let expected = Compressed {
            offset: 0x50123,
            len: 3 * 512 - 0x123,
        };
        assert_eq!(compressed(&geometry, entry), expected);
    }
}
