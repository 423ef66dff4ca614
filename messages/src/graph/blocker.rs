//! Operations that somebody forbids.

use crate::common::OpBlocker;
use crate::error::{Error, ErrorKind};

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
