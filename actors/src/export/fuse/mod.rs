//! FUSE exports: the data of a node as a file of the host, which covers a regular file that is there already.
//!
//! ```text
//!   control thread: export (options, removal) -> mountpoints (paths taken) -> mount (system calls, on threads of their own)
//!                                             -> device (what is agreed on with the kernel) -> plan (memory of rings)
//!   iothread:       serve (take messages) <- device (read) | queue (over io_uring)
//!                     -> wire (what they say) -> answer (what the node does) -> reply
//! ```
//! The mounted file system is that one file, and the kernel asks about it by messages. They are taken on the iothread of the
//! node while its gate is open; what comes in a drained section waits: in the kernel, or, what has come over io_uring, in the
//! memory that was given to the kernel for it.
//!
//! # Over io_uring
//! Where the kernel offers it, requests come over rings ([`millpond_ring::fuse`]): the kernel has a queue for each processor, and
//! each iothread of the export a ring with its part of the queues. A queue has 4 to 16 entries, and an export 32 MiB of memory for
//! them at most, or 512 KiB a processor if there are more than 64. It is real memory once it is used, for as long as the
//! export lives. Where the kernel does not, each iothread has the device opened for itself.
//!
//! # Copies
//! The data of a request is copied once, by the kernel, between the memory of who asks and that of the daemon. A read goes from
//! the node's storage to the memory that is sent from; a write to storage from the memory that it came in, but for short ones
//! from the device. There are two ways to have no copy, and neither is one here:
//! - The kernel can be told to do reads and writes on a file by itself (`FUSE_PASSTHROUGH`). The graph would not see them: no
//!   drained section would hold them back, no filter or format would be asked, and a snapshot would not be one.
//! - Pages can go through a pipe by `splice(2)`. A node's driver takes memory that it can look at, which pages in a pipe are not;
//!   and moving them is worth more than one copy only for a request that is large.

mod answer;
mod attributes;
mod device;
pub(super) mod export;
mod lengths;
mod mount;
mod mountpoints;
mod plan;
mod queue;
mod reply;
mod seek;
mod serve;
mod slots;
mod space;
mod standing;
mod wire;

pub(super) use mountpoints::Mountpoints;
