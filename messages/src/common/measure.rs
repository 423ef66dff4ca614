//! How large an image will be that is yet to be made.

use super::status::{BlockStatus, StatusFlags};

/// What a format needs for an image, worked out from its options alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImagePlan {
    /// Bytes besides the disk's own, once all of the disk is allocated.
    pub metadata: u64,
    /// Bytes of the disk, in whole clusters.
    pub disk: u64,
    /// The clusters, in bytes, of which only those with data take space; `None` where all do.
    pub sparse: Option<u64>,
    /// It is to have another image below it. How much of a source's data it shares with that is not known, so all counts.
    pub is_overlay: bool,
    /// The clusters, in bytes, in which dirty bitmaps are stored; `None` where none are.
    pub bitmaps: Option<u64>,
}

impl ImagePlan {
    /// The size of an image whose disk has so many bytes in clusters with data.
    #[must_use]
    pub fn with_data(&self, data: u64, bitmaps: Option<u64>) -> ImageMeasure {
        let data = if self.sparse.is_some() { data } else { self.disk };
        ImageMeasure {
            required: self.metadata.saturating_add(data),
            fully_allocated: self.metadata.saturating_add(self.disk),
            bitmaps,
        }
    }
}

/// The size of an image's file, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageMeasure {
    /// For the data that there is.
    pub required: u64,
    /// Once all of the disk is allocated.
    pub fully_allocated: u64,
    /// For the stored dirty bitmaps of the source; `None` where either format stores none.
    pub bitmaps: Option<u64>,
}

/// Counts the bytes of clusters that have data, as a disk's extents are told one after the other.
#[derive(Debug, Clone, Copy)]
pub struct DataCount {
    cluster: u64,
    /// Where the next extent begins.
    at: u64,
    /// The end of the last cluster that was counted.
    counted_to: u64,
    bytes: u64,
}

impl DataCount {
    /// Nothing counted yet, of a disk with clusters of so many bytes.
    #[must_use]
    pub const fn new(cluster: u64) -> Self {
        Self {
            cluster,
            at: 0,
            counted_to: 0,
            bytes: 0,
        }
    }

    /// Counts the next extent.
    pub fn add(&mut self, extent: &BlockStatus) {
        let (from, end) = (self.at.max(self.counted_to), self.at.saturating_add(extent.len));
        self.at = end;
        let is_data = extent.flags.contains(StatusFlags::DATA | StatusFlags::ALLOCATED)
            && !extent.flags.contains(StatusFlags::ZERO);
        if !is_data || from >= end {
            return;
        }
        let start = from - from % self.cluster;
        let end = end.checked_next_multiple_of(self.cluster).unwrap_or(u64::MAX);
        self.bytes = self.bytes.saturating_add(end - start);
        self.counted_to = end;
    }

    /// How far the extents reach that were counted.
    #[must_use]
    pub const fn at(&self) -> u64 {
        self.at
    }

    /// The bytes of the clusters with data.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }
}
