//! Numbers of an image that must not be taken for each other.

use super::geometry::Geometry;
use super::space::{GuestOffset, HostOffset};

/// The number of an entry of the active L1 table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct L1Index(pub u64);

impl L1Index {
    /// The entry of this number, if the table is that long.
    pub fn entry(self, table: &[u64]) -> Option<u64> {
        table.get(self.0 as usize).copied()
    }
}

/// An L2 slice, named by where it starts in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SliceKey(HostOffset);

impl SliceKey {
    /// Where the slice starts in the file.
    pub const fn offset(self) -> HostOffset {
        self.0
    }

    /// The slice of the table at `table` that maps guest `offset`.
    pub fn of(geometry: &Geometry, table: HostOffset, offset: GuestOffset) -> Self {
        Self(table + geometry.slice_start(offset))
    }

    /// The slices behind it, up to the end of its table.
    pub fn behind(self, geometry: &Geometry) -> impl Iterator<Item = Self> + use<> {
        let table_end = self.0.cluster_start(geometry) + geometry.cluster_size();
        let size = geometry.slice_size();
        (1..)
            .map(move |n| Self(self.0 + n * size))
            .take_while(move |next| next.0 + size <= table_end)
    }

    /// All slices of the table at `table`.
    pub fn all(geometry: &Geometry, table: HostOffset) -> impl Iterator<Item = Self> + use<> {
        let size = geometry.slice_size();
        let slices = geometry.cluster_size() / size;
        (0..slices).map(move |n| Self(table + n * size))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_are_found_in_their_table() {
        let geometry = Geometry::new(16, 4, 4096, 3);
        let table = HostOffset::new(5 << 16);
        assert_eq!(
            SliceKey::of(&geometry, table, GuestOffset::new(513 << 16)),
            SliceKey(table + 4096)
        );
        let all: Vec<_> = SliceKey::all(&geometry, table).collect();
        assert_eq!(
            (all.len(), all[0], all[15]),
            (16, SliceKey(table), SliceKey(table + 15 * 4096))
        );
        assert!(all[0].behind(&geometry).eq(all[1..].iter().copied()));
        assert_eq!(all[15].behind(&geometry).next(), None);
        assert_eq!(
            (L1Index(1).entry(&[3, 4]), L1Index(2).entry(&[3, 4])),
            (Some(4), None)
        );
    }
}
