//! Names that a machine gives: ids of nodes, edges, iothreads and requests.

use serde::{Deserialize, Serialize};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub $inner);

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

id!(
    /// A node. Never reused while the process lives.
    NodeId(u64)
);
id!(
    /// An edge between two nodes. Never reused.
    EdgeId(u64)
);
id!(
    /// A root edge: a user's hold on a node. Never reused.
    RootId(u64)
);
id!(
    /// An iothread. Never reused.
    IoThreadId(u32)
);
id!(
    /// A dirty bitmap of a node. Never reused.
    BitmapId(u64)
);
id!(
    /// A drained section, or one step of a handshake. Never reused.
    Token(u64)
);
id!(
    /// Which of its children a node means: an index into the list of children that its driver declares, and behind
    /// those the numbered ones: `children.0` has the first index that no declared child has.
    ChildSlot(u32)
);

impl ChildSlot {
    /// The first child: `file` for every driver that has one.
    pub const FILE: Self = Self(0);
    /// The second child: `backing` for formats that have one.
    pub const BACKING: Self = Self(1);

    /// The slot at `index`, if there can be one.
    #[must_use]
    pub fn at(index: usize) -> Option<Self> {
        u32::try_from(index).ok().map(Self)
    }

    /// The index into a list.
    #[must_use]
    pub fn index(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}
