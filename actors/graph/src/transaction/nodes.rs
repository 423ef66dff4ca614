//! Steps at single nodes that take no undoing by themselves.

use millpond_drivers::api::BackingLink;
use millpond_messages::{NodeId, Result};

use crate::order::NodeTask;
use crate::world::World;

/// Has sections look again whether a node may be asked, now that it has a parent less: when that parent answers, nobody
/// thinks of this child any more.
pub fn parent_lost(world: &World, node: NodeId) {
    world.with(|state| {
        state.sections.ask(&state.graph, node);
        state.flush_sections();
    });
}

/// Lets sections give back what they covered only because of an edge below `parent` that is gone.
pub fn shrink(world: &World, parent: NodeId) {
    world.with(|state| {
        state.sections.shrink(&state.graph, parent);
        state.flush_sections();
    });
}

/// Has an image name a backing file. `implicit` is the node that was opened by that name, if one was.
///
/// # Errors
/// The header cannot be written.
pub async fn record_backing(
    world: &World,
    node: NodeId,
    link: Option<BackingLink>,
    implicit: Option<NodeId>,
) -> Result<()> {
    let order = NodeTask::ChangeBackingFile { link: link.clone() };
    world.ask(node, order).done().await?;
    world.graph(|graph| {
        if let Some(node) = graph.node_mut(node) {
            node.implicit_backing = implicit;
            if let Some(facts) = &mut node.facts {
                facts.backing = link;
            }
        }
    });
    Ok(())
}

/// Removes a node that nothing leads to, closing its cell if there is one.
pub async fn discard_node(world: &World, node: NodeId) {
    close_cell(world, node).await;
    forget_node(world, node);
}

/// Closes a node's cell, if it was opened.
pub async fn close_cell(world: &World, node: NodeId) {
    let is_open = world.graph(|graph| {
        graph.node_mut(node).is_some_and(|node| {
            node.closing = true;
            node.facts.is_some()
        })
    });
    if is_open && let Err(error) = world.ask(node, NodeTask::Close).done().await {
        tracing::warn!(%error, %node, "a node did not close cleanly");
    }
}

/// Removes a node that has no edges from the graph and from all sections.
pub fn forget_node(world: &World, node: NodeId) {
    world.with(|state| {
        state.graph.remove(node);
        state.sections.forget(&state.graph, node);
        state.flush_sections();
    });
}
