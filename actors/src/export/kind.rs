//! What every kind of export answers to the registry.
//!
//! ```text
//!   registry                                        kind
//!     id, node, iothreads ------- prepare -------->  Prepared (its own options checked, names reserved)
//!     hold on the node ----------- start --------->  Export (clients may come)
//!     removal ------------------ shut_down ------->  (clients are gone)
//!     lets go of the node
//! ```
//! A kind is a folder beside this file, and a row in the registry's `prepare`. Its data half is a
//! [`Worker`](super::worker::Worker).

use futures_util::future::LocalBoxFuture;
use millpond_engine::node::Client;
use millpond_messages::graph::NodeFacts;
use millpond_messages::qapi::{BlockExportKind, BlockExportOptions, BlockExportType};
use millpond_messages::saved::SavedExportKind;
use millpond_messages::{Permissions, Result};

use super::saved::Descriptors;
use super::seat::Seats;

/// An export that clients can use.
pub(crate) trait Export {
    /// Which kind of export it is.
    fn kind(&self) -> BlockExportType;

    /// What its clients know it by, for the log.
    fn name(&self) -> &str;

    /// Whether clients use it now. One that is used is not removed in mode `safe`.
    fn is_used(&self) -> bool;

    /// Ends when the export has come to its end by itself, and is to be removed; none for a kind that its users cannot end.
    fn over(&self) -> Option<LocalBoxFuture<'static, ()>>;

    /// What only its kind has, written down: what its clients count on, and where each of them stands. Their descriptors
    /// go to `descriptors`. Its node is still.
    fn save(&self, descriptors: &Descriptors) -> LocalBoxFuture<'static, SavedExportKind>;

    /// Takes no new clients from this call on, and disconnects those there are; the future ends when the last of them is
    /// gone, and nothing of the export uses its node any more.
    fn shut_down(&self) -> LocalBoxFuture<'static, ()>;
}

/// An export whose own options were checked. What they name is kept for it until this is dropped.
pub(crate) trait Prepared {
    /// Lets clients use the export, on the node that is held for it.
    fn start<'a>(&'a self, hold: &'a Hold<'a>) -> LocalBoxFuture<'a, Result<Box<dyn Export>>>;
}

/// The node behind an export.
pub(crate) struct Hold<'a> {
    /// What requests are sent by, and what ends with the export.
    pub(crate) client: Client,
    /// The node, if it is there still.
    pub(crate) node: Option<NodeFacts>,
    /// What the export is asked to be.
    pub(crate) options: &'a BlockExportOptions,
}

impl Hold<'_> {
    /// Where the export's workers serve.
    pub(crate) fn seats(&self) -> Seats {
        Seats::new(self.client.clone())
    }
}

/// What an export takes of its node, and what it shares with others.
pub(crate) fn permissions(options: &BlockExportOptions) -> (Permissions, Permissions) {
    let mut taken = Permissions::CONSISTENT_READ;
    taken.set(Permissions::WRITE, options.writable.unwrap_or(false));
    match &options.kind {
        // The length that clients were told holds as long as the export.
        BlockExportKind::Nbd(_) => (taken, Permissions::all() - Permissions::RESIZE),
        BlockExportKind::VhostUserBlk(_) | BlockExportKind::VduseBlk(_) => (taken, Permissions::all()),
        // The kernel asks for the length each time.
        BlockExportKind::Fuse(fuse) => {
            taken.set(Permissions::RESIZE, fuse.growable.unwrap_or(false));
            (taken, Permissions::all())
        }
    }
}
