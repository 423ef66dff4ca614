//! What the policy replies.

use super::{
    Blocker, DirtyRun, DriverFacts, GraphFacts, HeldBitmap, IothreadOptions, IothreadReport, NodeFacts,
    Transacted,
};
use crate::common::{
    BlockSizes, CheckResult, ChunkSet, DriverInfo, Geometry, ImagePlan, InternalSnapshot, IoThreadId,
    NodeReport, ScsiAnswer, Token,
};
use crate::error::Result;
use crate::handshake::PendingDrain;
use crate::qapi::{BlockDeviceInfo, BlockStats};
use crate::saved::SavedGraph;

/// What the policy replies. `C` is the handle that a root edge is used through. Which request has which reply is said by the
/// requests' rows; users are given what is in it.
#[derive(Debug)]
pub enum GraphReply<C> {
    /// It is done, and there is nothing to tell.
    Done,
    /// A hold on a node.
    Root(C),
    /// The name of a node, a directory, or a drawing of the graph.
    Text(String),
    /// The sizes of a device's sectors.
    BlockSizes(BlockSizes),
    /// The geometry of a disk.
    Geometry(Geometry),
    /// What a check found and mended.
    Checked(CheckResult),
    /// The snapshot that was made, deleted, applied or shown.
    Snapshot(InternalSnapshot),
    /// A part of a machine's state.
    Bytes(Vec<u8>),
    /// What a format says of its image.
    DriverInfo(DriverInfo),
    /// The drivers there are, by name.
    Drivers(Vec<DriverFacts>),
    /// A section that is still.
    Still(Token),
    /// `query-named-block-nodes`: all nodes, the newest first.
    NamedNodes(Vec<BlockDeviceInfo>),
    /// `query-blockstats` of nodes, the oldest first.
    Statistics(Vec<BlockStats>),
    /// All nodes and edges.
    Graph(GraphFacts),
    /// The drains that wait, and for what.
    Drains(Vec<PendingDrain>),
    /// The state of the graph, to be written down.
    Saved(Box<SavedGraph>),
    /// The facts of one node.
    Node(NodeFacts),
    /// Iothreads: options, the thread's id on the host, and its own id.
    Iothreads(Vec<(IothreadOptions, u32, IoThreadId)>),
    /// What iothreads have done.
    IothreadReports(Vec<IothreadReport>),
    /// What has passed each node, the oldest first.
    NodeReports(Vec<NodeReport>),
    /// The node that was looked for, if there is one.
    Found(Option<NodeFacts>),
    /// What an image needs that is yet to be made.
    ImagePlan(ImagePlan),
    /// What a device has answered to a SCSI command.
    Scsi(ScsiAnswer),
    /// Whether what was asked is so.
    Truth(bool),
    /// Links that are frozen.
    Frozen(Token),
    /// An op blocker that is in force.
    Blocked(Token),
    /// What is forbidden on a node.
    Blockers(Vec<Blocker>),
    /// What is dirty by a bitmap.
    Bits(Box<ChunkSet>),
    /// Bitmaps that are held.
    Bitmaps(Vec<HeldBitmap>),
    /// What is dirty in a range.
    DirtyRuns(Vec<DirtyRun>),
    /// What has come of actions that start jobs.
    Transacted(Box<Transacted>),
}

impl<C> GraphReply<C> {
    /// The same reply with a handle in place of what stands for one.
    ///
    /// # Errors
    /// Those of `handle`, which is asked only if there is a hold.
    pub fn try_map_root<D>(self, handle: impl FnOnce(C) -> Result<D>) -> Result<GraphReply<D>> {
        Ok(match self {
            Self::Done => GraphReply::Done,
            Self::Root(it) => GraphReply::Root(handle(it)?),
            Self::Text(it) => GraphReply::Text(it),
            Self::BlockSizes(it) => GraphReply::BlockSizes(it),
            Self::Geometry(it) => GraphReply::Geometry(it),
            Self::Snapshot(it) => GraphReply::Snapshot(it),
            Self::Bytes(it) => GraphReply::Bytes(it),
            Self::Checked(it) => GraphReply::Checked(it),
            Self::DriverInfo(it) => GraphReply::DriverInfo(it),
            Self::Drivers(it) => GraphReply::Drivers(it),
            Self::Still(it) => GraphReply::Still(it),
            Self::NamedNodes(it) => GraphReply::NamedNodes(it),
            Self::Statistics(it) => GraphReply::Statistics(it),
            Self::Graph(it) => GraphReply::Graph(it),
            Self::Drains(it) => GraphReply::Drains(it),
            Self::Saved(it) => GraphReply::Saved(it),
            Self::Node(it) => GraphReply::Node(it),
            Self::Iothreads(it) => GraphReply::Iothreads(it),
            Self::IothreadReports(it) => GraphReply::IothreadReports(it),
            Self::NodeReports(it) => GraphReply::NodeReports(it),
            Self::Found(it) => GraphReply::Found(it),
            Self::ImagePlan(it) => GraphReply::ImagePlan(it),
            Self::Scsi(it) => GraphReply::Scsi(it),
            Self::Truth(it) => GraphReply::Truth(it),
            Self::Frozen(it) => GraphReply::Frozen(it),
            Self::Blocked(it) => GraphReply::Blocked(it),
            Self::Blockers(it) => GraphReply::Blockers(it),
            Self::Bits(it) => GraphReply::Bits(it),
            Self::Bitmaps(it) => GraphReply::Bitmaps(it),
            Self::DirtyRuns(it) => GraphReply::DirtyRuns(it),
            Self::Transacted(it) => GraphReply::Transacted(it),
        })
    }
}
