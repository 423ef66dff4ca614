//! Permissions of a plan, prepared and committed on nodes.

use std::collections::{HashMap, HashSet};

use millpond_messages::{EdgeId, NodeId, Permissions, Result};

use crate::order::{NodeOrder, NodeTask};
use crate::undo::Undo;
use crate::value::node::Granted;
use crate::value::permissions::Plan;
use crate::world::{Answered, World};

/// Whether a node's driver has something to do for other permissions.
fn prepares(world: &World, node: NodeId) -> bool {
    world.graph(|graph| {
        graph
            .node(node)
            .is_some_and(|node| node.kind.prepares_permissions())
    })
}

/// Asks the nodes that have something to prepare.
pub fn ask_to_prepare(world: &World, nodes: &[(NodeId, Granted)]) -> Vec<(NodeId, Answered)> {
    let preparing = nodes.iter().filter(|(node, _)| prepares(world, *node));
    let ask = |(node, Granted { taken, shared }): &(NodeId, Granted)| {
        let (taken, shared) = (*taken, *shared);
        (
            *node,
            world.ask(*node, NodeTask::PermissionsPrepare { taken, shared }),
        )
    };
    preparing.map(ask).collect()
}

/// Asks nodes to prepare what they are to grant, and has all forget it if one refuses.
///
/// # Errors
/// A node's refusal.
pub async fn prepare_nodes(world: &World, nodes: &[(NodeId, Granted)]) -> Result<()> {
    let asked = ask_to_prepare(world, nodes);
    let mut prepared = Vec::new();
    let mut failure = None;
    for (node, answer) in asked {
        match answer.done().await {
            Ok(()) => prepared.push(node),
            Err(error) => failure = failure.or(Some(error)),
        }
    }
    let Some(error) = failure else { return Ok(()) };
    abort(world, prepared);
    Err(error)
}

/// Has nodes forget what they have prepared.
pub fn abort(world: &World, nodes: impl IntoIterator<Item = NodeId>) {
    for node in nodes {
        if prepares(world, node) {
            world.send(node, NodeOrder::PermissionsAbort);
        }
    }
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
pub fn commit_edges(
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
pub fn commit_node(world: &World, node: NodeId, granted: Granted) -> Option<Granted> {
    world.with(|state| {
        let entry = state.graph.node_mut(node)?;
        let before = std::mem::replace(&mut entry.granted, granted);
        if entry.kind.prepares_permissions() {
            state.send(node, NodeOrder::PermissionsCommit);
        }
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
    let mut refused = HashSet::new();
    for (node, answer) in asked {
        if let Err(error) = answer.done().await {
            tracing::warn!(%error, %node, "a node could not take its old permissions back");
            refused.insert(node);
        }
    }
    for (node, granted) in nodes.into_iter().filter(|(node, _)| !refused.contains(node)) {
        commit_node(world, node, granted);
    }
}

/// Puts permissions back that no node was told of.
pub fn forget(
    world: &World,
    edges: HashMap<EdgeId, (Permissions, Permissions)>,
    nodes: Vec<(NodeId, Granted)>,
) {
    commit_edges(world, edges);
    replace_granted(world, nodes);
}

/// Lets nodes grant something else in the graph's value; answers what they granted before.
pub fn replace_granted(world: &World, nodes: Vec<(NodeId, Granted)>) -> Vec<(NodeId, Granted)> {
    world.graph(|graph| {
        let before = nodes.into_iter().filter_map(|(id, granted)| {
            let node = graph.node_mut(id)?;
            Some((id, std::mem::replace(&mut node.granted, granted)))
        });
        before.collect()
    })
}
