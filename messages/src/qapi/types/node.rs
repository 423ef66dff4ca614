//! Nodes and images as `query-named-block-nodes` shows them.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What is done with writes of zeroes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BlockdevDetectZeroesOptions {
    /// They are written as they are.
    #[default]
    Off,
    /// They become zero writes.
    On,
    /// They become zero writes that may unmap.
    Unmap,
}

/// How a node uses caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct BlockdevCacheInfo {
    /// Writes are flushed only when asked for.
    pub writeback: bool,
    /// The host's page cache is bypassed.
    pub direct: bool,
    /// Flushes are answered without a flush.
    pub no_flush: bool,
}

/// A dirty bitmap as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockDirtyInfo {
    /// The bitmap's name, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// How many bytes are dirty.
    pub count: i64,
    /// Bytes a bit stands for.
    pub granularity: u32,
    /// Whether writes are being recorded now.
    pub recording: bool,
    /// A job or an export uses it.
    pub busy: bool,
    /// It is stored in the image.
    pub persistent: bool,
    /// It was not saved properly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inconsistent: Option<bool>,
}

/// A snapshot inside an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct SnapshotInfo {
    /// The snapshot's id inside its image.
    pub id: String,
    /// The name that its maker gave it.
    pub name: String,
    /// Size of the machine's state in bytes.
    pub vm_state_size: i64,
    /// When it was made, seconds since the epoch.
    pub date_sec: i64,
    /// The nanoseconds of that.
    pub date_nsec: i64,
    /// The machine's clock, seconds.
    pub vm_clock_sec: i64,
    /// The nanoseconds of that.
    pub vm_clock_nsec: i64,
    /// The machine's instruction counter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icount: Option<i64>,
}

/// What only the image's format knows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ImageInfoSpecific {
    /// The format whose data this is.
    #[serde(rename = "type")]
    pub format: String,
    /// What it says, in the schema's form for that format.
    pub data: Value,
}

/// What is known of an image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ImageInfo {
    /// Its name, or a `json:` description.
    pub filename: String,
    /// The name of the image's driver.
    pub format: String,
    /// It was not closed properly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dirty_flag: Option<bool>,
    /// Bytes it takes on the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actual_size: Option<i64>,
    /// Bytes its user sees.
    pub virtual_size: i64,
    /// Bytes of a cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_size: Option<i64>,
    /// It is encrypted; absent if not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encrypted: Option<bool>,
    /// It is compressed; absent if not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compressed: Option<bool>,
    /// The backing file's name as the image has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backing_filename: Option<String>,
    /// The backing file's name as it is opened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub full_backing_filename: Option<String>,
    /// The backing file's format as the image has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backing_filename_format: Option<String>,
    /// The snapshots inside the image, oldest first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshots: Option<Vec<SnapshotInfo>>,
    /// What only the format knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format_specific: Option<ImageInfoSpecific>,
    /// What is known of the image below.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backing_image: Option<Box<ImageInfo>>,
}

/// One entry of the reply of `query-named-block-nodes`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockDeviceInfo {
    /// The name that opens the node's file.
    pub file: String,
    /// The node's name in the graph.
    #[serde(default, rename = "node-name", skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
    /// Whether the node is open for reading only.
    pub ro: bool,
    /// The name of the node's driver.
    pub drv: String,
    /// The backing file's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backing_file: Option<String>,
    /// How many backing files are below.
    pub backing_file_depth: i64,
    /// Whether the node may use its storage now.
    pub active: bool,
    /// Whether its data is stored encrypted.
    pub encrypted: bool,
    /// What is done with writes of zeroes.
    pub detect_zeroes: BlockdevDetectZeroesOptions,
    /// Limit, bytes a second; 0 for none, as all of these.
    pub bps: i64,
    /// The same for reads.
    pub bps_rd: i64,
    /// The same for writes.
    pub bps_wr: i64,
    /// Limit, requests a second.
    pub iops: i64,
    /// The same for reads.
    pub iops_rd: i64,
    /// The same for writes.
    pub iops_wr: i64,
    /// The image that it shows.
    pub image: ImageInfo,
    /// How it uses caches.
    pub cache: BlockdevCacheInfo,
    /// Writes past this offset are told; 0 for none.
    pub write_threshold: i64,
    /// The dirty bitmaps that are kept of it.
    #[serde(default, rename = "dirty-bitmaps", skip_serializing_if = "Option::is_none")]
    pub dirty_bitmaps: Option<Vec<BlockDirtyInfo>>,
}
