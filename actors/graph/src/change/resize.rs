//! Changes of a node's length: `block_resize`, and the same with all that can be said about how.

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

/// How a length is changed.
#[derive(Debug, Clone, Copy, Default)]
pub struct How {
    /// Fail rather than end up longer.
    pub exact: bool,
    /// How the new space is laid out.
    pub preallocation: Preallocation,
    /// ZERO_WRITE, or no flag at all.
    pub flags: RequestFlags,
}

/// Changes a node's length.
///
/// # Errors
/// There is no such node, a user relies on its length, a flag means nothing here, or the driver's.
pub async fn resize(world: &World, name: &str, size: u64, how: How) -> Result<()> {
    if !RequestFlags::ZERO_WRITE.contains(how.flags) {
        let text = format!(
            "A change of length takes no flags but ZERO_WRITE, not {:?}",
            how.flags
        );
        return Err(Error::new(ErrorKind::InvalidArgument, text));
    }
    let node = world.graph(|graph| {
        let node = graph.look_up("", name)?.id;
        forbidden::check(graph, node, OpBlocker::Resize)?;
        Ok::<NodeId, Error>(node)
    })?;
    let name = name.to_owned();
    let change = NewLength {
        node,
        name,
        size,
        how,
    };
    transaction::run(world, "block_resize", change).await
}

/// A node whose length is changed under a hold, in a drained section: both end with it.
struct NewLength {
    node: NodeId,
    name: String,
    size: u64,
    how: How,
}

impl Change for NewLength {
    type Answer = ();

    const LASTS: bool = false;

    async fn prepare(&mut self, transaction: &mut Transaction) -> Result<()> {
        let Self { node, size, how, .. } = *self;
        let world = transaction.world.clone();
        let request = roots::hold(&self.name, "block_resize", Permissions::RESIZE);
        let root = roots::link_root(transaction, node, &request);
        roots::take(transaction, node, root, request.permissions, request.shared).await?;
        check_length(size)?;
        transaction.drain([node], "block_resize").await;
        let order = NodeTask::Truncate {
            size,
            exact: how.exact,
            preallocation: how.preallocation,
            flags: how.flags,
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
