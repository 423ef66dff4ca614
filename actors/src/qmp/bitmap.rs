//! Dirty bitmaps: added, removed, changed and hashed.

use millpond_messages::ChunkSet;
use millpond_messages::graph::{BitmapChange, BitmapEdit, BitmapName, CopyBitmap, EditBitmap};
use millpond_messages::qapi::QmpError;
use millpond_messages::qapi::schema::{
    BlockDirtyBitmap, BlockDirtyBitmapAddition, BlockDirtyBitmapMerging, BlockDirtyBitmapOrStr,
    BlockDirtyBitmapSha256,
};
use sha2::{Digest, Sha256};

use crate::daemon::Daemon;

/// The change that an addition asks for.
pub(super) fn addition(asked: BlockDirtyBitmapAddition) -> BitmapEdit {
    let BlockDirtyBitmapAddition {
        node,
        name,
        granularity,
        persistent,
        disabled,
    } = asked;
    BitmapEdit {
        bitmap: BitmapName { node, name },
        change: BitmapChange::Add {
            granularity,
            persistent: persistent.unwrap_or(false),
            disabled: disabled.unwrap_or(false),
        },
    }
}

/// A change of the bitmap that is named.
pub(super) fn change(named: BlockDirtyBitmap, change: BitmapChange) -> BitmapEdit {
    let bitmap = named.into();
    BitmapEdit { bitmap, change }
}

/// The change that a merge asks for. Bitmaps without a node are those of the target's.
pub(super) fn merging(asked: BlockDirtyBitmapMerging) -> BitmapEdit {
    let BlockDirtyBitmapMerging {
        node,
        target,
        bitmaps,
    } = asked;
    let source = |source| match source {
        BlockDirtyBitmapOrStr::Local(name) => BitmapName {
            node: node.clone(),
            name,
        },
        BlockDirtyBitmapOrStr::External(bitmap) => bitmap.into(),
    };
    let sources = bitmaps.into_iter().map(source).collect();
    BitmapEdit {
        bitmap: BitmapName { node, name: target },
        change: BitmapChange::Merge(sources),
    }
}

pub(super) async fn add(daemon: Daemon, arguments: BlockDirtyBitmapAddition) -> Result<(), QmpError> {
    daemon.graph(EditBitmap(addition(arguments))).await
}

pub(super) async fn remove(daemon: Daemon, arguments: BlockDirtyBitmap) -> Result<(), QmpError> {
    daemon
        .graph(EditBitmap(change(arguments, BitmapChange::Remove)))
        .await
}

pub(super) async fn clear(daemon: Daemon, arguments: BlockDirtyBitmap) -> Result<(), QmpError> {
    daemon
        .graph(EditBitmap(change(arguments, BitmapChange::Clear)))
        .await
}

pub(super) async fn enable(daemon: Daemon, arguments: BlockDirtyBitmap) -> Result<(), QmpError> {
    daemon
        .graph(EditBitmap(change(arguments, BitmapChange::Enable)))
        .await
}

pub(super) async fn disable(daemon: Daemon, arguments: BlockDirtyBitmap) -> Result<(), QmpError> {
    daemon
        .graph(EditBitmap(change(arguments, BitmapChange::Disable)))
        .await
}

pub(super) async fn merge(daemon: Daemon, arguments: BlockDirtyBitmapMerging) -> Result<(), QmpError> {
    daemon.graph(EditBitmap(merging(arguments))).await
}

/// A big disk has megabytes of bits, so the hash is worked out on another thread.
pub(super) async fn sha256(
    daemon: Daemon,
    arguments: BlockDirtyBitmap,
) -> Result<BlockDirtyBitmapSha256, QmpError> {
    let bits = daemon.graph(CopyBitmap(arguments.into())).await?;
    let hashed = tokio::task::spawn_blocking(move || hash(&bits)).await;
    let sha256 = hashed.map_err(|_| QmpError::generic("The hash was not worked out"))?;
    Ok(BlockDirtyBitmapSha256 { sha256 })
}

/// The hash of the words of a bitmap, the low byte of each first, as QEMU has it.
fn hash(bits: &ChunkSet) -> String {
    let mut hash = Sha256::new();
    bits.words().for_each(|word| hash.update(word.to_le_bytes()));
    data_encoding::HEXLOWER.encode(&hash.finalize())
}
