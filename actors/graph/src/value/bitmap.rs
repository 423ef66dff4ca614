//! A dirty bitmap, as the graph knows it: what it is called, and who may do what with it. Its bits are in the node's cell.

use millpond_messages::{BitmapId, RootId};

/// A dirty bitmap of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bitmap {
    /// Its id. Never reused.
    pub id: BitmapId,
    /// The name that it has at its node.
    pub name: String,
    /// The bytes that a bit stands for.
    pub granularity: u32,
    /// Whether it records writes.
    pub is_recording: bool,
    /// The user who keeps others from changing it.
    pub holder: Option<RootId>,
    /// Whether others may see it.
    pub stage: Stage,
}

/// Where a bitmap stands between the change that made it and the one that removes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The change that makes it has not been committed: only changes of the same list see it.
    Coming,
    /// All see it, and may use it.
    Live,
    /// The change that removes it has not been committed: nobody may use it.
    Leaving,
}

impl Bitmap {
    /// Whether somebody uses it, so that nobody else may.
    pub const fn is_busy(&self) -> bool {
        self.holder.is_some() || matches!(self.stage, Stage::Leaving)
    }
}
