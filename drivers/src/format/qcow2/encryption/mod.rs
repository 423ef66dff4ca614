//! Images whose guest data is encrypted: opened, made, given other keys, and the way of the data to and from the file.
//!
//! ```text
//!   header -- method ----------------+
//!      LUKS header inside the image -+--> Encryption --> guest data, sector by sector
//!      secret ----------------------/
//! ```
//! Only the guest's clusters and a machine's state are encrypted, each sector with a number that is mixed in: that of its
//! place in the file, with the old method that of its place on the disk. Tables are not, nor are compressed clusters, which
//! others may have stored and which are only read.

mod amend;
mod create;
mod data;
mod method;
mod open;

pub(super) use amend::is_about_keys;
pub(super) use create::NewEncryption;
pub(super) use method::{EncryptOptions, Encryption, PreparedKeys};
pub(super) use open::open;
