//! `vdi`: the format of VirtualBox, one table of blocks of 1 MiB.
//!
//! ```text
//!   | header, 512 bytes | table: a place for each block of the disk | block | block | ...
//! ```
//! What a block was before its first write is zeroes. Images with parents, which VirtualBox makes for its snapshots, are
//! refused, as QEMU does.

mod check;
mod create;
mod driver;
mod header;
mod kind;
mod saved;

pub use kind::VdiKind;
