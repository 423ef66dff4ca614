//! `x-blockdev-change`: numbered children that come to and leave an open node.

use millpond_drivers::api::{ChildChange, slot_name};
use millpond_messages::graph;
use millpond_messages::{ChildSlot, Error, ErrorKind, NodeId, Result};

use crate::change::delete;
use crate::sections::Cover;
use crate::state::PolicyState;
use crate::transaction::exchange::Exchange;
use crate::transaction::{Change, Transaction, together};
use crate::value::edge::Parent;
use crate::value::graph::Graph;
use crate::value::home::Joint;
use crate::value::node::Node;
use crate::value::refusal::Refusal;
use crate::world::World;

/// The user in whose name children are changed.
pub const USER: &str = "x-blockdev-change";

/// An edge of a parent to a numbered child.
#[derive(Debug, Clone, Copy)]
struct Numbered {
    parent: NodeId,
    slot: ChildSlot,
    child: NodeId,
}

impl Numbered {
    fn cover(found: Option<Self>) -> Cover {
        let nodes = found.map(|found| vec![found.parent, found.child]);
        Cover::Nodes(nodes.unwrap_or_default())
    }
}

/// A node that becomes the last numbered child of another.
pub struct AddChild {
    parent: String,
    child: String,
    found: Option<Numbered>,
}

impl From<graph::AddChild> for AddChild {
    fn from(request: graph::AddChild) -> Self {
        Self {
            parent: request.parent,
            child: request.node,
            found: None,
        }
    }
}

impl Change for AddChild {
    type Answer = ();

    fn check(&mut self, state: &PolicyState) -> Result<()> {
        self.found = Some(check_add(&state.graph, &self.parent, &self.child)?);
        Ok(())
    }

    fn cover(&self, _: &Graph) -> Cover {
        Numbered::cover(self.found)
    }

    async fn prepare(&mut self, transaction: &mut Transaction) -> Result<()> {
        match self.found {
            Some(found) => add(transaction, found).await,
            None => Ok(()),
        }
    }

    async fn finish(self, _: &World) {}
}

fn check_add(graph: &Graph, parent: &str, child: &str) -> Result<Numbered> {
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
    Ok(Numbered {
        parent: node.id,
        slot,
        child: child.id,
    })
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

async fn add(transaction: &mut Transaction, found: Numbered) -> Result<()> {
    let Numbered { parent, slot, child } = found;
    let world = transaction.world.clone();
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
    transaction.plan_permissions([parent])?;
    exchange.connect_later(transaction);
    transaction.enter(exchange).await
}

/// A numbered child that is taken from its parent, and closed if nobody holds it any more.
pub struct DelChild {
    parent: String,
    child: String,
    found: Option<Numbered>,
}

impl From<graph::DelChild> for DelChild {
    fn from(request: graph::DelChild) -> Self {
        Self {
            parent: request.parent,
            child: request.child,
            found: None,
        }
    }
}

impl Change for DelChild {
    type Answer = ();

    fn check(&mut self, state: &PolicyState) -> Result<()> {
        self.found = Some(check_del(&state.graph, &self.parent, &self.child)?);
        Ok(())
    }

    fn cover(&self, _: &Graph) -> Cover {
        Numbered::cover(self.found)
    }

    async fn prepare(&mut self, transaction: &mut Transaction) -> Result<()> {
        match self.found {
            Some(found) => del(transaction, found).await,
            None => Ok(()),
        }
    }

    async fn finish(self, world: &World) {
        delete::release(world, self.found.map(|found| found.child)).await;
    }
}

fn check_del(graph: &Graph, parent: &str, child: &str) -> Result<Numbered> {
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
    Ok(Numbered {
        parent: node.id,
        slot,
        child,
    })
}

async fn del(transaction: &mut Transaction, found: Numbered) -> Result<()> {
    let Numbered { parent, slot, child } = found;
    let world = transaction.world.clone();
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
    transaction.plan_permissions([parent, child])?;
    exchange.connect_later(transaction);
    transaction.enter(exchange).await
}
