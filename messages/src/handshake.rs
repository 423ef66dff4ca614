//! The quiesce handshake between the graph actor and nodes.
//!
//! ```text
//!   graph                         node
//!     | -- Quiesce(token) ---------> |  parks what comes over root edges
//!     |                              |  lets what is in flight run out
//!     | <-------- Quiesced(token) -- |  in flight is 0, the driver's background work stopped
//!     |        (the section is still once every node of every level has answered)
//!     | -- Resume(token) ----------> |  parked requests run in the order they came
//! ```
//! Levels run from parents to children, so that a node asked to quiesce hears no more from above.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::common::{NodeId, Token};
pub use crate::qapi::{PendingDrain, PendingRequest, WaitingNode};

/// What the graph actor tells a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToNode {
    /// Close the gate for `token` and answer once nothing is in flight.
    Quiesce(Token),
    /// Take back this token's hold on the gate, whether or not it was answered yet.
    Resume(Token),
}

/// What a node tells the graph actor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromNode {
    /// Nothing is in flight, and nothing will be until this token is resumed.
    Quiesced(NodeId, Token),
}

impl fmt::Display for PendingRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            operation,
            offset,
            len,
            age_ns,
            stands_at,
        } = self;
        let seconds = age_ns / 1_000_000_000;
        write!(
            f,
            "a {operation} of {len} bytes at {offset} that has stood at '{stands_at}' for {seconds} s"
        )
    }
}

/// For the log: the node, and the oldest of its requests.
impl fmt::Display for WaitingNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node '{}'", self.node_name)?;
        match &self.requests[..] {
            [] => Ok(()),
            [oldest] => write!(f, ", {oldest}"),
            [oldest, ..] => write!(f, ", {} requests, the oldest {oldest}", self.requests.len()),
        }
    }
}
