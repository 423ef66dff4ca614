//! The schema's types as Rust types: what validated arguments become, and what replies are made of.
//!
//! Options of nodes are not here: they travel as an [`Object`](super::Object), since only the driver
//! knows them all.

mod export;
mod graph;
mod job;
mod node;
mod object;
mod server;
mod version;

pub use export::*;
pub use graph::*;
pub use job::*;
pub use node::*;
pub use object::*;
pub use server::*;
pub use version::*;
