//! Where the bytes of a secret come from, and how they are unwrapped.

use std::io::Read;
use std::path::PathBuf;

use data_encoding::{Encoding, Specification};
use linux_keyutils::{Key, KeyError, KeySerialId};
use millpond_messages::qapi::schema::QCryptoSecretFormat;
use millpond_messages::{Error, ErrorKind, IoError, Result};
use zeroize::Zeroize;

use super::{Secret, Secrets};
use crate::crypto::{KeyBytes, cbc_unwrap};

/// The most bytes that a file with a secret may have: what has more is none.
const MOST_BYTES: usize = 16 << 20;

/// Bytes of what a wrapped secret is encrypted from, and of a block of the cipher.
const BLOCK: usize = 16;

/// Where a secret is read from.
pub enum SecretSource {
    /// The text that a user gave.
    Data(KeyBytes),
    /// A file of the host.
    File(PathBuf),
    /// The kernel's key of this number.
    Keyring(i32),
}

/// How a secret is made.
pub struct SecretOptions {
    /// Where it is read from.
    pub source: SecretSource,
    /// How it is written there.
    pub format: QCryptoSecretFormat,
    /// The secret that it is encrypted with, and the vector of that, in base64.
    pub wrapped_by: Option<(String, Option<String>)>,
}

fn invalid(text: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidArgument, text)
}

impl SecretOptions {
    /// Reads the secret. A file may take long to answer, so not on a thread that others wait for.
    ///
    /// # Errors
    /// It cannot be read, or is not what it is said to be; or what it is encrypted with is missing.
    pub fn load(self, secrets: &Secrets) -> Result<Secret> {
        let read = self.source.read()?;
        let Some((id, iv)) = self.wrapped_by else {
            return Ok(Secret(decoded(read, self.format)?));
        };
        let key = secrets.find(&id)?;
        let iv = iv.ok_or_else(|| invalid("IV is required to decrypt secret"))?;
        let iv = from_base64(iv.as_bytes())?;
        if iv.len() != BLOCK {
            let text = format!("IV should be {BLOCK} bytes in length not {}", iv.len());
            return Err(invalid(text));
        }
        let wrapped = decoded(read, self.format)?;
        unwrapped(&key.0, &iv, &wrapped).map(Secret)
    }
}

impl SecretSource {
    fn read(self) -> Result<KeyBytes> {
        match self {
            Self::Data(data) => Ok(data),
            Self::File(path) => read_file(&path),
            Self::Keyring(serial) => read_key(serial),
        }
    }
}

fn read_file(path: &std::path::Path) -> Result<KeyBytes> {
    let shown = path.display();
    let failed = |what: &str, error: std::io::Error| {
        let code = error.raw_os_error().unwrap_or_default();
        let context = format!("Unable to read {shown}: {what} \u{201c}{shown}\u{201d}");
        Error::io(&context, IoError::from_errno(code))
    };
    let file = std::fs::File::open(path).map_err(|error| failed("Failed to open file", error))?;
    // All the room at once: what a growing buffer leaves behind would not be wiped.
    let mut bytes = KeyBytes::new(vec![0; MOST_BYTES + 1]);
    let mut file = file.take(MOST_BYTES as u64 + 1);
    let mut len = 0;
    loop {
        match file.read(&mut bytes[len..]) {
            Ok(0) => break,
            Ok(count) => len += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed("Error reading file", error)),
        }
    }
    if len > MOST_BYTES {
        let text = format!("Unable to read {shown}: a secret has at most {MOST_BYTES} bytes");
        return Err(invalid(text));
    }
    Ok(KeyBytes::new(bytes[..len].to_vec()))
}

fn read_key(serial: i32) -> Result<KeyBytes> {
    let failed = |error: KeyError| {
        let context = format!("Unable to read serial key {serial:08x}");
        Error::io(&context, IoError::from_errno(key_errno(error)))
    };
    let key = Key::from_id(KeySerialId::new(serial));
    key.read_to_vec().map(KeyBytes::new).map_err(failed)
}

/// The kernel's number for why a key cannot be read.
fn key_errno(error: KeyError) -> i32 {
    match error {
        KeyError::AccessDenied => libc::EACCES,
        KeyError::OperationNotSupported => libc::EOPNOTSUPP,
        KeyError::KeyDoesNotExist => libc::ENOKEY,
        KeyError::KeyExpired => libc::EKEYEXPIRED,
        KeyError::KeyRevoked => libc::EKEYREVOKED,
        KeyError::KeyRejected => libc::EKEYREJECTED,
        KeyError::PermissionDenied => libc::EPERM,
        KeyError::Unknown(code) => code,
        _ => libc::EINVAL,
    }
}

fn decoded(bytes: KeyBytes, format: QCryptoSecretFormat) -> Result<KeyBytes> {
    match format {
        QCryptoSecretFormat::Raw => Ok(bytes),
        QCryptoSecretFormat::Base64 => from_base64(&bytes),
    }
}

/// Bytes from base64. Lines may be broken, and what fills the last one up may be left out.
fn from_base64(text: &[u8]) -> Result<KeyBytes> {
    let wrong = || invalid("Base64 data contains invalid characters");
    let end = text.iter().rposition(|byte| !matches!(byte, b'=' | b'\n'));
    let text = end.and_then(|end| text.get(..=end)).unwrap_or_default();
    let found = base64().and_then(|base64| base64.decode(text).ok());
    found.map(KeyBytes::new).ok_or_else(wrong)
}

fn base64() -> Option<Encoding> {
    let mut specification = Specification::new();
    specification.symbols = data_encoding::BASE64.specification().symbols;
    specification.check_trailing_bits = false;
    "\n".clone_into(&mut specification.ignore);
    specification.encoding().ok()
}

/// What was encrypted with a key, without what filled its last block up.
fn unwrapped(key: &[u8], iv: &[u8], bytes: &[u8]) -> Result<KeyBytes> {
    if !bytes.len().is_multiple_of(BLOCK) {
        let text = format!("Length {} must be a multiple of block size {BLOCK}", bytes.len());
        return Err(invalid(text));
    }
    let plain = cbc_unwrap(key, iv, bytes);
    let mut plain = plain.ok_or_else(|| invalid(format!("Cipher key length {} should be 32", key.len())))?;
    let padding = plain.last().copied().unwrap_or_default();
    if padding == 0 || usize::from(padding) > BLOCK {
        let text = format!("Incorrect number of padding bytes ({padding}) found on decrypted data");
        return Err(invalid(text));
    }
    let len = plain.len() - usize::from(padding);
    plain[len..].zeroize();
    plain.truncate(len);
    Ok(plain)
}
