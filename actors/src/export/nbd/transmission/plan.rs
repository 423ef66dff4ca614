//! How a request is served: decided before anything of it is done.

use millpond_messages::IoError;
use millpond_messages::io::Operation;
use millpond_ring::buffer::{Buffer, Buffers};

/// Why a request failed: its error, and a text for people.
#[derive(Debug, Clone, Copy)]
pub(super) struct Failure {
    pub(super) error: IoError,
    pub(super) text: &'static str,
}

/// How a request is served.
pub(super) enum Plan {
    /// By one request to the node, whose outcome is the answer; with room for a reply's header right before what is read,
    /// or none.
    One(Operation<Buffers>, Buffer),
    /// By several requests, one after the other.
    Steps,
    /// It is refused, and nothing is done.
    Refused(Failure),
}
