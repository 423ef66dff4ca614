//! Edges that lead elsewhere, and the drivers above that relied on what was there.
//!
//! What a driver read from a child is stale once other data is behind that edge: tables, sizes, how far a log has grown. That
//! is so where another node is there, seen past all filters, and where the node there shows other data itself. It is not so
//! where a filter was put in between, or taken away. An edit goes by these steps, in one drained section:
//!
//! ```text
//!   leave:   parents before children, drivers write back what belongs to the old data, and flush it
//!   the graph's value changes: sections begun meanwhile know by it what an order may still be busy with
//!   permissions are prepared: locks are taken before anything is read
//!   connect: the cells' edges follow
//!   enter:   children before parents, drivers read the other data, and put the old state aside
//!   the transaction is committed: the old state is forgotten; or rolled back: it holds again
//! ```

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use millpond_messages::{ChildSlot, NodeId, Result, Role};

use crate::order::NodeTask;
use crate::transaction::Transaction;
use crate::value::graph::{Direction, Graph};
use crate::value::node::Node;
use crate::world::Answered;

/// An edge that is to lead elsewhere.
#[derive(Debug, Clone, Copy)]
struct Link {
    parent: NodeId,
    slot: ChildSlot,
    old: Option<NodeId>,
    new: Option<NodeId>,
}

/// A node above such edges.
#[derive(Debug)]
struct Above {
    node: NodeId,
    /// The edges behind which its driver finds other data.
    stale: Vec<ChildSlot>,
}

/// Edges that are to lead elsewhere, and what that means for the nodes above.
#[derive(Debug, Default)]
pub struct Exchange {
    links: Vec<Link>,
    /// Children before parents, by the edges as they are to be.
    above: Vec<Above>,
}

impl Exchange {
    /// Notes that an edge is to lead elsewhere, before it does.
    pub fn note(&mut self, graph: &Graph, parent: NodeId, slot: ChildSlot, new: Option<NodeId>) {
        let old = graph.child_node(parent, slot);
        self.links.push(Link {
            parent,
            slot,
            old,
            new,
        });
    }

    /// Whether the same data is behind all edges, seen past filters.
    pub fn keeps_data(&self, graph: &Graph) -> bool {
        let (mut now, mut then) = (Data::now(graph), Data::then(graph, &self.links));
        let mut links = self.links.iter();
        links.all(|link| now.behind(link.old) == then.behind(link.new))
    }

    /// Has drivers write back what belongs to data that they are about to lose. All edges are noted, and lead where they
    /// led.
    ///
    /// # Errors
    /// A driver cannot write it, or cannot go on with other data.
    pub async fn leave(&mut self, transaction: &mut Transaction) -> Result<()> {
        let world = transaction.world.clone();
        self.above = world.graph(|graph| nodes_above(graph, &self.links));
        for Above { node, stale } in self.above.iter().rev() {
            transaction.keep_facts(*node, !stale.is_empty());
        }
        let leaving = world.graph(|graph| self.leaving(graph));
        if !leaving.is_empty() {
            transaction.send_burst().await?;
        }
        for (node, slots) in leaving {
            let order = NodeTask::ExchangePrepare { slots };
            let left = world.ask(node, order).done().await;
            left.map_err(|error| error.within(&world.graph(|graph| context(graph, node))))?;
        }
        Ok(())
    }

    /// Whether a node is a filter that is left without what it filters: it has nothing to show any more.
    fn is_taken_out(&self, graph: &Graph, node: NodeId) -> bool {
        let Some(slot) = graph.node(node).and_then(filtered_slot) else {
            return false;
        };
        let mut links = self.links.iter();
        links.any(|link| link.parent == node && link.slot == slot && link.new.is_none())
    }

    /// The nodes that lose data, parents before children by the edges as they are. A filter that is taken out has nothing to
    /// write back: storage that can store nothing any more does not keep it there.
    fn leaving(&self, graph: &Graph) -> Vec<(NodeId, Vec<ChildSlot>)> {
        let loses = |above: &&Above| !above.stale.is_empty() && !self.is_taken_out(graph, above.node);
        let stale = self.above.iter().filter(loses);
        let stale: BTreeMap<NodeId, &Above> = stale.map(|above| (above.node, above)).collect();
        let above = self.above.iter().map(|above| above.node).collect();
        let order = children_first(&above, |id| {
            graph.children_of(id).map(|edge| edge.child).collect()
        });
        let slots = |id: NodeId| stale.get(&id).map(|above| (id, above.stale.clone()));
        order.into_iter().rev().filter_map(slots).collect()
    }

    /// Has the cells' edges follow with the next burst.
    pub fn connect_later(&self, transaction: &mut Transaction) {
        for link in &self.links {
            transaction.connect_later(link.parent, link.slot, link.old);
        }
    }

    /// Has the cells' edges follow.
    ///
    /// # Errors
    /// An iothread is gone.
    pub async fn connect(&self, transaction: &mut Transaction) -> Result<()> {
        for link in &self.links {
            transaction.connect(link.parent, link.slot, link.old).await?;
        }
        Ok(())
    }

    /// Whether a driver has other data to read.
    pub fn reads_data(&self, graph: &Graph) -> bool {
        let mut above = self.above.iter();
        above.any(|above| !above.stale.is_empty() && !self.is_taken_out(graph, above.node))
    }

    /// The nodes whose edges lead elsewhere, children before parents.
    pub fn parents(&self, graph: &Graph) -> Vec<NodeId> {
        let above = self.above.iter().map(|above| above.node);
        above
            .filter(|node| self.is_parent(*node) && !self.is_taken_out(graph, *node))
            .collect()
    }

    fn is_parent(&self, node: NodeId) -> bool {
        self.links.iter().any(|link| link.parent == node)
    }

    /// Has drivers read the data that is there now, and nodes ask their children what they demand. Some nodes may have been
    /// asked already.
    ///
    /// # Errors
    /// A driver cannot read it.
    pub async fn enter(&self, transaction: &Transaction, mut asked: HashMap<NodeId, Answered>) -> Result<()> {
        let world = &transaction.world;
        let mut changed: HashSet<NodeId> = HashSet::new();
        for Above { node, stale } in &self.above {
            if world.graph(|graph| self.is_taken_out(graph, *node)) {
                continue;
            }
            let is_concerned = world.graph(|graph| {
                let mut children = graph.children_of(*node);
                children.any(|edge| changed.contains(&edge.child))
            });
            let asked = asked.remove(node);
            if stale.is_empty() && !is_concerned && !self.is_parent(*node) {
                continue;
            }
            let (node, slots) = (*node, stale.clone());
            // What was asked before a child had answered may go by what that child was.
            let asked = asked.filter(|_| !is_concerned);
            let asked = asked.unwrap_or_else(|| world.ask(node, NodeTask::Exchange { slots }));
            let entered = asked.opened().await;
            let facts = entered.map_err(|error| error.within(&world.graph(|graph| context(graph, node))))?;
            if world.graph(|graph| take_facts(graph, node, facts, !stale.is_empty())) {
                changed.insert(node);
            }
        }
        Ok(())
    }
}

/// What an error of a node's driver happened to.
fn context(graph: &Graph, node: NodeId) -> String {
    let name = graph.node(node).map_or("", |node| node.name.as_str());
    format!("Node '{name}' cannot go on with other data below it")
}

/// Notes what a node is now; answers whether that differs in what its parents go by.
fn take_facts(
    graph: &mut Graph,
    node: NodeId,
    facts: millpond_engine::node::OpenFacts,
    is_other: bool,
) -> bool {
    let Some(node) = graph.node_mut(node) else {
        return false;
    };
    let old = node.facts.take();
    let stored = old.as_ref().and_then(|old| old.backing.clone());
    let backing = if is_other {
        facts.backing.clone()
    } else {
        stored.clone()
    };
    if backing != stored {
        // It was opened by the name that another image has.
        node.implicit_backing = None;
    }
    let facts = millpond_engine::node::OpenFacts { backing, ..facts };
    let differs = old.is_none_or(|old| old != facts);
    node.facts = Some(facts);
    differs
}

/// The nodes above edges that lead elsewhere, children before parents.
fn nodes_above(graph: &Graph, links: &[Link]) -> Vec<Above> {
    // A node that is to be above such an edge only by another one holds that, or is above it already.
    let above = graph.closure(links.iter().map(|link| link.parent), Direction::Up);
    let mut now = Data::now(graph);
    let mut then = Data::then(graph, links);
    // Those that are no filters and show other data than before.
    let mut others: HashSet<NodeId> = HashSet::new();
    let mut found = Vec::new();
    let children = |id| {
        let slots = graph
            .node(id)
            .map(|node| slots(graph, node, links))
            .unwrap_or_default();
        slots
            .into_iter()
            .filter_map(|(slot, _)| then.child(id, slot))
            .collect()
    };
    for id in children_first(&above, children) {
        let Some(node) = graph.node(id) else { continue };
        let mut stale = Vec::new();
        for (slot, role) in slots(graph, node, links) {
            let (old, new) = (now.child(id, slot), then.child(id, slot));
            let is_numbered = slot.index() >= node.kind.children().len();
            if is_numbered && (old.is_none() || new.is_none()) {
                continue;
            }
            let (old, new) = (now.behind(old), then.behind(new));
            if old == new && !new.is_some_and(|new| others.contains(&new)) {
                continue;
            }
            others.insert(id);
            // Of a backing node no driver keeps anything.
            if !role.contains(Role::COW) {
                stale.push(slot);
            }
        }
        found.push(Above { node: id, stale });
    }
    found
}

/// The nodes of a set, children before parents.
fn children_first(set: &BTreeSet<NodeId>, children: impl Fn(NodeId) -> Vec<NodeId>) -> Vec<NodeId> {
    let mut done = HashSet::new();
    let mut order = Vec::new();
    let mut open: Vec<(NodeId, bool)> = set.iter().map(|id| (*id, false)).collect();
    while let Some((id, children_done)) = open.pop() {
        if children_done {
            order.push(id);
        } else if done.insert(id) {
            open.push((id, true));
            let below = children(id).into_iter().filter(|child| set.contains(child));
            open.extend(below.map(|child| (child, false)));
        }
    }
    order
}

/// The edges that a node has or is to have, with their roles.
fn slots(graph: &Graph, node: &Node, links: &[Link]) -> Vec<(ChildSlot, Role)> {
    let has = links.iter().filter(|link| link.parent == node.id);
    let slots: BTreeSet<ChildSlot> = node
        .children
        .keys()
        .copied()
        .chain(has.map(|link| link.slot))
        .collect();
    let role = |slot: ChildSlot| match node.child(slot).and_then(|edge| graph.edge(edge)) {
        Some(edge) => edge.role,
        None => node.kind.child_role(slot, &node.options),
    };
    slots.into_iter().map(|slot| (slot, role(slot))).collect()
}

/// Which node's data is behind a node: its own, or that of what it filters.
struct Data<'a> {
    graph: &'a Graph,
    /// Where edges are to lead that lead elsewhere in the graph.
    links: HashMap<(NodeId, ChildSlot), Option<NodeId>>,
    known: HashMap<NodeId, Option<NodeId>>,
}

impl<'a> Data<'a> {
    fn now(graph: &'a Graph) -> Self {
        Self {
            graph,
            links: HashMap::new(),
            known: HashMap::new(),
        }
    }

    fn then(graph: &'a Graph, links: &[Link]) -> Self {
        let links = links.iter().map(|link| ((link.parent, link.slot), link.new));
        Self {
            links: links.collect(),
            ..Self::now(graph)
        }
    }

    fn child(&self, node: NodeId, slot: ChildSlot) -> Option<NodeId> {
        match self.links.get(&(node, slot)) {
            Some(child) => *child,
            None => self.graph.child_node(node, slot),
        }
    }

    fn behind(&mut self, node: Option<NodeId>) -> Option<NodeId> {
        let mut filters = Vec::new();
        let mut at = node;
        let data = loop {
            let Some(node) = at.and_then(|id| self.graph.node(id)) else {
                break None;
            };
            if let Some(known) = self.known.get(&node.id) {
                break *known;
            }
            let Some(slot) = filtered_slot(node) else {
                break Some(node.id);
            };
            filters.push(node.id);
            at = self.child(node.id, slot);
        };
        self.known
            .extend(filters.into_iter().map(|filter| (filter, data)));
        data
    }
}

/// Where a filter has what it filters.
fn filtered_slot(node: &Node) -> Option<ChildSlot> {
    if !node.kind.is_filter() {
        return None;
    }
    let mut declared = node.kind.children().iter();
    let at = declared.position(|child| child.role.contains(Role::PRIMARY));
    at.and_then(ChildSlot::at)
}
