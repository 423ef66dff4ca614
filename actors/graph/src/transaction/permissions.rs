//! Permissions of a plan, prepared and committed on nodes.

use std::collections::HashMap;

use millpond_messages::{EdgeId, NodeId, Permissions, Result};

use crate::order::{NodeOrder, NodeTask};
use crate::undo::Undo;
use crate::value::node::Granted;
use crate::value::permissions::Plan;
use crate::world::{Answered, World};

fn ask_to_prepare(world: &World, nodes: &[(NodeId, Granted)]) -> Vec<Answered> {
    let ask =
        |(node, Granted { taken, shared })| world.ask(node, NodeTask::PermissionsPrepare { taken, shared });
    nodes.iter().copied().map(ask).collect()
}

/// Asks all nodes of a plan, and forgets it on all if one refuses.
///
/// # Errors
/// A node's refusal.
pub async fn prepare(world: &World, plan: &Plan) -> Result<()> {
    let asked = ask_to_prepare(world, &plan.nodes);
    let mut prepared = Vec::new();
    let mut failure = None;
    for ((node, _), answer) in plan.nodes.iter().zip(asked) {
        match answer.done().await {
            Ok(()) => prepared.push(*node),
            Err(error) => failure = failure.or(Some(error)),
        }
    }
    let Some(error) = failure else { return Ok(()) };
    for node in prepared {
        world.send(node, NodeOrder::PermissionsAbort);
    }
    Err(error)
}

/// Makes a prepared plan hold, and answers what undoes it.
pub fn commit(world: &World, plan: Plan) -> Undo {
    let edges = commit_edges(world, plan.edges);
    let nodes = plan.nodes.into_iter();
    let nodes = nodes
        .filter_map(|(node, granted)| Some((node, commit_node(world, node, granted)?)))
        .collect();
    Undo::Permissions { edges, nodes }
}

/// Has edges take and share; answers what they did before.
fn commit_edges(
    world: &World,
    edges: HashMap<EdgeId, (Permissions, Permissions)>,
) -> HashMap<EdgeId, (Permissions, Permissions)> {
    world.graph(|graph| {
        let before = edges.into_iter().filter_map(|(id, (taken, shared))| {
            let edge = graph.edge_mut(id)?;
            let before = (edge.taken, edge.shared);
            (edge.taken, edge.shared) = (taken, shared);
            Some((id, before))
        });
        before.collect()
    })
}

/// Has a node grant what it has prepared; answers what it granted before.
fn commit_node(world: &World, node: NodeId, granted: Granted) -> Option<Granted> {
    world.with(|state| {
        let entry = state.graph.node_mut(node)?;
        let before = std::mem::replace(&mut entry.granted, granted);
        state.send(node, NodeOrder::PermissionsCommit);
        Some(before)
    })
}

/// Puts permissions back as they were. They held before, so only a lock lost to another process meanwhile can fail; the
/// node then keeps what it has, and the next plan that reaches it finds the difference.
pub async fn restore(
    world: &World,
    edges: HashMap<EdgeId, (Permissions, Permissions)>,
    nodes: Vec<(NodeId, Granted)>,
) {
    let asked = ask_to_prepare(world, &nodes);
    commit_edges(world, edges);
    for ((node, granted), answer) in nodes.into_iter().zip(asked) {
        match answer.done().await {
            Ok(()) => {
                commit_node(world, node, granted);
            }
            Err(error) => {
                tracing::warn!(%error, %node, "a node could not take its old permissions back");
            }
        }
    }
}
