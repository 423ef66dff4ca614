//! What stands between a node and its driver's panics: the driver's node is broken by one, and nothing else.
//!
//! [`Registry::register`](super::Registry::register) puts every driver behind a [`GuardedKind`], which opens nodes whose
//! drivers are behind a `Guarded`: each call and each poll of an answer passes there. From a panic on
//! - nothing of the driver runs any more, neither calls nor answers it still owes: what it left half-changed is not built upon;
//! - every answer it owes is an error, and whoever waits for one is woken to hear that;
//! - the node's users hear of it once, by [`Notice::Broken`](super::Notice::Broken) and in the log.
//!
//! A panic in a destructor while another panic unwinds ends the process, as everywhere in Rust.

mod device;
mod driver;
mod kind;
mod watched;

pub use kind::GuardedKind;
pub use watched::{Watched, panic_text};

#[cfg(test)]
mod tests;
