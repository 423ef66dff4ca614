//! The export of kind vhost-user-blk: a virtio block device for the virtual machine at the other end of a socket.
//!
//! ```text
//!   control thread                                    iothread of the node
//!   export     listens, one front end at a time
//!   front_end  its messages: memory, rings ---------> queues (see the module `virtio`)
//! ```
//! The front end (the program that runs the machine) passes the machine's memory as files, and a descriptor for each
//! queue by which the guest says that there are requests, and another by which it is interrupted. From then on a request
//! takes no message. The first thing that breaks the rules ends the connection.

pub(super) mod export;
mod front_end;
mod message;
mod socket;
