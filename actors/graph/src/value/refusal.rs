//! Why a change of the graph is refused, in types; users are told in words.

use millpond_messages::{Error, ErrorKind, NodeId, RootId};

/// A reason that follows from the graph as it is, and from what was asked, alone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is no node of this name.
    #[error("Failed to find node with node-name='{0}'")]
    NoNode(String),
    /// There is no node of this name either, nor a device.
    #[error("Cannot find device='{device}' nor node-name='{name}'")]
    NoDeviceOrNode {
        /// What was looked for among devices.
        device: String,
        /// What was looked for among nodes.
        name: String,
    },
    /// There is no node of this name, where nothing else could have it.
    #[error("Node '{0}' not found")]
    NoSuchNode(String),
    /// A node has no dirty bitmap of this name.
    #[error("Dirty bitmap '{0}' not found")]
    NoBitmap(String),
    /// A dirty bitmap is used by somebody else.
    #[error("Bitmap '{0}' is currently in use by another operation and cannot be used")]
    BitmapInUse(String),
    /// A dirty bitmap is stored in an image that is not written to.
    #[error("Bitmap '{0}' is readonly and cannot be modified")]
    BitmapReadOnly(String),
    /// A dirty bitmap misses writes, perhaps.
    #[error("Bitmap '{0}' is inconsistent and cannot be used")]
    BitmapInconsistent(String),
    /// A node that was there before is not there any more.
    #[error("Node {0} is gone")]
    Gone(NodeId),
    /// There is no root edge of this id.
    #[error("There is no root edge {0}")]
    NoRoot(RootId),
    /// There is no iothread of this name.
    #[error("Cannot find iothread {0}")]
    NoIothread(String),
    /// A node has no child of this name.
    #[error("Node '{parent}' does not have child '{child}'")]
    NoChild {
        /// The name of the parent.
        parent: String,
        /// What it would call the child.
        child: String,
    },
    /// An edge would close a circle.
    #[error("Making '{child}' a {edge} child of '{parent}' would create a cycle")]
    Cycle {
        /// Where the edge would lead.
        child: String,
        /// The parent's name for it.
        edge: String,
        /// Who would hold it.
        parent: String,
    },
    /// A node is not in the chain below another.
    #[error("Node '{base}' is not a backing image of '{top}'")]
    NotInChain {
        /// The name of the lower one.
        base: String,
        /// The name of the upper one.
        top: String,
    },
    /// A frozen link would have to change.
    #[error("Cannot change frozen '{edge}' link from '{parent}' to '{child}'")]
    FrozenLink {
        /// The parent's name for the link.
        edge: String,
        /// Who holds it; empty for a user.
        parent: String,
        /// The name of the node that it leads to.
        child: String,
    },
    /// A link of a chain that somebody is about to rely on is frozen.
    #[error("Cannot change '{edge}' link from '{parent}' to '{child}'")]
    ReservedLink {
        /// The parent's name for the link.
        edge: String,
        /// Who holds it; empty for a user.
        parent: String,
        /// The name of the node that it leads to.
        child: String,
    },
    /// A link must stay where it is.
    #[error("Cannot change '{edge}' link to '{child}'")]
    FixedLink {
        /// The parent's name for the link.
        edge: String,
        /// The name of the node that it leads to.
        child: String,
    },
    /// A link's parent can be reached from where the link would lead.
    #[error("Should not change '{edge}' link to '{child}'")]
    ReachableLink {
        /// The parent's name for the link.
        edge: String,
        /// The name of the node that it leads to.
        child: String,
    },
    /// A link leads to a node that is never kept in place.
    #[error("Cannot freeze '{edge}' link to '{child}'")]
    PassingLink {
        /// The parent's name for the link.
        edge: String,
        /// The name of the node that it leads to.
        child: String,
    },
    /// There is no node where a node's options say that its chain ends.
    #[error("Bottom node '{0}' not found")]
    NoBottom(String),
    /// The node where a chain is said to end is a filter.
    #[error("Bottom node '{0}' is a filter")]
    BottomIsFilter(String),
}

impl Refusal {
    /// An edge that would close a circle.
    pub fn cycle(child: &str, edge: &str, parent: &str) -> Self {
        let (child, edge, parent) = (child.to_owned(), edge.to_owned(), parent.to_owned());
        Self::Cycle { child, edge, parent }
    }

    /// A node without a child of this name.
    pub fn no_child(parent: &str, child: &str) -> Self {
        let (parent, child) = (parent.to_owned(), child.to_owned());
        Self::NoChild { parent, child }
    }

    /// What kind of error it is, unless a command says otherwise.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NoNode(_)
            | Self::NoDeviceOrNode { .. }
            | Self::NoSuchNode(_)
            | Self::NoBitmap(_)
            | Self::Gone(_)
            | Self::NoRoot(_)
            | Self::NoIothread(_)
            | Self::NoChild { .. }
            | Self::NoBottom(_) => ErrorKind::NotFound,
            Self::Cycle { .. } | Self::NotInChain { .. } | Self::BottomIsFilter(_) => {
                ErrorKind::InvalidArgument
            }
            Self::BitmapInUse(_) => ErrorKind::InUse,
            Self::BitmapReadOnly(_) => ErrorKind::ReadOnly,
            Self::BitmapInconsistent(_) => ErrorKind::InvalidArgument,
            Self::FrozenLink { .. }
            | Self::ReservedLink { .. }
            | Self::FixedLink { .. }
            | Self::ReachableLink { .. }
            | Self::PassingLink { .. } => ErrorKind::Permission,
        }
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        Self::new(refusal.kind(), refusal.to_string())
    }
}
