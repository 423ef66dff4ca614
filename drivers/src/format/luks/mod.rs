//! `luks`: images that are encrypted as a whole, in the format LUKS of version 1.
//!
//! ```text
//!   file:    | header | eight places for keys | data, sector by sector |
//!   or
//!   header:  | header | eight places for keys |      file: | data |
//! ```
//! Every request is encrypted or decrypted here, on its way to or from `file`. Finding a key by a password is meant to take long
//! and is done by the ring's threads.

mod amend;
mod create;
mod driver;
mod header_file;
mod kind;
mod volume;

pub(crate) use amend::{KeySlots, Prepared};
pub(crate) use header_file::HeaderFile;
pub use kind::LuksKind;
pub(crate) use volume::{Volume, is_looked_at};
