//! Links that are to lead where they lead.

use millpond_messages::{EdgeId, NodeId, RootId};

/// A hold on links of chains.
#[derive(Debug)]
pub struct Freeze {
    /// The hold ends with this one at the latest.
    pub root: Option<RootId>,
    /// It ends with this node at the latest.
    pub node: Option<NodeId>,
    /// The edges that must not change.
    pub edges: Vec<EdgeId>,
}
