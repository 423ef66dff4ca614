//! The NBD server: the protocol as state machines without I/O, and the tasks that drive them.
//!
//! ```text
//!   control thread: server (exports, clients) -> listen (accept) -> handshake -> place --+
//!   iothread:       transmission: connection (receive) -> session (plan, serve) -> outbox (send)
//! ```
//! The daemon has one server; its exports are on it by name. A client's handshake runs on the control thread, under a time
//! limit; then its socket goes to the iothread of the export's node and stays there, unless the node moves. Handshake and
//! transmission know their bytes by what [`transport`] says of a connection, and know no socket.

mod connections;
mod dirty;
pub(super) mod export;
pub mod handshake;
mod listen;
pub mod offer;
mod peer;
mod place;
mod report;
mod roll;
mod saved;
mod secure;
pub(super) mod server;
pub mod transmission;
pub mod transport;

pub use transmission::{MAX_BYTES, MAX_IN_FLIGHT, MAX_SHARED, Pool};
