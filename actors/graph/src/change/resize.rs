//! Changes of a node's length: `block_resize`, and the same with all that can be said about how.

use millpond_messages::graph::{Resize, Truncate};
use millpond_messages::io::Preallocation;
use millpond_messages::{
    Error, ErrorKind, NodeId, OpBlocker, Permissions, RequestFlags, Result, check_length,
};

use crate::change::roots;
use crate::order::NodeTask;
use crate::transaction::{self, Change, Transaction};
use crate::value::forbidden;
use crate::value::graph::Direction;
use crate::world::World;

/// Changes a node's length, with all that is not said left out.
///
/// # Errors
/// As for [`truncate`].
pub async fn resize(world: &World, request: Resize) -> Result<()> {
    let truncate_to = Truncate {
        node_name: request.node_name,
        size: request.size,
        exact: false,
        preallocation: Preallocation::default(),
        flags: RequestFlags::default(),
    };
    truncate(world, truncate_to).await
}

/// Changes a node's length.
///
/// # Errors
/// There is no such node, a user relies on its length, a flag means nothing here, or the driver's.
pub async fn truncate(world: &World, request: Truncate) -> Result<()> {
    if !RequestFlags::ZERO_WRITE.contains(request.flags) {
        let text = format!(
            "A change of length takes no flags but ZERO_WRITE, not {:?}",
            request.flags
        );
        return Err(Error::new(ErrorKind::InvalidArgument, text));
    }
    let node = world.graph(|graph| {
        let node = graph.look_up("", &request.node_name)?.id;
        forbidden::check(graph, node, OpBlocker::Resize)?;
        Ok::<NodeId, Error>(node)
    })?;
    transaction::run(world, "block_resize", NewLength { node, request }).await
}

/// A node whose length is changed under a hold, in a drained section: both end with it.
struct NewLength {
    node: NodeId,
    request: Truncate,
}

impl Change for NewLength {
    type Answer = ();

    const LASTS: bool = false;

    async fn prepare(&mut self, transaction: &mut Transaction) -> Result<()> {
        let (node, request) = (self.node, &self.request);
        let world = transaction.world.clone();
        let hold = roots::hold(&request.node_name, "block_resize", Permissions::RESIZE);
        let root = roots::link_root(transaction, node, &hold);
        roots::take(transaction, node, root, hold.permissions, hold.shared).await?;
        check_length(request.size)?;
        transaction.drain([node], "block_resize").await;
        let order = NodeTask::Truncate {
            size: request.size,
            exact: request.exact,
            preallocation: request.preallocation,
            flags: request.flags,
        };
        world.ask(node, order).done().await?;
        refresh_sizes(&world, node).await;
        Ok(())
    }

    async fn finish(self, _: &World) {}
}

/// Learns the length again of a node, and of those whose length is that of a child.
pub async fn refresh_sizes(world: &World, node: NodeId) {
    let above = world.graph(|graph| graph.closure([node], Direction::Up));
    for node in above {
        if let millpond_engine::node::OrderOutcome::Described(Ok(now)) =
            world.ask(node, NodeTask::Describe).await
        {
            world.graph(|graph| {
                if let Some(facts) = graph.node_mut(node).and_then(|node| node.facts.as_mut()) {
                    facts.size = now.facts.size;
                }
            });
        }
    }
}
