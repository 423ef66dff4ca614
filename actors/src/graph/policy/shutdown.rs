//! Flushing everything, and closing everything.

use messages::{NodeId, Result, RootId};

use super::drain::Cover;
use super::order::Order;
use super::world::World;
use super::{delete, roots};

/// Flushes all nodes. All are tried; the first failure is told.
///
/// # Errors
/// A flush's.
pub async fn flush_all(world: &World) -> Result<()> {
    // Parents before children: a format writes its tables back into its file, which is flushed after that.
    let nodes = world.graph(|graph| {
        let all: Vec<NodeId> = graph.live_nodes().map(|node| node.id).collect();
        graph.topological(all)
    });
    let mut result = Ok(());
    for node in nodes {
        let flushed = world.ask(node, Order::Flush(node)).done().await;
        result = result.and(flushed);
    }
    result
}

/// Drains, flushes and closes everything, parents before children. Nothing is opened afterwards.
///
/// # Errors
/// A flush's; all is closed nevertheless.
pub async fn close_all(world: &World) -> Result<()> {
    world.with(|state| state.closed = true);
    let token = world.drain(Cover::All, "quit").await;
    let result = flush_all(world).await;
    let roots: Vec<RootId> = world.graph(|graph| graph.roots().map(|(id, _)| id).collect());
    for root in roots {
        let cell_at = world.graph(|graph| {
            let root = graph.root(root).filter(|root| root.has_cell)?;
            graph.edge(root.edge).map(|edge| edge.child)
        });
        if let Some(node) = cell_at
            && let Err(error) = world.ask(node, Order::DetachRoot(root)).done().await
        {
            tracing::warn!(%error, %root, "a root edge did not end cleanly");
        }
        roots::forget(world, root);
    }
    let nodes: Vec<NodeId> = world.graph(|graph| {
        let all: Vec<NodeId> = graph.nodes().map(|node| node.id).collect();
        for node in &all {
            if let Some(node) = graph.node_mut(*node) {
                node.owned = false;
            }
        }
        graph.topological(all)
    });
    delete::release(world, nodes.into_iter().rev()).await;
    world.undrain(token);
    result
}
