//! Questions about the graph.

use super::{
    BitmapName, Blocker, DirtyRun, DriverFacts, GraphFacts, IothreadOptions, IothreadReport, NodeFacts,
    Options,
};
use crate::common::{
    BitmapId, BlockSizes, ChunkSet, DriverInfo, Geometry, ImagePlan, IoThreadId, MediumOrder, NodeId,
    NodeReport, Range, RootId, ScsiAnswer, ScsiCommand,
};
use crate::handshake::PendingDrain;
use crate::qapi::{BlockDeviceInfo, BlockStats};
use crate::saved::SavedGraph;

requests! {
    /// A question about the graph, or to nodes: mutations neither wait for it nor hold it up.
    Query {
        /// `query-named-block-nodes`: all nodes; `flat` leaves out the images behind them.
        NamedNodes {
            /// No recursion into backing images.
            flat: bool,
        } -> Vec<BlockDeviceInfo>: NamedNodes,
        /// What `x-debug-query-block-graph` answers.
        WholeGraph -> GraphFacts: Graph,
        /// The same in the DOT language, with drivers, iothreads and roles: `x-millpond-query-dot`.
        DrawGraph -> String: Text,
        /// Drains that are not still yet, with what they wait for.
        ListDrains -> Vec<PendingDrain>: Drains,
        /// What `query-blockstats` with `query-nodes` answers.
        BlockStatistics -> Vec<BlockStats>: Statistics,
        /// What has passed each node.
        NodeReports -> Vec<NodeReport>: NodeReports,
        /// All of the graph's state, to be written down.
        ///
        /// # Errors
        /// A change is under way, or a node's state cannot be saved.
        SaveGraph -> Box<SavedGraph>: Saved,
        /// The facts of one node.
        ///
        /// # Errors
        /// There is none.
        FindNode {
            /// The name of the node.
            node_name: String,
        } -> NodeFacts: Node,
        /// The sizes of the sectors of the device behind a node.
        ///
        /// # Errors
        /// There is no such node, or no device behind it that tells.
        FindBlockSizes {
            /// The name of the node.
            node_name: String,
        } -> BlockSizes: BlockSizes,
        /// The geometry of the disk behind a node.
        ///
        /// # Errors
        /// There is no such node, or no disk behind it that has one.
        FindGeometry {
            /// The name of the node.
            node_name: String,
        } -> Geometry: Geometry,
        /// Whether a medium is in the device behind a node, or behind each of its children; true of what has no medium that could
        /// be taken out.
        ///
        /// # Errors
        /// There is no such node.
        IsInserted {
            /// The name of the node.
            node_name: String,
        } -> bool: Truth,
        /// Open or close the tray of the device behind a node, or lock it; without effect where there is none.
        ///
        /// # Errors
        /// There is no such node, or the device's.
        ChangeMedium {
            /// The name of the node.
            node_name: String,
            /// What to do.
            order: MediumOrder,
        },
        /// Whether the device behind a node takes SCSI commands and nothing else.
        ///
        /// # Errors
        /// There is no such node.
        IsScsiGeneric {
            /// The name of the node.
            node_name: String,
        } -> bool: Truth,
        /// Send a SCSI command to the device of the host that a node is, seen through raw images that show all of it.
        ///
        /// # Errors
        /// There is no such node, it is no such device ([`IoError::NotSupported`](crate::IoError::NotSupported)), or the
        /// device's.
        SendScsi {
            /// The name of the node.
            node_name: String,
            /// The command.
            command: ScsiCommand,
        } -> ScsiAnswer: Scsi,
        /// The drivers that may be used.
        ListDrivers {
            /// For reading at least, rather than for writing too.
            read_only: bool,
        } -> Vec<DriverFacts>: Drivers,
        /// What a format says of its image; raw images and filters say what the node below them says.
        ///
        /// # Errors
        /// There is no such node, or its driver has nothing to say ([`Unsupported`](crate::ErrorKind::Unsupported)).
        DescribeImage {
            /// The name of the node.
            node_name: String,
        } -> DriverInfo: DriverInfo,
        /// What an image that is yet to be made needs.
        ///
        /// # Errors
        /// There is no such driver, it cannot tell, or the options are wrong.
        MeasureImage {
            /// The name of the driver.
            driver: String,
            /// What the driver is created with: `size`, and its own options as `blockdev-create` has them.
            options: Options,
        } -> ImagePlan: ImagePlan,
        /// Store a part of a machine's state beside a node's disk. The next snapshot that is made takes it along.
        ///
        /// # Errors
        /// There is no such node, its format keeps no such state, or the driver's.
        SaveVmState {
            /// The name of the node.
            node_name: String,
            /// Where the part starts, counted from the start of the state.
            offset: u64,
            /// The part.
            state: Vec<u8>,
        },
        /// Read a part of the machine's state that a snapshot which was applied had, or that was stored since.
        ///
        /// # Errors
        /// There is no such node, its format keeps no such state, that is too much at once, or the driver's.
        LoadVmState {
            /// The name of the node.
            node_name: String,
            /// Where the part starts, counted from the start of the state.
            offset: u64,
            /// The length of the part in bytes: at most 32 MiB.
            len: u64,
        } -> Vec<u8>: Bytes,
        /// The directory that relative names in a node's image start from, with a slash at its end.
        ///
        /// # Errors
        /// There is no such node, or its file has no name.
        FindDirectory {
            /// The name of the node.
            node_name: String,
        } -> String: Text,
        /// Iothreads and their properties.
        ListIothreads -> Vec<(IothreadOptions, u32, IoThreadId)>: Iothreads,
        /// Whether a node may move to an iothread: done, or the error that the move would end with. Nothing moves.
        ///
        /// # Errors
        /// Those that the move would end with.
        MayMove {
            /// The name of the node.
            node_name: String,
            /// The iothread's id as its user named it; `None` is the main one.
            iothread: Option<String>,
            /// With all that it is joined to, rather than alone.
            joined: bool,
        },
        /// Whether a node that is made now may have this name: done, or the error that its maker would get.
        ///
        /// # Errors
        /// The name is malformed or taken.
        MayName {
            /// The name for the node.
            node_name: String,
        },
        /// What iothreads have done, the main one first: `x-millpond-query-iothreads`.
        IothreadReports -> Vec<IothreadReport>: IothreadReports,
        /// The node a root edge leads to.
        FindRoot(RootId) -> NodeFacts: Node,
        /// The image of a chain that has a node as its backing image, filters left out.
        ///
        /// # Errors
        /// There are no such nodes.
        FindOverlay {
            /// Where the chain begins.
            active: String,
            /// The backing node; `None` asks for the chain's last image.
            node_name: Option<String>,
        } -> Option<NodeFacts>: Found,
        /// The image of a chain that its overlay has under this filename, which is relative to the overlay's or absolute.
        ///
        /// # Errors
        /// There is no such node.
        FindBackingImage {
            /// Where the chain begins.
            top: String,
            /// The filename to look for.
            filename: String,
        } -> Option<NodeFacts>: Found,
        /// Whether a node is in a chain.
        ///
        /// # Errors
        /// There are no such nodes.
        ChainContains {
            /// Where the chain begins.
            top: String,
            /// The name of the node that may be in it.
            base: String,
        } -> bool: Truth,
        /// Whether no link of a chain is frozen; an error names one that is.
        ///
        /// # Errors
        /// There are no such nodes, or a link is frozen: it is named.
        ChainUnfrozen {
            /// Where the chain begins.
            top: String,
            /// Where it ends; `None` is its end.
            base: Option<String>,
        },
        /// Whether a node can be replaced by one with the data of `parent` without anybody seeing other data than before.
        ///
        /// # Errors
        /// There are no such nodes, somebody forbids that it is replaced, or somebody could see other data.
        CheckReplace {
            /// Whose data the replacement has.
            parent: String,
            /// The node to be replaced.
            node_name: String,
        } -> Option<NodeFacts>: Found,
        /// The node that users added next after another, or first.
        ///
        /// # Errors
        /// There is no node `after`.
        NextOwned {
            /// The name of the node that comes before.
            after: Option<String>,
        } -> Option<NodeFacts>: Found,
        /// What is dirty by a bitmap, as it is now.
        ///
        /// # Errors
        /// There is no such node or bitmap.
        CopyBitmap(BitmapName) -> Box<ChunkSet>: Bits,
        /// What is dirty in a range by a bitmap that the asker holds, from the range's start on.
        ///
        /// # Errors
        /// The bitmap is gone with its node.
        ReadBitmap {
            /// The number of the node.
            node: NodeId,
            /// The number of the bitmap.
            bitmap: BitmapId,
            /// The bytes that are of interest.
            range: Range,
            /// The most runs that are answered.
            most: usize,
        } -> Vec<DirtyRun>: DirtyRuns,
        /// What is forbidden on a node and why, the newest reason first.
        ///
        /// # Errors
        /// There is no such node.
        ListOpBlockers {
            /// The name of the node.
            node_name: String,
        } -> Vec<Blocker>: Blockers,
    }
}
