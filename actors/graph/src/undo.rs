//! How the steps of a transaction are undone, as data: what a procedure that was given up leaves behind.

use std::collections::HashMap;

use millpond_drivers::api::BackingLink;
use millpond_engine::node::OpenFacts;
use millpond_messages::{
    BitmapId, ChildSlot, ChunkSet, EdgeId, IoThreadId, NodeId, Permissions, RootId, Token,
};

use crate::order::Address;
use crate::value::edge::{Edge, Target};
use crate::value::node::Granted;

/// The steps that an unfinished transaction has taken.
pub struct Log(pub Vec<Undo>);

/// How a step is undone.
pub enum Undo {
    /// End a section that was begun.
    Section(Token),
    /// Remove a node, closing it if it was opened.
    Inserted(NodeId),
    /// Remove an edge that was made.
    Linked(EdgeId),
    /// Remove a root edge's user.
    Root(RootId),
    /// End an op blocker.
    Blocked(Token),
    /// Put back an edge that was taken away.
    Unlinked(Box<Edge>),
    /// Put an edge back to where it led.
    Redirected(EdgeId, Target),
    /// Put back the permissions that were taken.
    Permissions {
        /// What edges took and shared.
        edges: HashMap<EdgeId, (Permissions, Permissions)>,
        /// What each node had granted before.
        nodes: Vec<(NodeId, Granted)>,
    },
    /// Put back the permissions that were taken in the graph's value: nodes have not been told.
    Planned {
        /// What edges took and shared.
        edges: HashMap<EdgeId, (Permissions, Permissions)>,
        /// What each node had granted before.
        nodes: Vec<(NodeId, Granted)>,
    },
    /// Have a node's driver forget which permissions it is ready for.
    Readied(NodeId),
    /// Connect a parent's cell as it was.
    Connected(NodeId, ChildSlot, Option<Address>),
    /// Put a root's cell back behind a node; it is where the second one is.
    RootMoved(RootId, NodeId, NodeId),
    /// Put back the number of a node's next numbered child.
    Numbered(NodeId, u32),
    /// Let a parent rely again on what is behind its edge.
    EdgeSuspended(EdgeId),
    /// Let an image name the backing file that it named before, which was this node if it was opened by that name.
    Recorded(NodeId, Option<BackingLink>, Option<NodeId>),
    /// Forget a node's prepared options.
    ReopenPrepared(NodeId),
    /// Move nodes back to an iothread.
    Moved(Vec<NodeId>, IoThreadId),
    /// Remove a bitmap that was added.
    BitmapAdded(NodeId, BitmapId),
    /// Keep a bitmap that was to be removed.
    BitmapRemoved(NodeId, BitmapId),
    /// Put a bitmap together again that was split.
    BitmapSplit(NodeId, BitmapId),
    /// Let a bitmap record again, or not.
    BitmapRecording(NodeId, BitmapId, bool),
    /// Let a bitmap say what it said before.
    BitmapChanged(NodeId, BitmapId, Box<ChunkSet>),
    /// Delete the snapshot of this id from a node's image.
    SnapshotTaken(NodeId, String),
    /// Let a node be again what it was before edges below it led elsewhere.
    Facts(Box<Facts>),
}

/// What the graph knows of a node, from before edges below it led elsewhere.
pub struct Facts {
    /// The number of the node.
    pub node: NodeId,
    /// What its open gave.
    pub facts: Option<OpenFacts>,
    /// The backing node that was opened by the name in its image.
    pub implicit_backing: Option<NodeId>,
    /// Its driver may have put its old state aside.
    pub is_stale: bool,
}
