//! The path of a request: every request to a node passes here. Range, flags and permissions are checked before any driver
//! sees it, and every emulation is here, once: FUA by flush, zeroes by writes, unaligned by read-modify-write.
//!
//! Most reads and writes take the [`fast_path`], the others [`execute`]; both come to the same.

pub mod aligned;
pub mod check;
pub mod copy_on_read;
pub mod copy_range;
pub mod descend;
pub mod elsewhere;
pub mod execute;
pub mod fast_path;
pub mod flush;
pub mod length;
mod map;
pub mod passage;
pub mod passed;
pub mod place;
pub mod port;
pub mod probed;
pub mod read;
pub mod request;
pub mod snapshot;
pub mod status;
pub mod write;
pub mod zeroes;
