//! Where requests enter the graph: clients, the root edges that they hold, and requests that have not ended.

pub mod client;
pub mod pending;
pub mod root;
