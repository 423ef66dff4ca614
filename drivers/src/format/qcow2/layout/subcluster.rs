//! Extended L2 entries: beside the cluster's place they say of each of its subclusters whether it holds data or zeroes.

use super::geometry::Geometry;
use super::space::GuestOffset;

/// Subclusters of a cluster.
pub(crate) const SUBCLUSTERS: u32 = 32;

/// What an entry says of a subcluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Subcluster {
    /// Nothing: the backing file shows through.
    Unallocated,
    /// It reads as zeroes.
    Zero,
    /// Its data is in the cluster.
    Data,
}

/// An L2 entry of 16 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Extended {
    /// Where the cluster is, as in an entry of 8 bytes; its zero bit has no meaning.
    pub word: u64,
    /// The subclusters with data, a bit for each.
    pub data: u32,
    /// Those that read as zeroes.
    pub zero: u32,
}

impl Extended {
    /// The entry `index` of a table's words.
    pub fn of(words: &[u64], index: usize) -> Self {
        let word = |at: usize| words.get(at).copied().unwrap_or(0);
        let bitmap = word(2 * index + 1);
        Self {
            word: word(2 * index),
            data: bitmap as u32,
            zero: (bitmap >> 32) as u32,
        }
    }

    /// The two words of the entry.
    pub const fn words(self) -> [u64; 2] {
        [self.word, (self.zero as u64) << 32 | self.data as u64]
    }

    /// What the entry says of a subcluster.
    pub const fn at(self, number: u32) -> Subcluster {
        match (self.data >> number & 1, self.zero >> number & 1) {
            (0, 0) => Subcluster::Unallocated,
            (0, _) => Subcluster::Zero,
            _ => Subcluster::Data,
        }
    }

    /// How many subclusters from one on are `kind`.
    pub const fn run(self, number: u32, kind: Subcluster) -> u32 {
        let same = match kind {
            Subcluster::Unallocated => !(self.data | self.zero),
            Subcluster::Zero => self.zero & !self.data,
            Subcluster::Data => self.data,
        };
        let (run, left) = ((same >> number).trailing_ones(), SUBCLUSTERS - number);
        if run < left { run } else { left }
    }
}

impl Geometry {
    /// The smallest part of the disk that the tables can say to be zeroes, in bytes.
    pub const fn zero_unit(&self) -> u64 {
        if self.has_subclusters() {
            self.subcluster_size()
        } else {
            self.cluster_size()
        }
    }

    /// Bytes of a subcluster.
    pub const fn subcluster_size(&self) -> u64 {
        self.cluster_size() / SUBCLUSTERS as u64
    }

    /// The subcluster of guest `offset`, within its cluster.
    pub const fn subcluster(&self, offset: GuestOffset) -> u32 {
        (offset.in_cluster(self) / self.subcluster_size()) as u32
    }

    /// The subclusters of the cluster at `cluster` that the bytes between `from` and `to` touch, a bit for each.
    pub fn touched(&self, cluster: GuestOffset, from: GuestOffset, to: GuestOffset) -> u32 {
        let end = cluster + self.cluster_size();
        let (from, to) = (
            from.clamp(cluster, end) - cluster,
            to.clamp(cluster, end) - cluster,
        );
        let size = self.subcluster_size();
        let below = |count: u64| ((1_u64 << count) - 1) as u32;
        below(to.div_ceil(size)) & !below(from / size)
    }

    /// The start of the subcluster of guest `offset`.
    pub fn subcluster_start(&self, offset: GuestOffset) -> GuestOffset {
        offset - offset.get() % self.subcluster_size()
    }

    /// The first start of a subcluster from guest `offset` on.
    pub fn subcluster_end(&self, offset: GuestOffset) -> GuestOffset {
        GuestOffset::new(offset.get().next_multiple_of(self.subcluster_size()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_and_written() {
        let words = [0, 0, 1 << 63 | 0x50000, 0xf0_0000_000f];
        let entry = Extended::of(&words, 1);
        assert_eq!((entry.data, entry.zero), (0xf, 0xf0));
        assert_eq!(entry.words(), words[2..]);
        assert_eq!(Extended::of(&words, 2), Extended::default());
    }

    #[test]
    fn subclusters_of_a_kind_are_counted() {
        let entry = Extended {
            word: 0,
            data: 0x8000_000f,
            zero: 0xf0,
        };
        let kind = |number| (entry.at(number), entry.run(number, entry.at(number)));
        assert_eq!(kind(1), (Subcluster::Data, 3));
        assert_eq!(kind(4), (Subcluster::Zero, 4));
        assert_eq!(kind(8), (Subcluster::Unallocated, 23));
        assert_eq!(kind(31), (Subcluster::Data, 1));
        assert_eq!(Extended::default().run(0, Subcluster::Unallocated), 32);
        assert_eq!(entry.run(8, Subcluster::Data), 0);
    }

    #[test]
    fn a_range_touches_subclusters_from_its_first_byte_to_its_last() {
        let geometry = Geometry::new(16, 4, 4096, 3).with_extended_l2();
        let at = GuestOffset::new;
        let touched = |from, to| geometry.touched(at(65536), at(from), at(to));
        assert_eq!(touched(0, 1 << 20), u32::MAX);
        assert_eq!(touched(65536, 65537), 1);
        assert_eq!(touched(65536 + 2047, 65536 + 2049), 3);
        assert_eq!(touched(65536 + 63 * 1024, 1 << 20), 1 << 31);
        assert_eq!((touched(0, 65536), touched(131_072, 1 << 20)), (0, 0));
        assert_eq!(geometry.subcluster(at(65536 + 4096)), 2);
        assert_eq!(
            (
                geometry.subcluster_start(at(70_000)),
                geometry.subcluster_end(at(70_000))
            ),
            (at(69_632), at(71_680))
        );
    }
}
