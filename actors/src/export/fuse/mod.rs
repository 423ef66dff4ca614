//! FUSE exports: the data of a node as a file of the host, which covers a regular file that is there already.
//!
//! ```text
//!   control thread: export (options, removal) -> mountpoints (paths taken) -> mount (system calls, on threads of their own)
//!   iothread:       serve (take messages from the device) -> wire (what they say) -> answer (what the node does) -> reply
//! ```
//! The mounted file system is that one file, and the kernel asks about it by messages that are read from a device. They are
//! taken on the iothread of the node while its gate is open; what comes in a drained section waits in the kernel.

mod answer;
mod attributes;
pub(super) mod export;
mod mount;
mod mountpoints;
mod reply;
mod seek;
mod serve;
mod slots;
mod space;
mod standing;
mod wire;

pub(super) use mountpoints::Mountpoints;
