//! Flushing everything, and closing everything.
//!
//! Neither is a `Change`: all nodes are tried whatever the others do, and nothing is taken back.

use std::collections::HashSet;
use std::fmt::Write;
use std::time::Duration;

use futures_util::future::{Either, select};
use millpond_messages::handshake::PendingDrain;
use millpond_messages::{Error, ErrorKind, NodeId, Result, Role, RootId};

use crate::change::{delete, roots};
use crate::order::{NodeTask, Wiring};
use crate::query;
use crate::sections::Cover;
use crate::transaction::Transaction;
use crate::value::edge::{Edge, Parent};
use crate::value::graph::{Direction, Graph};
use crate::world::World;

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
    let mut failed = HashSet::new();
    for node in nodes {
        // One step a node, however deep a chain is: what the flush of a parent that went well has flushed is left out.
        let is_flushed = world.graph(|graph| {
            let mut parents = graph.parents_of(node);
            parents.any(|edge| flushing_parent(graph, edge).is_some_and(|parent| !failed.contains(&parent)))
        });
        if is_flushed {
            continue;
        }
        let flushed = world.ask(node, NodeTask::Flush).done().await;
        if flushed.is_err() {
            // Nobody knows how far down it came.
            let below = world.graph(|graph| graph.closure([node], Direction::Down));
            failed.extend(below);
        }
        result = result.and(flushed);
    }
    result
}

/// The parent whose flush flushes the child behind an edge too, if it does: a node flushes what it stores its data in, unless
/// it is read-only. Numbered children are their driver's to flush, as far as it needs them.
fn flushing_parent(graph: &Graph, edge: &Edge) -> Option<NodeId> {
    let Parent::Node(parent, slot) = edge.parent else {
        return None;
    };
    let parent = graph.node(parent).filter(|parent| parent.live)?;
    let is_declared = slot.index() < parent.kind.children().len();
    let descends = is_declared && !edge.role.contains(Role::COW) && !parent.flags.is_read_only();
    descends.then_some(parent.id)
}

/// How long the nodes have to say what they are busy with.
pub const REPORT: Duration = Duration::from_secs(1);

/// What keeps everything from being closed, as the error of the request that asked for it.
pub async fn overdue(world: &World, grace: Duration) -> Error {
    let begun = world.with(|state| state.now);
    let drains = Box::pin(query::pending_drains(world));
    // An iothread that is stuck itself does not answer.
    let late = Box::pin(world.until(|state| state.now.saturating_sub(begun) >= REPORT));
    let mut text = format!("The nodes could not be closed within {} s", grace.as_secs_f32());
    match select(drains, late).await {
        Either::Left((drains, _)) => drains.iter().for_each(|drain| describe(&mut text, drain)),
        Either::Right(_) => text.push_str(": an iothread does not answer"),
    }
    for (node, order) in world.with(|state| state.under_way()) {
        // Writing to a string does not fail.
        let _ = write!(text, "; node '{node}' has not ended its {order}");
    }
    Error::new(ErrorKind::Closed, text)
}

fn describe(text: &mut String, drain: &PendingDrain) {
    for node in &drain.waiting_for {
        let _ = write!(text, "; the drain by '{}' waits for {node}", drain.user);
    }
}

/// Drains, flushes and closes everything, parents before children. Nothing is opened afterwards.
///
/// # Errors
/// A flush's; all is closed nevertheless.
pub async fn close_all(world: &World) -> Result<()> {
    for log in world.with(|state| std::mem::take(&mut state.abandoned)) {
        Transaction::resumed(world, log).roll_back().await;
    }
    let token = world.drain(Cover::All, "quit").await;
    let result = flush_all(world).await;
    let roots: Vec<RootId> = world.graph(|graph| graph.roots().map(|(id, _)| id).collect());
    for root in roots {
        let cell_at = world.graph(|graph| {
            let root = graph.root(root).filter(|root| root.has_cell)?;
            graph.edge(root.edge).map(|edge| edge.child)
        });
        if let Some(node) = cell_at
            && let Err(error) = world.ask(node, Wiring::DetachRoot(root)).done().await
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
    delete::release_all(world, nodes.into_iter().rev()).await;
    world.undrain(token);
    result
}
