//! The orders of the graph actor: one set of words for those who decide and for those who carry out.
//!
//! Orders that are carried out before the next message is looked at, and orders that go on as tasks, are two types, so that
//! what becomes a task cannot be taken for done. The few orders that hold handles are generic over [`Naming`]: they hold ids
//! where they are decided, and the handles behind those where they are carried out.

use std::sync::Arc;

use millpond_drivers::api::{BackingLink, DriverKind, ReopenRequest};
use millpond_messages::graph::Options;
use millpond_messages::io::Preallocation;
use millpond_messages::{
    BitmapId, ChildSlot, ChunkSet, DebugOrder, LatencyHistograms, MediumOrder, NodeId, OpenFlags,
    Permissions, Range, Repair, RequestFlags, RootId, ScsiCommand, SnapshotChange, Token,
};

#[cfg(doc)]
use super::outcome::{Event, OrderOutcome};
use super::outcome::{NewBitmap, NodeSettings};

/// How orders name iothreads and root edges: by ids or by handles.
pub trait Naming: Clone {
    /// The name of an iothread.
    type Iothread: Clone;
    /// The name of a root edge that is to begin.
    type Root: Clone;
}

/// Iothreads and root edges by their handles.
#[derive(Debug, Clone, Copy)]
pub struct Handles;

/// A node and the iothread that it lives in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address<I> {
    /// The number of the node.
    pub node: NodeId,
    /// The iothread where the node lives.
    pub iothread: I,
}

/// An order of the graph actor.
#[derive(Clone)]
pub enum Order<N: Naming = Handles> {
    /// An order to a node, carried out at once.
    Node(NodeId, NodeOrder),
    /// An order to a node that goes on as a task.
    Task(NodeId, NodeTask),
    /// An order to an iothread itself.
    Iothread(IothreadOrder),
    /// An order about what leads where.
    Wiring(Wiring<N>),
}

impl<N: Naming> From<IothreadOrder> for Order<N> {
    fn from(order: IothreadOrder) -> Self {
        Self::Iothread(order)
    }
}

impl<N: Naming> From<Wiring<N>> for Order<N> {
    fn from(wiring: Wiring<N>) -> Self {
        Self::Wiring(wiring)
    }
}

impl NodeOrder {
    /// This order to a node.
    pub fn at<N: Naming>(self, node: NodeId) -> Order<N> {
        Order::Node(node, self)
    }
}

impl NodeTask {
    /// This order to a node.
    pub fn at<N: Naming>(self, node: NodeId) -> Order<N> {
        Order::Task(node, self)
    }
}

/// What a node does before it does anything else. Unless said otherwise it is answered by
/// [`OrderOutcome::Done`].
#[derive(Clone)]
pub enum NodeOrder {
    /// Close the gate; answered by [`Event::Quiesced`], when nothing is in flight.
    Quiesce {
        /// The section that wants it.
        token: Token,
        /// Parents of the same iothread, asked before, that must be quiet first.
        after: Vec<NodeId>,
    },
    /// Take back that token's hold on the gate. Not answered.
    Resume(Token),
    /// Put the prepared permissions into effect. Not answered.
    PermissionsCommit,
    /// Forget the prepared permissions. Not answered.
    PermissionsAbort,
    /// Put the prepared options into effect; the node is still. Answered by [`OrderOutcome::Opened`].
    ReopenCommit,
    /// Forget the prepared options. Not answered.
    ReopenAbort,
    /// Forget the state that an exchange has put aside. Not answered.
    ExchangeCommit,
    /// Restore the state that an exchange has put aside: the old data is there again. Not answered.
    ExchangeAbort,
    /// Have the driver end what it can: [`cancel_in_flight`](millpond_drivers::api::Lifecycle::cancel_in_flight).
    CancelInFlight,
    /// Name the requests that the node has in flight, oldest first; answered by [`OrderOutcome::Pending`].
    Pending,
    /// Report the first write from now on that ends past an offset.
    SetWriteThreshold {
        /// The offset; 0 reports none.
        offset: u64,
    },
    /// Count latencies in new histograms from now on; none ends those that there are.
    SetHistograms {
        /// The histograms to be kept, empty.
        histograms: LatencyHistograms,
    },
    /// Have the driver keep nothing of its moment but what is in a set.
    LimitMoment(Box<ChunkSet>),
    /// Tell what the driver has still to copy of its moment; answered by [`OrderOutcome::Bits`].
    LeftOfMoment,
    /// Look at a dirty bitmap of the node, or change it.
    Bitmap {
        /// The number of the bitmap.
        bitmap: BitmapId,
        /// What is to be done.
        order: BitmapOrder,
    },
    /// Count one more user, or one less, that has copy-on-read turned on for every read.
    CopyOnRead {
        /// Whether it is one more.
        on: bool,
    },
    /// Note all that the node has in flight, for the sake of a root edge's requests that are serialised. The node is still.
    Serialise {
        /// The number of the root edge.
        root: RootId,
    },
    /// Hold requests at events of the node, or let them go; answered by
    /// [`OrderOutcome::Debugged`].
    Debug {
        /// What to do at which event.
        order: DebugOrder,
    },
}

/// What is done to a bitmap, or told of it. Unless said otherwise it is answered by [`OrderOutcome::Done`].
#[derive(Clone)]
pub enum BitmapOrder {
    /// It comes into being.
    Add(NewBitmap),
    /// It was read with the node's image, under this name.
    Adopt {
        /// The name that it has there.
        name: String,
    },
    /// It goes for good.
    Remove,
    /// Record writes from now on, or not.
    Record(bool),
    /// Tell what is dirty; answered by [`OrderOutcome::Bits`].
    Copy,
    /// Nothing is dirty any more; answered by [`OrderOutcome::Bits`] with what was before.
    Clear,
    /// Something else is dirty; answered as [`BitmapOrder::Clear`] is.
    Replace(Box<ChunkSet>),
    /// Keep what is written from now on apart from what is dirty now.
    Split,
    /// What has been written since the split is dirty.
    Join {
        /// What was dirty before is so too.
        keeps: bool,
        /// And so is this.
        more: Option<Box<ChunkSet>>,
    },
    /// Tell what is dirty in a range; answered by [`OrderOutcome::DirtyRuns`].
    Read {
        /// The bytes that are of interest.
        range: Range,
        /// The most runs that are answered.
        most: usize,
    },
}

/// A bitmap, and what is to be merged into it.
#[derive(Clone)]
pub struct BitmapMerge {
    /// The number of the bitmap.
    pub bitmap: BitmapId,
    /// What it says now; the node is still.
    pub into: Box<ChunkSet>,
    /// What it is to say besides.
    pub sources: Vec<ChunkSet>,
}

/// What a node does in a task. Unless said otherwise it is answered by [`OrderOutcome::Done`].
#[derive(Clone)]
pub enum NodeTask {
    /// Close a node that no edge leads to. It is gone afterwards whatever the answer.
    Close,
    /// Prepare for other permissions: [`permissions_prepare`](millpond_drivers::api::Lifecycle::permissions_prepare).
    PermissionsPrepare {
        /// The permissions that all its parents take.
        taken: Permissions,
        /// The permissions that all of them share.
        shared: Permissions,
    },
    /// Prepare new options of the node.
    ReopenPrepare {
        /// The driver's options and children.
        request: ReopenRequest,
        /// The options that the node itself carries out.
        settings: NodeSettings,
    },
    /// Prepare for other data behind some edges: write back and flush what belongs to the old data. The node is still.
    ExchangePrepare {
        /// The edges that lead elsewhere then.
        slots: Vec<ChildSlot>,
    },
    /// Go on with the other data: read it, and put the old state aside until a commit or an abort. Without an edge, the node
    /// only asks its children anew what they demand. Answered by [`OrderOutcome::Opened`].
    Exchange {
        /// The edges that lead elsewhere then.
        slots: Vec<ChildSlot>,
    },
    /// Change the length of the node.
    Truncate {
        /// The new length in bytes.
        size: u64,
        /// Fail rather than end up longer.
        exact: bool,
        /// How the new space is laid out.
        preallocation: Preallocation,
        /// ZERO_WRITE, or no flag at all.
        flags: RequestFlags,
    },
    /// Check the image's metadata, and repair it; answered by [`OrderOutcome::Checked`]. The node is still.
    Check {
        /// Which faults to repair.
        repair: Repair,
    },
    /// Delete the file that the node's data is in.
    DeleteFile,
    /// Describe the device that the node is, answered by [`OrderOutcome::Device`].
    DescribeDevice,
    /// Do something to the medium of the device that the node is.
    ChangeMedium(MediumOrder),
    /// Send a SCSI command to the device that the node is; answered by [`OrderOutcome::Scsi`].
    SendScsi(Box<ScsiCommand>),
    /// Make everything acknowledged durable.
    Flush,
    /// Describe the node, answered by [`OrderOutcome::Described`].
    Describe,
    /// Read the node's first bytes, for probing; answered by [`OrderOutcome::Head`].
    ReadHead {
        /// At most so many bytes.
        len: usize,
    },
    /// Drop what the driver caches of the image, and read it again.
    Invalidate,
    /// Write what a node has allocated in a range to its backing node. Both are still, but for this.
    Commit {
        /// The first byte of the range.
        offset: u64,
        /// The length of the range in bytes.
        len: u64,
    },
    /// Forget all that the image has of its own. The node is still.
    MakeEmpty,
    /// Do what of a change of the image's options takes long and needs no stillness.
    PrepareAmend {
        /// The options, as `qemu-img amend` has them.
        options: Options,
        /// Even what may lose data.
        force: bool,
    },
    /// Change options of the image's format in place. The node is still.
    Amend {
        /// The options, as `qemu-img amend` has them.
        options: Options,
        /// Even what may lose data.
        force: bool,
    },
    /// Have the image say that its dirty bitmaps are kept by who has it open. The node is still.
    MarkBitmaps,
    /// Have an image that keeps a log of its dirty bitmaps store them, if they have changed otherwise than by writes. The node is
    /// still.
    StoreAndLog,
    /// Remove a dirty bitmap from the image, if that stores it. The node is still.
    UnstoreBitmap {
        /// The number of the bitmap.
        bitmap: BitmapId,
    },
    /// Make, delete, apply or show a snapshot inside the image; answered by [`OrderOutcome::Snapshot`]. The node is still.
    ChangeSnapshots(Box<SnapshotChange>),
    /// Store a part of a machine's state beside the disk.
    SaveVmState {
        /// Where it starts, counted from the start of the state.
        offset: u64,
        /// What is stored there.
        state: Vec<u8>,
    },
    /// Read a part of a machine's state; answered by [`OrderOutcome::VmState`].
    LoadVmState {
        /// Where it starts, counted from the start of the state.
        offset: u64,
        /// The length of the part in bytes.
        len: u64,
    },
    /// Merge into a dirty bitmap; answered by [`OrderOutcome::Bits`] with what was dirty before. The node is still.
    MergeBitmap(BitmapMerge),
    /// Record in the image which backing file it has.
    ChangeBackingFile {
        /// The link to write; None for none.
        link: Option<BackingLink>,
    },
}

/// What an iothread does or tells. Making files, looking at paths and describing many nodes go on as tasks.
#[derive(Clone)]
pub enum IothreadOrder {
    /// Give the iothread's counters; answered by [`OrderOutcome::Counters`].
    Counters,
    /// Give the statistics of some nodes; answered by [`OrderOutcome::Statistics`].
    Statistics(Vec<NodeId>),
    /// Save the state of some nodes; answered by [`OrderOutcome::Saved`].
    Save(Vec<NodeId>),
    /// Describe many nodes, answered by [`OrderOutcome::DescribedMany`].
    DescribeMany(Vec<NodeId>),
    /// Follow all links in some paths; answered by [`OrderOutcome::RealPaths`].
    RealPaths(Vec<String>),
    /// Make an empty file with a name that nobody can foresee.
    NewTemporary,
}

/// What leads where: orders whose words hold handles. Opening and making images go on as tasks. Unless said otherwise they
/// are answered by [`OrderOutcome::Done`].
#[derive(Clone)]
pub enum Wiring<N: Naming = Handles> {
    /// Open a node; answered by [`OrderOutcome::Opened`]. A failed open leaves nothing behind.
    Open(Box<OpenOrder<N>>),
    /// Put a node behind one of `parent`'s edges, or none. The parent is still, or not in use yet. A numbered child
    /// comes into being with a node, and goes without one.
    Connect {
        /// The node whose child changes.
        parent: NodeId,
        /// The place of the child at its parent.
        slot: ChildSlot,
        /// What is behind the edge from now on.
        target: Option<Address<N::Iothread>>,
    },
    /// Begin a root edge.
    AttachRoot {
        /// The edge, as the graph actor and its clients share it.
        root: N::Root,
        /// The node it leads to.
        node: NodeId,
    },
    /// Put another node behind a root edge; both nodes are still.
    MoveRoot {
        /// The number of the root edge.
        root: RootId,
        /// Where it leads from now on.
        target: Address<N::Iothread>,
    },
    /// End a root edge; the requests that are parked at it fail.
    DetachRoot(RootId),
    /// Move to another iothread; the node is still. Answered from there, once it has arrived.
    Depart {
        /// The number of the node.
        node: NodeId,
        /// The iothread that it goes to.
        to: N::Iothread,
    },
    /// Make an image in opened files.
    Create {
        /// The driver that makes images of that format.
        kind: Arc<dyn DriverKind>,
        /// The options of the new image.
        options: Options,
        /// The node to format.
        file: Option<Address<N::Iothread>>,
        /// The node that the header is to be in, where that is elsewhere.
        header: Option<Address<N::Iothread>>,
        /// The node that the guest's data is to be in, where that is elsewhere.
        data_file: Option<Address<N::Iothread>>,
    },
}

/// What a node is opened with.
#[derive(Clone)]
pub struct OpenOrder<N: Naming = Handles> {
    /// The number that the node gets.
    pub node: NodeId,
    /// The name that the node gets.
    pub name: String,
    /// The driver that is to open it.
    pub kind: Arc<dyn DriverKind>,
    /// The driver's own options.
    pub options: Options,
    /// How the node is to be opened.
    pub flags: OpenFlags,
    /// What the node itself does, whatever its driver.
    pub settings: NodeSettings,
    /// What is behind each of the driver's children, the numbered ones last.
    pub children: Vec<Option<Address<N::Iothread>>>,
}
