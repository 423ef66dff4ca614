//! Flushing everything, and closing everything.

use std::fmt::Write;
use std::time::Duration;

use futures_util::future::{Either, select};
use messages::handshake::PendingDrain;
use messages::io::OperationKind;
use messages::{Error, ErrorKind, NodeId, Result, RootId};

use super::drain::Cover;
use super::order::Order;
use super::query;
use super::transaction::Transaction;
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

fn operation_name(kind: OperationKind) -> String {
    let name = serde_json::to_value(kind).ok();
    name.as_ref()
        .and_then(serde_json::Value::as_str)
        .unwrap_or("request")
        .to_owned()
}

fn describe(text: &mut String, drain: &PendingDrain) {
    for node in &drain.waiting_for {
        let name = &node.node_name;
        let _ = write!(text, "; the drain by '{}' waits for node '{name}'", drain.user);
        if let Some(request) = node.requests.first() {
            let _ = write!(
                text,
                ", {} requests, the oldest a {} of {} bytes at {} that has stood at '{}' for {} s",
                node.requests.len(),
                operation_name(request.operation),
                request.len,
                request.offset,
                request.stands_at,
                request.age_ns / 1_000_000_000,
            );
        }
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
