//! Encryption of sectors, and the LUKS header that says how and keeps the key.
//!
//! ```text
//!   header  ->  spec (cipher, mode, how sector numbers are used)  --+
//!      slots -- password, hash, stripes -->  master key  -----------+-->  SectorCipher
//! ```
//! Nothing here reads or writes an image. The primitives are RustCrypto's; the modes run over the calls that encrypt several
//! blocks at once, which is where the speed is. Every key, and all that one could be found from, is wiped when it is dropped.

pub(crate) mod buffers;
mod cipher;
mod hash;
mod ivs;
pub(crate) mod luks;
mod modes;
mod stripes;
#[cfg(test)]
mod tests;

pub(crate) use cipher::{CipherSpec, cbc_unwrap};
pub(crate) use hash::Hash;
pub(crate) use modes::{Locked, SectorCipher};

use millpond_messages::{Error, ErrorKind, Result};
use zeroize::Zeroizing;

/// The bytes of a key, or of what a key is found from. They are wiped when they are dropped.
pub(crate) type KeyBytes = Zeroizing<Vec<u8>>;

/// Bytes of a sector, which is what is encrypted by itself.
pub(crate) const SECTOR: usize = 512;

/// Bytes that nobody can guess.
///
/// # Errors
/// The system has none.
pub(crate) fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    fill_random(&mut bytes)?;
    Ok(bytes)
}

/// Fills `bytes` so that nobody can guess them.
///
/// # Errors
/// The system has no random bytes.
pub(crate) fn fill_random(bytes: &mut [u8]) -> Result<()> {
    getrandom::fill(bytes).map_err(|error| {
        Error::new(
            ErrorKind::Unsupported,
            format!("Unable to get random bytes: {error}"),
        )
    })
}

fn unsupported(text: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::Unsupported, text)
}
