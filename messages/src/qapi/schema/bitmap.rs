//! Dirty bitmaps: added, removed, changed and looked at.

use super::export::{BlockDirtyBitmap, BlockDirtyBitmapOrStr};
use crate::qapi::row::qapi;

qapi! {
    /// A dirty bitmap that is to be added.
    struct BlockDirtyBitmapAddition {
        /// The name of the node.
        node: String,
        /// The bitmap's name at that node.
        name: String,
        /// Bytes a bit stands for; default is what the format's clusters suggest.
        granularity: Option<u32>,
        /// It is to be stored in the image; default false.
        persistent: Option<bool>,
        /// Writes are not recorded yet; default false.
        disabled: Option<bool>,
    }

    /// Dirty bitmaps that are to be merged into one.
    struct BlockDirtyBitmapMerging {
        /// The name of the node with the target.
        node: String,
        /// The name of the bitmap that they are merged into.
        target: String,
        /// The bitmaps that are merged.
        bitmaps: Vec<BlockDirtyBitmapOrStr>,
    }

    /// The hash of a bitmap's bits.
    struct BlockDirtyBitmapSha256 {
        /// SHA-256 of the bits as a string of hexadecimal digits.
        sha256: String,
    }

    /// Adds a dirty bitmap to a node.
    command BlockDirtyBitmapAdd = "block-dirty-bitmap-add" (BlockDirtyBitmapAddition);

    /// Removes a dirty bitmap.
    command BlockDirtyBitmapRemove = "block-dirty-bitmap-remove" (BlockDirtyBitmap);

    /// Has a dirty bitmap say that nothing is dirty.
    command BlockDirtyBitmapClear = "block-dirty-bitmap-clear" (BlockDirtyBitmap);

    /// Has a dirty bitmap record writes.
    command BlockDirtyBitmapEnable = "block-dirty-bitmap-enable" (BlockDirtyBitmap);

    /// Has a dirty bitmap record no more writes.
    command BlockDirtyBitmapDisable = "block-dirty-bitmap-disable" (BlockDirtyBitmap);

    /// Merges dirty bitmaps into one.
    command BlockDirtyBitmapMerge = "block-dirty-bitmap-merge" (BlockDirtyBitmapMerging);

    /// Hashes the bits of a dirty bitmap.
    command XDebugBlockDirtyBitmapSha256 = "x-debug-block-dirty-bitmap-sha256" (BlockDirtyBitmap)
        -> BlockDirtyBitmapSha256 ["unstable"];
}
