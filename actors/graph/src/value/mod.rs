//! The graph as a value: what it is, and what can be told from it, without anything being changed.

pub mod blockers;
pub mod chain;
pub mod filename;
pub mod graph;
pub mod permissions;
