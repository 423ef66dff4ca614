//! Ending early what nodes have in flight.

use millpond_messages::graph::{CancelInFlight, GraphReply};
use millpond_messages::{Error, NodeId, Role};

use crate::effect::Reply;
use crate::order::NodeOrder;
use crate::value::graph::Graph;
use crate::value::node::Node;
use crate::world::World;

/// Ends early what a node, and those that it only passes requests on to, have in flight and can end.
///
/// # Errors
/// There is no such node.
pub async fn cancel_in_flight(world: &World, request: &CancelInFlight) -> Reply {
    let nodes = world.graph(|graph| {
        let node = graph.find(&request.node_name)?;
        Ok::<_, Error>(match request.alone {
            true => vec![node.id],
            false => passed_to(graph, node),
        })
    })?;
    let told: Vec<_> = nodes
        .into_iter()
        .map(|node| world.ask(node, NodeOrder::CancelInFlight))
        .collect();
    for answer in told {
        answer.done().await?;
    }
    Ok(GraphReply::Done)
}

/// A node, and as long as each passes requests on as they are, the one below it.
fn passed_to(graph: &Graph, top: &Node) -> Vec<NodeId> {
    let mut nodes = vec![top.id];
    let mut at = Some(top);
    while let Some(node) = at {
        // A window shows its file as it is, though not at the same offsets.
        let transparent = node.facts.as_ref().is_some_and(|open| open.abilities.transparent);
        let shown = graph.children_of(node.id).find(|edge| {
            edge.role.contains(Role::FILTERED) || (transparent && edge.role.contains(Role::PRIMARY))
        });
        at = shown.and_then(|edge| graph.node(edge.child));
        nodes.extend(at.map(|node| node.id));
    }
    nodes
}
