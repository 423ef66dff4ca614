//! Operations that somebody forbids.

use crate::common::{OpBlocker, RootId, Token};
use crate::error::{Error, ErrorKind};

/// What forbids an operation on a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BlockedBy {
    /// A blocker that is new with this.
    New {
        /// Why it is forbidden, for people.
        reason: String,
        /// The hold with which the blocker ends at the latest. Without one it lasts until it is taken back.
        root: Option<RootId>,
    },
    /// One that there is already, on whatever nodes.
    Token(Token),
}

/// A reason why an operation of some kind may not be done on a node now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocker {
    /// The operation that is forbidden.
    pub operation: OpBlocker,
    /// Why it is forbidden, for people.
    pub reason: String,
}

impl Blocker {
    /// The error of an operation on the node `name` that this forbids.
    #[must_use]
    pub fn error(&self, name: &str) -> Error {
        Error::new(
            ErrorKind::InUse,
            format!("Node '{name}' is busy: {}", self.reason),
        )
    }
}
