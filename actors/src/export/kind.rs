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

/// An export that clients can use.
pub(crate) trait Export {
    /// Which kind of export it is.
    fn kind(&self) -> BlockExportType;

    /// What its clients know it by, for the log.
    fn name(&self) -> &str;

    /// Whether clients use it now. One that is used is not removed in mode `safe`.
    fn is_used(&self) -> bool;

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

/// On how many iothreads an export of a kind can serve its clients.
pub(crate) const fn most_iothreads(kind: &BlockExportKind) -> usize {
    match kind {
        // A node lives on one iothread, and a connection is served beside it.
        BlockExportKind::Nbd(_) | BlockExportKind::VhostUserBlk(_) => 1,
    }
}

/// What others may do to the node of an export of a kind.
pub(crate) const fn shared(kind: &BlockExportKind) -> Permissions {
    match kind {
        // The length that clients were told holds as long as the export.
        BlockExportKind::Nbd(_) => Permissions::all().difference(Permissions::RESIZE),
        BlockExportKind::VhostUserBlk(_) => Permissions::all(),
    }
}
