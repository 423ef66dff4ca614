//! `blockdev-snapshot`: an open overlay is put on top of a node, under all of that node's parents.

use millpond_messages::graph;
use millpond_messages::{ChildSlot, Error, ErrorKind, NodeId, OpBlocker, Permissions, Result};

use crate::change::{activate, reopen, replace};
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
            Some(found) => bring_ready(transaction, found).await,
            None => Ok(()),
        }
    }

    fn flushed(&self) -> Option<NodeId> {
        self.found.map(|found| found.node)
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

/// Puts an overlay that is fit for it over a node. Both are still, and the node is flushed: later flushes, of the overlay, do not
/// reach it.
///
/// # Errors
/// A parent relies on its edge, or permissions.
pub async fn put_over(transaction: &mut Transaction, found: NodeAndOverlay) -> Result<()> {
    let NodeAndOverlay { node, overlay, slot } = found;
    let world = transaction.world.clone();
    activate::follow(&world, node, overlay).await?;
    // The node may have moved since.
    bring(transaction, overlay, node).await?;
    replace::append(transaction, node, overlay, slot).await
}

/// Has an overlay where it is to be, and drivers ready for the permissions that its coming brings.
///
/// # Errors
/// An iothread is gone.
pub async fn bring_ready(transaction: &mut Transaction, found: NodeAndOverlay) -> Result<()> {
    bring(transaction, found.overlay, found.node).await?;
    replace::get_ready(transaction, found.node, found.overlay, Some(found.slot));
    Ok(())
}

/// Moves an overlay that nobody uses to where the node is that it is to go over.
///
/// # Errors
/// An iothread is gone.
pub async fn bring(transaction: &mut Transaction, overlay: NodeId, node: NodeId) -> Result<()> {
    let going = transaction
        .world
        .graph(|graph| home::going_over(graph, overlay, node));
    if let Some((going, to)) = going {
        transaction.drain(going.iter().copied(), USER).await;
        transaction.move_still(&going, to).await?;
    }
    Ok(())
}

/// What is below an overlay is not written any more. It may stay writable where somebody still writes it.
pub async fn settle_below(world: &World, node: NodeId) {
    let settled = world.unless_closing(reopen::set_access(world, node, true)).await;
    if let Some(Err(error)) = settled {
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
