//! What drained sections cover.

use super::ChildOf;

/// Which nodes a drained section covers, besides all their ancestors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DrainScope {
    /// One node, by its name, and what is above it.
    Node(String),
    /// A node and everything below it.
    Subtree(String),
    /// Whoever holds one edge, so that nothing comes over it: a node, and not its child's other parents. A user has no gate
    /// of its own: its requests wait at the node that they enter, with those of all others.
    Parent(ChildOf),
    /// Every node, including those added while the section lasts.
    All,
}
