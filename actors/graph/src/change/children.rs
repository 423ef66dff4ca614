//! `x-blockdev-change`: numbered children that come to and leave an open node.

use millpond_drivers::api::{ChildChange, slot_name};
use millpond_messages::{ChildSlot, Error, ErrorKind, NodeId, Result};

use crate::change::delete;
use crate::change::exchange::Exchange;
use crate::transaction::{Transaction, together};
use crate::value::edge::Parent;
use crate::value::graph::Graph;
use crate::value::home::Joint;
use crate::value::node::Node;
use crate::value::refusal::Refusal;
use crate::world::World;

/// The user in whose name children are changed.
const USER: &str = "x-blockdev-change";

/// Makes `child` the last numbered child of `parent`.
///
/// # Errors
/// The parent takes no more children, or not this one; then nothing has changed.
pub async fn add_child(world: &World, parent: &str, child: &str) -> Result<()> {
    let (parent, slot, child) = world.graph(|graph| check_add(graph, parent, child))?;
    let mut transaction = Transaction::new(world);
    match add(&mut transaction, parent, slot, child).await {
        Ok(()) => {
            transaction.commit();
            Ok(())
        }
        Err(error) => {
            transaction.roll_back().await;
            Err(error)
        }
    }
}

fn check_add(graph: &Graph, parent: &str, child: &str) -> Result<(NodeId, ChildSlot, NodeId)> {
    let node = graph.look_up(parent, parent)?;
    let child = graph
        .named(child)
        .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("Node '{child}' not found")))?;
    check_support(node, "adding")?;
    if !child.parents.is_empty() {
        return Err(Error::new(
            ErrorKind::InUse,
            format!("The node {} already has a parent", child.name),
        ));
    }
    node.kind
        .check_change(ChildChange::Add, &node.options, node.numbered().count())?;
    let slot = next_slot(node)?;
    if graph.reaches(child.id, node.id) {
        let edge = slot_name(node.kind.as_ref(), slot).unwrap_or_default();
        return Err(Refusal::cycle(&child.name, &edge, &node.name).into());
    }
    Ok((node.id, slot, child.id))
}

/// The slot of the next numbered child. Numbers of children that have left in the middle are not used again.
fn next_slot(node: &Node) -> Result<ChildSlot> {
    let declared = ChildSlot::at(node.kind.children().len());
    declared
        .and_then(|first| first.0.checked_add(node.next_numbered).map(ChildSlot))
        .filter(|_| node.next_numbered < u32::MAX)
        .ok_or_else(|| Error::new(ErrorKind::InvalidArgument, "Too many children"))
}

fn check_support(node: &Node, what: &str) -> Result<()> {
    if node.kind.numbered().is_some() {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Unsupported,
        format!("The node {} does not support {what} a child", node.name),
    ))
}

async fn add(transaction: &mut Transaction, parent: NodeId, slot: ChildSlot, child: NodeId) -> Result<()> {
    let world = transaction.world.clone();
    transaction.drain([parent, child], USER).await;
    together::follow(transaction, [Joint::Nodes(parent, child)]).await?;
    world.may_link(parent, child).await;
    let (name, role, next) = world.graph(|graph| {
        let node = graph.expect(parent)?;
        let name = slot_name(node.kind.as_ref(), slot).unwrap_or_default();
        let role = node.kind.child_role(slot, &node.options);
        Ok::<_, Error>((name, role, node.next_numbered.saturating_add(1)))
    })?;
    let mut exchange = Exchange::default();
    world.graph(|graph| exchange.note(graph, parent, slot, Some(child)));
    exchange.leave(transaction).await?;
    transaction.link(Parent::Node(parent, slot), child, name, role);
    transaction.number(parent, next);
    transaction.update_permissions([parent]).await?;
    exchange.connect(transaction).await?;
    exchange.enter(transaction).await
}

/// Takes the numbered child called `child` from `parent`. A node that nobody holds any more is closed.
///
/// # Errors
/// The parent has no such child, or needs it; then nothing has changed.
pub async fn del_child(world: &World, parent: &str, child: &str) -> Result<()> {
    let (parent, slot, child) = world.graph(|graph| check_del(graph, parent, child))?;
    let mut transaction = Transaction::new(world);
    match del(&mut transaction, parent, slot, child).await {
        Ok(()) => {
            transaction.commit();
            delete::release(world, [child]).await;
            Ok(())
        }
        Err(error) => {
            transaction.roll_back().await;
            Err(error)
        }
    }
}

fn check_del(graph: &Graph, parent: &str, child: &str) -> Result<(NodeId, ChildSlot, NodeId)> {
    let node = graph.look_up(parent, parent)?;
    let slot = node.slot(child);
    let found = slot.and_then(|slot| Some((slot, graph.child_node(node.id, slot)?)));
    let (slot, child) = found.ok_or_else(|| Error::from(Refusal::no_child(parent, child)))?;
    check_support(node, "removing")?;
    if slot.index() < node.kind.children().len() {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!("The node {} needs this child", node.name),
        ));
    }
    node.kind
        .check_change(ChildChange::Remove, &node.options, node.numbered().count())?;
    Ok((node.id, slot, child))
}

async fn del(transaction: &mut Transaction, parent: NodeId, slot: ChildSlot, child: NodeId) -> Result<()> {
    let world = transaction.world.clone();
    transaction.drain([parent, child], USER).await;
    let (edge, next) = world.graph(|graph| {
        let node = graph.expect(parent)?;
        let number = slot.index().saturating_sub(node.kind.children().len());
        let is_last =
            u32::try_from(number).is_ok_and(|number| number.saturating_add(1) == node.next_numbered);
        let next = node.next_numbered.saturating_sub(u32::from(is_last));
        Ok::<_, Error>((node.child(slot), next))
    })?;
    let mut exchange = Exchange::default();
    world.graph(|graph| exchange.note(graph, parent, slot, None));
    exchange.leave(transaction).await?;
    if let Some(edge) = edge {
        transaction.unlink(edge);
    }
    transaction.number(parent, next);
    transaction.update_permissions([parent, child]).await?;
    exchange.connect(transaction).await?;
    exchange.enter(transaction).await
}
