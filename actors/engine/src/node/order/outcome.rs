//! The answers to orders, the events that iothreads report, and the words that orders and answers share.

use millpond_drivers::api::{Abilities, BackingLink, DataFileLink, Posted};
use millpond_messages::graph::{DirtyRun, IothreadCounters};
use millpond_messages::handshake::PendingRequest;
use millpond_messages::qapi::ImageInfoSpecific;
use millpond_messages::saved::SavedCell;
use millpond_messages::{
    BlockSizes, CheckResult, ChunkSet, DriverInfo, Geometry, InternalSnapshot, IoResult, Limits, NodeId,
    NodeStatistics, OpenFlags, Result, RootId, ScsiAnswer, Token,
};

pub use crate::node::cell::bitmaps::{BitmapFacts, FoundBitmap, NewBitmap};

/// Names an order of the graph actor. Never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OrderId(pub u64);

/// Options that the node carries out rather than its driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NodeSettings {
    /// What becomes of writes that hold only zeroes.
    pub detect_zeroes: DetectZeroes,
    /// The format was guessed from the contents: a guest must not write a format's header into the first sector.
    pub probed: bool,
}

/// What the option `detect-zeroes` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DetectZeroes {
    /// Zeroes are written as any data.
    #[default]
    Off,
    /// Writes of zeroes become zero writes.
    On,
    /// Writes of zeroes become zero writes that may deallocate.
    Unmap,
}

/// What an iothread reports to the graph actor.
pub enum Event {
    /// An order has ended, carried out or not.
    Ended(OrderId, OrderOutcome),
    /// A node has nothing in flight, and will not until the token is resumed.
    Quiesced(NodeId, Token),
    /// A driver has reported a notice.
    Noticed(NodeId, Posted),
    /// A root edge was sent a request that is to be serialised; its node is to note all that it has in flight.
    Serialises(NodeId, RootId),
}

/// How an order ended.
pub enum OrderOutcome {
    /// The outcome of most orders.
    Done(Result<()>),
    /// The outcome of open and reopen.
    Opened(Result<OpenFacts>),
    /// What a node was described as.
    Described(IoResult<Box<Description>>),
    /// DescribeMany. Nodes that are gone, or not open, are left out.
    DescribedMany(Vec<(NodeId, Description)>),
    /// The requests that are in flight.
    Pending(Vec<PendingRequest>),
    /// Debug: whether a request is held, where that was asked.
    Debugged(Result<bool>),
    /// Statistics. Nodes that are gone are left out.
    Statistics(Vec<(NodeId, NodeStatistics)>),
    /// The nodes' state. Nodes that are gone are left out.
    Saved(Vec<(NodeId, Result<SavedCell>)>),
    /// What the iothread has counted.
    Counters(Box<IothreadCounters>),
    /// The first bytes of a node.
    Head(IoResult<Vec<u8>>),
    /// What is dirty by a bitmap, or was before it was changed.
    Bits(Result<Box<ChunkSet>>),
    /// What is dirty in a range.
    DirtyRuns(Result<Vec<DirtyRun>>),
    /// The name of a new temporary file.
    Named(Result<String>),
    /// The snapshot that was made, deleted, applied or shown.
    Snapshot(Result<InternalSnapshot>),
    /// A part of a machine's state.
    VmState(Result<Vec<u8>>),
    /// The device that the node is, described.
    Device(IoResult<DeviceFacts>),
    /// What a device has answered to a SCSI command.
    Scsi(IoResult<ScsiAnswer>),
    /// What a check has found.
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
    /// The file that the image keeps the guest's data in, where that is not its own.
    pub data_file: Option<DataFileLink>,
    /// The length in bytes.
    pub size: u64,
    /// What the driver can do.
    pub abilities: Abilities,
    /// Limits merged with the children's.
    pub limits: Limits,
    /// The filename that opens it, where there is one.
    pub filename: Option<String>,
    /// The dirty bitmaps that were read with its image and have no number yet.
    pub read_bitmaps: Vec<FoundBitmap>,
}

/// What the device tells that a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DeviceFacts {
    /// The sizes of its sectors.
    pub block_sizes: Option<BlockSizes>,
    /// The geometry that it has as a disk.
    pub geometry: Option<Geometry>,
    /// Whether the medium is there, if it can be taken out.
    pub inserted: Option<bool>,
    /// It takes SCSI commands and nothing else.
    pub is_scsi_generic: bool,
}

/// What queries show of a node.
#[derive(Debug, Clone)]
pub struct Description {
    /// The facts as they are now.
    pub facts: OpenFacts,
    /// Bytes on the host that the driver itself knows of; not supported where they are those of its children.
    pub own_allocated_size: IoResult<u64>,
    /// What the driver tells of the image.
    pub info: DriverInfo,
    /// The write threshold; 0 for none.
    pub write_threshold: u64,
    /// The dirty bitmaps of the node, the oldest first.
    pub bitmaps: Vec<BitmapFacts>,
    /// The snapshots inside the image.
    pub snapshots: Vec<InternalSnapshot>,
    /// What only the driver's format knows.
    pub specific: Option<ImageInfoSpecific>,
}
