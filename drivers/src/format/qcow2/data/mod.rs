//! What requests for the guest's data come down to: finding them, places for writes, zeroes and discards, compression.

pub(crate) mod allocate;
mod compressed_read;
mod compressed_write;
mod locate;
mod subcluster;
mod zero_discard;
