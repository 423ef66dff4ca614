//! Putting a node in the place of another: under all its parents or under one, with a filter that comes or goes.

use millpond_messages::graph::{self, ChildOf, DropFilter, ReplaceChild, ReplaceNode};
use millpond_messages::{ChildSlot, EdgeId, Error, ErrorKind, NodeId, Result, Role};

use crate::change::delete;
use crate::sections::Cover;
use crate::state::PolicyState;
use crate::transaction::exchange::Exchange;
use crate::transaction::{Change, Outcome, Transaction, together};
use crate::value::chain;
use crate::value::edge::{Edge, Parent};
use crate::value::graph::{Direction, Graph};
use crate::value::home::Joint;
use crate::value::refusal::Refusal;
use crate::value::rewired::{Coming, Rewired};
use crate::world::World;

/// An edge that is to lead elsewhere.
#[derive(Debug, Clone, Copy)]
pub struct Moving {
    edge: EdgeId,
    parent: Parent,
}

impl Moving {
    fn of(edge: &Edge) -> Self {
        Self {
            edge: edge.id,
            parent: edge.parent,
        }
    }

    /// The node that holds it, and by which slot.
    pub fn node(&self) -> Option<(NodeId, ChildSlot)> {
        match self.parent {
            Parent::Node(node, slot) => Some((node, slot)),
            Parent::Root(_) => None,
        }
    }
}

/// What becomes of parents that can be reached from the node that is put in the other's place: their edge would close a
/// circle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reachable {
    /// They keep their edge.
    Keep,
    /// There must be none.
    Refuse,
}

/// The edges that lead to `from` and are to lead to `to`.
///
/// # Errors
/// One of them must not change.
pub fn moving(graph: &Graph, from: NodeId, to: NodeId, reachable: Reachable) -> Result<Vec<Moving>> {
    let below = graph.closure([to], Direction::Down);
    let mut moving = Vec::new();
    for edge in graph.parents_of(from) {
        if let Parent::Node(parent, _) = edge.parent
            && below.contains(&parent)
        {
            if reachable == Reachable::Keep {
                continue;
            }
            let (edge, child) = link(graph, edge);
            return Err(Refusal::ReachableLink { edge, child }.into());
        }
        check_may_move(graph, edge)?;
        moving.push(Moving::of(edge));
    }
    Ok(moving)
}

/// An edge's name, and that of the node where it leads.
fn link(graph: &Graph, edge: &Edge) -> (String, String) {
    let child = graph.node(edge.child).map_or("", |node| node.name.as_str());
    (edge.name.to_string(), child.to_owned())
}

fn fixed(graph: &Graph, edge: &Edge) -> Error {
    let (edge, child) = link(graph, edge);
    Refusal::FixedLink { edge, child }.into()
}

/// Refuses edges that somebody relies on to stay where they are.
fn check_may_move(graph: &Graph, edge: &Edge) -> Result<()> {
    if edge.frozen.is_some() {
        return Err(fixed(graph, edge));
    }
    let Parent::Root(root) = edge.parent else {
        return Ok(());
    };
    let Some(root) = graph.root(root) else {
        return Ok(());
    };
    // Without a cell it is work of the graph actor's own that goes on at this very node.
    if !root.has_cell {
        return Err(fixed(graph, edge));
    }
    Ok(())
}

/// An edge that comes or goes together with others being led elsewhere.
#[derive(Debug, Clone, Copy)]
pub enum Besides {
    /// No other edge comes or goes.
    Nothing,
    /// `from` comes behind a node's empty slot.
    Linked(NodeId, ChildSlot),
    /// What is behind this edge of a node, which is `to`, goes.
    Unlinked(EdgeId, NodeId, ChildSlot),
}

/// Lets edges that lead to `from` lead to `to`: in the graph's value, in the nodes' permissions, and with the next burst in the
/// cells. Both nodes are still.
///
/// # Errors
/// The permissions of the graph as it would be, or a node's; or a driver cannot go on with what is there then.
pub async fn redirect(
    transaction: &mut Transaction,
    from: NodeId,
    to: NodeId,
    moving: &[Moving],
    besides: Besides,
) -> Result<()> {
    let world = transaction.world.clone();
    let holders = moving.iter().map(|moving| match moving.parent {
        Parent::Node(parent, _) => Joint::Nodes(parent, to),
        Parent::Root(root) => Joint::Root(root, to),
    });
    let besides_it = match besides {
        Besides::Linked(new, _) => Some(Joint::Nodes(new, from)),
        Besides::Nothing | Besides::Unlinked(..) => None,
    };
    together::follow(transaction, holders.chain(besides_it)).await?;
    let mut exchange = Exchange::default();
    world.graph(|graph| {
        for (parent, slot) in moving.iter().filter_map(Moving::node) {
            exchange.note(graph, parent, slot, Some(to));
        }
        match besides {
            Besides::Nothing => {}
            Besides::Linked(parent, slot) => exchange.note(graph, parent, slot, Some(from)),
            Besides::Unlinked(_, parent, slot) => exchange.note(graph, parent, slot, None),
        }
    });
    exchange.leave(transaction).await?;
    match besides {
        Besides::Nothing => {}
        Besides::Linked(new, slot) => link_empty(transaction, new, slot, from).await?,
        // What a filter takes for itself must not stand against what its parents take.
        Besides::Unlinked(edge, ..) => transaction.unlink(edge),
    }
    for Moving { edge, parent } in moving {
        if let Parent::Node(parent, _) = parent {
            world.may_link(*parent, to).await;
        }
        transaction.redirect(*edge, to);
    }
    transaction.plan_permissions([to, from])?;
    exchange.connect_later(transaction);
    for Moving { parent, .. } in moving {
        if let Parent::Root(root) = *parent {
            transaction.move_root(root, from, to);
        }
    }
    transaction.enter(exchange).await
}

/// Puts `node` behind an empty slot of `new`, in the graph's value.
async fn link_empty(transaction: &mut Transaction, new: NodeId, slot: ChildSlot, node: NodeId) -> Result<()> {
    let world = transaction.world.clone();
    world.may_link(new, node).await;
    let (name, role) = world.graph(|graph| empty_slot(graph, new, slot))?;
    transaction.link(Parent::Node(new, slot), node, name, role);
    Ok(())
}

/// The name and the role of what comes behind an empty slot.
fn empty_slot(graph: &Graph, node: NodeId, slot: ChildSlot) -> Result<(&'static str, Role)> {
    let node = graph.expect(node)?;
    let name = node.kind.child(slot).map_or("", |child| child.name);
    Ok((name, node.kind.child_role(slot, &node.options)))
}

/// Edges that lead to one node, and are to lead to another.
pub struct Replace {
    wish: Wish,
    found: Option<Replacement>,
}

/// Which edges are to lead elsewhere.
enum Wish {
    /// All those of a node's parents that cannot be reached from the other.
    Node(ReplaceNode),
    /// One edge, and no other.
    Child(ReplaceChild),
    /// All of a filter's, to what it filters.
    Filter(DropFilter),
}

/// The edges that were found, and where they are to lead.
pub struct Replacement {
    /// The node whose edges they are.
    pub from: NodeId,
    /// Where they are to lead.
    pub to: NodeId,
    /// The edges that are moved.
    pub edges: Vec<Moving>,
    /// What comes or goes with them.
    pub besides: Besides,
    /// Nobody holds `from` any more because of its owner.
    disowns: bool,
}

impl From<ReplaceNode> for Replace {
    fn from(request: ReplaceNode) -> Self {
        let (wish, found) = (Wish::Node(request), None);
        Self { wish, found }
    }
}

impl From<ReplaceChild> for Replace {
    fn from(request: ReplaceChild) -> Self {
        let (wish, found) = (Wish::Child(request), None);
        Self { wish, found }
    }
}

impl From<DropFilter> for Replace {
    fn from(request: DropFilter) -> Self {
        let (wish, found) = (Wish::Filter(request), None);
        Self { wish, found }
    }
}

impl Change for Replace {
    type Answer = ();

    fn check(&mut self, state: &PolicyState) -> Result<()> {
        let graph = &state.graph;
        let found = match &self.wish {
            Wish::Node(request) => find_parents(graph, request)?,
            Wish::Child(request) => find_child(graph, request)?,
            Wish::Filter(request) => find_filter(graph, &request.node_name)?,
        };
        // A node that takes its own place changes nothing.
        self.found = Some(found).filter(|found| found.from != found.to);
        Ok(())
    }

    fn cover(&self, _: &Graph) -> Cover {
        let nodes = self.found.as_ref().map(|found| vec![found.from, found.to]);
        Cover::Nodes(nodes.unwrap_or_default())
    }

    async fn prepare(&mut self, transaction: &mut Transaction) -> Result<()> {
        let Some(found) = &self.found else { return Ok(()) };
        redirect(transaction, found.from, found.to, &found.edges, found.besides).await
    }

    async fn settle(&mut self, world: &World, outcome: Outcome) -> Result<()> {
        let found = self.found.as_ref().filter(|_| outcome == Outcome::Committed);
        if let Some(found) = found.filter(|found| found.disowns) {
            world.graph(|graph| {
                if let Some(node) = graph.node_mut(found.from) {
                    node.owned = false;
                }
            });
        }
        Ok(())
    }

    async fn finish(self, world: &World) {
        delete::release(world, self.found.map(|found| found.from)).await;
    }
}

/// The parents of a node that cannot be reached from the one that takes its place.
fn find_parents(graph: &Graph, request: &ReplaceNode) -> Result<Replacement> {
    let (from, to) = (graph.find(&request.from)?.id, graph.find(&request.to)?.id);
    let edges = match from == to {
        true => Vec::new(),
        false => moving(graph, from, to, Reachable::Keep)?,
    };
    Ok(Replacement {
        from,
        to,
        edges,
        besides: Besides::Nothing,
        disowns: false,
    })
}

/// One edge, which nobody relies on to stay where it is.
fn find_child(graph: &Graph, request: &ReplaceChild) -> Result<Replacement> {
    let edge = find_edge(graph, &request.of)?;
    let to = graph.find(&request.node)?;
    if let Parent::Node(parent, _) = edge.parent {
        chain::check_unfrozen(graph, edge)?;
        if graph.reaches(to.id, parent) {
            let parent = &graph.expect(parent)?.name;
            return Err(Refusal::cycle(&to.name, &edge.name, parent).into());
        }
    }
    check_may_move(graph, edge)?;
    Ok(Replacement {
        from: edge.child,
        to: to.id,
        edges: vec![Moving::of(edge)],
        besides: Besides::Nothing,
        disowns: false,
    })
}

/// The parents of a filter, and its own edge to what it filters.
///
/// # Errors
/// There is no such filter, or a parent relies on its edge.
pub fn find_filter(graph: &Graph, filter: &str) -> Result<Replacement> {
    let node = graph.find(filter)?;
    let edge = chain::next_edge(graph, node.id).filter(|_| node.kind.is_filter());
    let edge = edge.ok_or_else(|| {
        let text = format!("Node '{}' is not a filter", node.name);
        Error::new(ErrorKind::InvalidArgument, text)
    })?;
    // A filter that keeps its own chain as it is keeps nobody from taking it out.
    if !graph.is_frozen_by(edge, node.id) {
        chain::check_unfrozen(graph, edge)?;
    }
    let (link, below) = (Moving::of(edge), edge.child);
    Ok(Replacement {
        from: node.id,
        to: below,
        edges: moving(graph, node.id, below, Reachable::Refuse)?,
        besides: match link.node() {
            Some((parent, slot)) => Besides::Unlinked(link.edge, parent, slot),
            None => Besides::Nothing,
        },
        disowns: true,
    })
}

/// A node that is put on top of another: as what filters it, or as a format that it is the backing node of. All edges change
/// before permissions are looked at.
pub struct Append {
    request: graph::Append,
    found: Option<(NodeId, NodeId, ChildSlot)>,
}

impl From<graph::Append> for Append {
    fn from(request: graph::Append) -> Self {
        let found = None;
        Self { request, found }
    }
}

impl Change for Append {
    type Answer = ();

    fn check(&mut self, state: &PolicyState) -> Result<()> {
        let graph = &state.graph;
        let (node, new) = (graph.find(&self.request.node)?, graph.find(&self.request.new)?);
        let role = if new.kind.is_filter() {
            Role::PRIMARY
        } else {
            Role::COW
        };
        let mut declared = new.kind.children().iter();
        let slot = declared
            .position(|child| child.role.contains(role))
            .and_then(ChildSlot::at)
            .filter(|slot| new.child(*slot).is_none());
        let Some(slot) = slot else {
            let text = format!("Node '{}' cannot be put on top of another", new.name);
            return Err(Error::new(ErrorKind::InvalidArgument, text));
        };
        if graph.reaches(node.id, new.id) {
            let child = new.kind.child(slot).map_or("", |child| child.name);
            return Err(Refusal::cycle(&node.name, child, &new.name).into());
        }
        self.found = Some((node.id, new.id, slot));
        Ok(())
    }

    fn cover(&self, _: &Graph) -> Cover {
        let nodes = self.found.map(|(node, new, _)| vec![node, new]);
        Cover::Nodes(nodes.unwrap_or_default())
    }

    async fn ahead(&mut self, transaction: &mut Transaction) -> Result<()> {
        if let Some((node, new, slot)) = self.found {
            get_ready(transaction, node, new, Some(slot));
        }
        Ok(())
    }

    async fn prepare(&mut self, transaction: &mut Transaction) -> Result<()> {
        match self.found {
            Some((node, new, slot)) => append(transaction, node, new, slot).await,
            None => Ok(()),
        }
    }

    async fn finish(self, _: &World) {}
}

/// Puts `node` behind `new` in an empty slot, and `new` under all other parents of `node`. Both nodes are still.
///
/// # Errors
/// A parent relies on its edge, or permissions.
pub async fn append(transaction: &mut Transaction, node: NodeId, new: NodeId, slot: ChildSlot) -> Result<()> {
    let world = transaction.world.clone();
    // What the new node stands on keeps its edge: that would close a circle.
    let edges = world.graph(|graph| moving(graph, node, new, Reachable::Keep))?;
    redirect(transaction, node, new, &edges, Besides::Linked(new, slot)).await
}

/// Has drivers get ready for what their nodes are granted once `new` has all parents of `node`, and `node` is behind its empty
/// slot, if that is to be.
pub fn get_ready(transaction: &mut Transaction, node: NodeId, new: NodeId, slot: Option<ChildSlot>) {
    let rewired = transaction.world.graph(|graph| {
        let moving = moving(graph, node, new, Reachable::Keep).ok()?;
        let coming = |slot| {
            let (name, role) = empty_slot(graph, new, slot).ok()?;
            Some(Coming {
                parent: Parent::Node(new, slot),
                child: node,
                name: name.into(),
                role,
            })
        };
        Some(Rewired {
            edges: moving.iter().map(|moving| moving.edge).collect(),
            to: new,
            coming: slot.and_then(coming),
        })
    });
    if let Some(rewired) = rewired {
        transaction.get_ready(&rewired, [new, node]);
    }
}

fn find_edge<'a>(graph: &'a Graph, of: &ChildOf) -> Result<&'a Edge> {
    let edge = match of {
        ChildOf::Node { node_name, child } => {
            let node = graph.find(node_name)?;
            node.slot(child).and_then(|slot| node.child(slot))
        }
        ChildOf::Root(root) => graph.root(*root).map(|root| root.edge),
    };
    let refused = || match of {
        ChildOf::Node { node_name, child } => Refusal::no_child(node_name, child),
        ChildOf::Root(root) => Refusal::NoRoot(*root),
    };
    Ok(edge.and_then(|edge| graph.edge(edge)).ok_or_else(refused)?)
}
