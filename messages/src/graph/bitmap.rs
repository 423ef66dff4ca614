//! Dirty bitmaps of nodes: what may be done to them, and what is told of them.

use crate::common::{BitmapId, NodeId, RootId};
use crate::qapi::schema::BlockDirtyBitmap;

/// A bitmap by the name of its node and its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BitmapName {
    /// The name of the node.
    pub node: String,
    /// The name of the bitmap at that node.
    pub name: String,
}

impl From<BlockDirtyBitmap> for BitmapName {
    fn from(BlockDirtyBitmap { node, name }: BlockDirtyBitmap) -> Self {
        Self { node, name }
    }
}

/// A change of one dirty bitmap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BitmapEdit {
    /// The bitmap that is meant.
    pub bitmap: BitmapName,
    /// What becomes of it.
    pub change: BitmapChange,
}

/// What becomes of a bitmap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BitmapChange {
    /// It comes into being, with nothing dirty.
    Add {
        /// The bytes that a bit stands for, a power of two; `None` leaves that to the image's format.
        granularity: Option<u32>,
        /// It is to be stored in the image.
        persistent: bool,
        /// Writes are not recorded until that is asked for.
        disabled: bool,
    },
    /// It goes for good.
    Remove,
    /// Nothing is dirty any more.
    Clear,
    /// Writes are recorded from now on.
    Enable,
    /// Writes are not recorded any more. What is dirty stays so.
    Disable,
    /// All that is dirty in these is dirty in it too.
    Merge(Vec<BitmapName>),
}

impl BitmapEdit {
    /// The name of the command in QMP.
    #[must_use]
    pub const fn command(&self) -> &'static str {
        match self.change {
            BitmapChange::Add { .. } => "block-dirty-bitmap-add",
            BitmapChange::Remove => "block-dirty-bitmap-remove",
            BitmapChange::Clear => "block-dirty-bitmap-clear",
            BitmapChange::Enable => "block-dirty-bitmap-enable",
            BitmapChange::Disable => "block-dirty-bitmap-disable",
            BitmapChange::Merge(_) => "block-dirty-bitmap-merge",
        }
    }
}

/// A bitmap that an export is to show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ShownBitmap {
    /// The first of this name in the exported node's chain.
    InChain(String),
    /// One of a certain node.
    Of(BitmapName),
}

/// Bitmaps that a user wants to keep as they are called and where they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BitmapHold {
    /// The root edge of the user. The hold ends with it.
    pub root: RootId,
    /// The bitmaps, in the order in which they are answered.
    pub bitmaps: Vec<ShownBitmap>,
    /// The user writes to its node.
    pub writable: bool,
}

/// A bitmap that a user holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldBitmap {
    /// The number of the node.
    pub node: NodeId,
    /// The number of the bitmap.
    pub bitmap: BitmapId,
    /// Its name at the node.
    pub name: String,
}

/// A part of a bitmap: runs of bytes that are alike, from its first byte on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirtyRun {
    /// How many bytes there are.
    pub len: u64,
    /// Whether they are dirty.
    pub is_dirty: bool,
}
