//! Who talks to whom: iothreads, nodes, the graph, exports and monitors.
pub mod export;
pub mod graph;
pub mod iothread;
pub mod monitor;
pub mod node;
