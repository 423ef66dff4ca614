//! Where requests enter the graph: clients, the root edges that they hold, and pending requests. Only here is a request
//! admitted, parked or refused for lack of permission.

pub mod client;
pub mod pending;
mod remote;
mod requests;
pub mod root;
