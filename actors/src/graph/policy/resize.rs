//! `block_resize`.

use messages::global_state::{RootRequest, RootUser};
use messages::io::Preallocation;
use messages::{Error, NodeId, OpBlocker, Permissions, Result, check_length};

use super::order::Order;
use super::transaction::Transaction;
use super::world::World;
use super::{op_blockers, roots};

/// Changes a node's length.
///
/// # Errors
/// There is no such node, a user relies on its length, or the driver's.
pub async fn block_resize(world: &World, name: &str, size: u64) -> Result<()> {
    let node = world.graph(|graph| {
        let node = graph.look_up("", name)?.id;
        op_blockers::check(graph, node, OpBlocker::Resize)?;
        Ok::<_, Error>(node)
    })?;
    let mut transaction = Transaction::new(world);
    let result = resize(&mut transaction, node, name, size).await;
    // The hold and the section end in either case.
    transaction.roll_back().await;
    result
}

async fn resize(transaction: &mut Transaction, node: NodeId, name: &str, size: u64) -> Result<()> {
    let world = transaction.world.clone();
    let request = hold(name, "block_resize", Permissions::RESIZE);
    let root = roots::link_root(transaction, node, &request);
    roots::take(transaction, node, root, request.permissions, request.shared).await?;
    check_length(size)?;
    transaction.drain([node], "block_resize").await;
    let order = Order::Truncate {
        node,
        size,
        exact: false,
        preallocation: Preallocation::Off,
    };
    world.ask(node, order).done().await?;
    refresh_sizes(&world, node).await;
    Ok(())
}

/// A hold that lasts as long as an operation.
pub fn hold(node: &str, operation: &str, permissions: Permissions) -> RootRequest {
    RootRequest {
        node: node.to_owned(),
        user: RootUser::Embedder(operation.to_owned()),
        permissions,
        shared: Permissions::all(),
        iothread: None,
        iothread_required: false,
        writethrough: false,
    }
}

/// Learns the length again of a node, and of those whose length is that of a child.
pub async fn refresh_sizes(world: &World, node: NodeId) {
    let above = world.graph(|graph| graph.closure([node], super::value::Direction::Up));
    for node in above {
        if let crate::node::OrderOutcome::Described(Ok(now)) = world.ask(node, Order::Describe(node)).await {
            world.graph(|graph| {
                if let Some(facts) = graph.node_mut(node).and_then(|node| node.facts.as_mut()) {
                    facts.size = now.facts.size;
                }
            });
        }
    }
}
