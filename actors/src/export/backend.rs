//! What a connection needs of the node behind its export.

use std::future::Future;

use millpond_messages::io::{Operation, Outcome};
use millpond_ring::buffer::Buffers;

use millpond_engine::node::{Begun, HomeClient, Pending};

/// The node behind an export, as one connection on one thread uses it.
///
/// A type parameter rather than an object: a request costs no indirection, and tests bring a disk of their own.
pub trait ExportedNode: 'static {
    /// A request that has begun and not ended. Dropped, it goes on by itself.
    type Pending: Future<Output = Outcome<Buffers>> + 'static;

    /// Begins a request, in this very step.
    fn begin(&self, operation: Operation<Buffers>) -> Begun<Self::Pending>;
    /// Whether what is read may go to memory of any alignment without a copy.
    fn takes_any_memory(&self) -> bool;
    /// Whether a request sent now would be served now rather than wait for a drained section to end.
    fn is_open(&self) -> bool;
    /// Waits until it would.
    fn wait_open(&self) -> impl Future<Output = ()>;
    /// The node's name, for the log.
    fn node_name(&self) -> String {
        String::new()
    }
    /// Whether the node lives on another iothread than this one by now, to which the worker is to go.
    fn has_moved(&self) -> bool;
}

impl ExportedNode for HomeClient {
    type Pending = Pending;

    fn begin(&self, operation: Operation<Buffers>) -> Begun {
        HomeClient::begin(self, operation)
    }

    fn takes_any_memory(&self) -> bool {
        HomeClient::takes_any_memory(self)
    }

    fn is_open(&self) -> bool {
        HomeClient::is_open(self)
    }

    fn wait_open(&self) -> impl Future<Output = ()> {
        HomeClient::wait_open(self)
    }

    fn node_name(&self) -> String {
        HomeClient::node_name(self)
    }

    fn has_moved(&self) -> bool {
        HomeClient::has_moved(self)
    }
}
