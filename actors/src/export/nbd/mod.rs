//! The NBD server: the protocol as state machines without I/O, and the tasks that drive them.
//!
//! ```text
//!   control thread: server (listen, accept) -> negotiate (handshake) -> place --Mail::Run--+
//!   iothread:       connection (receive, request) -> session (serve) -> outbox (reply, send) <--+
//! ```
//! The daemon has one server; its exports are on it by name. A client's handshake runs on the control thread, under a time
//! limit; then its socket goes to the iothread of the export's node and stays there, unless the node moves.

mod arena;
pub mod backend;
mod budget;
pub mod connection;
pub mod handshake;
mod late;
mod negotiate;
pub mod offer;
mod outbox;
mod peer;
mod place;
mod presence;
mod receive;
pub mod reply;
pub mod request;
mod serve;
pub mod server;
mod session;
pub mod wire;

pub use budget::{MAX_BYTES, MAX_IN_FLIGHT, MAX_SHARED, Pool};
