//! The LUKS header, version 1: what it says, and its places for keys.
//!
//! ```text
//!   password --PBKDF2--> key of a slot --decrypts--> stripes of the master key --merged--> master key --> the data
//! ```
//! The header has eight slots. Each holds the same master key, split into stripes that together take some hundred KiB, and
//! encrypted by a key that only the slot's password gives. A digest in the header tells whether a master key is the right one.

mod amend;
mod header;
mod make;
mod slots;
#[cfg(test)]
mod tests;

pub(crate) use amend::{ERASURES, KeyChange, SlotState};
pub(crate) use header::{HEADER_LEN, LuksHeader, is_luks};
pub(crate) use make::{NewVolume, cost};
pub(crate) use slots::{MasterKey, SlotKey};

/// Sectors of 512 bytes, in which headers count.
const SECTOR_BYTES: u64 = 512;

/// Stripes that each key is split into.
const STRIPES: u32 = 4000;

/// Bytes of the digest that tells the right master key.
const DIGEST: usize = 20;

/// Bytes of a salt.
const SALT: usize = 32;

/// The most iterations that a header may ask for. Each takes time that nobody can take back: a billion take minutes, and no
/// program makes slots that slow.
const MOST_ITERATIONS: u32 = 1 << 30;
