//! Answers of the graph actor.

use serde_json::Value;

use super::{Blocker, DriverFacts, GraphFacts, IothreadOptions, IothreadReport, NodeFacts};
use crate::common::{BlockSizes, CheckResult, DriverInfo, Geometry, IoThreadId, NodeReport, Token};
use crate::handshake::PendingDrain;
use crate::saved::SavedGraph;

/// An answer of the graph actor. `C` is the handle that a root edge is used through.
#[derive(Debug)]
pub enum GraphReply<C> {
    /// It is done, and there is nothing to tell.
    Done,
    /// A hold on a node.
    Root(C),
    /// A node, by its name.
    Name(String),
    /// The sizes of a device's sectors.
    BlockSizes(BlockSizes),
    /// The geometry of a disk.
    Geometry(Geometry),
    /// What a check found and mended.
    Checked(CheckResult),
    /// What a format says of its image.
    DriverInfo(DriverInfo),
    /// The drivers there are, by name.
    Drivers(Vec<DriverFacts>),
    /// A section that is still.
    Still(Token),
    /// `query-named-block-nodes` and `query-blockstats`: QAPI's own JSON.
    Json(Value),
    /// All nodes and edges.
    Graph(GraphFacts),
    /// Whether a request is held at a breakpoint.
    Suspended(bool),
    /// The drains that wait, and for what.
    Drains(Vec<PendingDrain>),
    /// The state of the graph, to be written down.
    Saved(Box<SavedGraph>),
    /// The facts of one node.
    Node(NodeFacts),
    /// Iothreads: options, the thread's id on the host, and its own id.
    Iothreads(Vec<(IothreadOptions, u32, IoThreadId)>),
    /// What iothreads have done.
    IothreadStatistics(Vec<IothreadReport>),
    /// What has passed each node, the oldest first.
    NodeStatistics(Vec<NodeReport>),
    /// The node that was looked for, if there is one.
    Found(Option<NodeFacts>),
    /// Whether what was asked is so.
    Truth(bool),
    /// Links that are frozen.
    Frozen(Token),
    /// An op blocker that is in force.
    Blocked(Token),
    /// What is forbidden on a node.
    Blockers(Vec<Blocker>),
}
