//! Facts about the device behind a node, which a guest's device may want to repeat.

use millpond_engine::node::{Description, OrderOutcome};
use millpond_messages::graph::GraphReply;
use millpond_messages::{Error, ErrorKind, NodeId, Result};

use crate::effect::Reply;
use crate::order::NodeTask;
use crate::value::graph::Graph;
use crate::value::node::Node;
use crate::world::World;

/// The sizes of the device's sectors.
///
/// # Errors
/// There is no such node, or no device that tells.
pub async fn block_sizes(world: &World, name: &str) -> Reply {
    let found = describe(world, name, |_| true).await?;
    found
        .and_then(|found| found.block_sizes)
        .map(GraphReply::BlockSizes)
        .ok_or_else(|| none(name, "block sizes"))
}

/// What the format of an image says of it. Raw images and filters have nothing to say of their own.
///
/// # Errors
/// There is no such node, or its driver knows nothing of the kind.
pub async fn driver_info(world: &World, name: &str) -> Reply {
    let says_nothing = world.graph(|graph| {
        let speaker = below(graph, graph.find(name)?, |_| true).and_then(|speaker| graph.node(speaker));
        Ok::<_, Error>(speaker.is_none_or(says_nothing))
    })?;
    let found = match says_nothing {
        true => None,
        false => describe(world, name, |_| true).await?,
    };
    found
        .map(|found| GraphReply::DriverInfo(found.info))
        .ok_or_else(|| {
            let text = format!("The driver of node '{name}' tells nothing of its image");
            Error::new(ErrorKind::Unsupported, text)
        })
}

/// Whether a node's driver has no image that it could tell anything of.
pub fn says_nothing(node: &Node) -> bool {
    matches!(node.kind.name(), "null-co" | "null-aio" | "quorum")
}

/// The disk's geometry. A window on a disk has another.
///
/// # Errors
/// There is no such node, or no disk that has one.
pub async fn geometry(world: &World, name: &str) -> Reply {
    let is_whole = |node: &Node| {
        !["offset", "size"]
            .iter()
            .any(|name| node.options.contains_key(*name))
    };
    let found = describe(world, name, is_whole).await?;
    found
        .and_then(|found| found.geometry)
        .map(GraphReply::Geometry)
        .ok_or_else(|| none(name, "geometry"))
}

fn none(name: &str, what: &str) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        format!("There is no device behind node '{name}' that tells its {what}"),
    )
}

/// The bytes of a cluster as [`driver_info`] tells them of a node, live or not; 0 where nothing tells.
pub async fn cluster_size(world: &World, node: NodeId) -> u64 {
    let speaker = world.graph(|graph| {
        let speaker = below(graph, graph.node(node)?, |_| true).and_then(|speaker| graph.node(speaker))?;
        (!says_nothing(speaker)).then_some(speaker.id)
    });
    let Some(speaker) = speaker else { return 0 };
    match world.ask(speaker, NodeTask::Describe).await {
        OrderOutcome::Described(Ok(found)) => found.info.cluster_size,
        _ => 0,
    }
}

async fn describe(
    world: &World,
    name: &str,
    may_pass: impl Fn(&Node) -> bool,
) -> Result<Option<Box<Description>>> {
    let device = world.graph(|graph| graph.find(name).map(|node| below(graph, node, may_pass)))?;
    let Some(device) = device else { return Ok(None) };
    match world.ask(device, NodeTask::Describe).await {
        OrderOutcome::Described(found) => Ok(found.ok()),
        _ => Ok(None),
    }
}

/// What a node shows as it is: the end of the raw images and filters below it.
fn below(graph: &Graph, node: &Node, may_pass: impl Fn(&Node) -> bool) -> Option<NodeId> {
    let mut at = node;
    loop {
        if !(at.kind.is_filter() || at.kind.name() == "raw") {
            return Some(at.id);
        }
        let edge = graph.children_of(at.id).next().filter(|_| may_pass(at))?;
        at = graph.node(edge.child)?;
    }
}
