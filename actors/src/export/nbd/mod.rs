//! The NBD server: the protocol as state machines without I/O, and the tasks that drive them.

pub mod backend;
mod budget;
pub mod connection;
pub mod handshake;
pub mod offer;
mod outbox;
mod receive;
pub mod reply;
pub mod request;
mod serve;
mod session;
pub mod wire;

pub use budget::{MAX_BYTES, MAX_IN_FLIGHT};
