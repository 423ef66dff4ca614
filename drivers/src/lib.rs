//! What a node does: protocol drivers, format drivers and filters, and the contract of them all.
//!
//! A driver knows its own options, its children and the ring of its iothread. It knows neither the graph nor other nodes,
//! and starts no thread: what blocks is given to the ring.
#![forbid(unsafe_code)]

pub mod blkdebug;
pub mod blklogwrites;
pub mod blkverify;
pub mod builtin;
pub mod compress;
pub mod copy_on_read;
pub mod driver;
pub mod file;
pub mod null;
pub mod preallocate;
pub mod qcow2;
pub mod quorum;
pub mod raw;
pub mod reopen;
mod replicas;
pub mod throttle;
