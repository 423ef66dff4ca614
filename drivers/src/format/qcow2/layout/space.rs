//! The two spaces that an image's offsets are in. A guest offset is a place on the virtual disk, a host offset one in the
//! image file; each is counted in bytes or, by type, in clusters. Only the tables lead from one space to the other, so no
//! arithmetic here does.
//!
//! Sums with what an image or a request says are checked where that comes in: an image's entries have 56 bits, and a disk
//! ends before 2^63.

use std::fmt;
use std::ops::{Add, AddAssign, Sub};

use super::geometry::Geometry;

macro_rules! space {
    ($space:literal, $Offset:ident, $Cluster:ident) => {
        #[doc = concat!("A byte's number ", $space, ".")]
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub(crate) struct $Offset(u64);

        #[doc = concat!("A cluster's number ", $space, ".")]
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub(crate) struct $Cluster(u64);

        impl $Offset {
            /// The offset of this many bytes from the start.
            pub const fn new(bytes: u64) -> Self {
                Self(bytes)
            }

            /// The bytes from the start.
            pub const fn get(self) -> u64 {
                self.0
            }

            /// The cluster that holds this byte.
            pub const fn cluster(self, geometry: &Geometry) -> $Cluster {
                $Cluster(self.0 >> geometry.cluster_bits)
            }

            /// Bytes from the start of its cluster.
            pub const fn in_cluster(self, geometry: &Geometry) -> u64 {
                geometry.part(self.0)
            }

            /// Whether a cluster starts here.
            pub const fn is_aligned(self, geometry: &Geometry) -> bool {
                self.in_cluster(geometry) == 0
            }

            /// The start of its cluster.
            pub const fn cluster_start(self, geometry: &Geometry) -> Self {
                Self(self.0 - self.in_cluster(geometry))
            }

            /// The first start of a cluster from here on.
            pub const fn round_up(self, geometry: &Geometry) -> Self {
                $Cluster(geometry.clusters(self.0)).offset(geometry)
            }

            /// How many clusters the `len` bytes from here on touch.
            pub const fn clusters(self, len: u64, geometry: &Geometry) -> u64 {
                geometry.clusters(self.in_cluster(geometry).saturating_add(len))
            }

        }

        impl $Cluster {
            /// The cluster's number.
            pub const fn get(self) -> u64 {
                self.0
            }

            /// The cluster's first byte.
            pub const fn offset(self, geometry: &Geometry) -> $Offset {
                $Offset(self.0 << geometry.cluster_bits)
            }

        }

        space!(@sums $Offset);
        space!(@sums $Cluster);

        impl fmt::LowerHex for $Offset {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::LowerHex::fmt(&self.0, f)
            }
        }
    };
    (@sums $Index:ident) => {
        impl Add<u64> for $Index {
            type Output = Self;

            fn add(self, more: u64) -> Self {
                Self(self.0 + more)
            }
        }

        impl AddAssign<u64> for $Index {
            fn add_assign(&mut self, more: u64) {
                self.0 += more;
            }
        }

        impl Sub<u64> for $Index {
            type Output = Self;

            fn sub(self, less: u64) -> Self {
                Self(self.0 - less)
            }
        }

        impl Sub for $Index {
            type Output = u64;

            fn sub(self, start: Self) -> u64 {
                self.0 - start.0
            }
        }
    };
}

space!("of the virtual disk", GuestOffset, GuestCluster);
space!("of the image file", HostOffset, HostCluster);

impl GuestOffset {
    /// Where an external data file has this byte.
    pub const fn in_data_file(self) -> HostOffset {
        HostOffset(self.0)
    }
}

impl HostOffset {
    /// The offset `len` bytes on, or the last that there is.
    pub const fn saturating_add(self, len: u64) -> Self {
        Self(self.0.saturating_add(len))
    }

    /// The bytes from `start` to here, none where that is behind.
    pub const fn bytes_since(self, start: Self) -> u64 {
        self.0.saturating_sub(start.0)
    }
}

impl HostCluster {
    /// The cluster of this number.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The cluster `count` behind, or the last that there is.
    pub const fn saturating_add(self, count: u64) -> Self {
        Self(self.0.saturating_add(count))
    }

    /// This cluster and those behind it, `count` in all, as far as numbers go.
    pub fn row(self, count: u64) -> impl Iterator<Item = Self> + use<> {
        (self.0..self.0.saturating_add(count)).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_and_clusters_lead_to_each_other() {
        let geometry = Geometry::new(16, 4, 4096, 3);
        let offset = HostOffset::new((5 << 16) + 7);
        assert_eq!(offset.cluster(&geometry), HostCluster::new(5));
        assert_eq!(offset.in_cluster(&geometry), 7);
        assert_eq!(
            offset.cluster_start(&geometry),
            HostCluster::new(5).offset(&geometry)
        );
        assert_eq!(offset.round_up(&geometry), HostCluster::new(6).offset(&geometry));
        assert_eq!((offset - 7).round_up(&geometry), offset - 7);
        assert!((offset - 7).is_aligned(&geometry) && !offset.is_aligned(&geometry));
        assert_eq!((offset + 9) - offset, 9);
    }

    #[test]
    fn a_range_touches_clusters_from_its_first_byte_to_its_last() {
        let geometry = Geometry::new(9, 4, 512, 3);
        let offset = GuestOffset::new(511);
        assert_eq!(
            [1, 2, 513, 514].map(|len| offset.clusters(len, &geometry)),
            [1, 2, 2, 3]
        );
        assert_eq!(offset.clusters(u64::MAX, &geometry), u64::MAX.div_ceil(512));
    }

    #[test]
    fn rows_and_distances_end_where_numbers_do() {
        assert_eq!(HostCluster::new(u64::MAX - 1).row(5).count(), 1);
        assert_eq!(HostOffset::new(5).bytes_since(HostOffset::new(9)), 0);
        assert_eq!(
            HostOffset::new(u64::MAX).saturating_add(1),
            HostOffset::new(u64::MAX)
        );
    }
}
