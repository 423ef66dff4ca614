//! Questions about the graph.

use crate::common::RootId;

/// A question about the graph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Query {
    /// `query-named-block-nodes`: all nodes; `flat` leaves out the images behind them.
    NamedNodes {
        /// No recursion into backing images.
        flat: bool,
    },
    /// What `x-debug-query-block-graph` answers.
    Graph,
    /// The same in the DOT language, with drivers, iothreads and roles: `x-millpond-query-dot`. Answered by a JSON string.
    Dot,
    /// Drains that are not still yet, with what they wait for.
    PendingDrains,
    /// What `query-blockstats` with `query-nodes` answers.
    Statistics,
    /// What has passed each node.
    NodeStatistics,
    /// All of the graph's state, to be written down.
    Save,
    /// The facts of one node.
    Node {
        /// The name of the node.
        node_name: String,
    },
    /// The sizes of the sectors of the device behind a node.
    BlockSizes {
        /// The name of the node.
        node_name: String,
    },
    /// The geometry of the disk behind a node.
    Geometry {
        /// The name of the node.
        node_name: String,
    },
    /// The drivers that may be used.
    Drivers {
        /// For reading at least, rather than for writing too.
        read_only: bool,
    },
    /// What a format says of its image; raw images and filters say what the node below them says.
    DriverInfo {
        /// The name of the node.
        node_name: String,
    },
    /// The directory that relative names in a node's image start from, with a slash at its end.
    Directory {
        /// The name of the node.
        node_name: String,
    },
    /// Iothreads and their properties.
    Iothreads,
    /// Whether a node may move to an iothread: done, or the error that the move would end with. Nothing moves.
    MayMove {
        /// The name of the node.
        node_name: String,
        /// The iothread's id as its user named it; `None` is the main one.
        iothread: Option<String>,
        /// With all that it is joined to, rather than alone.
        joined: bool,
    },
    /// What iothreads have done, the main one first: `x-millpond-query-iothreads`.
    IothreadStatistics,
    /// The node a root edge leads to.
    Root(RootId),
    /// The image of a chain that has a node as its backing image, filters left out.
    FindOverlay {
        /// Where the chain begins.
        active: String,
        /// The backing node; `None` asks for the chain's last image.
        node_name: Option<String>,
    },
    /// The image of a chain that its overlay has under this filename, which is relative to the overlay's or absolute.
    FindBackingImage {
        /// Where the chain begins.
        top: String,
        /// The filename to look for.
        filename: String,
    },
    /// Whether a node is in a chain.
    ChainContains {
        /// Where the chain begins.
        top: String,
        /// The name of the node that may be in it.
        base: String,
    },
    /// Whether no link of a chain is frozen; an error names one that is.
    ChainUnfrozen {
        /// Where the chain begins.
        top: String,
        /// Where it ends; `None` is its end.
        base: Option<String>,
    },
    /// Whether a node can be replaced by one with the data of `parent` without anybody seeing other data than before.
    CheckReplace {
        /// Whose data the replacement has.
        parent: String,
        /// The node to be replaced.
        node_name: String,
    },
    /// The node that users added next after another, or first.
    NextOwned {
        /// The name of the node that comes before.
        after: Option<String>,
    },
    /// What is forbidden on a node and why, the newest reason first.
    OpBlockers {
        /// The name of the node.
        node_name: String,
    },
}
