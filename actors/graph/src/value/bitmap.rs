//! A dirty bitmap, as the graph knows it: what it is called, and who may do what with it. Its bits are in the node's cell.

use millpond_messages::{BitmapId, RootId};

use crate::value::refusal::Refusal;

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
    /// Whether the node's image stores it when it is closed.
    pub is_persistent: bool,
    /// Nobody knows what is dirty, as the image was not closed by who wrote to it last. It can only be removed.
    pub is_inconsistent: bool,
    /// The image that stores it is read-only.
    pub is_read_only: bool,
    /// A backup keeps what is written apart from what was dirty before.
    pub is_split: bool,
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

/// What a user wants of a bitmap, which decides what is in the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// Its bits, or whether it records.
    Use,
    /// To have other bits.
    Change,
    /// To take it away.
    Removal,
}

impl Bitmap {
    /// A bitmap that is about to come into being: it records writes, and nothing stores it.
    pub const fn new(id: BitmapId, name: String, granularity: u32) -> Self {
        Self {
            id,
            name,
            granularity,
            is_recording: true,
            is_persistent: false,
            is_inconsistent: false,
            is_read_only: false,
            is_split: false,
            holder: None,
            stage: Stage::Coming,
        }
    }

    /// Refuses what somebody else's use of the bitmap, or its image, does not allow.
    ///
    /// # Errors
    /// Somebody uses it, it cannot be written, or nobody knows what is dirty.
    pub fn check(&self, wanted: Wanted) -> Result<(), Refusal> {
        let name = || self.name.clone();
        if self.is_busy() {
            return Err(Refusal::BitmapInUse(name()));
        }
        if self.is_read_only && wanted != Wanted::Use {
            return Err(Refusal::BitmapReadOnly(name()));
        }
        if self.is_inconsistent && wanted != Wanted::Removal {
            return Err(Refusal::BitmapInconsistent(name()));
        }
        Ok(())
    }

    /// Whether somebody uses it, so that nobody else may.
    pub const fn is_busy(&self) -> bool {
        self.holder.is_some() || self.is_split || matches!(self.stage, Stage::Leaving)
    }
}
