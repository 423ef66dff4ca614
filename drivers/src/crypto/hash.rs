//! The digests of LUKS headers: of bytes, and iterated to make a key of a password.

use hmac::digest::Digest;
use md5::Md5;
use millpond_messages::Result;
use millpond_messages::qapi::schema::QCryptoHashAlgo;
use pbkdf2::pbkdf2_hmac;
use ripemd::Ripemd160;
use sha1::Sha1;
use sha2::{Sha224, Sha256, Sha384, Sha512};
use sm3::Sm3;

use super::{KeyBytes, unsupported};

/// A digest, and what is done by it.
#[derive(Clone, Copy)]
pub(crate) struct Hash {
    /// Its name on the wire and in headers.
    pub algorithm: QCryptoHashAlgo,
    /// Bytes of its result.
    pub len: usize,
    digest: fn(&[&[u8]]) -> KeyBytes,
    derive: fn(&[u8], &[u8], u32, &mut [u8]),
}

impl std::fmt::Debug for Hash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.algorithm.fmt(f)
    }
}

macro_rules! hash {
    ($algorithm:ident, $len:literal, $digest:ty) => {
        Hash {
            algorithm: QCryptoHashAlgo::$algorithm,
            len: $len,
            digest: digest_of::<$digest>,
            derive: |password, salt, rounds, key| pbkdf2_hmac::<$digest>(password, salt, rounds, key),
        }
    };
}

static HASHES: [Hash; 8] = [
    hash!(Md5, 16, Md5),
    hash!(Sha1, 20, Sha1),
    hash!(Sha224, 28, Sha224),
    hash!(Sha256, 32, Sha256),
    hash!(Sha384, 48, Sha384),
    hash!(Sha512, 64, Sha512),
    hash!(Ripemd160, 20, Ripemd160),
    hash!(Sm3, 32, Sm3),
];

fn digest_of<D: Digest>(parts: &[&[u8]]) -> KeyBytes {
    let mut digest = D::new();
    parts.iter().for_each(|part| digest.update(part));
    KeyBytes::new(digest.finalize().to_vec())
}

impl Hash {
    /// The digest of this name.
    ///
    /// # Errors
    /// It is not served.
    pub fn find(algorithm: QCryptoHashAlgo) -> Result<Self> {
        let found = HASHES.iter().find(|hash| hash.algorithm == algorithm);
        let text = || format!("Hash algorithm '{}' not supported", name(algorithm));
        found.copied().ok_or_else(|| unsupported(text()))
    }

    /// The digest whose name stands in a header.
    ///
    /// # Errors
    /// There is none of this name, or it is not served.
    pub fn named(text: &str) -> Result<Self> {
        let found = HASHES.iter().find(|hash| name(hash.algorithm) == text);
        found
            .copied()
            .ok_or_else(|| unsupported(format!("Hash algorithm '{text}' not supported")))
    }

    /// Its name in a header.
    pub fn name(&self) -> &'static str {
        name(self.algorithm)
    }

    /// The digest of what the parts are together.
    pub fn digest(&self, parts: &[&[u8]]) -> KeyBytes {
        (self.digest)(parts)
    }

    /// A key of `len` bytes from a password, by PBKDF2. It is meant to take long: not on an iothread.
    pub fn derive(&self, password: &[u8], salt: &[u8], rounds: u32, len: usize) -> KeyBytes {
        let mut key = KeyBytes::new(vec![0; len]);
        (self.derive)(password, salt, rounds, &mut key);
        key
    }
}

/// The name of a digest, on the wire and in headers.
const fn name(algorithm: QCryptoHashAlgo) -> &'static str {
    match algorithm {
        QCryptoHashAlgo::Md5 => "md5",
        QCryptoHashAlgo::Sha1 => "sha1",
        QCryptoHashAlgo::Sha224 => "sha224",
        QCryptoHashAlgo::Sha256 => "sha256",
        QCryptoHashAlgo::Sha384 => "sha384",
        QCryptoHashAlgo::Sha512 => "sha512",
        QCryptoHashAlgo::Ripemd160 => "ripemd160",
        QCryptoHashAlgo::Sm3 => "sm3",
    }
}
