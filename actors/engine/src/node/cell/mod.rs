//! A node on its iothread: its driver, its edges, its state, and what it keeps of the nodes below.
//!
//! How requests pass a node is no part of it: that is [`io`](super::io)'s, as carrying orders out is [`order`](super::order)'s.

pub mod admission;
pub mod bitmaps;
mod change;
pub mod delayed;
mod drain;
pub mod durability;
pub mod edge;
mod events;
pub mod home;
pub mod kept;
pub mod node;
#[cfg(test)]
pub mod observed;
mod prepared;
mod saved;
pub mod stored;
pub mod threshold;
mod written;
