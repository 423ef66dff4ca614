//! What is told of the graph.

use super::{EdgeParent, RootUser};
use crate::common::{IoThreadId, Limits, NodeId, OpenFlags, Permissions, Role};

/// Facts about a driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriverFacts {
    /// The name of the driver.
    pub name: String,
    /// It stores bytes itself, rather than in another node.
    pub is_protocol: bool,
    /// It can make images.
    pub creates: bool,
    /// A filename can stand for a node of it: QEMU's tools speak of such a node as of a protocol.
    pub has_filenames: bool,
}

/// Facts about a node that others act on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeFacts {
    /// The number of the node.
    pub id: NodeId,
    /// The name of the node.
    pub name: String,
    /// The name of the node's driver.
    pub driver: String,
    /// It shows the data of its child.
    pub is_filter: bool,
    /// Its length in bytes.
    pub size: u64,
    /// Opened without the right to write.
    pub read_only: bool,
    /// How it is open now.
    pub flags: OpenFlags,
    /// A name that opens it: its file's where that is enough, else `json:{...}`.
    pub filename: String,
    /// What was never written reads as zeroes.
    pub has_zero_init: bool,
    /// What it asks of requests.
    pub limits: Limits,
    /// Writes with WRITE_COMPRESSED are possible.
    pub takes_compressed: bool,
    /// Writes of zeroes that may give space back do so.
    pub unmaps_zeroes: bool,
    /// The iothread where the node lives.
    pub iothread: IoThreadId,
}

/// An edge, as the graph query shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EdgeFacts {
    /// The parent: a node or a root edge.
    pub parent: EdgeParent,
    /// The number of the child.
    pub child: NodeId,
    /// The parent's name for it: `file`, `backing`, `root`.
    pub name: String,
    /// What the child is to the parent.
    pub role: Role,
    /// What the parent takes.
    pub permissions: Permissions,
    /// What it lets others do with the child.
    pub shared: Permissions,
}

/// The whole graph at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GraphFacts {
    /// Nodes in the order in which they were added.
    pub nodes: Vec<NodeFacts>,
    /// The edges, of nodes and of users.
    pub edges: Vec<EdgeFacts>,
}

impl GraphFacts {
    /// The name of the device that a node is to the program that embeds the library: the name that its oldest user of that
    /// kind has chosen; empty without one.
    #[must_use]
    pub fn device_name(&self, node: NodeId) -> &str {
        let mut edges = self.edges.iter().filter(|edge| edge.child == node);
        let named = edges.find_map(|edge| match &edge.parent {
            EdgeParent::Root(_, RootUser::Embedder(name)) if !name.is_empty() => Some(name),
            _ => None,
        });
        named.map_or("", String::as_str)
    }

    /// The same; without such a user the node's own name, or nothing where there is no such node.
    #[must_use]
    pub fn device_or_node_name(&self, node: NodeId) -> &str {
        let device = self.device_name(node);
        if !device.is_empty() {
            return device;
        }
        let node = self.nodes.iter().find(|facts| facts.id == node);
        node.map_or("", |facts| facts.name.as_str())
    }
}
