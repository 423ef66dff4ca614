//! The graph as it is shown: with its permissions, its drains, and the iothreads that it is on.

use crate::io::OperationKind;
use crate::qapi::define::{EnumType, Qapi, Type};
use crate::qapi::row::qapi;

qapi! {
    /// What a vertex of the shown graph is.
    enum XDbgBlockGraphNodeType {
        /// A user's handle on a root edge.
        BlockBackend = "block-backend",
        /// A job that uses nodes.
        BlockJob = "block-job",
        /// A node of the graph.
        BlockDriver = "block-driver",
    }

    /// A vertex of the shown graph.
    #[derive(Eq)]
    struct XDbgBlockGraphNode {
        /// A number, unique within this reply.
        id: u64,
        /// Which kind of vertex it is.
        kind as "type": XDbgBlockGraphNodeType,
        /// The node's name, the job's id, or the backend's name.
        name: String,
    }

    /// A permission as the schema names it.
    enum BlockPermission {
        /// Reads see the data that was written.
        ConsistentRead = "consistent-read",
        /// Writes that may change data.
        Write = "write",
        /// Writes that leave what a reader sees as it was.
        WriteUnchanged = "write-unchanged",
        /// Changes of the size.
        Resize = "resize",
    }

    /// An edge of the shown graph.
    #[derive(Eq)]
    struct XDbgBlockGraphEdge {
        /// The vertex that uses.
        parent: u64,
        /// The id of the vertex that is used.
        child: u64,
        /// The name of the edge at its parent.
        name: String,
        /// What the parent may do.
        perm: Vec<BlockPermission>,
        /// What the parent lets others do.
        shared_perm: Vec<BlockPermission>,
    }

    /// The whole graph with its permissions.
    #[derive(Default, Eq)]
    struct XDbgBlockGraph {
        /// The vertices: nodes, and who uses them.
        nodes: Vec<XDbgBlockGraphNode>,
        /// The edges, each from a parent to a child.
        edges: Vec<XDbgBlockGraphEdge>,
    }

    /// Shows the whole graph with its permissions.
    command XDebugQueryBlockGraph = "x-debug-query-block-graph" {} -> XDbgBlockGraph ["unstable"];

    /// Shows the graph as a picture in the language of Graphviz.
    command XMillpondQueryDot = "x-millpond-query-dot" {} -> String ["unstable"];

    /// A drain that has not become still.
    #[derive(Eq)]
    struct PendingDrain {
        /// The number of the section that waits.
        token: u64,
        /// Who asked for it.
        user: String,
        /// How long it has waited, in nanoseconds.
        age_ns: u64,
        /// The nodes that have not answered, with what they wait for.
        waiting_for: Vec<WaitingNode>,
    }

    /// A node that has not answered a quiesce.
    #[derive(Eq)]
    struct WaitingNode {
        /// The node's name in the graph.
        node_name: String,
        /// What it has in flight, oldest first, a bounded number of them.
        requests: Vec<PendingRequest>,
    }

    /// A request that a drain waits for.
    #[derive(Eq)]
    struct PendingRequest {
        /// The kind of request.
        operation: OperationKind,
        /// Its first byte; 0 if it has none.
        offset: u64,
        /// How many bytes it is about; 0 if about none.
        len: u64,
        /// How long it has been in flight, in nanoseconds.
        age_ns: u64,
        /// The node below which it is now.
        stands_at: String,
    }

    /// Shows the drains that wait, and what they wait for.
    command XMillpondQueryDrains = "x-millpond-query-drains" {} -> Vec<PendingDrain> ["unstable"];

    /// What an iothread is and has done: the form of [`IothreadReport`](crate::graph::IothreadReport).
    open struct MillpondIothreadReport {
        id: String,
        thread_id: u32,
        nodes: u64,
        cpu_affinity: Vec<u16>,
        age_ns: u64,
        slept_ns: u64,
        polled_ns: u64,
        busy_ns: u64,
        turns: u64,
        system_calls: u64,
        sleeps: u64,
        wake_ups: u64,
        polls: u64,
        polls_paid: u64,
        messages: u64,
        task_runs: u64,
        requests: u64,
        requests_from_elsewhere: u64,
        operations: u64,
        operations_in_flight: u64,
    }

    /// Shows what iothreads have done, the main one first.
    command XMillpondQueryIothreads = "x-millpond-query-iothreads" {} -> Vec<MillpondIothreadReport> ["unstable"];
}

impl Qapi for OperationKind {
    const TYPE: Type = Type::Enum(|| {
        static SCHEMA: EnumType = EnumType {
            name: "MillpondOperation",
            values: &[
                "read",
                "write",
                "write-zeroes",
                "discard",
                "flush",
                "truncate",
                "block-status",
                "query",
            ],
            features: &[],
        };
        &SCHEMA
    });
}
