//! What a change of a node has prepared, until it is committed or taken back.

use std::cell::{Cell, RefCell};

use millpond_drivers::api::Exchanged;
use millpond_messages::OpenFlags;

use super::bitmaps::Bitmap;
use crate::node::order::outcome::NodeSettings;

/// The prepared parts of changes.
#[derive(Default)]
pub struct Prepared {
    /// The node-level part of a reopen.
    pub reopening: Cell<Option<(NodeSettings, OpenFlags)>>,
    /// What an exchange has put aside, to hold again if it is aborted. Boxed, as mostly there is none.
    pub exchanged: RefCell<Option<Box<PutAside>>>,
}

/// What a node was before the data behind its edges was exchanged.
pub struct PutAside {
    pub driver: Exchanged,
    pub size: u64,
    /// The bitmaps, where another length has changed them.
    pub bitmaps: Option<Vec<Bitmap>>,
    pub highest_write: u64,
}
