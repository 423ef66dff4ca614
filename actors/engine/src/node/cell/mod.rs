//! A node on its iothread: its driver, its edges, and what it keeps of the nodes below.

pub mod admission;
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
