//! `blockdev-snapshot`: an open overlay is put on top of a node, under all of that node's parents.

use millpond_messages::{ChildSlot, Error, ErrorKind, NodeId, OpBlocker, Permissions, Result};

use crate::change::{activate, reopen, replace};
use crate::order::NodeTask;
use crate::sections::Cover;
use crate::transaction::Transaction;
use crate::value::forbidden;
use crate::value::graph::Graph;
use crate::value::refusal::Refusal;
use crate::world::World;

/// Puts `overlay` on top of `node`.
///
/// # Errors
/// One of them cannot be part of that; then nothing has changed.
pub async fn blockdev_snapshot(world: &World, node: &str, overlay: &str) -> Result<()> {
    let (node, overlay, slot) = world.graph(|graph| check(graph, node, overlay))?;
    activate::follow(world, node, overlay).await?;
    // One section around both steps, so that clients wait once.
    let token = world
        .drain(Cover::Nodes(vec![node, overlay]), "blockdev-snapshot")
        .await;
    let result = put_on_top(world, node, overlay, slot).await;
    world.undrain(token);
    result
}

async fn put_on_top(world: &World, node: NodeId, overlay: NodeId, slot: ChildSlot) -> Result<()> {
    // A flush of the overlay does not reach what is below it, so what was acknowledged there is made durable first.
    world
        .ask(node, NodeTask::Flush)
        .done()
        .await
        .map_err(|error| Error::caused_by(error.kind(), "An IO error has occurred", error))?;
    let mut transaction = Transaction::new(world);
    let result = replace::append(&mut transaction, node, overlay, slot).await;
    match &result {
        Ok(()) => {
            transaction.commit();
            // What is below an overlay is not written any more. It may stay writable where somebody still writes it.
            if let Err(error) = reopen::set_access(world, node, true).await {
                tracing::debug!(%error, "the node below the new overlay stays writable");
            }
        }
        Err(_) => transaction.roll_back().await,
    }
    result
}

fn check(graph: &Graph, node: &str, overlay: &str) -> Result<(NodeId, NodeId, ChildSlot)> {
    let refuse = |text: String| Err(Error::new(ErrorKind::InUse, text));
    let old = graph.look_up(node, node)?;
    forbidden::check(graph, old.id, OpBlocker::ExternalSnapshot)?;
    let new = graph.look_up(overlay, overlay)?;
    // Whoever reads it, a user or a node above, would see something else all at once.
    if new.granted.taken.contains(Permissions::CONSISTENT_READ) {
        return refuse("The overlay is already in use".to_owned());
    }
    let Some(slot) = new.slot("backing") else {
        return refuse("The overlay does not support backing images".to_owned());
    };
    if new.child(slot).is_some() {
        return refuse("The overlay already has a backing image".to_owned());
    }
    if graph.reaches(old.id, new.id) {
        return refuse(Refusal::cycle(&old.name, "backing", &new.name).to_string());
    }
    Ok((old.id, new.id, slot))
}
