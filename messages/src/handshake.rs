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
use crate::io::OperationKind;

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

/// A request that a drain waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PendingRequest {
    /// What kind of request it is.
    pub operation: OperationKind,
    /// First byte, 0 where there is no range.
    pub offset: u64,
    /// Its length in bytes.
    pub len: u64,
    /// How long it has been in flight, in nanoseconds.
    pub age_ns: u64,
    /// Where it stands: the node that it was last handed to.
    pub stands_at: String,
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

/// A drain that has not become still.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PendingDrain {
    /// The number of the section that waits.
    pub token: u64,
    /// Who asked for it.
    pub user: String,
    /// How long it has waited, in nanoseconds.
    pub age_ns: u64,
    /// The nodes that have not answered, with what they wait for.
    pub waiting_for: Vec<WaitingNode>,
}

/// A node that has not answered a quiesce.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct WaitingNode {
    /// The node's name in the graph.
    pub node_name: String,
    /// What it has in flight, oldest first, a bounded number of them.
    pub requests: Vec<PendingRequest>,
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
