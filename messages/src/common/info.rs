//! Small reports that drivers give of themselves and of their images.

use serde::{Deserialize, Serialize};

use super::limits::RangeError;
use super::range::Range;

/// What a format says of its image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct DriverInfo {
    /// Bytes in a cluster, 0 where there are none.
    pub cluster_size: u64,
    /// Where VM state starts, in bytes.
    pub vm_state_offset: u64,
    /// The image was not closed cleanly.
    pub is_dirty: bool,
    /// Bytes in a subcluster, 0 where there are none.
    pub subcluster_size: u64,
    /// Nothing but compressed writes are possible.
    pub needs_compressed_writes: bool,
}

impl DriverInfo {
    /// A range widened to whole clusters; as it is where there are none.
    ///
    /// # Errors
    /// The last cluster would pass the largest offset.
    pub fn round_to_clusters(&self, range: Range) -> Result<Range, RangeError> {
        range.widened_to(self.cluster_size)
    }
}

/// How scattered an image's clusters are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct FragmentInfo {
    /// Clusters that guest data is stored in.
    pub allocated_clusters: u64,
    /// Clusters that the virtual disk has.
    pub total_clusters: u64,
    /// Clusters that do not follow the one before.
    pub fragmented_clusters: u64,
    /// Clusters whose data is stored compressed.
    pub compressed_clusters: u64,
}

/// What a check may mend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Repair {
    /// Clusters that nothing refers to.
    pub leaks: bool,
    /// Everything that is wrong but no leak.
    pub errors: bool,
}

impl Repair {
    /// Whether there is anything to be mended, so that the image is written to.
    #[must_use]
    pub const fn is_wanted(self) -> bool {
        self.leaks || self.errors
    }
}

/// The log's target for what is found wrong with images, by checks and by requests: a message a fault, in the words of QEMU's
/// tools, which print each as it is.
pub const FINDINGS: &str = "millpond::check";

/// What a check of an image found and mended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct CheckResult {
    /// Errors that endanger data.
    pub corruptions: u64,
    /// Clusters that nothing refers to.
    pub leaks: u64,
    /// Places that could not be checked.
    pub check_errors: u64,
    /// How many corruptions were repaired.
    pub corruptions_fixed: u64,
    /// How many leaked clusters were freed.
    pub leaks_fixed: u64,
    /// Where the image ends, in bytes.
    pub image_end_offset: u64,
    /// How scattered it is.
    pub fragments: FragmentInfo,
}

/// A block device's sector sizes, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BlockSizes {
    /// What the medium writes at once.
    pub physical: u32,
    /// What the device addresses.
    pub logical: u32,
}

/// The geometry that a disk says it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Geometry {
    /// How many heads it has.
    pub heads: u32,
    /// How many sectors a track has.
    pub sectors: u32,
    /// How many cylinders it has.
    pub cylinders: u32,
}
