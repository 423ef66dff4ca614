//! Several changes together, all or none.

use super::{bitmap, snapshot};
use crate::daemon::Daemon;
use crate::job::{BackupPlan, TransactionPart};
use millpond_messages::graph::{Action, BitmapChange, BitmapEdit, Snapshot, SnapshotSync};
use millpond_messages::qapi::QmpError;
use millpond_messages::qapi::schema::{
    ActionCompletionMode, BlockDirtyBitmap, BlockdevBackup, BlockdevSnapshot, BlockdevSnapshotSync,
    DriveBackup, NewImageMode, Transaction, TransactionAction,
};

pub(super) async fn run(daemon: Daemon, arguments: Transaction) -> Result<(), QmpError> {
    let is_grouped = arguments.properties.completion_mode == ActionCompletionMode::Grouped;
    let parts: Vec<_> = arguments.actions.into_iter().map(part).collect();
    if is_grouped {
        check_grouped(&parts)?;
    }
    daemon.transact(parts, is_grouped).await
}

fn part(action: TransactionAction) -> TransactionPart {
    match action {
        TransactionAction::Abort(_) => TransactionPart::Change(Action::Abort),
        TransactionAction::BlockDirtyBitmapAdd(added) => bitmap_part(bitmap::addition(added.data)),
        TransactionAction::BlockDirtyBitmapRemove(named) => changed(named.data, BitmapChange::Remove),
        TransactionAction::BlockDirtyBitmapClear(named) => changed(named.data, BitmapChange::Clear),
        TransactionAction::BlockDirtyBitmapEnable(named) => changed(named.data, BitmapChange::Enable),
        TransactionAction::BlockDirtyBitmapDisable(named) => changed(named.data, BitmapChange::Disable),
        TransactionAction::BlockDirtyBitmapMerge(merged) => bitmap_part(bitmap::merging(merged.data)),
        TransactionAction::BlockdevBackup(backup) => start(&backup.data),
        TransactionAction::BlockdevSnapshot(put) => {
            let BlockdevSnapshot { node, overlay } = put.data;
            TransactionPart::Change(Action::Snapshot(Snapshot { node, overlay }))
        }
        TransactionAction::BlockdevSnapshotInternalSync(taken) => {
            TransactionPart::Change(Action::TakeSnapshot(snapshot::taking(taken.data)))
        }
        TransactionAction::BlockdevSnapshotSync(made) => sync(made.data),
        TransactionAction::DriveBackup(backup) => start_to_file(backup.data),
    }
}

fn bitmap_part(edit: BitmapEdit) -> TransactionPart {
    TransactionPart::Change(Action::EditBitmap(edit))
}

fn changed(named: BlockDirtyBitmap, change: BitmapChange) -> TransactionPart {
    bitmap_part(bitmap::change(named, change))
}

/// What ends together is jobs: others have no part in it.
fn check_grouped(parts: &[TransactionPart]) -> Result<(), QmpError> {
    let mut alone = parts.iter().filter_map(|part| match part {
        TransactionPart::Change(action) => Some(action.name()),
        TransactionPart::Backup(_) => None,
    });
    alone.next().map_or(Ok(()), |name| {
        Err(QmpError::generic(format!(
            "Action '{name}' does not support transaction property completion-mode = grouped"
        )))
    })
}

fn start(asked: &BlockdevBackup) -> TransactionPart {
    TransactionPart::Backup(Box::new(BackupPlan::new(asked)))
}

fn start_to_file(asked: DriveBackup) -> TransactionPart {
    TransactionPart::Backup(Box::new(BackupPlan::to_file(asked)))
}

fn sync(asked: BlockdevSnapshotSync) -> TransactionPart {
    TransactionPart::Change(Action::SnapshotSync(SnapshotSync {
        device: asked.device,
        node_name: asked.node_name,
        snapshot_file: asked.snapshot_file,
        snapshot_node_name: asked.snapshot_node_name,
        format: asked.format.unwrap_or_else(|| "qcow2".to_owned()),
        existing: asked.mode == Some(NewImageMode::Existing),
    }))
}

pub(super) async fn snapshot_sync(daemon: Daemon, arguments: BlockdevSnapshotSync) -> Result<(), QmpError> {
    daemon.transact(vec![sync(arguments)], false).await
}

pub(super) async fn backup(daemon: Daemon, arguments: BlockdevBackup) -> Result<(), QmpError> {
    daemon.transact(vec![start(&arguments)], false).await
}

pub(super) async fn drive_backup(daemon: Daemon, arguments: DriveBackup) -> Result<(), QmpError> {
    daemon.transact(vec![start_to_file(arguments)], false).await
}
