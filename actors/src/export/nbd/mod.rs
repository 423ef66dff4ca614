//! The NBD server: the protocol as state machines without I/O, and the tasks that drive them.

pub mod handshake;
pub mod offer;
pub mod wire;
