//! Character devices: where a monitor's bytes come from and go to.
//!
//! ```text
//!   --chardev ---- options ---.                              .--- a monitor
//!                              >-- Backend -- Chardev::open --<
//!   chardev-add -- asked -----'                              '--- a Mux, with up to four monitors
//! ```
//! A device gives one connection after the other. Its user has it by a [`Lease`]; while it has none it is on its [`Shelf`].

mod asked;
mod backend;
mod connection;
mod file;
mod lease;
mod log;
mod mux;
mod open;
mod options;
mod pty;
mod ring;
mod socket;
mod telnet;
mod text;
mod udp;
mod websocket;

pub use asked::asked;
pub use backend::{Address, Backend, ChardevOptions, LogFile, Protocol, Socket};
pub use connection::Connection;
pub use lease::{Lease, Shelf};
pub use mux::Mux;
pub use open::{Chardev, Opened};
pub use options::{BACKENDS, Parsed, parameter_help, parse};
pub use ring::Ring;
pub use text::{bytes_of, text_of};
