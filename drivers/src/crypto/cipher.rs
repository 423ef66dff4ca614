//! Which cipher encrypts the sectors, how a header names it, and the cipher with its key.

use aes::{Aes128, Aes192, Aes256};
use cast5::Cast5;
use cipher::block_padding::NoPadding;
use cipher::typenum::U16;
use cipher::{BlockDecryptMut, BlockSizeUser, KeyInit, KeyIvInit};
use millpond_messages::qapi::schema::{
    QCryptoCipherAlgo as Algorithm, QCryptoCipherMode as Mode, QCryptoHashAlgo, QCryptoIVGenAlgo as IvGen,
};
use millpond_messages::{Error, ErrorKind, Result};
use serpent::Serpent;
use twofish::Twofish;

use super::hash::Hash;
use super::ivs::{BlockKey, Ivs};
use super::modes::{Cbc, Cipher, Ctr, Ecb, SectorCipher, Xts};
use super::{KeyBytes, unsupported};

/// How sectors are encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CipherSpec {
    /// The cipher, with the length of its keys.
    pub algorithm: Algorithm,
    /// How the cipher is used.
    pub mode: Mode,
    /// What sector numbers become.
    pub ivgen: IvGen,
    /// The digest that makes the key for that, where one is needed.
    pub ivgen_hash: Option<QCryptoHashAlgo>,
}

/// A cipher with keys of one length.
struct Row {
    algorithm: Algorithm,
    /// Its name on the wire.
    name: &'static str,
    /// Its name in headers, whatever the length of its keys.
    family: &'static str,
    /// The same in sentences.
    title: &'static str,
    key_len: usize,
}

const fn row(
    algorithm: Algorithm,
    name: &'static str,
    family: &'static str,
    title: &'static str,
    key_len: usize,
) -> Row {
    Row {
        algorithm,
        name,
        family,
        title,
        key_len,
    }
}

static ROWS: [Row; 10] = [
    row(Algorithm::Aes128, "aes-128", "aes", "AES", 16),
    row(Algorithm::Aes192, "aes-192", "aes", "AES", 24),
    row(Algorithm::Aes256, "aes-256", "aes", "AES", 32),
    row(Algorithm::Cast5128, "cast5-128", "cast5", "CAST5", 16),
    row(Algorithm::Serpent128, "serpent-128", "serpent", "Serpent", 16),
    row(Algorithm::Serpent192, "serpent-192", "serpent", "Serpent", 24),
    row(Algorithm::Serpent256, "serpent-256", "serpent", "Serpent", 32),
    row(Algorithm::Twofish128, "twofish-128", "twofish", "Twofish", 16),
    row(Algorithm::Twofish192, "twofish-192", "twofish", "Twofish", 24),
    row(Algorithm::Twofish256, "twofish-256", "twofish", "Twofish", 32),
];

const MODES: [(Mode, &str); 4] = [
    (Mode::Ecb, "ecb"),
    (Mode::Cbc, "cbc"),
    (Mode::Xts, "xts"),
    (Mode::Ctr, "ctr"),
];

const IVGENS: [(IvGen, &str); 3] = [
    (IvGen::Plain, "plain"),
    (IvGen::Plain64, "plain64"),
    (IvGen::Essiv, "essiv"),
];

fn find(algorithm: Algorithm) -> Result<&'static Row> {
    let found = ROWS.iter().find(|row| row.algorithm == algorithm);
    found.ok_or_else(|| {
        let name = match algorithm {
            Algorithm::Des => "des",
            Algorithm::TripleDes => "3des",
            _ => "sm4",
        };
        unsupported(format!("Algorithm '{name}' not supported"))
    })
}

fn named<T: Copy>(table: &[(T, &str)], name: &str) -> Option<T> {
    let found = table.iter().find(|(_, known)| *known == name);
    found.map(|(value, _)| *value)
}

fn name_in<T: PartialEq>(table: &[(T, &'static str)], value: &T) -> &'static str {
    let found = table.iter().find(|(known, _)| known == value);
    found.map_or("", |(_, name)| name)
}

impl CipherSpec {
    /// What a header says: the cipher's name, the mode with what belongs to it, and the bytes of the master key.
    ///
    /// # Errors
    /// One of them is unknown, or they do not go together.
    pub fn parse(family: &str, text: &str, key_len: usize) -> Result<Self> {
        let (mode, ivgen) = text.split_once('-').ok_or_else(|| {
            let text = format!("Unexpected cipher mode string format '{text}'");
            Error::new(ErrorKind::Corrupt, text)
        })?;
        let (ivgen, hash) = match ivgen.split_once(':') {
            Some((ivgen, hash)) => (ivgen, Some(hash)),
            None => (ivgen, None),
        };
        let ivgen_hash = hash.map(Hash::named).transpose()?.map(|hash| hash.algorithm);
        let no_mode = || unsupported(format!("Cipher mode '{mode}' not supported"));
        let mode = named(&MODES, mode).ok_or_else(no_mode)?;
        let no_ivgen = || unsupported(format!("IV generator '{ivgen}' not supported"));
        let ivgen = named(&IVGENS, ivgen).ok_or_else(no_ivgen)?;
        let own = if mode == Mode::Xts { key_len / 2 } else { key_len };
        let fits = |row: &&Row| row.family == family && row.key_len == own;
        let found = ROWS.iter().find(fits).ok_or_else(|| {
            unsupported(format!(
                "Algorithm '{family}' with key size {own} bytes not supported"
            ))
        })?;
        let spec = Self {
            algorithm: found.algorithm,
            mode,
            ivgen,
            ivgen_hash,
        };
        if spec.key_len()? != key_len {
            let text = format!("Algorithm '{family}' with key size {own} bytes not supported");
            return Err(unsupported(text));
        }
        spec.check()?;
        Ok(spec)
    }

    /// What a header says of the mode.
    pub fn mode_text(&self) -> Result<String> {
        let (mode, ivgen) = (name_in(&MODES, &self.mode), name_in(&IVGENS, &self.ivgen));
        Ok(match self.ivgen_hash {
            Some(hash) => format!("{mode}-{ivgen}:{}", Hash::find(hash)?.name()),
            None => format!("{mode}-{ivgen}"),
        })
    }

    /// The cipher's name in a header.
    pub fn family(&self) -> Result<&'static str> {
        Ok(find(self.algorithm)?.family)
    }

    /// Bytes of the key: twice those of the cipher where the mode has two.
    pub fn key_len(&self) -> Result<usize> {
        let own = find(self.algorithm)?.key_len;
        Ok(if self.mode == Mode::Xts { 2 * own } else { own })
    }

    /// Checks that its parts are served, and go together.
    ///
    /// # Errors
    /// Names the part that is not or does not.
    pub fn check(&self) -> Result<()> {
        let row = find(self.algorithm)?;
        let is_narrow = row.algorithm == Algorithm::Cast5128;
        if is_narrow && self.mode == Mode::Xts {
            return Err(unsupported("Unsupported cipher mode xts"));
        }
        if self.ivgen == IvGen::Essiv {
            if is_narrow {
                let text = format!("Cipher {} not supported with essiv", row.name);
                return Err(unsupported(text));
            }
            self.essiv_row()?;
        }
        Ok(())
    }

    /// The digest that makes the key of the sector numbers, and the cipher that uses it.
    fn essiv_row(&self) -> Result<(Hash, &'static Row)> {
        let missing = || Error::new(ErrorKind::Corrupt, "Missing IV generator hash specification");
        let hash = Hash::find(self.ivgen_hash.ok_or_else(missing)?)?;
        let own = find(self.algorithm)?;
        let fits = |row: &&Row| row.family == own.family && row.key_len == hash.len;
        let found = ROWS.iter().find(fits).ok_or_else(|| {
            let (title, len) = (own.title, hash.len);
            unsupported(format!("No {title} cipher with key size {len} available"))
        })?;
        Ok((hash, found))
    }

    fn ivs(&self, key: &[u8]) -> Result<Ivs> {
        Ok(match self.ivgen {
            IvGen::Plain => Ivs::Plain,
            IvGen::Plain64 => Ivs::Plain64,
            IvGen::Essiv => {
                let (hash, row) = self.essiv_row()?;
                let key = hash.digest(&[key]);
                Ivs::Essiv(block_key(row.algorithm, &key)?)
            }
        })
    }

    /// The cipher with its key.
    ///
    /// # Errors
    /// The key is of another length, or the cipher is not served.
    pub fn with_key(&self, key: &[u8]) -> Result<Box<dyn SectorCipher>> {
        let ivs = self.ivs(key)?;
        match self.algorithm {
            Algorithm::Aes128 => wide::<Aes128>(self.mode, key, ivs),
            Algorithm::Aes192 => wide::<Aes192>(self.mode, key, ivs),
            Algorithm::Aes256 => wide::<Aes256>(self.mode, key, ivs),
            Algorithm::Serpent128 | Algorithm::Serpent192 | Algorithm::Serpent256 => {
                wide::<Serpent>(self.mode, key, ivs)
            }
            Algorithm::Twofish128 | Algorithm::Twofish192 | Algorithm::Twofish256 => {
                wide::<Twofish>(self.mode, key, ivs)
            }
            Algorithm::Cast5128 => narrow::<Cast5>(self.mode, key, ivs),
            other => Err(find(other).err().unwrap_or_else(wrong_key)),
        }
    }
}

fn wrong_key() -> Error {
    Error::new(ErrorKind::InvalidArgument, "The key does not fit the cipher")
}

fn keyed<C: KeyInit>(key: &[u8]) -> Result<C> {
    C::new_from_slice(key).map_err(|_| wrong_key())
}

/// A cipher whose blocks are of 16 bytes.
fn wide<C>(mode: Mode, key: &[u8], ivs: Ivs) -> Result<Box<dyn SectorCipher>>
where
    C: Cipher + KeyInit + BlockSizeUser<BlockSize = U16> + 'static,
{
    if mode != Mode::Xts {
        return narrow::<C>(mode, key, ivs);
    }
    let (data, tweak) = key.split_at(key.len() / 2);
    Ok(Box::new(Xts {
        data: keyed::<C>(data)?,
        tweak: keyed::<C>(tweak)?,
        ivs,
    }))
}

/// A cipher with blocks of any length, in a mode that has no need of a certain one.
fn narrow<C: Cipher + KeyInit + 'static>(mode: Mode, key: &[u8], ivs: Ivs) -> Result<Box<dyn SectorCipher>> {
    let cipher = keyed::<C>(key)?;
    Ok(match mode {
        Mode::Ecb => Box::new(Ecb(cipher)),
        Mode::Cbc => Box::new(Cbc { cipher, ivs }),
        Mode::Ctr => Box::new(Ctr { cipher, ivs }),
        Mode::Xts => return Err(unsupported("Unsupported cipher mode xts")),
    })
}

fn block_key(algorithm: Algorithm, key: &[u8]) -> Result<Box<dyn BlockKey>> {
    Ok(match algorithm {
        Algorithm::Aes128 => Box::new(keyed::<Aes128>(key)?),
        Algorithm::Aes192 => Box::new(keyed::<Aes192>(key)?),
        Algorithm::Aes256 => Box::new(keyed::<Aes256>(key)?),
        Algorithm::Serpent128 | Algorithm::Serpent192 | Algorithm::Serpent256 => {
            Box::new(keyed::<Serpent>(key)?)
        }
        Algorithm::Twofish128 | Algorithm::Twofish192 | Algorithm::Twofish256 => {
            Box::new(keyed::<Twofish>(key)?)
        }
        _ => return Err(wrong_key()),
    })
}

/// Decrypts bytes that AES with a key of 256 bits has encrypted in the mode CBC; `None` where the lengths do not fit. What pads
/// them at the end stays.
pub(crate) fn cbc_unwrap(key: &[u8], iv: &[u8], bytes: &[u8]) -> Option<KeyBytes> {
    let mode = cbc::Decryptor::<Aes256>::new_from_slices(key, iv).ok()?;
    let mut plain = KeyBytes::new(bytes.to_vec());
    mode.decrypt_padded_mut::<NoPadding>(&mut plain).ok()?;
    Some(plain)
}
