//! Who talks to whom: iothreads, nodes, the graph, exports and monitors.
pub mod chaos;
pub mod cli;
pub mod daemon;
pub mod embed;
pub mod export;
mod ffi;
pub mod flight;
pub mod graph;
pub mod image;
pub mod iothread;
pub mod log;
pub mod monitor;
pub mod node;
mod socket;
