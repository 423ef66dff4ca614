//! A machine's state, which is kept beside a disk for its snapshots.

use millpond_engine::node::OrderOutcome;
use millpond_messages::graph::{GraphReply, LoadVmState, SaveVmState};
use millpond_messages::{Error, ErrorKind, IoError, NodeId, Result};

use crate::effect::Reply;
use crate::order::NodeTask;
use crate::value::chain;
use crate::world::World;

/// The most of a machine's state that is read at once.
const MOST_AT_ONCE: u64 = 32 << 20;

/// The node that keeps a machine's state for the node of this name.
fn keeper_of_state(world: &World, name: &str) -> Result<NodeId> {
    world.graph(|graph| {
        let node = graph.look_up("", name)?.id;
        let found = chain::keeper_of_snapshots(graph, node).map(|found| found.id);
        found.ok_or_else(|| Error::io("The machine's state cannot be kept", IoError::NotSupported))
    })
}

/// Stores a part of a machine's state beside a node's disk.
///
/// # Errors
/// There is no such node, it keeps none, or the driver's.
pub async fn save(world: &World, request: SaveVmState) -> Reply {
    let node = keeper_of_state(world, &request.node_name)?;
    let SaveVmState { offset, state, .. } = request;
    let order = NodeTask::SaveVmState { offset, state };
    world.ask(node, order).done().await.map(|()| GraphReply::Done)
}

/// Reads a part of the machine's state beside a node's disk.
///
/// # Errors
/// There is no such node, it keeps none, that is too much at once, or the driver's.
pub async fn load(world: &World, request: &LoadVmState) -> Reply {
    let node = keeper_of_state(world, &request.node_name)?;
    if request.len > MOST_AT_ONCE {
        let text = format!("At most {MOST_AT_ONCE} bytes of the machine's state are read at once");
        return Err(Error::new(ErrorKind::InvalidArgument, text));
    }
    let order = NodeTask::LoadVmState {
        offset: request.offset,
        len: request.len,
    };
    match world.ask(node, order).await {
        OrderOutcome::VmState(result) => result.map(GraphReply::Bytes),
        OrderOutcome::Done(Err(error)) => Err(error),
        _ => Err(Error::new(ErrorKind::Closed, "The iothread gave no answer")),
    }
}
