//! Who talks to whom: iothreads, nodes, the graph, exports and monitors.
#![forbid(unsafe_code)]

#[cfg(feature = "daemon")]
pub mod cli;
#[cfg(feature = "daemon")]
pub mod daemon;
pub mod embed;
#[cfg(feature = "daemon")]
pub mod export;
pub mod flight;
pub mod graph;
pub mod image;
#[cfg(feature = "daemon")]
pub mod log;
#[cfg(feature = "daemon")]
pub mod monitor;
#[cfg(feature = "daemon")]
mod socket;

pub use millpond_engine::{chaos, iothread, node};
