//! The export of kind vhost-user-blk: a virtio block device for the virtual machine at the other end of a socket.
//!
//! ```text
//!   control thread                                    iothread of the node
//!   export     listens, one front end at a time
//!   front_end  its messages: memory, rings ---------> queue    requests from the ring to the node, and back
//! ```
//! The front end (the program that runs the machine) passes the machine's memory as files, and a descriptor for each
//! queue by which the guest says that there are requests. From then on a request takes no message: a queue is a
//! [`Worker`](super::worker::Worker) that reads descriptors from the guest's memory, copies data from there and to there,
//! and has the guest interrupted by another descriptor.
//!
//! Whatever is read from the guest's memory is copied before it is looked at, and each number in it is checked: the guest
//! may change it at any time. The first thing that breaks the rules ends the connection.

mod config;
mod device;
pub(super) mod export;
mod front_end;
mod in_flight;
mod length;
mod message;
mod queue;
mod socket;
mod vring;
