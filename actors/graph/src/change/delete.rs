//! Taking nodes away: `blockdev-del`, and the nodes that go with their last parent.
//!
//! None of this is a `Change`: a node that was closed, or a file that was deleted, does not come back.

use millpond_messages::graph::RootUser;
use millpond_messages::{Error, ErrorKind, NodeId, OpBlocker, Result};

use crate::order::NodeTask;
use crate::sections::{Cover, Section};
use crate::transaction::{Transaction, nodes};
use crate::value::edge::{Edge, Root};
use crate::value::{chain, forbidden};
use crate::world::World;

/// Closes a node that its user added: `blockdev-del`.
///
/// # Errors
/// There is no such node, it is in use, or no user added it.
pub async fn delete_node(world: &World, name: &str) -> Result<()> {
    let node = world.graph(|graph| {
        let node = graph.find(name)?;
        let in_use = || Error::new(ErrorKind::InUse, format!("Node {name} is in use"));
        // Of a node that a job keeps it is told which job that is.
        let is_of_job = |root: &Root| matches!(root.user, RootUser::Job(_));
        let mut roots = graph.roots_of(node.id);
        if roots.any(|root| !graph.root(root).is_some_and(is_of_job)) {
            return Err(in_use());
        }
        forbidden::check(graph, node.id, OpBlocker::DriveDel)?;
        if graph.roots_of(node.id).next().is_some() {
            return Err(in_use());
        }
        if !node.owned {
            let text = format!("Node {name} is not owned by the monitor");
            return Err(Error::new(ErrorKind::InvalidArgument, text));
        }
        if !node.parents.is_empty() {
            return Err(Error::new(
                ErrorKind::InUse,
                format!("Block device {name} is in use"),
            ));
        }
        graph
            .children_of(node.id)
            .filter(|edge| !graph.is_frozen_by(edge, node.id))
            .try_for_each(|edge| chain::check_unfrozen(graph, edge))?;
        Ok(node.id)
    })?;
    world.graph(|graph| {
        if let Some(node) = graph.node_mut(node) {
            node.owned = false;
        }
    });
    release(world, [node]).await;
    Ok(())
}

/// Deletes the file that a node keeps its data in. The node stays open.
///
/// # Errors
/// There is no such node, or its driver's.
pub async fn delete_file(world: &World, name: &str) -> Result<()> {
    let node = world.graph(|graph| graph.look_up("", name).map(|node| node.id))?;
    world.ask(node, NodeTask::DeleteFile).done().await
}

/// Closes those of `nodes` that nobody holds any more, and what then nobody holds below them.
pub async fn release(world: &World, nodes: impl IntoIterator<Item = NodeId>) {
    let mut open: Vec<NodeId> = nodes.into_iter().collect();
    while let Some(id) = open.pop() {
        if take_unused(world, id) {
            // A root edge may have ended before its last requests have. The node is told to be quiet and to close in one go,
            // and closes when it is quiet, unless there is something that it cannot be told before.
            let token = world.begin_drain(Cover::Nodes(vec![id]), "close");
            if !world.with(|state| state.sections.get(token).is_none_or(Section::is_asked)) {
                world.until_still(token).await;
            }
            let children = close(world, id).await;
            world.undrain(token);
            refresh(world, &children).await;
            open.extend(children);
        }
    }
}

/// The same where everything is closed, in a section that covers everything and is still: no node is drained by itself, and
/// what is about to be closed too gives nothing up before that. A node takes one step, whatever is above and below it.
pub async fn release_all(world: &World, nodes: impl IntoIterator<Item = NodeId>) {
    let mut open: Vec<NodeId> = nodes.into_iter().collect();
    while let Some(id) = open.pop() {
        if take_unused(world, id) {
            open.extend(close(world, id).await);
        }
    }
}

/// Whether nobody holds a node any more. From then on nobody finds it.
fn take_unused(world: &World, id: NodeId) -> bool {
    world.with(|state| {
        let node = state.graph.node(id);
        let unused = node.is_some_and(|node| !node.owned && node.parents.is_empty());
        if unused {
            state.hide(id);
        }
        unused
    })
}

/// Closes a node without parents, which is still; answers what was below it.
async fn close(world: &World, id: NodeId) -> Vec<NodeId> {
    let edges: Vec<Edge> = world.graph(|graph| graph.children_of(id).cloned().collect());
    // The driver writes back to its children as it closes, so the edges end with it and not before.
    nodes::close_cell(world, id).await;
    world.with(|state| {
        for edge in &edges {
            state.graph.unlink(edge.id);
        }
    });
    nodes::forget_node(world, id);
    edges.into_iter().map(|edge| edge.child).collect()
}

/// Gives up what children no longer need to grant.
pub async fn refresh(world: &World, nodes: &[NodeId]) {
    // Each by itself: one that refuses must not keep the others from giving up.
    for node in nodes {
        let mut transaction = Transaction::new(world);
        if let Err(error) = transaction.update_permissions([*node]).await {
            // Taking less cannot conflict; a driver that refuses keeps a lock longer than it must.
            tracing::warn!(%error, "permissions could not be given up");
        }
        transaction.commit();
    }
}
