//! The command line.

mod arguments;
mod background;
mod help;
mod pidfile;
mod serve;
mod trace;

pub use serve::serve;
