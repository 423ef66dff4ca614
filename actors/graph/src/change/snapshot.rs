//! `blockdev-snapshot`: an open overlay is put on top of a node, under all of that node's parents.

use millpond_messages::graph;
use millpond_messages::{ChildSlot, Error, ErrorKind, NodeId, OpBlocker, Permissions, Result};

use crate::change::{activate, reopen, replace};
use crate::order::NodeTask;
use crate::sections::Cover;
use crate::state::PolicyState;
use crate::transaction::{Change, Transaction};
use crate::value::forbidden;
use crate::value::graph::Graph;
use crate::value::home;
use crate::value::node::Node;
use crate::value::refusal::Refusal;
use crate::world::World;

/// The user in whose name a node is drained for a snapshot.
pub const USER: &str = "blockdev-snapshot";

/// An overlay that is put on top of a node.
pub struct Snapshot {
    node: String,
    overlay: String,
    found: Option<NodeAndOverlay>,
}

/// A node and its overlay, which are fit for each other.
#[derive(Debug, Clone, Copy)]
pub struct NodeAndOverlay {
    /// The node to protect.
    pub node: NodeId,
    /// The node to go on top.
    pub overlay: NodeId,
    /// Where the overlay has its backing node.
    pub slot: ChildSlot,
}

impl From<graph::Snapshot> for Snapshot {
    fn from(graph::Snapshot { node, overlay }: graph::Snapshot) -> Self {
        Self {
            node,
            overlay,
            found: None,
        }
    }
}

impl Change for Snapshot {
    type Answer = ();

    fn check(&mut self, state: &PolicyState) -> Result<()> {
        self.found = Some(check(&state.graph, &self.node, &self.overlay)?);
        Ok(())
    }

    async fn ahead(&mut self, transaction: &mut Transaction) -> Result<()> {
        match self.found {
            Some(found) => flush(&transaction.world, found.node).await,
            None => Ok(()),
        }
    }

    fn cover(&self, graph: &Graph) -> Cover {
        let nodes = [&self.node, &self.overlay].into_iter();
        Cover::Nodes(
            nodes
                .filter_map(|name| Some(graph.named_or_new(name)?.id))
                .collect(),
        )
    }

    async fn prepare(&mut self, transaction: &mut Transaction) -> Result<()> {
        match self.found {
            Some(found) => put_over(transaction, found).await,
            None => Ok(()),
        }
    }

    async fn finish(self, world: &World) {
        if let Some(found) = self.found {
            settle_below(world, found.node).await;
        }
    }
}

/// Makes what was acknowledged durable: most of it ahead, as long as nobody waits for that, and the rest when nothing is
/// written any more.
///
/// # Errors
/// The flush's. It counts ahead too: storage tells of what it has lost but once.
pub async fn flush(world: &World, node: NodeId) -> Result<()> {
    let flushed = world.ask(node, NodeTask::Flush).done().await;
    flushed.map_err(|error| Error::caused_by(error.kind(), "An IO error has occurred", error))
}

/// Puts an overlay that is fit for it over a node. Both are still.
///
/// # Errors
/// A flush's, a parent relies on its edge, or permissions.
pub async fn put_over(transaction: &mut Transaction, found: NodeAndOverlay) -> Result<()> {
    let NodeAndOverlay { node, overlay, slot } = found;
    let world = transaction.world.clone();
    activate::follow(&world, node, overlay).await?;
    if let Some((going, to)) = world.graph(|graph| home::going_over(graph, overlay, node)) {
        transaction.drain(going.iter().copied(), USER).await;
        transaction.move_still(&going, to).await?;
    }
    // A flush of the overlay does not reach what is below it, so what was acknowledged there is made durable first.
    flush(&world, node).await?;
    replace::append(transaction, node, overlay, slot).await
}

/// What is below an overlay is not written any more. It may stay writable where somebody still writes it.
pub async fn settle_below(world: &World, node: NodeId) {
    if let Err(error) = reopen::set_access(world, node, true).await {
        tracing::debug!(%error, "the node below the new overlay stays writable");
    }
}

fn check(graph: &Graph, node: &str, overlay: &str) -> Result<NodeAndOverlay> {
    let old = graph.look_up_new(node, node)?;
    forbidden::check(graph, old.id, OpBlocker::ExternalSnapshot)?;
    let new = graph.look_up_new(overlay, overlay)?;
    check_overlay(graph, old, new)
}

/// Checks that a node can become the overlay of another.
///
/// # Errors
/// It is used, is no overlay, or has a backing node.
pub fn check_overlay(graph: &Graph, old: &Node, new: &Node) -> Result<NodeAndOverlay> {
    let refuse = |text: String| Err(Error::new(ErrorKind::InUse, text));
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
    Ok(NodeAndOverlay {
        node: old.id,
        overlay: new.id,
        slot,
    })
}
