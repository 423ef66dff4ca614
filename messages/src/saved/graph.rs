//! The graph: nodes, edges, their users, and what holds them as they are.

use serde::{Deserialize, Serialize};

use super::{Saved, SavedNode};
use crate::graph::RootUser;
use crate::{ChildSlot, EdgeId, IoThreadId, NodeId, OpBlocker, Permissions, Role, RootId, Token};

/// The state of the whole graph.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedGraph {
    /// The iothreads that nodes can live in, by number.
    pub iothreads: Vec<SavedIothread>,
    /// The iothread that nodes are made in.
    pub main_iothread: IoThreadId,
    /// The nodes, the oldest first.
    pub nodes: Vec<SavedNode>,
    /// The edges, the oldest first.
    pub edges: Vec<SavedEdge>,
    /// The users' holds, the oldest first.
    pub roots: Vec<SavedRoot>,
    /// What is forbidden on nodes.
    pub blockers: Vec<SavedBlocker>,
    /// The holds on links.
    pub frozen: Vec<SavedFreeze>,
    /// The drained sections in force.
    pub sections: Vec<SavedSection>,
    /// The last number that a node, an edge, a root or a hold was given.
    pub last_id: u64,
    /// The last number in a name that was made up.
    pub last_name: u64,
    /// The last number that a section was given.
    pub last_section: u64,
}

impl Saved for SavedGraph {
    const KIND: &'static str = "graph";
    const VERSION: u32 = 4;
}

/// An iothread and its properties.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedIothread {
    /// The number by which the graph knows it.
    pub number: IoThreadId,
    /// The object's id; none for the main iothread.
    pub id: Option<String>,
    /// The property `poll-max-ns`, in nanoseconds.
    pub poll_max_ns: i64,
    /// The property `poll-grow`, a factor.
    pub poll_grow: i64,
    /// The property `poll-shrink`, a divisor.
    pub poll_shrink: i64,
    /// The property `aio-max-batch`, in requests.
    pub aio_max_batch: i64,
    /// The property `thread-pool-min`, in threads.
    pub thread_pool_min: i64,
    /// The property `thread-pool-max`, in threads.
    pub thread_pool_max: i64,
    /// The processors that it may run on.
    pub cpu_affinity: Vec<u16>,
}

/// Who holds an edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SavedParent {
    /// A node, by one of its slots.
    Node(NodeId, ChildSlot),
    /// A user, by its root edge.
    Root(RootId),
}

/// An edge from a parent to a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedEdge {
    /// The number of the edge.
    pub id: EdgeId,
    /// The node or user that holds it.
    pub parent: SavedParent,
    /// The node that it leads to.
    pub child: NodeId,
    /// Since when it leads there, counted as ids are.
    pub since: u64,
    /// The parent's name for it.
    pub name: String,
    /// What the child is to the parent.
    pub role: Role,
    /// What the parent takes.
    pub taken: Permissions,
    /// What it lets others do.
    pub shared: Permissions,
    /// The hold that keeps it from changing.
    pub frozen: Option<Token>,
    /// The parent relies on nothing below for now.
    pub suspended: bool,
}

/// A user's hold on a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedRoot {
    /// The number of the root edge.
    pub id: RootId,
    /// The user behind it.
    pub user: RootUser,
    /// The edge by which it holds the node.
    pub edge: EdgeId,
    /// Where its user wants the node.
    pub wants: Option<IoThreadId>,
    /// The node must not be taken away from there.
    pub pinned: bool,
    /// Requests come over it.
    pub has_cell: bool,
    /// Its user keeps the hold while the node is inactive.
    pub allows_inactive: bool,
    /// What it takes and shares again when the node is activated.
    pub suspended: Option<(Permissions, Permissions)>,
}

/// Operations that somebody forbids.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedBlocker {
    /// The number of the blocker.
    pub token: Token,
    /// Why it forbids them, for people.
    pub reason: String,
    /// It ends with this hold at the latest.
    pub root: Option<RootId>,
    /// What it forbids on which nodes.
    pub nodes: Vec<(NodeId, Vec<OpBlocker>)>,
}

/// A hold on links of chains.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedFreeze {
    /// The number of the hold.
    pub token: Token,
    /// It ends with this root edge at the latest.
    pub root: Option<RootId>,
    /// It ends with this node at the latest.
    pub node: Option<NodeId>,
    /// The edges that must not change.
    pub edges: Vec<EdgeId>,
}

/// What a section covers, besides the ancestors of all that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SavedSectionCover {
    /// These nodes, and all that is above them.
    Nodes(Vec<NodeId>),
    /// These and all below.
    Subtree(Vec<NodeId>),
    /// Everything, and what comes.
    All,
}

/// A drained section in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedSection {
    /// The section's number, which closes gates.
    pub token: Token,
    /// The nodes that it covers.
    pub cover: SavedSectionCover,
    /// The name of who began it.
    pub user: String,
}
