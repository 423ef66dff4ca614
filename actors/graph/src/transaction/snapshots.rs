//! Snapshots inside images: how nodes are asked for them, and how one is taken back.

use millpond_engine::node::OrderOutcome;
use millpond_messages::{Error, ErrorKind, InternalSnapshot, NodeId, Result, SnapshotChange, SnapshotName};

use crate::order::NodeTask;
use crate::world::World;

/// Has a node change the snapshots in its image.
///
/// # Errors
/// The driver's.
pub async fn ask(world: &World, node: NodeId, change: SnapshotChange) -> Result<InternalSnapshot> {
    match world.ask(node, NodeTask::ChangeSnapshots(Box::new(change))).await {
        OrderOutcome::Snapshot(result) => result,
        OrderOutcome::Done(Err(error)) => Err(error),
        _ => Err(Error::new(ErrorKind::Closed, "The iothread gave no answer")),
    }
}

/// Deletes a snapshot that was taken.
pub async fn take_back(world: &World, node: NodeId, id: String) {
    let change = SnapshotChange::Delete(SnapshotName::with_id(id));
    if let Err(error) = ask(world, node, change).await {
        tracing::warn!(%error, %node, "an image keeps a snapshot that was taken back");
    }
}
