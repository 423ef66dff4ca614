//! The graph: nodes, edges and root edges, with what holds between them.

mod bitmaps;
mod freezing;
mod search;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use millpond_messages::{
    BitmapId, ChildSlot, EdgeId, IoThreadId, NodeId, Permissions, Result, Role, RootId, Token,
};

use crate::value::blockers::Blockers;
use crate::value::edge::{Edge, Parent, Root, Target};
use crate::value::frozen::Freeze;
use crate::value::node::Node;
use crate::value::refusal::Refusal;

pub use search::Direction;

/// All nodes, edges and root edges.
#[derive(Default)]
pub struct Graph {
    /// Boxed: a tree has room for more entries than it has.
    nodes: BTreeMap<NodeId, Box<Node>>,
    names: HashMap<String, NodeId>,
    edges: HashMap<EdgeId, Edge>,
    roots: BTreeMap<RootId, Root>,
    /// What is forbidden on nodes.
    pub blockers: Blockers,
    frozen: BTreeMap<Token, Freeze>,
    /// The bitmaps that root edges hold.
    held_bitmaps: BTreeMap<RootId, Vec<(NodeId, BitmapId)>>,
    /// How many nodes live in each iothread that has any.
    population: BTreeMap<IoThreadId, usize>,
    last_id: u64,
    last_name: u64,
    /// How often a node was looked at: what an edit costs that waits for nothing.
    #[cfg(test)]
    pub looks: std::cell::Cell<u64>,
}

impl Graph {
    fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    /// An id for a node to be inserted.
    pub fn new_node_id(&mut self) -> NodeId {
        NodeId(self.next_id())
    }

    /// A name that no node has and no user can give.
    pub fn new_name(&mut self) -> String {
        self.last_name += 1;
        format!("#block{:03}", self.last_name)
    }

    /// The last id and the last made-up name that were given.
    pub const fn last_numbers(&self) -> (u64, u64) {
        (self.last_id, self.last_name)
    }

    /// All nodes, the oldest first.
    pub fn nodes(&self) -> impl DoubleEndedIterator<Item = &Node> {
        self.nodes.values().map(Box::as_ref)
    }

    /// All live nodes, the oldest first.
    pub fn live_nodes(&self) -> impl DoubleEndedIterator<Item = &Node> {
        self.nodes().filter(|node| node.live)
    }

    /// The node of a number, if there is one.
    pub fn node(&self, id: NodeId) -> Option<&Node> {
        #[cfg(test)]
        self.looks.set(self.looks.get() + 1);
        self.nodes.get(&id).map(Box::as_ref)
    }

    /// A node, to be changed.
    pub fn node_mut(&mut self, id: NodeId) -> Option<&mut Node> {
        self.nodes.get_mut(&id).map(Box::as_mut)
    }

    /// A node that must be there, since the caller got the id from the graph and nothing has removed it since.
    ///
    /// # Errors
    /// It is gone: the caller's belief was wrong, which is told rather than panicked about.
    pub fn expect(&self, id: NodeId) -> Result<&Node> {
        Ok(self.node(id).ok_or(Refusal::Gone(id))?)
    }

    /// A live node by name.
    pub fn named(&self, name: &str) -> Option<&Node> {
        self.named_or_new(name).filter(|node| node.live)
    }

    /// A node by name, also one that is not live yet.
    pub fn named_or_new(&self, name: &str) -> Option<&Node> {
        self.nodes.get(self.names.get(name)?).map(Box::as_ref)
    }

    /// Whether a node has this name, live or not.
    pub fn has_name(&self, name: &str) -> bool {
        self.names.contains_key(name)
    }

    /// A live node by name, for commands that take a node's name alone.
    ///
    /// # Errors
    /// There is none.
    pub fn find(&self, name: &str) -> Result<&Node> {
        Ok(self.named(name).ok_or_else(|| Refusal::NoNode(name.to_owned()))?)
    }

    /// A live node by name, for commands that would also take a device's name: `device` is what they looked for.
    ///
    /// # Errors
    /// There is none.
    pub fn look_up(&self, device: &str, name: &str) -> Result<&Node> {
        let refused = || Refusal::NoDeviceOrNode {
            device: device.to_owned(),
            name: name.to_owned(),
        };
        Ok(self.named(name).ok_or_else(refused)?)
    }

    /// The same for one of several changes: those before it may have made the node.
    ///
    /// # Errors
    /// There is none.
    pub fn look_up_new(&self, device: &str, name: &str) -> Result<&Node> {
        let is_open = |node: &&Node| node.facts.is_some() && !node.closing;
        match self.named_or_new(name).filter(is_open) {
            Some(node) => Ok(node),
            None => self.look_up(device, name),
        }
    }

    /// The node of this name, which has a node behind the edge to `child`.
    ///
    /// # Errors
    /// There is no such node, or no such child.
    pub fn parent_of(&self, parent: &str, child: &str) -> Result<NodeId> {
        let node = self.find(parent)?;
        match node.slot(child).and_then(|slot| node.child(slot)) {
            Some(_) => Ok(node.id),
            None => Err(Refusal::no_child(parent, child).into()),
        }
    }

    /// Inserts a node whose name is not taken.
    pub fn insert(&mut self, node: Node) {
        self.names.insert(node.name.clone(), node.id);
        self.count_in(node.iothread);
        self.nodes.insert(node.id, Box::new(node));
    }

    fn count_in(&mut self, iothread: IoThreadId) {
        *self.population.entry(iothread).or_insert(0) += 1;
    }

    fn count_out(&mut self, iothread: IoThreadId) {
        if let Some(count) = self.population.get_mut(&iothread) {
            *count -= 1;
            if *count == 0 {
                self.population.remove(&iothread);
            }
        }
    }

    /// How many nodes live in an iothread.
    pub fn population(&self, iothread: IoThreadId) -> usize {
        self.population.get(&iothread).copied().unwrap_or(0)
    }

    /// A node lives in another iothread from now on.
    pub fn set_home(&mut self, id: NodeId, iothread: IoThreadId) {
        let Some(node) = self.nodes.get_mut(&id) else {
            return;
        };
        let before = std::mem::replace(&mut node.iothread, iothread);
        self.count_out(before);
        self.count_in(iothread);
    }

    /// Removes a node that has no edges.
    pub fn remove(&mut self, id: NodeId) -> Option<Box<Node>> {
        let node = self.nodes.remove(&id)?;
        self.names.remove(&node.name);
        self.blockers.forget_node(id);
        self.unfreeze_all(|freeze| freeze.node == Some(id));
        self.count_out(node.iothread);
        Some(node)
    }

    /// The edge of a number, if there is one.
    pub fn edge(&self, id: EdgeId) -> Option<&Edge> {
        self.edges.get(&id)
    }

    /// An edge, to be changed.
    pub fn edge_mut(&mut self, id: EdgeId) -> Option<&mut Edge> {
        self.edges.get_mut(&id)
    }

    /// All edges, in no order.
    pub fn edges(&self) -> impl Iterator<Item = &Edge> {
        self.edges.values()
    }

    /// The edges that lead to a node, the newest first.
    pub fn parents_of(&self, id: NodeId) -> impl Iterator<Item = &Edge> {
        let parents = self.node(id).map_or(&[][..], |node| &node.parents);
        parents.iter().rev().filter_map(|edge| self.edges.get(edge))
    }

    /// The nodes that hold an edge to a node, the oldest edge first.
    pub fn oldest_parent_nodes(&self, id: NodeId) -> impl Iterator<Item = NodeId> {
        let parents = self.node(id).map_or(&[][..], |node| &node.parents);
        parents
            .iter()
            .filter_map(|edge| match self.edges.get(edge)?.parent {
                Parent::Node(node, _) => Some(node),
                Parent::Root(_) => None,
            })
    }

    /// The edges that leave a node, by slot.
    pub fn children_of(&self, id: NodeId) -> impl Iterator<Item = &Edge> {
        let children = self.node(id).into_iter().flat_map(|node| node.children.values());
        children.filter_map(|edge| self.edges.get(edge))
    }

    /// The nodes that hold an edge to a node.
    pub fn parent_nodes(&self, id: NodeId) -> impl Iterator<Item = NodeId> {
        self.parents_of(id).filter_map(|edge| match edge.parent {
            Parent::Node(node, _) => Some(node),
            Parent::Root(_) => None,
        })
    }

    /// The root edges that lead to a node.
    pub fn roots_of(&self, id: NodeId) -> impl Iterator<Item = RootId> {
        self.parents_of(id).filter_map(|edge| match edge.parent {
            Parent::Root(root) => Some(root),
            Parent::Node(..) => None,
        })
    }

    /// The child node in a slot.
    pub fn child_node(&self, id: NodeId, slot: ChildSlot) -> Option<NodeId> {
        self.edge(self.node(id)?.child(slot)?).map(|edge| edge.child)
    }

    /// The child node of this name.
    pub fn child_named(&self, id: NodeId, name: &str) -> Option<NodeId> {
        self.child_node(id, self.node(id)?.slot(name)?)
    }

    /// Joins a parent's empty slot, or a new root, to a child. Permissions are none until they are computed.
    pub fn link(&mut self, parent: Parent, child: NodeId, name: Cow<'static, str>, role: Role) -> EdgeId {
        let id = EdgeId(self.next_id());
        let (taken, shared) = (Permissions::empty(), Permissions::all());
        self.edges.insert(
            id,
            Edge {
                id,
                parent,
                child,
                since: id.0,
                name,
                role,
                taken,
                shared,
                frozen: None,
                suspended: false,
            },
        );
        if let Parent::Node(node, slot) = parent {
            self.set_slot(node, slot, Some(id));
        }
        if let Some(node) = self.nodes.get_mut(&child) {
            node.parents.push(id);
        }
        id
    }

    /// Puts an edge back that [`Graph::unlink`] took away.
    pub fn relink(&mut self, edge: Edge) {
        if let Parent::Node(node, slot) = edge.parent {
            self.set_slot(node, slot, Some(edge.id));
        }
        self.insert_parent(&edge);
        self.edges.insert(edge.id, edge);
    }

    /// Takes an edge away.
    pub fn unlink(&mut self, id: EdgeId) -> Option<Edge> {
        let edge = self.edges.get(&id)?.clone();
        if let Parent::Node(node, slot) = edge.parent {
            self.set_slot(node, slot, None);
        }
        self.remove_parent(&edge);
        self.edges.remove(&id)
    }

    /// Puts an edge among those that lead to its child, which are in the order of their coming.
    fn insert_parent(&mut self, edge: &Edge) {
        let Some(node) = self.nodes.get_mut(&edge.child) else {
            return;
        };
        let at = place_among(&self.edges, &node.parents, edge);
        node.parents.insert(at, edge.id);
    }

    /// Takes an edge from those that lead to its child.
    fn remove_parent(&mut self, edge: &Edge) {
        let Some(node) = self.nodes.get_mut(&edge.child) else {
            return;
        };
        let at = place_among(&self.edges, &node.parents, edge);
        if node.parents.get(at) == Some(&edge.id) {
            node.parents.remove(at);
        }
    }

    fn set_slot(&mut self, node: NodeId, slot: ChildSlot, edge: Option<EdgeId>) {
        let Some(node) = self.nodes.get_mut(&node) else {
            return;
        };
        match edge {
            Some(edge) => node.children.insert(slot, edge),
            None => node.children.remove(&slot),
        };
    }

    /// Lets an edge lead to another node, as that node's newest. Answers where it led.
    pub fn redirect(&mut self, id: EdgeId, child: NodeId) -> Option<Target> {
        let since = self.next_id();
        self.redirect_back(id, Target { child, since })
    }

    /// Lets an edge lead again where it led before it was redirected. Answers where it led until now.
    pub fn redirect_back(&mut self, id: EdgeId, to: Target) -> Option<Target> {
        let before = self.edges.get(&id)?.clone();
        self.remove_parent(&before);
        let edge = self.edges.get_mut(&id)?;
        let old = Target {
            child: std::mem::replace(&mut edge.child, to.child),
            since: std::mem::replace(&mut edge.since, to.since),
        };
        let edge = edge.clone();
        self.insert_parent(&edge);
        Some(old)
    }

    /// An id for a root edge to be inserted.
    pub fn new_root_id(&mut self) -> RootId {
        RootId(self.next_id())
    }

    /// Inserts a root edge.
    pub fn insert_root(&mut self, id: RootId, root: Root) {
        self.roots.insert(id, root);
    }

    /// Removes a root edge's user; its edge goes separately.
    pub fn remove_root(&mut self, id: RootId) -> Option<Root> {
        self.blockers.forget_root(id);
        self.unfreeze_all(|freeze| freeze.root == Some(id));
        self.release_bitmaps(id);
        self.roots.remove(&id)
    }

    /// Adds an op blocker that forbids nothing yet; it ends with `root` at the latest.
    pub fn add_blocker(&mut self, reason: String, root: Option<RootId>) -> Token {
        let token = Token(self.next_id());
        self.blockers.insert(token, reason, root);
        token
    }

    /// The root edge of a number, if there is one.
    pub fn root(&self, id: RootId) -> Option<&Root> {
        self.roots.get(&id)
    }

    /// A root edge, to be changed.
    pub fn root_mut(&mut self, id: RootId) -> Option<&mut Root> {
        self.roots.get_mut(&id)
    }

    /// The edge of a root.
    ///
    /// # Errors
    /// There is no such root.
    pub fn root_edge(&self, id: RootId) -> Result<EdgeId> {
        let root = self.root(id).ok_or(Refusal::NoRoot(id))?;
        Ok(root.edge)
    }

    /// The node that a root edge leads to.
    ///
    /// # Errors
    /// There is no such root.
    pub fn root_node(&self, id: RootId) -> Result<NodeId> {
        let edge = self.edge(self.root_edge(id)?).ok_or(Refusal::NoRoot(id))?;
        Ok(edge.child)
    }

    /// All root edges, in the order of their numbers.
    pub fn roots(&self) -> impl Iterator<Item = (RootId, &Root)> {
        self.roots.iter().map(|(id, root)| (*id, root))
    }
}

/// Where an edge is, or would come, among edges in the order of their coming: there may be one for each of many overlays.
fn place_among(edges: &HashMap<EdgeId, Edge>, parents: &[EdgeId], edge: &Edge) -> usize {
    let since = |id: &EdgeId| edges.get(id).map_or(0, |other| other.since);
    parents.partition_point(|other| since(other) < edge.since)
}
