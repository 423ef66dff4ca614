//! `quorum`: the same data in several children, read by a vote.
//!
//! A write goes to all children, and succeeds where `vote-threshold` of them have it. A read asks all children and gives
//! the version that most of them have, if that are enough; with `read-pattern=fifo` it gives what the first child that
//! can be read has. Children come and go while the node is open.

mod driver;
mod kind;
mod vote;

pub use kind::QuorumKind;
