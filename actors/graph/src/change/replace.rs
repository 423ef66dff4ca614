//! Putting a node in the place of another: under all its parents or under one, with a filter that comes or goes.

use millpond_messages::graph::{self, ChildOf, InsertNode, Options, ReplaceChild, ReplaceNode};
use millpond_messages::{ChildSlot, EdgeId, Error, ErrorKind, NodeId, Result, Role, RootId};
use serde_json::Value;

use crate::change::delete;
use crate::change::exchange::Exchange;
use crate::open::tree::{self, Inherited};
use crate::order::Wiring;
use crate::sections::Cover;
use crate::transaction::{self, Change, Transaction, together};
use crate::value::chain;
use crate::value::edge::{Edge, Parent};
use crate::value::graph::{Direction, Graph};
use crate::value::home::Joint;
use crate::value::refusal::Refusal;
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

/// Lets edges that lead to `from` lead to `to`: in the graph's value, in the nodes' permissions, in the cells. Both nodes
/// are still.
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
    transaction.update_permissions([to, from]).await?;
    exchange.connect(transaction).await?;
    for Moving { parent, .. } in moving {
        if let Parent::Root(root) = *parent {
            move_root(transaction, root, from, to).await?;
        }
    }
    exchange.enter(transaction).await
}

/// Puts `node` behind an empty slot of `new`, in the graph's value.
async fn link_empty(transaction: &mut Transaction, new: NodeId, slot: ChildSlot, node: NodeId) -> Result<()> {
    let world = transaction.world.clone();
    world.may_link(new, node).await;
    let (name, role) = world.graph(|graph| {
        let new = graph.expect(new)?;
        let name = new.kind.child(slot).map_or("", |child| child.name);
        Ok::<_, Error>((name, new.kind.child_role(slot, &new.options)))
    })?;
    transaction.link(Parent::Node(new, slot), node, name, role);
    Ok(())
}

async fn move_root(transaction: &mut Transaction, root: RootId, from: NodeId, to: NodeId) -> Result<()> {
    let world = transaction.world.clone();
    let Some(target) = world.with(|state| state.address(to)) else {
        return Err(Error::new(ErrorKind::NotFound, "The node to move to is gone"));
    };
    // The edge's cell is where its old node is.
    world.ask(from, Wiring::MoveRoot { root, target }).done().await?;
    transaction.root_moved(root, from, to);
    Ok(())
}

/// Edges that are to lead from one node to another.
struct Replace {
    from: NodeId,
    to: NodeId,
    edges: Vec<Moving>,
    besides: Besides,
    /// Nobody holds `from` any more because of its owner.
    disowns: bool,
}

impl Change for Replace {
    type Answer = ();

    fn cover(&self, _: &Graph) -> Cover {
        Cover::Nodes(vec![self.from, self.to])
    }

    async fn prepare(&mut self, transaction: &mut Transaction) -> Result<()> {
        redirect(transaction, self.from, self.to, &self.edges, self.besides).await?;
        if self.disowns {
            transaction.world.graph(|graph| {
                if let Some(node) = graph.node_mut(self.from) {
                    node.owned = false;
                }
            });
        }
        Ok(())
    }

    async fn finish(self, world: &World) {
        delete::release(world, [self.from]).await;
    }
}

/// Puts `to` in the place of `from`, under all parents of `from` that cannot be reached from `to`.
///
/// # Errors
/// There are no such nodes, a parent relies on its edge, or permissions; then nothing has changed.
pub async fn replace_node(world: &World, request: &ReplaceNode) -> Result<()> {
    let ReplaceNode { from, to } = request;
    let (from, to) = world.graph(|graph| Ok::<_, Error>((graph.find(from)?.id, graph.find(to)?.id)))?;
    if from == to {
        return Ok(());
    }
    let replace = world.graph(|graph| {
        Ok::<_, Error>(Replace {
            from,
            to,
            edges: moving(graph, from, to, Reachable::Keep)?,
            besides: Besides::Nothing,
            disowns: false,
        })
    })?;
    transaction::run(world, "replace", replace).await
}

/// Puts `new` in the place of `node`, and `node` behind it: as what a filter filters, or as a format's backing node. All
/// edges change before permissions are looked at.
///
/// # Errors
/// There are no such nodes, `new` has a child already or takes none, it would close a circle, a parent relies on its edge,
/// or permissions; then nothing has changed.
pub async fn append_node(world: &World, request: &graph::Append) -> Result<()> {
    let graph::Append { node, new } = request;
    let (node, new, slot) = world.graph(|graph| {
        let (node, new) = (graph.find(node)?, graph.find(new)?);
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
        Ok((node.id, new.id, slot))
    })?;
    transaction::run(world, "append", Append { node, new, slot }).await
}

/// A node that is put on top of another.
struct Append {
    node: NodeId,
    new: NodeId,
    slot: ChildSlot,
}

impl Change for Append {
    type Answer = ();

    fn cover(&self, _: &Graph) -> Cover {
        Cover::Nodes(vec![self.node, self.new])
    }

    async fn prepare(&mut self, transaction: &mut Transaction) -> Result<()> {
        append(transaction, self.node, self.new, self.slot).await
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

/// Opens a node with these options, of which `node` is a child, and puts it in the place of `node`. It belongs to the
/// user as one that was added.
///
/// # Errors
/// The open's, a parent relies on its edge, or permissions; then there is no new node.
pub async fn insert_node(world: &World, request: InsertNode) -> Result<()> {
    let InsertNode { node, options } = request;
    let node = world.graph(|graph| graph.find(&node).map(|node| node.id))?;
    check_driver(world, &options)?;
    transaction::run(world, "insert", Insert { node, options }).await
}

/// A node that is opened, and put in the place of one of its children.
struct Insert {
    node: NodeId,
    options: Options,
}

impl Change for Insert {
    type Answer = ();

    async fn prepare(&mut self, transaction: &mut Transaction) -> Result<()> {
        let options = std::mem::take(&mut self.options);
        insert(transaction, self.node, options).await
    }

    async fn finish(self, _: &World) {}
}

fn check_driver(world: &World, options: &Options) -> Result<()> {
    let invalid = |text: String| Err(Error::new(ErrorKind::InvalidArgument, text));
    let Some(Value::String(driver)) = options.get("driver") else {
        return invalid("driver is not specified".to_owned());
    };
    if world.with(|state| state.registry.find(driver).is_none()) {
        return invalid(format!("Unknown driver: '{driver}'"));
    }
    Ok(())
}

async fn insert(transaction: &mut Transaction, node: NodeId, options: Options) -> Result<()> {
    let world = transaction.world.clone();
    let new = tree::open_tree(transaction, options, Inherited::default())
        .await
        .map_err(|error| error.within("Could not create node"))?;
    world.graph(|graph| {
        if let Some(new) = graph.node_mut(new) {
            new.owned = true;
        }
    });
    replace(transaction, node, new)
        .await
        .map_err(|error| error.within("Could not replace node"))
}

async fn replace(transaction: &mut Transaction, from: NodeId, to: NodeId) -> Result<()> {
    let world = transaction.world.clone();
    let edges = world.graph(|graph| moving(graph, from, to, Reachable::Keep))?;
    transaction.drain([from, to], "replace").await;
    redirect(transaction, from, to, &edges, Besides::Nothing).await
}

/// Takes a filter out of the graph: what it filters takes its place.
///
/// # Errors
/// There is no such node, it is no filter, a link is frozen, or permissions; then nothing has changed.
pub async fn drop_filter(world: &World, filter: &str) -> Result<()> {
    let drop = world.graph(|graph| {
        let node = graph.find(filter)?;
        let edge = chain::next_edge(graph, node.id).filter(|_| node.kind.is_filter());
        let edge = edge.ok_or_else(|| {
            let text = format!("Node '{}' is not a filter", node.name);
            Error::new(ErrorKind::InvalidArgument, text)
        })?;
        chain::check_unfrozen(graph, edge)?;
        let (link, below) = (Moving::of(edge), edge.child);
        Ok::<_, Error>(Replace {
            from: node.id,
            to: below,
            edges: moving(graph, node.id, below, Reachable::Refuse)?,
            besides: match link.node() {
                Some((parent, slot)) => Besides::Unlinked(link.edge, parent, slot),
                None => Besides::Nothing,
            },
            disowns: true,
        })
    })?;
    transaction::run(world, "drop-filter", drop).await
}

/// Lets one edge lead to another node.
///
/// # Errors
/// There is no such edge or node, the edge is relied on, it would close a circle, or permissions; then nothing has
/// changed.
pub async fn replace_child(world: &World, request: &ReplaceChild) -> Result<()> {
    let ReplaceChild { of, node } = request;
    let (edge, from, to) = world.graph(|graph| {
        let edge = find_edge(graph, of)?;
        let to = graph.find(node)?;
        if let Parent::Node(parent, _) = edge.parent {
            chain::check_unfrozen(graph, edge)?;
            if graph.reaches(to.id, parent) {
                let parent = &graph.expect(parent)?.name;
                return Err(Refusal::cycle(&to.name, &edge.name, parent).into());
            }
        }
        check_may_move(graph, edge)?;
        Ok::<_, Error>((Moving::of(edge), edge.child, to.id))
    })?;
    if from == to {
        return Ok(());
    }
    let replace = Replace {
        from,
        to,
        edges: vec![edge],
        besides: Besides::Nothing,
        disowns: false,
    };
    transaction::run(world, "replace-child", replace).await
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
