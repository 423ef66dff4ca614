//! Breakpoints: requests held at named events of a node that observes them, and let go again.
//!
//! These are answered beside whatever mutation is under way: one that drains may wait for the very request that is held.

use millpond_drivers::api::DebugEvents;
use millpond_engine::node::OrderOutcome;
use millpond_messages::graph::GraphReply;
use millpond_messages::{DebugOrder, Error, ErrorKind, NodeId, Role};

use crate::effect::Reply;
use crate::order::NodeOrder;
use crate::value::graph::Graph;
use crate::world::World;

/// Carries an order out at the first node that observes debug events, from the one named down over primary children.
///
/// # Errors
/// There is no such node, none observes events below it, or there is no such event or tag.
pub async fn debug(world: &World, node_name: &str, order: DebugOrder) -> Reply {
    let asks = matches!(order, DebugOrder::IsSuspended { .. });
    let observer = world.graph(|graph| {
        let node = graph.find(node_name)?.id;
        Ok::<_, Error>(observer(graph, node))
    })?;
    let Some(node) = observer else {
        if asks {
            return Ok(GraphReply::Suspended(false));
        }
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!("Node '{node_name}' has no node below it that can hold requests"),
        ));
    };
    let held = match world.ask(node, NodeOrder::Debug { order }).await {
        OrderOutcome::Debugged(held) => held?,
        OrderOutcome::Done(Err(error)) => return Err(error),
        _ => return Err(Error::new(ErrorKind::Closed, "The iothread gave no answer")),
    };
    Ok(if asks {
        GraphReply::Suspended(held)
    } else {
        GraphReply::Done
    })
}

fn observer(graph: &Graph, node: NodeId) -> Option<NodeId> {
    let mut at = node;
    loop {
        let observes =
            |facts: &millpond_engine::node::OpenFacts| facts.abilities.events == DebugEvents::Handle;
        if graph.node(at)?.facts.as_ref().is_some_and(observes) {
            return Some(at);
        }
        let mut children = graph.children_of(at);
        at = children.find(|edge| edge.role.contains(Role::PRIMARY))?.child;
    }
}
