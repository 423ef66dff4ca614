//! One table of every command, event and type: introspection and validation are both read from it.
//!
//! A command is added by a row in `commands.rs` and the types it needs. Members stand in the order in
//! which QEMU checks them, so that of several mistakes the same one is told.

mod amend;
mod character_device;
mod check;
mod commands;
mod control;
mod create;
mod define;
mod drain;
mod events;
mod export;
mod filter;
mod graph;
mod image;
mod introspect;
mod introspection;
mod iothread;
mod job;
mod node;
mod object;
mod options;
mod socket;
mod statistics;
mod transaction;

pub use commands::COMMANDS;
pub use define::*;
pub use events::EVENTS;
pub use introspect::introspect;
pub use options::*;

/// The command called `name`.
pub fn find_command(name: &str) -> Option<&'static Command> {
    COMMANDS.iter().find(|command| command.name == name)
}
