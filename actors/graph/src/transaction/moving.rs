//! Nodes that are still go to another iothread.

use std::collections::BTreeSet;

use millpond_messages::{ChildSlot, IoThreadId, NodeId, Result};

use crate::order::Wiring;
use crate::value::edge::Parent;
use crate::world::World;

/// Moves nodes that are still, and joins the edges again once all have arrived.
///
/// # Errors
/// An iothread is gone.
pub async fn move_still(world: &World, nodes: &[NodeId], to: IoThreadId) -> Result<()> {
    let mut departures = Vec::new();
    for node in nodes {
        departures.push((*node, world.ask(*node, Wiring::Depart { node: *node, to })));
        // What is sent to it from here on must reach it where it arrives.
        world.graph(|graph| {
            if let Some(node) = graph.node_mut(*node) {
                node.moving = true;
            }
        });
    }
    let mut result = Ok(());
    for (node, departure) in departures {
        let arrived = departure.done().await;
        world.with(|state| {
            if arrived.is_ok() {
                state.graph.set_home(node, to);
            }
            state.arrived(node);
        });
        result = result.and(arrived);
    }
    join_again(world, nodes).await;
    result
}

/// Connects every edge that begins or ends at one of `nodes`.
async fn join_again(world: &World, nodes: &[NodeId]) {
    let edges: BTreeSet<(NodeId, ChildSlot)> = world.graph(|graph| {
        let mut edges = BTreeSet::new();
        for node in nodes {
            for edge in graph.children_of(*node).chain(graph.parents_of(*node)) {
                if let Parent::Node(parent, slot) = edge.parent {
                    edges.insert((parent, slot));
                }
            }
        }
        edges
    });
    let connections: Vec<_> = edges
        .into_iter()
        .map(|(parent, slot)| {
            let target = world.with(|state| {
                state
                    .graph
                    .child_node(parent, slot)
                    .and_then(|child| state.address(child))
            });
            world.ask(parent, Wiring::Connect { parent, slot, target })
        })
        .collect();
    for connection in connections {
        if let Err(error) = connection.done().await {
            tracing::error!(%error, "an edge could not be joined again after a move");
        }
    }
}
