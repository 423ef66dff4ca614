//! Children by name: a backing node or another child that a driver can do without is put behind a node, or taken away.

use millpond_messages::graph::{AttachChild, DetachChild, SetBacking};
use millpond_messages::{ChildSlot, Error, ErrorKind, NodeId, Result};

use crate::change::{delete, reopen};
use crate::sections::Cover;
use crate::state::PolicyState;
use crate::transaction::exchange::Exchange;
use crate::transaction::{Change, Transaction, together};
use crate::value::chain;
use crate::value::graph::Graph;
use crate::value::home::Joint;
use crate::value::node::Node;
use crate::value::refusal::Refusal;
use crate::world::World;

/// An edge that gets another node behind it, or none. The node that was there is closed if nobody holds it any more.
pub struct Relink {
    wish: Wish,
    found: Option<Link>,
}

/// Which edge, and what is to be behind it.
enum Wish {
    /// A node's backing node, or none. The image's header stays as it is.
    Backing(SetBacking),
    /// A node behind an edge that leads nowhere.
    Attach(AttachChild),
    /// No node behind an edge that the parent can do without.
    Detach(DetachChild),
}

/// The edge that was found.
#[derive(Debug, Clone, Copy)]
struct Link {
    parent: NodeId,
    slot: ChildSlot,
    old: Option<NodeId>,
    new: Option<NodeId>,
}

impl Link {
    fn touched(self) -> impl Iterator<Item = NodeId> {
        [Some(self.parent), self.old, self.new].into_iter().flatten()
    }
}

impl From<SetBacking> for Relink {
    fn from(request: SetBacking) -> Self {
        let (wish, found) = (Wish::Backing(request), None);
        Self { wish, found }
    }
}

impl From<AttachChild> for Relink {
    fn from(request: AttachChild) -> Self {
        let (wish, found) = (Wish::Attach(request), None);
        Self { wish, found }
    }
}

impl From<DetachChild> for Relink {
    fn from(request: DetachChild) -> Self {
        let (wish, found) = (Wish::Detach(request), None);
        Self { wish, found }
    }
}

fn find_backing(graph: &Graph, request: &SetBacking) -> Result<Link> {
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
}

fn find_empty(graph: &Graph, request: &AttachChild) -> Result<Link> {
    let AttachChild { parent, child, node } = request;
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
}

fn find_dispensable(graph: &Graph, request: &DetachChild) -> Result<Link> {
    let DetachChild { parent, child } = request;
    let (node, slot) = (graph.find(parent)?, declared(graph, parent, child)?);
    if node.child(slot).is_none() {
        return Err(Refusal::no_child(parent, child).into());
    }
    if node.kind.child(slot).is_some_and(|child| child.required) {
        let text = format!("Node '{parent}' cannot be without its child '{child}'");
        return Err(Error::new(ErrorKind::Unsupported, text));
    }
    check(graph, node, slot, None)
}

/// The slot of a child that the driver declares by name. Numbered children come and go by `x-blockdev-change`.
fn declared(graph: &Graph, parent: &str, child: &str) -> Result<ChildSlot> {
    let node = graph.find(parent)?;
    let declared = node.kind.children().len();
    let slot = node.slot(child).filter(|slot| slot.index() < declared);
    Ok(slot.ok_or_else(|| Refusal::no_child(parent, child))?)
}

fn check(graph: &Graph, node: &Node, slot: ChildSlot, new: Option<&Node>) -> Result<Link> {
    let edge = node.child(slot).and_then(|edge| graph.edge(edge));
    let change = Link {
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

impl Change for Relink {
    type Answer = ();

    fn check(&mut self, state: &PolicyState) -> Result<()> {
        let graph = &state.graph;
        let found = match &self.wish {
            Wish::Backing(request) => find_backing(graph, request)?,
            Wish::Attach(request) => find_empty(graph, request)?,
            Wish::Detach(request) => find_dispensable(graph, request)?,
        };
        // What is behind the edge already changes nothing.
        self.found = Some(found).filter(|found| found.old != found.new);
        Ok(())
    }

    fn cover(&self, _: &Graph) -> Cover {
        let nodes = self.found.map(|found| found.touched().collect());
        Cover::Nodes(nodes.unwrap_or_default())
    }

    async fn prepare(&mut self, transaction: &mut Transaction) -> Result<()> {
        let Some(found) = self.found else { return Ok(()) };
        let Link {
            parent, slot, new, ..
        } = found;
        together::follow(transaction, new.map(|new| Joint::Nodes(parent, new))).await?;
        let mut exchange = Exchange::default();
        let world = transaction.world.clone();
        world.graph(|graph| exchange.note(graph, parent, slot, new));
        exchange.leave(transaction).await?;
        reopen::relink(transaction, parent, slot, new).await?;
        transaction.plan_permissions(found.touched())?;
        exchange.connect_later(transaction);
        transaction.enter(exchange).await
    }

    async fn finish(self, world: &World) {
        delete::release(world, self.found.and_then(|found| found.old)).await;
    }
}
