//! Facts about the device behind a node, which a guest's device may want to repeat.

use std::collections::HashSet;

use millpond_engine::node::{DeviceFacts, OrderOutcome};
use millpond_messages::graph::{ChangeMedium, GraphReply, SendScsi};
use millpond_messages::{DriverInfo, Error, ErrorKind, IoError, NodeId, Result};

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
    let found = describe_device(world, name, |_| true).await?;
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
    let speaker = world.graph(|graph| graph.find(name).map(|node| speaker(graph, node)))?;
    let info = info_of(world, speaker).await;
    info.map(GraphReply::DriverInfo).ok_or_else(|| {
        let text = format!("The driver of node '{name}' tells nothing of its image");
        Error::new(ErrorKind::Unsupported, text)
    })
}

/// Whether a node's driver has no image that it could tell anything of.
pub fn says_nothing(node: &Node) -> bool {
    matches!(node.kind.name(), "nbd" | "null-co" | "null-aio" | "quorum")
}

/// The disk's geometry. A window on a disk has another.
///
/// # Errors
/// There is no such node, or no disk that has one.
pub async fn geometry(world: &World, name: &str) -> Reply {
    let found = describe_device(world, name, is_whole).await?;
    found
        .and_then(|found| found.geometry)
        .map(GraphReply::Geometry)
        .ok_or_else(|| none(name, "geometry"))
}

/// Whether a medium is there: in the node's device, or else in those of all its children.
///
/// # Errors
/// There is no such node.
pub async fn is_inserted(world: &World, name: &str) -> Reply {
    let mut open = vec![world.graph(|graph| graph.find(name).map(|node| node.id))?];
    let mut seen = HashSet::new();
    while let Some(id) = open.pop() {
        if !seen.insert(id) {
            continue;
        }
        let OrderOutcome::Device(Ok(found)) = world.ask(id, NodeTask::DescribeDevice).await else {
            return Ok(GraphReply::Truth(false));
        };
        match found.inserted {
            Some(false) => return Ok(GraphReply::Truth(false)),
            Some(true) => {}
            None => world.graph(|graph| open.extend(graph.children_of(id).map(|edge| edge.child))),
        }
    }
    Ok(GraphReply::Truth(true))
}

/// Has the device behind a node do something to its medium.
///
/// # Errors
/// There is no such node, or the device's.
pub async fn change_medium(world: &World, request: ChangeMedium) -> Reply {
    let device = find_below(world, &request.node_name, |_| true)?;
    if let Some(device) = device {
        world
            .ask(device, NodeTask::ChangeMedium(request.order))
            .done()
            .await?;
    }
    Ok(GraphReply::Done)
}

/// Whether the device behind a node takes SCSI commands and nothing else.
///
/// # Errors
/// There is no such node.
pub async fn is_scsi_generic(world: &World, name: &str) -> Reply {
    let found = describe_device(world, name, |_| true).await?;
    Ok(GraphReply::Truth(
        found.is_some_and(|found| found.is_scsi_generic),
    ))
}

/// Sends a SCSI command to the device that a node is.
///
/// # Errors
/// There is no such node, it is no such device, or the device's.
pub async fn send_scsi(world: &World, request: SendScsi) -> Reply {
    let told = |error| Error::io("The command could not be sent", error);
    // A filter may be there to see or to hold up what passes: nothing goes by it.
    let shows_device = |node: &Node| node.kind.name() == "raw" && is_whole(node);
    let device = find_below(world, &request.node_name, shows_device)?;
    let device = device.ok_or_else(|| told(IoError::NotSupported))?;
    match world
        .ask(device, NodeTask::SendScsi(Box::new(request.command)))
        .await
    {
        OrderOutcome::Scsi(answer) => answer.map(GraphReply::Scsi).map_err(told),
        OrderOutcome::Done(Err(error)) => Err(error),
        _ => Err(Error::new(ErrorKind::Closed, "The iothread gave no answer")),
    }
}

/// Whether a node shows all of what is below it, where its driver could show a part.
fn is_whole(node: &Node) -> bool {
    !["offset", "size"]
        .iter()
        .any(|name| node.options.contains_key(*name))
}

fn find_below(world: &World, name: &str, may_pass: impl Fn(&Node) -> bool) -> Result<Option<NodeId>> {
    world.graph(|graph| graph.find(name).map(|node| below(graph, node, may_pass)))
}

fn none(name: &str, what: &str) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        format!("There is no device behind node '{name}' that tells its {what}"),
    )
}

/// The bytes of a cluster as [`driver_info`] tells them of a node, live or not; 0 where nothing tells.
pub async fn cluster_size(world: &World, node: NodeId) -> u64 {
    let speaker = world.graph(|graph| speaker(graph, graph.node(node)?));
    info_of(world, speaker).await.map_or(0, |info| info.cluster_size)
}

/// The node whose driver tells of the image that a node shows, if it has one.
fn speaker(graph: &Graph, node: &Node) -> Option<NodeId> {
    let speaker = graph.node(below(graph, node, |_| true)?)?;
    (!says_nothing(speaker)).then_some(speaker.id)
}

async fn info_of(world: &World, speaker: Option<NodeId>) -> Option<DriverInfo> {
    match world.ask(speaker?, NodeTask::Describe).await {
        OrderOutcome::Described(Ok(found)) => Some(found.info),
        _ => None,
    }
}

async fn describe_device(
    world: &World,
    name: &str,
    may_pass: impl Fn(&Node) -> bool,
) -> Result<Option<DeviceFacts>> {
    let Some(device) = find_below(world, name, may_pass)? else {
        return Ok(None);
    };
    match world.ask(device, NodeTask::DescribeDevice).await {
        OrderOutcome::Device(found) => Ok(found.ok()),
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
