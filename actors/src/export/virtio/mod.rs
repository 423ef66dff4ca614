//! Virtio block devices: what the exports to virtual machines and to the kernel have in common.
//!
//! ```text
//!   control thread                                    iothread of the node
//!   device     what all queues share, and guests read
//!   vring      a queue as its owner sets it up -----> queue    requests from the ring to the node, and back
//!   in_flight  requests noted outside this process    length   the node's length, followed
//! ```
//! A queue is a [`Worker`](super::worker::Worker) that reads descriptors from the guest's memory, copies data from there and
//! to there, and has the guest interrupted.
//!
//! Whatever is read from the guest's memory is copied before it is looked at, and each number in it is checked: the guest
//! may change it at any time.

pub(super) mod config;
pub(super) mod device;
pub(super) mod in_flight;
pub(super) mod length;
mod queue;
pub(super) mod vring;
