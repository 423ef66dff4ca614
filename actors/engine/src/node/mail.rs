//! What an iothread's mailbox carries: requests from other threads, and the graph actor's orders to nodes.

use std::sync::Arc;

use futures_channel::oneshot;
use millpond_drivers::api::{Abilities, BackingLink, DriverKind, Posted, ReopenRequest};
use millpond_messages::graph::{IothreadCounters, Options};
use millpond_messages::handshake::PendingRequest;
use millpond_messages::io::{Operation, Outcome, Preallocation};
use millpond_messages::{
    BlockSizes, CheckResult, ChildSlot, DebugOrder, DriverInfo, Geometry, IoResult, LatencyHistograms,
    Limits, NodeId, NodeStatistics, OpenFlags, Permissions, Repair, RequestFlags, Result, RootId, Token,
};
use millpond_ring::buffer::Buffers;

use super::client::RootHandle;
use super::migrate::{MovedNode, MovedRoot};
use crate::chaos::Chaos;
use crate::flight::Open;
use crate::iothread::IoThread;

/// A message to an iothread.
pub enum Mail {
    /// Run this there: how exports place their tasks.
    Run(Box<dyn FnOnce() + Send>),
    /// A request from another thread.
    Request(RemoteRequest),
    /// An order of the graph actor. The outcome comes back under `ticket`.
    Control {
        /// Names the order in the [`Event`] that answers it.
        ticket: Ticket,
        /// The order.
        order: Order,
    },
    /// A node that moves in.
    Arrive(Box<MovedNode>),
    /// A root edge that moves in with what is parked at it.
    ArriveRoot(Box<MovedRoot>),
    /// A message policy to put in force, or none. The sender is dropped when it is, with what was held gone out.
    Chaos(Option<Chaos>, oneshot::Sender<()>),
    /// Tell what is open, for a flight record.
    Flight(oneshot::Sender<Open>),
}

/// A request on its way to another iothread, with the place for its answer.
pub struct RemoteRequest {
    /// Where it enters.
    pub entry: Entry,
    /// What is asked.
    pub operation: Operation<Buffers>,
    /// Where the answer goes. Dropped unanswered, the asker learns that the request was lost.
    pub reply: oneshot::Sender<Outcome<Buffers>>,
}

/// Where a request enters the graph, or goes on in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// Over a root edge: it is admitted, counted, and waits at the gate if that is closed.
    Root(RootId),
    /// Over an edge from a node of another iothread: it belongs to a request admitted there.
    Node(NodeId),
}

/// Names an order of the graph actor. Never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// A node and the iothread that it lives in.
#[derive(Clone)]
pub struct NodeAddress {
    /// The node.
    pub node: NodeId,
    /// Its home.
    pub iothread: IoThread<Mail>,
}

/// An order to a node. Unless said otherwise it is answered by [`OrderOutcome::Done`].
pub enum Order {
    /// Open a node; answered by [`OrderOutcome::Opened`]. A failed open leaves nothing behind.
    Open(Box<OpenOrder>),
    /// Close a node that no edge leads to. It is gone afterwards whatever the answer.
    Close(NodeId),
    /// Close the gate; answered by [`Event::Quiesced`], when nothing is in flight.
    Quiesce(NodeId, Token),
    /// Take back that token's hold on the gate. Not answered.
    Resume(NodeId, Token),
    /// Put a node behind one of `parent`'s edges, or none. The parent is still, or not in use yet. A numbered child
    /// comes into being with a node, and goes without one.
    Connect {
        /// The node whose child changes.
        parent: NodeId,
        /// Which child.
        slot: ChildSlot,
        /// What is behind the edge from now on.
        target: Option<NodeAddress>,
    },
    /// Begin a root edge.
    AttachRoot {
        /// The edge, as the graph actor and its clients share it.
        root: RootHandle,
        /// The node it leads to.
        node: NodeId,
    },
    /// Put another node behind a root edge; both nodes are still.
    MoveRoot {
        /// The edge.
        root: RootId,
        /// Where it leads from now on.
        target: NodeAddress,
    },
    /// End a root edge; what is parked at it fails.
    DetachRoot(RootId),
    /// [`Driver::permissions_prepare`](millpond_drivers::api::Driver::permissions_prepare).
    PermissionsPrepare {
        /// The node.
        node: NodeId,
        /// What all its parents take.
        taken: Permissions,
        /// What all of them share.
        shared: Permissions,
    },
    /// The prepared permissions hold. Not answered.
    PermissionsCommit(NodeId),
    /// The prepared permissions are forgotten. Not answered.
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
    /// The prepared options hold; the node is still. Answered by [`OrderOutcome::Opened`].
    ReopenCommit(NodeId),
    /// The prepared options are forgotten. Not answered.
    ReopenAbort(NodeId),
    /// Other data is about to be behind edges of a node that is still: what belongs to the old data is written back, and
    /// flushed.
    ExchangePrepare {
        /// The node.
        node: NodeId,
        /// Its edges.
        slots: Vec<ChildSlot>,
    },
    /// The other data is there: what was read from the old is read anew, and put aside until a commit or an abort. Without
    /// an edge, the node only asks its children anew what they demand. Answered by [`OrderOutcome::Opened`].
    Exchange {
        /// The node.
        node: NodeId,
        /// Its edges.
        slots: Vec<ChildSlot>,
    },
    /// What was put aside is forgotten. Not answered.
    ExchangeCommit(NodeId),
    /// What was put aside holds again; the old data is there. Not answered.
    ExchangeAbort(NodeId),
    /// Move to another iothread; the node is still. Answered from there, once it has arrived.
    Depart {
        /// The node.
        node: NodeId,
        /// Where it goes.
        to: IoThread<Mail>,
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
    /// Check the image's metadata, and mend it; answered by [`OrderOutcome::Checked`]. The node is still.
    Check {
        /// The node.
        node: NodeId,
        /// What to mend.
        repair: Repair,
    },
    /// [`Driver::delete_file`](millpond_drivers::api::Driver::delete_file).
    DeleteFile(NodeId),
    /// Note all that the node has in flight, for the sake of a root edge's requests that are serialised. The node is still.
    Serialise {
        /// The root edge.
        root: RootId,
        /// Its node.
        node: NodeId,
    },
    /// Where paths lead when all links in them are followed; answered by [`OrderOutcome::RealPaths`].
    RealPaths(Vec<String>),
    /// [`Driver::cancel_in_flight`](millpond_drivers::api::Driver::cancel_in_flight).
    CancelInFlight(NodeId),
    /// Make everything acknowledged durable.
    Flush(NodeId),
    /// Answered by [`OrderOutcome::Described`].
    Describe(NodeId),
    /// The same of many nodes; answered by [`OrderOutcome::DescribedMany`].
    DescribeMany(Vec<NodeId>),
    /// What has passed some nodes; answered by [`OrderOutcome::Statistics`].
    Statistics(Vec<NodeId>),
    /// What the iothread has done; answered by [`OrderOutcome::Counters`].
    Counters,
    /// What the node has in flight, oldest first; answered by [`OrderOutcome::Pending`].
    Pending(NodeId),
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
    /// Hold requests at events of the node, or let them go; answered by [`OrderOutcome::Debugged`].
    Debug {
        /// The node.
        node: NodeId,
        /// What to do.
        order: DebugOrder,
    },
    /// The node's first bytes, for probing; answered by [`OrderOutcome::Head`].
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
    /// Write what a node has allocated in a range to its backing node. Both are still, but for this.
    Commit {
        /// The node.
        node: NodeId,
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// Forget all that the image has of its own. The node is still.
    MakeEmpty(NodeId),
    /// Change options of the image's format in place. The node is still.
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
        file: Option<NodeAddress>,
    },
}

/// What a node is opened with.
pub struct OpenOrder {
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
    /// What the node itself does, whatever its driver.
    pub settings: NodeSettings,
    /// What is behind each of the driver's children, the numbered ones last.
    pub children: Vec<Option<NodeAddress>>,
}

/// Options that the node carries out rather than its driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NodeSettings {
    /// What becomes of writes that hold only zeroes.
    pub detect_zeroes: DetectZeroes,
    /// The format was guessed from the contents: a guest must not write a format's header into the first sector.
    pub probed: bool,
}

/// The `detect-zeroes` option.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DetectZeroes {
    /// They are written.
    #[default]
    Off,
    /// They become zero writes.
    On,
    /// They become zero writes that may deallocate.
    Unmap,
}

/// What an iothread tells the graph actor.
pub enum Event {
    /// An order was carried out, or was not.
    Ended(Ticket, OrderOutcome),
    /// A node has nothing in flight, and will not until the token is resumed.
    Quiesced(NodeId, Token),
    /// A driver tells something.
    Noticed(NodeId, Posted),
    /// A root edge was sent a request that is to be serialised; its node is to note all that it has in flight.
    Serialises(NodeId, RootId),
}

/// How an order ended.
pub enum OrderOutcome {
    /// Most orders.
    Done(Result<()>),
    /// Open and reopen.
    Opened(Result<OpenFacts>),
    /// Describe.
    Described(IoResult<Box<Description>>),
    /// DescribeMany. Nodes that are gone, or not open, are left out.
    DescribedMany(Vec<(NodeId, Description)>),
    /// Pending.
    Pending(Vec<PendingRequest>),
    /// Debug: whether a request is held, where that was asked.
    Debugged(Result<bool>),
    /// Statistics. Nodes that are gone are left out.
    Statistics(Vec<(NodeId, NodeStatistics)>),
    /// Counters.
    Counters(Box<IothreadCounters>),
    /// ReadHead.
    Head(IoResult<Vec<u8>>),
    /// NewTemporary.
    Named(Result<String>),
    /// Check.
    Checked(Result<CheckResult>),
    /// RealPaths: one for each; none for what does not exist, or cannot be looked at.
    RealPaths(Vec<Option<String>>),
}

/// What the graph actor keeps of an open node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenFacts {
    /// The flags in force.
    pub flags: OpenFlags,
    /// The backing file that the image names.
    pub backing: Option<BackingLink>,
    /// The length in bytes.
    pub size: u64,
    /// What the driver can do.
    pub abilities: Abilities,
    /// Limits merged with the children's.
    pub limits: Limits,
    /// The filename that opens it, where there is one.
    pub filename: Option<String>,
}

/// What queries show of a node.
#[derive(Debug, Clone)]
pub struct Description {
    /// As at open, but now.
    pub facts: OpenFacts,
    /// Bytes on the host that the driver itself knows of; not supported where they are those of its children.
    pub own_allocated_size: IoResult<u64>,
    /// The driver's facts.
    pub info: DriverInfo,
    /// The sectors of the device that the node is.
    pub block_sizes: Option<BlockSizes>,
    /// The geometry of the disk that the node is.
    pub geometry: Option<Geometry>,
    /// QAPI's `ImageInfoSpecific`.
    pub specific: Option<serde_json::Value>,
}
