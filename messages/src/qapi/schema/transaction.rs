//! Several changes together, all or none.

use super::bitmap::{BlockDirtyBitmapAddition, BlockDirtyBitmapMerging};
use super::export::BlockDirtyBitmap;
use super::image::BlockdevSnapshotInternalSync;
use super::job::{BlockdevBackup, DriveBackup};
use super::node::{BlockdevSnapshot, BlockdevSnapshotSync};
use crate::qapi::row::qapi;

qapi! {
    /// What can be an action of a transaction.
    enum TransactionActionKind {
        /// It fails, and all others with it.
        Abort = "abort",
        /// As the command `block-dirty-bitmap-add` does.
        BlockDirtyBitmapAdd = "block-dirty-bitmap-add",
        /// As the command `block-dirty-bitmap-remove` does.
        BlockDirtyBitmapRemove = "block-dirty-bitmap-remove",
        /// As the command `block-dirty-bitmap-clear` does.
        BlockDirtyBitmapClear = "block-dirty-bitmap-clear",
        /// As the command `block-dirty-bitmap-enable` does.
        BlockDirtyBitmapEnable = "block-dirty-bitmap-enable",
        /// As the command `block-dirty-bitmap-disable` does.
        BlockDirtyBitmapDisable = "block-dirty-bitmap-disable",
        /// As the command `block-dirty-bitmap-merge` does.
        BlockDirtyBitmapMerge = "block-dirty-bitmap-merge",
        /// As the command `blockdev-backup` does.
        BlockdevBackup = "blockdev-backup",
        /// As the command `blockdev-snapshot` does.
        BlockdevSnapshot = "blockdev-snapshot",
        /// As the command `blockdev-snapshot-internal-sync` does.
        BlockdevSnapshotInternalSync = "blockdev-snapshot-internal-sync",
        /// As the command `blockdev-snapshot-sync` does.
        BlockdevSnapshotSync = "blockdev-snapshot-sync",
        /// As the command `drive-backup` does.
        DriveBackup = "drive-backup" ["deprecated"],
    }

    /// An action of a transaction.
    branches TransactionAction by "type": TransactionActionKind {
        /// It fails, and all others with it.
        Abort = "abort": AbortWrapper,
        /// As the command `block-dirty-bitmap-add` does.
        BlockDirtyBitmapAdd = "block-dirty-bitmap-add": BlockDirtyBitmapAddWrapper,
        /// As the command `block-dirty-bitmap-remove` does.
        BlockDirtyBitmapRemove = "block-dirty-bitmap-remove": BlockDirtyBitmapWrapper,
        /// As the command `block-dirty-bitmap-clear` does.
        BlockDirtyBitmapClear = "block-dirty-bitmap-clear": BlockDirtyBitmapWrapper,
        /// As the command `block-dirty-bitmap-enable` does.
        BlockDirtyBitmapEnable = "block-dirty-bitmap-enable": BlockDirtyBitmapWrapper,
        /// As the command `block-dirty-bitmap-disable` does.
        BlockDirtyBitmapDisable = "block-dirty-bitmap-disable": BlockDirtyBitmapWrapper,
        /// As the command `block-dirty-bitmap-merge` does.
        BlockDirtyBitmapMerge = "block-dirty-bitmap-merge": BlockDirtyBitmapMergeWrapper,
        /// As the command `blockdev-backup` does.
        BlockdevBackup = "blockdev-backup": BlockdevBackupWrapper,
        /// As the command `blockdev-snapshot` does.
        BlockdevSnapshot = "blockdev-snapshot": BlockdevSnapshotWrapper,
        /// As the command `blockdev-snapshot-internal-sync` does.
        BlockdevSnapshotInternalSync = "blockdev-snapshot-internal-sync": BlockdevSnapshotInternalWrapper,
        /// As the command `blockdev-snapshot-sync` does.
        BlockdevSnapshotSync = "blockdev-snapshot-sync": BlockdevSnapshotSyncWrapper,
        /// As the command `drive-backup` does.
        DriveBackup = "drive-backup": DriveBackupWrapper,
    }

    /// What a failure takes: nothing.
    struct Abort {}

    /// What a failure takes, one level down.
    struct AbortWrapper {
        /// Nothing is to be said.
        data: Abort,
    }

    /// The arguments of an addition of a bitmap, one level down.
    struct BlockDirtyBitmapAddWrapper {
        /// The node and the bitmap.
        data: BlockDirtyBitmapAddition,
    }

    /// What names a bitmap, one level down.
    struct BlockDirtyBitmapWrapper {
        /// The node and the bitmap.
        data: BlockDirtyBitmap,
    }

    /// The arguments of a merge of bitmaps, one level down.
    struct BlockDirtyBitmapMergeWrapper {
        /// The bitmap, and those that are merged into it.
        data: BlockDirtyBitmapMerging,
    }

    /// The arguments of a backup, one level down.
    struct BlockdevBackupWrapper {
        /// The node and its target.
        data: BlockdevBackup,
    }

    /// The arguments of a snapshot, one level down.
    struct BlockdevSnapshotWrapper {
        /// The node and its overlay.
        data: BlockdevSnapshot,
    }

    /// The arguments of a snapshot inside an image, one level down.
    struct BlockdevSnapshotInternalWrapper {
        /// The node and the snapshot's name.
        data: BlockdevSnapshotInternalSync,
    }

    /// The arguments of a snapshot that is made, one level down.
    struct BlockdevSnapshotSyncWrapper {
        /// The node and its overlay.
        data: BlockdevSnapshotSync,
    }

    /// The arguments of a backup to a file, one level down.
    struct DriveBackupWrapper {
        /// The node and its target.
        data: DriveBackup,
    }

    /// Whether jobs of a transaction end together.
    #[derive(Default)]
    enum ActionCompletionMode {
        /// Each ends by itself.
        #[default]
        Individual = "individual",
        /// If one fails, all are cancelled.
        Grouped = "grouped",
    }

    /// How a transaction is carried out.
    #[derive(Default)]
    struct TransactionProperties {
        /// Whether its jobs end together.
        completion_mode: ActionCompletionMode = default,
    }

    /// Makes several changes, all or none.
    command Transaction = "transaction" {
        /// The changes in their order.
        actions: Vec<TransactionAction>,
        /// How they are carried out.
        properties: TransactionProperties = default,
    };
}
