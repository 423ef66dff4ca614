//! What a node does: protocol drivers, format drivers and filters, and the contract of them all.
//!
//! A driver knows its own options, its children and the ring of its iothread. It knows neither the graph nor other nodes,
//! and starts no thread: what blocks is given to the ring.
//!
//! [`api`] is the contract; of the drivers it knows the throttle groups alone, which a registry hands to nodes and
//! embedders as it does the secrets.
//! The drivers know the contract and, but for what replicas share, not each other; [`builtin`] knows them all.
#![forbid(unsafe_code)]

pub mod api;
pub mod builtin;
pub mod by_id;
mod crypto;
pub mod filter;
pub mod format;
pub mod protocol;
pub mod replica;
pub mod secret;
pub mod tls;

#[doc(hidden)]
pub use {millpond_messages as messages, millpond_ring as ring};
