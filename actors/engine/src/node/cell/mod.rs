//! A node on its iothread: its driver, its edges, and what it keeps of the nodes below.

pub mod edge;
pub mod kept;
pub mod node;
