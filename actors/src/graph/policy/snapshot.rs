//! `blockdev-snapshot`: an open overlay is put on top of a node, under all of that node's parents.

use messages::{ChildSlot, EdgeId, Error, ErrorKind, NodeId, OpBlocker, Result, RootId};

use super::drain::Cover;
use super::order::Order;
use super::transaction::Transaction;
use super::value::{Graph, Parent};
use super::world::World;
use super::{op_blockers, reopen};

/// Puts `overlay` on top of `node`.
///
/// # Errors
/// One of them cannot be part of that; then nothing has changed.
pub async fn blockdev_snapshot(world: &World, node: &str, overlay: &str) -> Result<()> {
    let (node, overlay, slot) = world.graph(|graph| check(graph, node, overlay))?;
    // One section around both steps, so that clients wait once.
    let token = world
        .drain(Cover::Nodes(vec![node, overlay]), "blockdev-snapshot")
        .await;
    let mut transaction = Transaction::new(world);
    let result = append(&mut transaction, node, overlay, slot).await;
    match &result {
        Ok(()) => {
            transaction.commit();
            // What is below an overlay is not written any more. It may stay writable where somebody still writes it.
            if let Err(error) = reopen::make_read_only(world, node).await {
                tracing::debug!(%error, "the node below the new overlay stays writable");
            }
        }
        Err(_) => transaction.roll_back().await,
    }
    world.undrain(token);
    result
}

fn check(graph: &Graph, node: &str, overlay: &str) -> Result<(NodeId, NodeId, ChildSlot)> {
    let refuse = |text: String| Err(Error::new(ErrorKind::InUse, text));
    let old = graph.look_up(node, node)?;
    op_blockers::check(graph, old.id, OpBlocker::ExternalSnapshot)?;
    let new = graph.look_up(overlay, overlay)?;
    if graph.roots_of(new.id).next().is_some() {
        return refuse("The overlay is already in use".to_owned());
    }
    let Some(slot) = new.slot("backing") else {
        return refuse("The overlay does not support backing images".to_owned());
    };
    if new.child(slot).is_some() {
        return refuse("The overlay already has a backing image".to_owned());
    }
    if graph.reaches(old.id, new.id) {
        return refuse(cycle(&old.name, "backing", &new.name));
    }
    Ok((old.id, new.id, slot))
}

/// The text for an edge that would close a circle.
pub fn cycle(child: &str, edge: &str, parent: &str) -> String {
    format!("Making '{child}' a {edge} child of '{parent}' would create a cycle")
}

async fn append(transaction: &mut Transaction, node: NodeId, overlay: NodeId, slot: ChildSlot) -> Result<()> {
    let world = transaction.world.clone();
    // The node's parents, but not those that the overlay itself stands on: they would close a circle.
    let moving: Vec<(EdgeId, Parent)> = world.graph(|graph| {
        let below = graph.closure([overlay], super::value::Direction::Down);
        let parents = graph.parents_of(node).filter(|edge| match edge.parent {
            Parent::Node(parent, _) => !below.contains(&parent),
            Parent::Root(_) => true,
        });
        parents.map(|edge| (edge.id, edge.parent)).collect()
    });
    let role = world.graph(|graph| {
        let child = graph.expect(overlay)?.kind.child(slot);
        Ok::<_, Error>(child.map_or(messages::Role::COW, |child| child.role))
    })?;
    world.may_link(overlay, node).await;
    transaction.link(Parent::Node(overlay, slot), node, "backing", role);
    for (edge, parent) in &moving {
        if let Parent::Node(parent, _) = parent {
            world.may_link(*parent, overlay).await;
        }
        transaction.redirect(*edge, overlay);
    }
    transaction.update_permissions([overlay, node]).await?;
    transaction.connect(overlay, slot, None).await?;
    for (_, parent) in moving {
        match parent {
            Parent::Node(parent, slot) => transaction.connect(parent, slot, Some(node)).await?,
            Parent::Root(root) => move_root(transaction, root, node, overlay).await?,
        }
    }
    Ok(())
}

async fn move_root(transaction: &mut Transaction, root: RootId, from: NodeId, to: NodeId) -> Result<()> {
    let world = transaction.world.clone();
    let Some(target) = world.with(|state| state.address(to)) else {
        return Err(Error::new(ErrorKind::NotFound, "The overlay is gone"));
    };
    // The edge's cell is where its old node is.
    world.ask(from, Order::MoveRoot { root, target }).done().await?;
    transaction.root_moved(root, from, to);
    Ok(())
}
