//! A node: what the graph knows of it, and what its cell on its iothread does.

use serde::{Deserialize, Serialize};

use super::{DriverRecord, SavedChunks, SavedError};
use crate::graph::Options;
use crate::{
    BitmapId, ChildSlot, DiscardMode, EdgeId, IoThreadId, NodeId, NodeStatistics, OpenFlags, Permissions,
    RootId, Token,
};

/// Options of a driver, as the text of a JSON object.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SavedOptions(String);

impl SavedOptions {
    /// The text of these options.
    #[must_use]
    pub fn of(options: &Options) -> Self {
        Self(serde_json::Value::Object(options.clone()).to_string())
    }

    /// The options in it.
    ///
    /// # Errors
    /// The text is no JSON object.
    pub fn options(&self) -> Result<Options, SavedError> {
        serde_json::from_str(&self.0).map_err(|error| SavedError::Impossible(format!("options: {error}")))
    }
}

/// What becomes of written zeroes, as the option `detect-zeroes` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SavedZeroDetection {
    /// Zeroes are written as any data.
    Off,
    /// They become zero writes.
    On,
    /// They become zero writes that may deallocate.
    Unmap,
}

/// The options common to all nodes, as they hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedCommon {
    /// The option `read-only`, inherited or given.
    pub read_only: bool,
    /// The option `auto-read-only`, inherited or given.
    pub auto_read_only: bool,
    /// The option `cache.direct`, inherited or given.
    pub direct: bool,
    /// The option `cache.no-flush`, inherited or given.
    pub no_flush: bool,
    /// The option `force-share`, inherited or given.
    pub force_share: bool,
    /// The option `discard`, inherited or given.
    pub discard: DiscardMode,
    /// The option `detect-zeroes`, inherited or given.
    pub detect_zeroes: SavedZeroDetection,
    /// The storage is left to others.
    pub inactive: bool,
    /// Reads fill the node from its backing node.
    pub copy_on_read: bool,
    /// Flags that no option stands for.
    pub extra: OpenFlags,
}

/// Those of the common options that were given for the node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SavedGiven {
    /// The option `read-only`, if given.
    pub read_only: Option<bool>,
    /// The option `auto-read-only`, if given.
    pub auto_read_only: Option<bool>,
    /// The option `cache.direct`, if given.
    pub direct: Option<bool>,
    /// The option `cache.no-flush`, if given.
    pub no_flush: Option<bool>,
    /// The option `force-share`, if given.
    pub force_share: Option<bool>,
    /// The option `discard`, if given.
    pub discard: Option<DiscardMode>,
    /// The option `detect-zeroes`, if given.
    pub detect_zeroes: Option<SavedZeroDetection>,
    /// The option `active`, if given.
    pub active: Option<bool>,
    /// The option `copy-on-read`, if given.
    pub copy_on_read: Option<bool>,
}

/// A node, as the graph knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedNode {
    /// The node's number. Numbers tell the order in which nodes were opened.
    pub id: NodeId,
    /// The name in the graph.
    pub name: String,
    /// The name of the driver.
    pub driver: String,
    /// The iothread where it lives.
    pub iothread: IoThreadId,
    /// The driver's own options.
    pub options: SavedOptions,
    /// The common options that hold.
    pub common: SavedCommon,
    /// Those of them that were given.
    pub given: SavedGiven,
    /// The node whose options this one was part of.
    pub inherits_from: Option<NodeId>,
    /// The flags that it is open with.
    pub flags: OpenFlags,
    /// Its edges, by slot.
    pub children: Vec<(ChildSlot, EdgeId)>,
    /// The edges that lead to it, the oldest first.
    pub parents: Vec<EdgeId>,
    /// The number of the next numbered child.
    pub next_numbered: u32,
    /// What all its parents together take.
    pub taken: Permissions,
    /// What all its parents share.
    pub shared: Permissions,
    /// A user added it, rather than that it goes with its last parent.
    pub owned: bool,
    /// The backing node that was opened because the image names it.
    pub implicit_backing: Option<NodeId>,
    /// Its dirty bitmaps, the oldest first. Which bits are set is for its iothread to say.
    pub bitmaps: Vec<SavedBitmap>,
    /// What its iothread has of it; none if it was not there when it was asked, as while it closes.
    pub cell: Option<SavedCell>,
}

/// A dirty bitmap, as the graph knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedBitmap {
    /// The number of the bitmap.
    pub id: BitmapId,
    /// The name at its node.
    pub name: String,
    /// The bytes that a bit stands for.
    pub granularity: u32,
    /// Writes are being recorded.
    pub is_recording: bool,
    /// The node's image stores it when it is closed.
    pub is_persistent: bool,
    /// Nobody knows what is dirty: it can only be removed.
    pub is_inconsistent: bool,
    /// The image that stores it is read-only.
    pub is_read_only: bool,
    /// The hold of the user who uses it.
    pub holder: Option<RootId>,
}

/// The bits of a dirty bitmap.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedBits {
    /// The number of the bitmap.
    pub bitmap: BitmapId,
    /// The bytes that a bit stands for.
    pub granularity: u64,
    /// Writes are being recorded.
    pub is_recording: bool,
    /// The node has become longer than the bitmap could follow.
    pub is_lost: bool,
    /// The length that the bitmap covers, in bytes.
    pub len: u64,
    /// What is dirty by it.
    pub dirty: SavedChunks,
}

/// What a node's iothread has of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedCell {
    /// The flags that the node is open with.
    pub flags: OpenFlags,
    /// What becomes of written zeroes.
    pub detect_zeroes: SavedZeroDetection,
    /// The format was guessed from the contents.
    pub probed: bool,
    /// The length in bytes that requests are held to.
    pub size: u64,
    /// How many have asked for copy-on-read of every read.
    pub copy_on_read: u32,
    /// Something may have been written that is not durable yet.
    pub unflushed: bool,
    /// The write threshold; 0 for none.
    pub write_threshold: u64,
    /// The drained sections that close its gate.
    pub sections: Vec<Token>,
    /// What its dirty bitmaps have recorded.
    pub bitmaps: Vec<SavedBits>,
    /// What it has counted, histograms included.
    pub statistics: NodeStatistics,
    /// The driver's state; none where all of it comes back when the node is opened again.
    pub driver: Option<DriverRecord>,
}
