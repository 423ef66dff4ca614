//! Children by name: a backing node or another child that a driver can do without is put behind a node, or taken away.

use millpond_messages::graph::{AttachChild, DetachChild, SetBacking};
use millpond_messages::{ChildSlot, Error, ErrorKind, NodeId, Result};

use crate::change::exchange::Exchange;
use crate::change::{delete, reopen};
use crate::sections::Cover;
use crate::transaction::{self, Change, Transaction, together};
use crate::value::chain;
use crate::value::graph::Graph;
use crate::value::home::Joint;
use crate::value::node::Node;
use crate::value::refusal::Refusal;
use crate::world::World;

/// What becomes of an edge. The node behind it is closed if nobody holds it any more.
#[derive(Debug, Clone, Copy)]
pub struct Relink {
    parent: NodeId,
    slot: ChildSlot,
    old: Option<NodeId>,
    new: Option<NodeId>,
}

/// Puts a node behind another as its backing node, or leaves it without. The image's header stays as it is.
///
/// # Errors
/// There are no such nodes, the driver has no backing nodes, the link is frozen, it would close a circle, or permissions;
/// then nothing has changed.
pub async fn set_backing(world: &World, request: &SetBacking) -> Result<()> {
    let relink = world.graph(|graph| {
        let node = graph.find(&request.node_name)?;
        let slot = node.slot("backing").ok_or_else(|| {
            let text = format!(
                "Driver '{}' of node '{}' does not support backing files",
                node.kind.name(),
                node.name
            );
            Error::new(ErrorKind::Unsupported, text)
        })?;
        let new = request.backing.as_ref();
        let new = new.map(|name| graph.find(name)).transpose()?;
        check(graph, node, slot, new)
    })?;
    apply(world, relink, "set-backing").await
}

/// Puts a node behind an edge that leads nowhere.
///
/// # Errors
/// There are no such nodes or there is no such child, the edge leads somewhere already, it would close a circle, or
/// permissions; then nothing has changed.
pub async fn attach_child(world: &World, request: &AttachChild) -> Result<()> {
    let AttachChild { parent, child, node } = request;
    let relink = world.graph(|graph| {
        let (node, slot, new) = (
            graph.find(parent)?,
            declared(graph, parent, child)?,
            graph.find(node)?,
        );
        if node.child(slot).is_some() {
            let text = format!("Node '{parent}' already has child '{child}'");
            return Err(Error::new(ErrorKind::Exists, text));
        }
        check(graph, node, slot, Some(new))
    })?;
    apply(world, relink, "attach-child").await
}

/// Takes away the node behind an edge. A node that nobody holds any more is closed.
///
/// # Errors
/// There is no such node or child, the driver cannot do without it, or the link is frozen; then nothing has changed.
pub async fn detach_child(world: &World, request: &DetachChild) -> Result<()> {
    let DetachChild { parent, child } = request;
    let relink = world.graph(|graph| {
        let (node, slot) = (graph.find(parent)?, declared(graph, parent, child)?);
        if node.child(slot).is_none() {
            return Err(Refusal::no_child(parent, child).into());
        }
        if node.kind.child(slot).is_some_and(|child| child.required) {
            let text = format!("Node '{parent}' cannot be without its child '{child}'");
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
        check(graph, node, slot, None)
    })?;
    apply(world, relink, "detach-child").await
}

/// The slot of a child that the driver declares by name. Numbered children come and go by `x-blockdev-change`.
fn declared(graph: &Graph, parent: &str, child: &str) -> Result<ChildSlot> {
    let node = graph.find(parent)?;
    let declared = node.kind.children().len();
    let slot = node.slot(child).filter(|slot| slot.index() < declared);
    Ok(slot.ok_or_else(|| Refusal::no_child(parent, child))?)
}

fn check(graph: &Graph, node: &Node, slot: ChildSlot, new: Option<&Node>) -> Result<Relink> {
    let edge = node.child(slot).and_then(|edge| graph.edge(edge));
    let change = Relink {
        parent: node.id,
        slot,
        old: edge.map(|edge| edge.child),
        new: new.map(|new| new.id),
    };
    if change.old == change.new {
        return Ok(change);
    }
    if let Some(edge) = edge {
        chain::check_unfrozen(graph, edge)?;
    }
    if let Some(new) = new.filter(|new| graph.reaches(new.id, node.id)) {
        let child = node.kind.child(slot).map_or("", |child| child.name);
        return Err(Refusal::cycle(&new.name, child, &node.name).into());
    }
    Ok(change)
}

async fn apply(world: &World, relink: Relink, user: &str) -> Result<()> {
    if relink.old == relink.new {
        return Ok(());
    }
    transaction::run(world, user, relink).await
}

impl Relink {
    fn touched(self) -> impl Iterator<Item = NodeId> {
        [Some(self.parent), self.old, self.new].into_iter().flatten()
    }
}

impl Change for Relink {
    type Answer = ();

    fn cover(&self, _: &Graph) -> Cover {
        Cover::Nodes(self.touched().collect())
    }

    async fn prepare(&mut self, transaction: &mut Transaction) -> Result<()> {
        let Self {
            parent, slot, new, ..
        } = *self;
        together::follow(transaction, new.map(|new| Joint::Nodes(parent, new))).await?;
        let mut exchange = Exchange::default();
        let world = transaction.world.clone();
        world.graph(|graph| exchange.note(graph, parent, slot, new));
        exchange.leave(transaction).await?;
        reopen::relink(transaction, parent, slot, new).await?;
        transaction.update_permissions(self.touched()).await?;
        exchange.connect(transaction).await?;
        exchange.enter(transaction).await
    }

    async fn finish(self, world: &World) {
        delete::release(world, self.old).await;
    }
}
