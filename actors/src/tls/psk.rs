//! The file of keys that both sides have: a line for each user, `NAME:KEY`, the key in hexadecimal digits.

use std::collections::HashMap;
use std::path::Path;

use data_encoding::HEXLOWER_PERMISSIVE;
use millpond_messages::{Error, ErrorKind, Result};
use zeroize::Zeroizing;

use super::files::{CredentialFile, required};

/// The name of the file in the folder of credentials.
pub(super) const KEYS: &str = "keys.psk";

/// The keys of all users.
pub(super) struct Keys(HashMap<Vec<u8>, Zeroizing<Vec<u8>>>);

impl Keys {
    /// The key of a user.
    pub(super) fn of(&self, user: &[u8]) -> Option<&[u8]> {
        self.0.get(user).map(|key| key.as_slice())
    }
}

/// Reads the keys in a folder. A line that is none is passed over, as GnuTLS does; of several for one user the first counts.
///
/// # Errors
/// There is no such file.
pub(super) fn read(dir: &Path) -> Result<Keys> {
    let CredentialFile { bytes, .. } = required(dir, KEYS)?;
    let mut keys = HashMap::new();
    for line in bytes.split(|byte| *byte == b'\n') {
        if let Some((user, key)) = parsed(line) {
            keys.entry(user).or_insert(key);
        }
    }
    Ok(Keys(keys))
}

fn parsed(line: &[u8]) -> Option<(Vec<u8>, Zeroizing<Vec<u8>>)> {
    let line = line.trim_ascii_end();
    let colon = line.iter().rposition(|byte| *byte == b':')?;
    let (user, key) = (line.get(..colon)?, line.get(colon + 1..)?);
    let key = Zeroizing::new(HEXLOWER_PERMISSIVE.decode(key).ok()?);
    if user.is_empty() || key.is_empty() {
        return None;
    }
    // A name that is not text is written in hexadecimal digits too.
    let user = match user.strip_prefix(b"#") {
        Some(digits) => HEXLOWER_PERMISSIVE.decode(digits).ok()?,
        None => user.to_vec(),
    };
    Some((user, key))
}

/// The key of a client's user.
///
/// # Errors
/// QEMU's text: there is none.
pub(super) fn key_of(dir: &Path, user: &str) -> Result<Zeroizing<Vec<u8>>> {
    if let Some(key) = read(dir)?.of(user.as_bytes()) {
        return Ok(Zeroizing::new(key.to_vec()));
    }
    let text = format!(
        "Username {user} not found in PSK file {}",
        dir.join(KEYS).display()
    );
    Err(Error::new(ErrorKind::NotFound, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found_by_user_and_other_lines_are_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let text = "alice:0A0b\njunk\n:00\nbob:\ncarl:0\r\n#64:ff\nalice:11\nwith:colon:22\r\n";
        std::fs::write(dir.path().join(KEYS), text).unwrap();
        let keys = read(dir.path()).unwrap();
        assert_eq!(keys.of(b"alice"), Some([10, 11].as_slice()));
        assert_eq!(keys.of(b"d"), Some([0xff].as_slice()));
        assert_eq!(keys.of(b"with:colon"), Some([0x22].as_slice()));
        for user in ["bob", "carl", "", "junk", "#64"] {
            assert_eq!(keys.of(user.as_bytes()), None, "{user}");
        }
        assert_eq!(key_of(dir.path(), "alice").unwrap().as_slice(), [10, 11]);
        let error = key_of(dir.path(), "bob").unwrap_err().to_string();
        let path = dir.path().join(KEYS);
        assert_eq!(
            error,
            format!("Username bob not found in PSK file {}", path.display())
        );
    }
}
