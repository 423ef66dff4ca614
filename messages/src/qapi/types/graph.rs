//! The whole graph with its permissions, as `x-debug-query-block-graph` shows it.

use serde::{Deserialize, Serialize};

/// What a vertex of the shown graph is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum XDbgBlockGraphNodeType {
    /// A user's handle on a root edge.
    BlockBackend,
    /// A job that uses nodes.
    BlockJob,
    /// A node of the graph.
    BlockDriver,
}

/// A vertex of the shown graph.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct XDbgBlockGraphNode {
    /// A number, unique within this reply.
    pub id: u64,
    /// Which kind of vertex it is.
    #[serde(rename = "type")]
    pub kind: XDbgBlockGraphNodeType,
    /// The node's name, the job's id, or the backend's name.
    pub name: String,
}

/// A permission as the schema names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BlockPermission {
    /// Reads see the data that was written.
    ConsistentRead,
    /// Writes that may change data.
    Write,
    /// Writes that leave what a reader sees as it was.
    WriteUnchanged,
    /// Changes of the size.
    Resize,
}

/// An edge of the shown graph.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct XDbgBlockGraphEdge {
    /// The vertex that uses.
    pub parent: u64,
    /// The id of the vertex that is used.
    pub child: u64,
    /// The name of the edge at its parent.
    pub name: String,
    /// What the parent may do.
    pub perm: Vec<BlockPermission>,
    /// What the parent lets others do.
    pub shared_perm: Vec<BlockPermission>,
}

/// The reply of `x-debug-query-block-graph`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct XDbgBlockGraph {
    /// The vertices: nodes, and who uses them.
    pub nodes: Vec<XDbgBlockGraphNode>,
    /// The edges, each from a parent to a child.
    pub edges: Vec<XDbgBlockGraphEdge>,
}
