//! The data plane: iothreads, the nodes that live on them, and what may delay or record the messages between them.
//!
//! Nothing here decides about the graph, and nothing knows of a control thread: orders come by the iothreads' mailboxes,
//! and what became of them goes back as events.
#![forbid(unsafe_code)]

pub mod delay;
pub mod flight;
pub mod iothread;
pub mod node;

/// The name by which tests inside and outside know the crate.
#[cfg(test)]
extern crate self as millpond_engine;
