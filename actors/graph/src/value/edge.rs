//! Edges of the graph, and those who hold them.

use std::borrow::Cow;

use millpond_messages::graph::RootUser;
use millpond_messages::{ChildSlot, EdgeId, IoThreadId, NodeId, Permissions, Role, RootId, Token};

/// Who holds an edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Parent {
    /// A node, by one of its slots.
    Node(NodeId, ChildSlot),
    /// A user, by its root edge.
    Root(RootId),
}

/// An edge from a parent to a node.
#[derive(Debug, Clone)]
pub struct Edge {
    /// Its id. Ids grow.
    pub id: EdgeId,
    /// The node or user that holds it.
    pub parent: Parent,
    /// The node that it leads to.
    pub child: NodeId,
    /// Since when it leads there, counted as ids are.
    pub since: u64,
    /// The parent's name for it.
    pub name: Cow<'static, str>,
    /// What the child is to the parent.
    pub role: Role,
    /// What the parent takes.
    pub taken: Permissions,
    /// What it lets others do with the child.
    pub shared: Permissions,
    /// Who relies on it to stay as it is.
    pub frozen: Option<Token>,
    /// The parent relies on nothing below and lets others write there: it has all that they write.
    pub suspended: bool,
}

/// Where an edge leads, and since when.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// The node that it leads to.
    pub child: NodeId,
    /// Counted as ids are.
    pub since: u64,
}

/// A user's hold on a node.
#[derive(Debug, Clone)]
pub struct Root {
    /// The user behind the root edge.
    pub user: RootUser,
    /// The edge by which it holds the node.
    pub edge: EdgeId,
    /// Where its user wants the node.
    pub wants: Option<IoThreadId>,
    /// Where the node is wanted, it must not be taken away from.
    pub pinned: bool,
    /// Where its user works, wherever the node lives; nowhere else than there if there is none.
    pub serves: Vec<IoThreadId>,
    /// It has a cell that requests come through; without one it only holds permissions for work of the graph actor's own.
    pub has_cell: bool,
    /// Its user keeps the hold while the node is inactive.
    pub allows_inactive: bool,
    /// What it takes and shares again when the node is activated.
    pub suspended: Option<(Permissions, Permissions)>,
}
