//! Breakpoints: requests held at named events of a node that observes them, and let go again.
//!
//! These are answered beside whatever mutation is under way: one that drains may wait for the very request that is held.

use millpond_drivers::api::DebugEvents;
use millpond_engine::node::OrderOutcome;
use millpond_messages::graph::{DebugNode, GraphReply, IsSuspended};
use millpond_messages::{DebugOrder, Error, ErrorKind, NodeId, Result, Role};

use crate::effect::Reply;
use crate::order::NodeOrder;
use crate::value::graph::Graph;
use crate::world::World;

/// Carries an order out at the first node that observes debug events, from the one named down over primary children.
///
/// # Errors
/// There is no such node, no node below it observes events, or there is no such event or tag.
pub async fn debug(world: &World, request: DebugNode) -> Reply {
    let DebugNode { node_name, order } = request;
    let Some(node) = find_observer(world, &node_name)? else {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!("Node '{node_name}' has no node below it that can hold requests"),
        ));
    };
    ask(world, node, order).await.map(|_| GraphReply::Done)
}

/// Whether a request is held under a tag. Where no node observes events none is.
///
/// # Errors
/// There is no such node.
pub async fn is_suspended(world: &World, request: IsSuspended) -> Reply {
    let IsSuspended { node_name, tag } = request;
    let held = match find_observer(world, &node_name)? {
        Some(node) => ask(world, node, DebugOrder::IsSuspended { tag }).await?,
        None => false,
    };
    Ok(GraphReply::Truth(held))
}

async fn ask(world: &World, node: NodeId, order: DebugOrder) -> Result<bool> {
    match world.ask(node, NodeOrder::Debug { order }).await {
        OrderOutcome::Debugged(held) => held,
        OrderOutcome::Done(Err(error)) => Err(error),
        _ => Err(Error::new(ErrorKind::Closed, "The iothread gave no answer")),
    }
}

fn find_observer(world: &World, node_name: &str) -> Result<Option<NodeId>> {
    world.graph(|graph| Ok(observer(graph, graph.find(node_name)?.id)))
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
