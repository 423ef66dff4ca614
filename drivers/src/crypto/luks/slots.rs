//! Master keys in slots: found by a password, and put in under another.

use millpond_messages::{Error, ErrorKind, Result};

use super::super::{KeyBytes, SECTOR, SectorCipher, fill_random, random, stripes};
use super::header::{LuksHeader, Slot};
use super::{DIGEST, SALT};

/// The key that the data is encrypted with.
pub(crate) struct MasterKey(KeyBytes);

impl std::fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MasterKey(..)")
    }
}

/// A master key in a slot: the slot as the header is to have it, and its stripes.
pub(crate) struct SlotKey {
    /// How often the digest of the password is iterated.
    pub iterations: u32,
    /// What is mixed into the password.
    pub salt: [u8; SALT],
    /// The stripes, encrypted, in whole sectors.
    pub material: Vec<u8>,
}

impl MasterKey {
    /// A new one that nobody can guess.
    pub fn new(len: usize) -> Result<Self> {
        let mut key = KeyBytes::new(vec![0; len]);
        fill_random(&mut key)?;
        Ok(Self(key))
    }

    /// What encrypts the data of the volume that `header` heads.
    pub fn cipher(&self, header: &LuksHeader) -> Result<Box<dyn SectorCipher>> {
        header.spec.with_key(&self.0)
    }

    /// The digest that a header keeps of the key.
    pub fn digest(&self, header: &LuksHeader) -> [u8; DIGEST] {
        let rounds = header.digest_iterations;
        let digest = header.hash.derive(&self.0, &header.digest_salt, rounds, DIGEST);
        let mut bytes = [0; DIGEST];
        bytes.copy_from_slice(&digest);
        bytes
    }

    /// Puts the key under a password.
    ///
    /// # Errors
    /// There are no random bytes.
    pub fn lock(&self, header: &LuksHeader, password: &[u8], iterations: u32) -> Result<SlotKey> {
        let salt = random::<SALT>()?;
        let mut plain = KeyBytes::new(vec![0; header.material_len()]);
        fill_random(&mut plain)?;
        let key = header.hash.derive(password, &salt, iterations, header.key_len);
        stripes::split(&header.hash, &self.0, &mut plain[..used(header)]);
        header.spec.with_key(&key)?.encrypt(0, &mut plain);
        Ok(SlotKey {
            iterations,
            salt,
            material: std::mem::take(&mut *plain),
        })
    }
}

/// Bytes that the stripes take: in the last sector there may be something behind them.
fn used(header: &LuksHeader) -> usize {
    header.key_len * super::STRIPES as usize
}

impl Slot {
    /// Looks for the master key in the slot by a password. `material` is what the image has there, whole sectors.
    /// `None` where the password is not the slot's.
    ///
    /// # Errors
    /// The key does not fit the cipher.
    pub fn unlock(
        &self,
        header: &LuksHeader,
        password: &[u8],
        material: Vec<u8>,
    ) -> Result<Option<MasterKey>> {
        let mut material = KeyBytes::new(material);
        if material.len() != header.material_len() || !material.len().is_multiple_of(SECTOR) {
            let text = "The key material is not as long as the header says";
            return Err(Error::new(ErrorKind::Corrupt, text));
        }
        let (rounds, len) = (self.iterations, header.key_len);
        let key = header.hash.derive(password, &self.salt, rounds, len);
        header.spec.with_key(&key)?.decrypt(0, &mut material);
        let found = MasterKey(stripes::merge(&header.hash, len, &material[..used(header)]));
        Ok(Some(found).filter(|key| is_same(&key.digest(header), &header.digest)))
    }
}

/// Compares without ending early.
fn is_same(one: &[u8; DIGEST], other: &[u8; DIGEST]) -> bool {
    one.iter()
        .zip(other)
        .fold(0, |sum, (one, other)| sum | (one ^ other))
        == 0
}
