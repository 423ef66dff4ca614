//! Several changes together, all or none.

use crate::daemon::Daemon;
use millpond_messages::graph::{Action, JobAction, Snapshot, SnapshotSync};
use millpond_messages::qapi::QmpError;
use millpond_messages::qapi::schema::{
    ActionCompletionMode, BlockdevSnapshot, BlockdevSnapshotSync, NewImageMode, Transaction,
    TransactionAction,
};

pub(super) async fn run(daemon: Daemon, arguments: Transaction) -> Result<(), QmpError> {
    let is_grouped = arguments.properties.completion_mode == ActionCompletionMode::Grouped;
    let actions: Vec<JobAction> = arguments.actions.into_iter().map(asked).collect();
    if is_grouped {
        check_grouped(&actions)?;
    }
    daemon.transact(actions).await
}

fn asked(action: TransactionAction) -> JobAction {
    match action {
        TransactionAction::Abort(_) => JobAction::Change(Action::Abort),
        TransactionAction::BlockdevSnapshot(snapshot) => {
            let BlockdevSnapshot { node, overlay } = snapshot.data;
            JobAction::Change(Action::Snapshot(Snapshot { node, overlay }))
        }
        TransactionAction::BlockdevSnapshotSync(snapshot) => sync(snapshot.data),
    }
}

/// What ends together is jobs: others have no part in it.
fn check_grouped(actions: &[JobAction]) -> Result<(), QmpError> {
    let mut alone = actions
        .iter()
        .filter(|action| matches!(action, JobAction::Change(_)));
    alone.next().map_or(Ok(()), |action| {
        let text = format!(
            "Action '{}' does not support transaction property completion-mode = grouped",
            action.name()
        );
        Err(QmpError::generic(text))
    })
}

fn sync(asked: BlockdevSnapshotSync) -> JobAction {
    JobAction::Change(Action::SnapshotSync(SnapshotSync {
        device: asked.device,
        node_name: asked.node_name,
        snapshot_file: asked.snapshot_file,
        snapshot_node_name: asked.snapshot_node_name,
        format: asked.format.unwrap_or_else(|| "qcow2".to_owned()),
        existing: asked.mode == Some(NewImageMode::Existing),
    }))
}

pub(super) async fn snapshot_sync(daemon: Daemon, arguments: BlockdevSnapshotSync) -> Result<(), QmpError> {
    daemon.transact(vec![sync(arguments)]).await
}
