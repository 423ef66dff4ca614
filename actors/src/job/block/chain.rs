//! Chains of images as they are at one moment, for what a job checks before it begins.

use millpond_messages::graph::{EdgeFacts, EdgeParent, GraphFacts, NodeFacts, RootUser};
use millpond_messages::qapi::QmpError;
use millpond_messages::{NodeId, Permissions, Role, RootId};

/// The graph at one moment.
pub(super) struct Chains(GraphFacts);

impl Chains {
    pub const fn new(facts: GraphFacts) -> Self {
        Self(facts)
    }

    /// The node of this name.
    pub fn named(&self, name: &str) -> Option<&NodeFacts> {
        self.0.nodes.iter().find(|node| node.name == name)
    }

    /// The node of this name, which may be that of a device as well.
    ///
    /// # Errors
    /// There is none.
    pub fn find(&self, device: &str, name: &str) -> Result<&NodeFacts, QmpError> {
        self.named(name)
            .ok_or_else(|| QmpError::generic(format!("Cannot find device='{device}' nor node-name='{name}'")))
    }

    pub fn node(&self, id: NodeId) -> Option<&NodeFacts> {
        self.0.nodes.iter().find(|node| node.id == id)
    }

    fn child(&self, parent: NodeId, role: Role) -> Option<&NodeFacts> {
        let mut edges = self.0.edges.iter();
        let of_parent = |edge: &&EdgeFacts| edge.parent == EdgeParent::Node(parent);
        let edge = edges.find(|edge| of_parent(edge) && edge.role.contains(role))?;
        self.node(edge.child)
    }

    /// What a filter filters.
    pub fn filtered(&self, node: &NodeFacts) -> Option<&NodeFacts> {
        node.is_filter.then(|| self.child(node.id, Role::PRIMARY))?
    }

    /// An image's backing node.
    pub fn backing(&self, node: &NodeFacts) -> Option<&NodeFacts> {
        self.child(node.id, Role::COW)
    }

    /// The next node of a chain, a filter or an image.
    pub fn below(&self, node: &NodeFacts) -> Option<&NodeFacts> {
        self.filtered(node).or_else(|| self.backing(node))
    }

    /// The first node from this one on that is no filter.
    pub fn image<'a>(&'a self, mut node: &'a NodeFacts) -> &'a NodeFacts {
        while let Some(below) = self.filtered(node) {
            node = below;
        }
        node
    }

    /// The nodes of a chain from `top` on, down to the end.
    pub fn from<'a>(&'a self, top: &'a NodeFacts) -> impl Iterator<Item = &'a NodeFacts> {
        std::iter::successors(Some(top), |node| self.below(node))
    }

    /// The nodes of a chain from `top` on that are above `end`.
    pub fn above<'a>(
        &'a self,
        top: &'a NodeFacts,
        end: Option<NodeId>,
    ) -> impl Iterator<Item = &'a NodeFacts> {
        self.from(top).take_while(move |node| Some(node.id) != end)
    }

    /// Whether `base` is in the chain of `top`, which is in its own.
    pub fn contains(&self, top: &NodeFacts, base: &NodeFacts) -> bool {
        self.from(top).any(|node| node.id == base.id)
    }

    /// The image of a chain whose backing image is that of `base`; the chain's last image without a `base`.
    pub fn overlay<'a>(&'a self, top: &'a NodeFacts, base: Option<&NodeFacts>) -> Option<&'a NodeFacts> {
        let base = base.map(|base| self.image(base).id);
        let mut at = self.image(top);
        loop {
            let below = self.backing(at).map(|below| self.image(below));
            if below.map(|below| below.id) == base {
                return Some(at);
            }
            at = below?;
        }
    }

    /// Whether no node stands on this one, and no job goes on there.
    pub fn is_root(&self, node: &NodeFacts) -> bool {
        let is_user = |parent: &EdgeParent| match parent {
            EdgeParent::Root(_, user) => !matches!(user, RootUser::Job(_)),
            EdgeParent::Node(_) => false,
        };
        let mut parents = self.0.edges.iter().filter(|edge| edge.child == node.id);
        parents.all(|edge| is_user(&edge.parent))
    }

    /// Whether somebody may write to a node.
    pub fn is_written(&self, node: &NodeFacts) -> bool {
        let mut parents = self.0.edges.iter().filter(|edge| edge.child == node.id);
        parents.any(|edge| edge.permissions.contains(Permissions::WRITE))
    }

    /// The node that a user holds.
    pub fn held_by(&self, root: RootId) -> Option<&NodeFacts> {
        let is_it = |edge: &&EdgeFacts| matches!(&edge.parent, EdgeParent::Root(held, _) if *held == root);
        self.node(self.0.edges.iter().find(is_it)?.child)
    }

    /// The node of this driver that filters `node`.
    pub fn filter_over(&self, node: &str, driver: &str) -> Option<&NodeFacts> {
        let below = self.named(node)?.id;
        let filters = self.0.nodes.iter().filter(|node| node.driver == driver);
        let mut over = filters.filter(|filter| self.filtered(filter).is_some_and(|node| node.id == below));
        over.next()
    }

    /// All from `top` on that is above `base`.
    pub fn merged(&self, top: &NodeFacts, base: &NodeFacts) -> Vec<Merged> {
        // The filters over the base begin with what the last image is over.
        let first = self.overlay(top, Some(base)).and_then(|last| self.backing(last));
        let first = first.map(|node| node.id);
        let mut is_over_base = false;
        let nodes = self.above(top, Some(base.id)).map(|node| {
            is_over_base |= Some(node.id) == first;
            let name = node.name.clone();
            Merged { name, is_over_base }
        });
        nodes.collect()
    }
}

/// A node that leaves the chain.
pub(super) struct Merged {
    pub name: String,
    /// It is a filter over the base, and shows what the base does.
    pub is_over_base: bool,
}
