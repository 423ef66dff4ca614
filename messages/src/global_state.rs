//! Global-state requests: the closed set of things that may be asked of the graph actor.
//!
//! The names follow QMP's where there is a command for it; an embedder sends the same requests.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::common::{
    BlockSizes, CheckResult, DebugOrder, DriverInfo, Geometry, IoThreadId, LatencyHistograms, Limits, NodeId,
    NodeReport, OpBlocker, OpenFlags, Permissions, Repair, RequestFlags, Role, RootId, Token,
};
use crate::error::{Error, ErrorKind};
use crate::handshake::PendingDrain;
use crate::io::Preallocation;

/// A node's options as QMP's `blockdev-add` takes them: typed JSON, nested or by reference.
pub type Options = Map<String, Value>;

/// Which nodes a drained section covers, besides all their ancestors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DrainScope {
    /// One node.
    Node(String),
    /// A node and everything below it.
    Subtree(String),
    /// Whoever holds one edge, so that nothing comes over it: a node, and not its child's other parents. A user has no gate
    /// of its own: its requests wait at the node that they enter, with those of all others.
    Parent(ChildOf),
    /// Every node, including those added while the section lasts.
    All,
}

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
    /// The node's name.
    pub node: String,
    /// Who asks.
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

/// Whether an image whose format nobody has said is opened by what it begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Probing {
    /// Never.
    Off,
    /// If it is opened read-only. Whoever may write to a raw image can write another format's header into it.
    #[default]
    ReadOnly,
    /// Also for writing, unless that would be to an image that begins with no known format.
    Formats,
    /// Always, as QEMU does: the first sector of an image that is taken to be raw then refuses what would make it look
    /// like another format.
    Always,
}

/// What an image is opened by: a name, options, or both.
#[derive(Debug, Clone, Default)]
pub struct OpenImage {
    /// A path, `protocol:rest`, `json:{...}`, or `json:` with dotted keys inside. Options given beside it win.
    pub filename: Option<String>,
    /// A node that exists, by name. Then there is neither a filename nor an option.
    pub reference: Option<String>,
    /// Options as `blockdev-add` takes them, nested or with dotted keys. Where `driver` is missing, a protocol is found by
    /// the filename and a format by probing. `cache.writeback` is for the holder.
    pub options: Options,
    /// How to open, where options do not say: RDWR, AUTO_RDONLY, NOCACHE, NO_FLUSH, UNMAP, NATIVE_AIO and IO_URING stand for
    /// options of theirs. The others have none.
    pub flags: OpenFlags,
    /// Whether the format may be guessed.
    pub probing: Probing,
    /// Who takes hold of the node, with the permissions that the flags stand for
    /// ([`OpenFlags::root_permissions`]); the node goes when it lets go. Without one the node stays until it is deleted.
    pub holder: Option<RootUser>,
}

/// A request to the graph actor.
#[derive(Debug)]
pub enum GraphRequest {
    /// Open an image by name: answered by the node's name, or by the holder's hold.
    Open(Box<OpenImage>),
    /// Open a node, with what it needs below it.
    BlockdevAdd(Options),
    /// Close a node that its user added.
    BlockdevDel {
        /// Its name.
        node_name: String,
    },
    /// Change options and children of nodes, all or none.
    BlockdevReopen(Vec<Options>),
    /// Change some options of nodes, all or none; what is not named stays as it is.
    ReopenKeeping(Vec<Options>),
    /// Make a node, and what takes its options from it, read-only or writable.
    SetReadOnly {
        /// Its name.
        node_name: String,
        /// Which.
        read_only: bool,
    },
    /// Activate or inactivate nodes: an inactive one is not written to, and holds no lock, while another process may use
    /// its image.
    SetActive {
        /// One node, with those below it; all of them if there is no name.
        node_name: Option<String>,
        /// Which.
        active: bool,
    },
    /// Drop what a node caches of its image's metadata, and read it again.
    InvalidateCache {
        /// The node's name.
        node_name: String,
    },
    /// As [`GraphRequest::AttachRoot`], by a user that lets go of its permissions while the node is inactive: it can then
    /// read.
    AttachRootInactive(RootRequest),
    /// Put the open node `overlay` on top of `node`, under all of `node`'s parents.
    BlockdevSnapshot {
        /// The node to protect.
        node: String,
        /// The node to go on top: a format that supports backing files and has none.
        overlay: String,
    },
    /// Make `node` the last of the numbered children of `parent`.
    AddChild {
        /// The parent's name.
        parent: String,
        /// The name of the node to add. It has no parent yet.
        node: String,
    },
    /// Take a numbered child away from `parent`.
    DelChild {
        /// The parent's name.
        parent: String,
        /// The parent's name for the child: `children.1`.
        child: String,
    },
    /// Make an image: what the `blockdev-create` job runs.
    BlockdevCreate(Options),
    /// Change format options of an open image in place, as `qemu-img amend` does.
    Amend {
        /// Its node's name.
        node_name: String,
        /// `qemu-img amend`'s options, by its names: `compat`, `lazy_refcounts`, `size`.
        options: Options,
    },
    /// Change a node's length.
    Resize {
        /// Its name.
        node_name: String,
        /// The new length in bytes.
        size: u64,
    },
    /// Change a node's length, and say how. [`GraphRequest::Resize`] is this with `exact` and all else left out.
    Truncate {
        /// Its name.
        node_name: String,
        /// The new length in bytes.
        size: u64,
        /// Fail rather than end up longer.
        exact: bool,
        /// How the new space is laid out.
        preallocation: Preallocation,
        /// ZERO_WRITE: the new part must read as zeroes. No other flag has a meaning here, and others are refused.
        flags: RequestFlags,
    },
    /// Check an image's metadata, and mend it if asked. Requests to the node wait until that is done.
    Check {
        /// The node's name.
        node_name: String,
        /// What to mend.
        repair: Repair,
    },
    /// Delete the file that an open node keeps its data in. The node can be used until it is closed.
    DeleteFile {
        /// The node's name.
        node_name: String,
    },
    /// Let a root edge's requests be serialised against all others of its node: from now on the node notes all that it has
    /// in flight. A root edge asks for it by itself when it is sent the first such request.
    Serialise(RootId),
    /// Move a node, and all that is joined to it, to an iothread; `None` is the main one.
    SetIothread {
        /// The node.
        node_name: String,
        /// The iothread's id as its user named it.
        iothread: Option<String>,
        /// Also if an export or another user holds on to it.
        force: bool,
    },
    /// Move one node to an iothread, without those that it is joined to: what passes over its edges goes from one
    /// iothread to another from then on. `None` is the main one.
    MoveNode {
        /// The node.
        node_name: String,
        /// The iothread's id as its user named it.
        iothread: Option<String>,
    },
    /// Take hold of a node.
    AttachRoot(RootRequest),
    /// Change what a user of a node takes and shares.
    SetRootPermissions {
        /// The hold.
        root: RootId,
        /// What it will do from now on.
        permissions: Permissions,
        /// What others may do meanwhile.
        shared: Permissions,
    },
    /// Let go of a node.
    DetachRoot(RootId),
    /// Put a node in the place of another, and the other behind it: as what a filter filters, or as its backing node.
    Append {
        /// The node whose parents move.
        node: String,
        /// The node that gets them. It has no such child yet.
        new: String,
    },
    /// Put a node in the place of another, under all the other's parents that cannot be reached from it.
    ReplaceNode {
        /// The node that loses its parents. It is closed if nobody holds it any more.
        from: String,
        /// The node that gets them.
        to: String,
    },
    /// Let one edge lead to another node.
    ReplaceChild {
        /// The edge.
        of: ChildOf,
        /// Where it leads from now on.
        node: String,
    },
    /// Open a node and put it in the place of one of its children, whole or not at all.
    InsertNode {
        /// The node whose parents move.
        node: String,
        /// The new node's options. One of them names `node` as its child.
        options: Options,
    },
    /// Take a filter out: what it filters takes its place, and the filter is closed.
    DropFilter {
        /// The filter.
        node_name: String,
    },
    /// Put a node behind another as its backing node, or leave it without. The image's header stays as it is.
    SetBacking {
        /// The overlay.
        node_name: String,
        /// The backing node; `None` takes the present one away.
        backing: Option<String>,
    },
    /// Put a node behind an edge that leads nowhere.
    AttachChild {
        /// The parent.
        parent: String,
        /// What the parent calls the child.
        child: String,
        /// The child.
        node: String,
    },
    /// Take away the node behind an edge that the parent can do without.
    DetachChild {
        /// The parent.
        parent: String,
        /// What the parent calls the child.
        child: String,
    },
    /// Let an image name another backing file. Its backing node stays.
    ChangeBackingFile {
        /// A node without parents in whose chain the image is.
        device: String,
        /// The image's node.
        image_node_name: String,
        /// The name to be stored; empty stores that there is none.
        backing_file: String,
    },
    /// Take images out of chains: all that has `top` as its child gets `base` instead.
    DropIntermediate {
        /// The first image to be taken out.
        top: String,
        /// The image below the last one to be taken out.
        base: String,
        /// What overlays of `top` store as the name of their backing file; `None` is the name that opens `base`.
        backing_file: Option<String>,
    },
    /// Write what an image has of its own to its backing image, and empty it. Requests to it wait until that is done.
    Commit {
        /// The overlay.
        node_name: String,
    },
    /// Let an image forget all that it has of its own.
    MakeEmpty {
        /// The node.
        node_name: String,
    },
    /// Keep the links of a chain as they are; answered by a token that gives them free.
    FreezeChain {
        /// Where the chain begins.
        top: String,
        /// Where what is frozen ends; `None` is the end of the chain.
        base: Option<String>,
        /// The hold with which the freeze ends at the latest. Without one it lasts until it is taken back.
        root: Option<RootId>,
    },
    /// Give a chain's links free.
    UnfreezeChain(Token),
    /// Forbid operations on a node; answered by a new blocker's token.
    OpBlock {
        /// The node.
        node_name: String,
        /// What is forbidden, besides what the same blocker forbids there already.
        operations: Vec<OpBlocker>,
        /// The blocker.
        by: BlockedBy,
    },
    /// Let a blocker forbid operations no longer. One that forbids nothing anywhere is gone.
    OpUnblock {
        /// The blocker.
        token: Token,
        /// The node; `None` for all.
        node_name: Option<String>,
        /// What is allowed again as far as this blocker is concerned.
        operations: Vec<OpBlocker>,
    },
    /// Begin a drained section; answered when it is still.
    DrainBegin {
        /// What it covers.
        scope: DrainScope,
        /// Who begins it, for those who ask what is going on.
        user: String,
    },
    /// End a drained section, still or not.
    DrainEnd(Token),
    /// End early what a node has in flight and its driver can end; done at once, whatever else goes on.
    CancelInFlight {
        /// The node; where it only passes requests on, the one that it passes them to as well.
        node_name: String,
    },
    /// Flush every node.
    FlushAll,
    /// Flush and close everything. Requests that have not begun are refused from then on; one that waits for a drain gives up,
    /// and what it did is undone.
    CloseAll {
        /// After this long the request fails, and says what it waits for; closing goes on all the same. Without it, it waits
        /// for as long as it takes.
        grace: Option<Duration>,
    },
    /// Start an iothread.
    AddIothread(IothreadOptions),
    /// Stop an iothread that no node lives in.
    DelIothread {
        /// Its id.
        id: String,
    },
    /// Change an iothread's polling.
    TuneIothread(IothreadOptions),
    /// Count a node's latencies in new histograms from now on, in place of those of the same kinds; none at all ends those
    /// that there are.
    SetHistograms {
        /// The node.
        node_name: String,
        /// The histograms, empty.
        histograms: LatencyHistograms,
    },
    /// Have every read of a node copied up into it from below, or no longer. Counted: what was turned on twice is turned off
    /// twice.
    CopyOnRead {
        /// The node.
        node_name: String,
        /// Once more.
        on: bool,
    },
    /// Hold requests at an event, or let them go: at the first node that listens, from this one down over primary children.
    /// Answered whatever else is going on.
    Debug {
        /// The node.
        node_name: String,
        /// What to do.
        order: DebugOrder,
    },
    /// A question, answered at once whatever else is going on.
    Query(Query),
}

/// An iothread object's properties, with QEMU's defaults.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct IothreadOptions {
    /// Its id.
    pub id: String,
    /// The longest busy wait, in nanoseconds; 0 never waits busily.
    #[serde(default = "default_poll_max")]
    pub poll_max_ns: i64,
    /// Factor by which the busy wait grows; 0 doubles.
    #[serde(default)]
    pub poll_grow: i64,
    /// Divisor by which it shrinks; 0 goes back to none.
    #[serde(default)]
    pub poll_shrink: i64,
    /// The most requests in one batch; 0 chooses.
    #[serde(default)]
    pub aio_max_batch: i64,
    /// Threads of the pool kept when idle.
    #[serde(default)]
    pub thread_pool_min: i64,
    /// The most threads of the pool.
    #[serde(default = "default_pool_max")]
    pub thread_pool_max: i64,
    /// The processors that the thread may run on, by number; empty for all of the process's. It cannot be changed.
    #[serde(
        default,
        rename = "x-millpond-cpu-affinity",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub cpu_affinity: Vec<u16>,
}

impl IothreadOptions {
    /// An iothread of this id with all other properties at their defaults.
    #[must_use]
    pub fn named(id: impl Into<String>) -> Self {
        Self {
            id: id.into(),
            poll_max_ns: default_poll_max(),
            poll_grow: 0,
            poll_shrink: 0,
            aio_max_batch: 0,
            thread_pool_min: 0,
            thread_pool_max: default_pool_max(),
            cpu_affinity: Vec::new(),
        }
    }
}

const fn default_poll_max() -> i64 {
    32_768
}

const fn default_pool_max() -> i64 {
    64
}

/// What an iothread is and has done since it was started. Times are in nanoseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct IothreadReport {
    /// Its id; that of the main one is `main`, which no object has unless a user makes one of that name.
    pub id: String,
    /// The thread's id on the host.
    pub thread_id: u32,
    /// Nodes that live there.
    pub nodes: u64,
    /// The processors that it may run on; empty for all of the process's.
    pub cpu_affinity: Vec<u16>,
    /// Its counters.
    #[serde(flatten)]
    pub counters: IothreadCounters,
}

/// The counters of an [`IothreadReport`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct IothreadCounters {
    /// Time since its start.
    pub age_ns: u64,
    /// Time that it slept.
    pub slept_ns: u64,
    /// Time that it waited busily for work before it slept or got some.
    pub polled_ns: u64,
    /// All other time: it worked, or was ready to and had no processor.
    pub busy_ns: u64,
    /// Turns of its loop.
    pub turns: u64,
    /// System calls for I/O and waiting.
    pub system_calls: u64,
    /// Sleeps.
    pub sleeps: u64,
    /// Sleeps that another thread ended.
    pub wake_ups: u64,
    /// Busy waits.
    pub polls: u64,
    /// Busy waits that found work.
    pub polls_paid: u64,
    /// Messages handled.
    pub messages: u64,
    /// Times that a task was run.
    pub task_runs: u64,
    /// Requests that entered the graph at its nodes.
    pub requests: u64,
    /// Pieces of requests that came from nodes of other iothreads.
    pub requests_from_elsewhere: u64,
    /// Operations handed to its ring.
    pub operations: u64,
    /// Operations in flight now.
    pub operations_in_flight: u64,
}

/// A question about the graph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Query {
    /// `query-named-block-nodes`: all nodes; `flat` leaves out the images behind them.
    NamedNodes {
        /// No recursion into backing images.
        flat: bool,
    },
    /// `x-debug-query-block-graph`.
    Graph,
    /// The same in the DOT language, with drivers, iothreads and roles: `x-millpond-query-dot`. Answered by a JSON string.
    Dot,
    /// Drains that are not still yet, with what they wait for.
    PendingDrains,
    /// `query-blockstats` with `query-nodes`.
    Statistics,
    /// What has passed each node.
    NodeStatistics,
    /// One node's facts.
    Node {
        /// Its name.
        node_name: String,
    },
    /// The sizes of the sectors of the device behind a node.
    BlockSizes {
        /// The node's name.
        node_name: String,
    },
    /// The geometry of the disk behind a node.
    Geometry {
        /// The node's name.
        node_name: String,
    },
    /// The drivers that may be used.
    Drivers {
        /// For reading at least, rather than for writing too.
        read_only: bool,
    },
    /// What a format says of its image; raw images and filters say what the node below them says.
    DriverInfo {
        /// The node's name.
        node_name: String,
    },
    /// The directory that relative names in a node's image start from, with a slash at its end.
    Directory {
        /// The node's name.
        node_name: String,
    },
    /// Iothreads and their properties.
    Iothreads,
    /// Whether a node may move to an iothread: done, or the error that the move would end with. Nothing moves.
    MayMove {
        /// The node.
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
        /// The filename.
        filename: String,
    },
    /// Whether a node is in a chain.
    ChainContains {
        /// Where the chain begins.
        top: String,
        /// The node.
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
        /// The other's name.
        after: Option<String>,
    },
    /// What is forbidden on a node and why, the newest reason first.
    OpBlockers {
        /// Its name.
        node_name: String,
    },
}

/// Facts about a driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriverFacts {
    /// Its name.
    pub name: String,
    /// It stores bytes itself, rather than in another node.
    pub is_protocol: bool,
    /// It can make images.
    pub creates: bool,
}

/// Facts about a node that others act on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeFacts {
    /// Its id.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// Its driver.
    pub driver: String,
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
    /// Where it lives.
    pub iothread: IoThreadId,
}

/// An edge, as the graph query shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EdgeFacts {
    /// The parent: a node or a root edge.
    pub parent: EdgeParent,
    /// The child.
    pub child: NodeId,
    /// The parent's name for it: `file`, `backing`, `root`.
    pub name: String,
    /// What the child is to the parent.
    pub role: Role,
    /// What the parent takes.
    pub permissions: Permissions,
    /// What it shares.
    pub shared: Permissions,
}

/// Who holds an edge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EdgeParent {
    /// A node.
    Node(NodeId),
    /// A user.
    Root(RootId, RootUser),
}

/// The whole graph at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GraphFacts {
    /// Nodes in the order in which they were added.
    pub nodes: Vec<NodeFacts>,
    /// Edges.
    pub edges: Vec<EdgeFacts>,
}

/// An answer of the graph actor. `C` is the handle that a root edge is used through.
#[derive(Debug)]
pub enum GraphReply<C> {
    /// Done.
    Done,
    /// A hold on a node.
    Root(C),
    /// A node, by its name.
    Name(String),
    /// A device's sectors.
    BlockSizes(BlockSizes),
    /// A disk's geometry.
    Geometry(Geometry),
    /// What a check found and mended.
    Checked(CheckResult),
    /// What a format says of its image.
    DriverInfo(DriverInfo),
    /// Drivers, by name.
    Drivers(Vec<DriverFacts>),
    /// A section that is still.
    Still(Token),
    /// `query-named-block-nodes` and `query-blockstats`: QAPI's own JSON.
    Json(Value),
    /// The graph.
    Graph(GraphFacts),
    /// Whether a request is held at a breakpoint.
    Suspended(bool),
    /// Drains in waiting.
    Drains(Vec<PendingDrain>),
    /// One node.
    Node(NodeFacts),
    /// Iothreads: options, the thread's id on the host, and its own id.
    Iothreads(Vec<(IothreadOptions, u32, IoThreadId)>),
    /// What iothreads have done.
    IothreadStatistics(Vec<IothreadReport>),
    /// What has passed each node, the oldest first.
    NodeStatistics(Vec<NodeReport>),
    /// The node that was looked for, if there is one.
    Found(Option<NodeFacts>),
    /// Yes or no.
    Truth(bool),
    /// Links that are frozen.
    Frozen(Token),
    /// An op blocker that is in force.
    Blocked(Token),
    /// What is forbidden on a node.
    Blockers(Vec<Blocker>),
}

/// An edge, by whoever holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChildOf {
    /// A node.
    Node {
        /// Its name.
        node_name: String,
        /// What it calls the child.
        child: String,
    },
    /// A user.
    Root(RootId),
}

/// Who forbids operations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BlockedBy {
    /// A new blocker.
    New {
        /// Why, for people.
        reason: String,
        /// The hold with which the blocker ends at the latest. Without one it lasts until it is taken back.
        root: Option<RootId>,
    },
    /// One that there is already, on whatever nodes.
    Token(Token),
}

/// A reason why an operation of some kind may not be done on a node now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocker {
    /// The kind.
    pub operation: OpBlocker,
    /// Why, for people.
    pub reason: String,
}

impl Blocker {
    /// The error of an operation on the node `name` that this forbids.
    #[must_use]
    pub fn error(&self, name: &str) -> Error {
        Error::new(
            ErrorKind::InUse,
            format!("Node '{name}' is busy: {}", self.reason),
        )
    }
}
