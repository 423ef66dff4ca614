//! Changes of a node's length: `block_resize`, and the same with all that can be said about how.

use millpond_messages::graph::{Resize, Truncate};
use millpond_messages::io::Preallocation;
use millpond_messages::{
    Error, ErrorKind, NodeId, OpBlocker, Permissions, RequestFlags, Result, RootId, check_length,
};

use crate::change::roots;
use crate::order::NodeTask;
use crate::state::PolicyState;
use crate::transaction::{Change, Transaction};
use crate::value::forbidden;
use crate::value::graph::Direction;
use crate::world::World;

/// A node whose length is changed under a hold, in a drained section: both end with it.
pub struct NewLength {
    request: Truncate,
    /// The user who asks, and has forbidden that to others.
    holder: Option<RootId>,
    node: Option<NodeId>,
}

impl NewLength {
    /// Changes the length of the node that a user holds.
    pub fn held(root: RootId, size: u64) -> Self {
        let node_name = String::new();
        Self {
            holder: Some(root),
            ..Self::from(Resize { node_name, size })
        }
    }
}

impl From<Truncate> for NewLength {
    fn from(request: Truncate) -> Self {
        let (holder, node) = (None, None);
        Self {
            request,
            holder,
            node,
        }
    }
}

impl From<Resize> for NewLength {
    fn from(Resize { node_name, size }: Resize) -> Self {
        Self::from(Truncate {
            node_name,
            size,
            exact: false,
            preallocation: Preallocation::default(),
            flags: RequestFlags::default(),
        })
    }
}

impl Change for NewLength {
    type Answer = ();

    const LASTS: bool = false;

    fn check(&mut self, state: &PolicyState) -> Result<()> {
        let Truncate { node_name, flags, .. } = &self.request;
        if !RequestFlags::ZERO_WRITE.contains(*flags) {
            let text = format!("A change of length takes no flags but ZERO_WRITE, not {flags:?}");
            return Err(Error::new(ErrorKind::InvalidArgument, text));
        }
        let node = match self.holder {
            Some(root) => state.graph.root_node(root)?,
            None => state.graph.look_up("", node_name)?.id,
        };
        if self.holder.is_none() {
            forbidden::check(&state.graph, node, OpBlocker::Resize)?;
        }
        self.node = Some(node);
        Ok(())
    }

    async fn prepare(&mut self, transaction: &mut Transaction) -> Result<()> {
        let (Some(node), request) = (self.node, &self.request) else {
            return Ok(());
        };
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
