//! What the policy asks of nodes, with ids in place of handles: the actor puts the handles in.

use std::sync::Arc;

use millpond_drivers::api::{BackingLink, DriverKind, ReopenRequest};
use millpond_engine::node::NodeSettings;
use millpond_messages::graph::Options;
use millpond_messages::io::Preallocation;
use millpond_messages::{
    ChildSlot, DebugOrder, IoThreadId, LatencyHistograms, NodeId, OpenFlags, Permissions, Repair,
    RequestFlags, RootId, Token,
};

/// A node and the iothread that it lives in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// The node.
    pub node: NodeId,
    /// Its home.
    pub iothread: IoThreadId,
}

/// An order to a node: [`millpond_engine::node::Order`] without handles.
#[derive(Clone)]
pub enum Order {
    /// Open a node.
    Open(Box<Open>),
    /// Close a node that no edge leads to.
    Close(NodeId),
    /// Close the gate.
    Quiesce(NodeId, Token),
    /// Take back that token's hold on the gate.
    Resume(NodeId, Token),
    /// Put a node behind one of a parent's edges, or none.
    Connect {
        /// The parent.
        parent: NodeId,
        /// Which child.
        slot: ChildSlot,
        /// What is behind it from now on.
        target: Option<Address>,
    },
    /// Begin a root edge.
    AttachRoot {
        /// Its id.
        root: RootId,
        /// The node.
        node: NodeId,
        /// What its user may do.
        permissions: Permissions,
        /// Every write is made durable before it is answered.
        writethrough: bool,
    },
    /// Put another node behind a root edge.
    MoveRoot {
        /// The edge.
        root: RootId,
        /// Where it leads from now on.
        target: Address,
    },
    /// End a root edge.
    DetachRoot(RootId),
    /// Ready new permissions.
    PermissionsPrepare {
        /// The node.
        node: NodeId,
        /// What all its parents take.
        taken: Permissions,
        /// What all of them share.
        shared: Permissions,
    },
    /// The prepared permissions hold.
    PermissionsCommit(NodeId),
    /// The prepared permissions are forgotten.
    PermissionsAbort(NodeId),
    /// Ready new options.
    ReopenPrepare {
        /// The node.
        node: NodeId,
        /// Its options.
        request: ReopenRequest,
        /// The node-level ones.
        settings: NodeSettings,
    },
    /// The prepared options hold.
    ReopenCommit(NodeId),
    /// The prepared options are forgotten.
    ReopenAbort(NodeId),
    /// Write back what belongs to the data behind edges that is about to be other data.
    ExchangePrepare {
        /// The node.
        node: NodeId,
        /// Its edges.
        slots: Vec<ChildSlot>,
    },
    /// Read anew what was read from the old data, and keep the old state.
    Exchange {
        /// The node.
        node: NodeId,
        /// Its edges; none where only what children demand may have changed.
        slots: Vec<ChildSlot>,
    },
    /// The old state is forgotten.
    ExchangeCommit(NodeId),
    /// The old state holds again.
    ExchangeAbort(NodeId),
    /// Move to another iothread.
    Depart {
        /// The node.
        node: NodeId,
        /// Where it goes.
        to: IoThreadId,
    },
    /// Change the length.
    Truncate {
        /// The node.
        node: NodeId,
        /// Bytes.
        size: u64,
        /// Fail rather than end up longer.
        exact: bool,
        /// How the new space is laid out.
        preallocation: Preallocation,
        /// ZERO_WRITE or none.
        flags: RequestFlags,
    },
    /// Check the image's metadata, and mend it.
    Check {
        /// The node.
        node: NodeId,
        /// What to mend.
        repair: Repair,
    },
    /// Delete the file of the node.
    DeleteFile(NodeId),
    /// Note all that the node has in flight, for the sake of a root edge's requests that are serialised.
    Serialise {
        /// The root edge.
        root: RootId,
        /// Its node.
        node: NodeId,
    },
    /// Where paths lead when all links in them are followed.
    RealPaths(Vec<String>),
    /// Make everything acknowledged durable.
    Flush(NodeId),
    /// End early what can be ended.
    CancelInFlight(NodeId),
    /// Facts as they are now.
    Describe(NodeId),
    /// The same of many nodes of one iothread.
    DescribeMany(Vec<NodeId>),
    /// What the node has in flight.
    Pending(NodeId),
    /// What has passed some nodes of one iothread.
    Statistics(Vec<NodeId>),
    /// Count latencies in new histograms from now on; none ends those that there are.
    SetHistograms {
        /// The node.
        node: NodeId,
        /// The histograms, empty.
        histograms: LatencyHistograms,
    },
    /// One more asks for copy-on-read of every read, or one less.
    CopyOnRead {
        /// The node.
        node: NodeId,
        /// One more.
        on: bool,
    },
    /// Hold requests at events of the node, or let them go.
    Debug {
        /// The node.
        node: NodeId,
        /// What to do.
        order: DebugOrder,
    },
    /// What the iothread has done.
    Counters,
    /// The node's first bytes.
    ReadHead {
        /// The node.
        node: NodeId,
        /// At most so many bytes.
        len: usize,
    },
    /// Drop what is cached of the image, and read it again.
    Invalidate(NodeId),
    /// Make an empty file with a name that nobody can foresee.
    NewTemporary,
    /// Write what a node has allocated in a range to its backing node.
    Commit {
        /// The node.
        node: NodeId,
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// Forget all that the image has of its own.
    MakeEmpty(NodeId),
    /// Change options of the image's format in place.
    Amend {
        /// The node.
        node: NodeId,
        /// `qemu-img amend`'s options.
        options: Options,
    },
    /// Record in the image which backing file it has.
    ChangeBackingFile {
        /// The node.
        node: NodeId,
        /// The new link.
        link: Option<BackingLink>,
    },
    /// Make an image.
    Create {
        /// The driver.
        kind: Arc<dyn DriverKind>,
        /// The driver's options.
        options: Options,
        /// The node to format.
        file: Option<Address>,
    },
}

impl Order {
    /// The nodes whose data carrying the order out may read or write, without a gate that counts it: sections begun
    /// meanwhile wait until it has been. What a node that closes writes back is waited for by the node being closed, and
    /// the making of an image begins and ends its work by itself.
    pub fn works_at(&self) -> Vec<NodeId> {
        match self {
            Self::Open(open) => open
                .children
                .iter()
                .flatten()
                .map(|address| address.node)
                .collect(),
            Self::Truncate { node, .. }
            | Self::Flush(node)
            | Self::MakeEmpty(node)
            | Self::Commit { node, .. }
            | Self::ReadHead { node, .. }
            | Self::ReopenPrepare { node, .. }
            | Self::ExchangePrepare { node, .. }
            | Self::Exchange { node, .. }
            | Self::Invalidate(node)
            | Self::Amend { node, .. }
            | Self::Check { node, .. }
            | Self::ChangeBackingFile { node, .. } => vec![*node],
            _ => Vec::new(),
        }
    }

    /// What it does, in a word, where it may take as long as the node's storage does.
    pub fn what(&self) -> Option<&'static str> {
        Some(match self {
            Self::Open(_) => "open",
            Self::Close(_) => "close",
            Self::Flush(_) => "flush",
            Self::Truncate { .. } => "resize",
            Self::Amend { .. } => "amendment",
            Self::Check { .. } => "check",
            Self::DeleteFile(_) => "deletion of a file",
            Self::Create { .. } => "making of an image",
            Self::ReopenPrepare { .. } => "reopen",
            Self::ExchangePrepare { .. } | Self::Exchange { .. } => "exchange of a child",
            Self::PermissionsPrepare { .. } => "change of permissions",
            Self::ChangeBackingFile { .. } => "change of the backing file",
            Self::Invalidate(_) => "reading of metadata",
            Self::ReadHead { .. } => "first read",
            _ => return None,
        })
    }
}

/// What a node is opened with.
#[derive(Clone)]
pub struct Open {
    /// Its id.
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// Its driver.
    pub kind: Arc<dyn DriverKind>,
    /// The driver's own options.
    pub options: Options,
    /// Open flags.
    pub flags: OpenFlags,
    /// What the node itself does.
    pub settings: NodeSettings,
    /// What is behind each of the driver's children, the numbered ones last.
    pub children: Vec<Option<Address>>,
}
