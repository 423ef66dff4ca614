//! Millpond's benchmarks as a library: a load on a server or a node, and what is measured by it.

#![forbid(unsafe_code)]

pub mod ceiling;
pub mod compare;
pub mod flat;
pub mod load;
pub mod process;
pub mod qmp;
pub mod server;

use std::error::Error;

/// What can go wrong in a benchmark ends it, with a message for the person who runs it.
pub type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;
