//! Users of nodes: who they are, what they ask for, and the edges they hold.

use serde::{Deserialize, Serialize};

use crate::common::{IoThreadId, NodeId, Permissions, RootId};

/// Who stands behind a root edge.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum RootUser {
    /// An export, by id.
    Export(String),
    /// A job, by id.
    Job(String),
    /// A program that embeds the library, by a name it chooses.
    Embedder(String),
}

/// What a user asks for when it takes hold of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootRequest {
    /// The name of the node.
    pub node: String,
    /// Who will use the node.
    pub user: RootUser,
    /// What it will do.
    pub permissions: Permissions,
    /// What others may do meanwhile.
    pub shared: Permissions,
    /// Move the node to this iothread first, unless another user wants it where it is: the edge crosses iothreads then. What
    /// is joined to the node later comes to it as well. `None` leaves all where they are.
    pub iothread: Option<IoThreadId>,
    /// Nobody may move the node away by an explicit request.
    pub iothread_required: bool,
    /// Every write is made durable before it is answered.
    pub writethrough: bool,
}

impl RootRequest {
    /// Takes hold of a node where it lives, to do what `permissions` say; others may do anything meanwhile.
    #[must_use]
    pub fn new(node: impl Into<String>, user: RootUser, permissions: Permissions) -> Self {
        Self {
            node: node.into(),
            user,
            permissions,
            shared: Permissions::all(),
            iothread: None,
            iothread_required: false,
            writethrough: false,
        }
    }
}

/// An edge, by whoever holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChildOf {
    /// A node, which uses another.
    Node {
        /// The name of the node.
        node_name: String,
        /// What it calls the child.
        child: String,
    },
    /// A user, by its root edge.
    Root(RootId),
}

/// Who holds an edge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EdgeParent {
    /// A node, by its number.
    Node(NodeId),
    /// A user, by its root edge.
    Root(RootId, RootUser),
}
