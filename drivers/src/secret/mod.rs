//! Secrets: passwords and keys that users give by name, and that nothing shows again.
//!
//! A secret is read once, when it is made; whoever needs it finds it by its id and keeps nothing of it longer than it takes to
//! find a key. It is wiped when it is dropped, and has no form in which it could be printed or saved.

mod load;

use std::fmt;
use std::sync::Arc;

use millpond_messages::{Error, ErrorKind, Result};

use crate::by_id::ById;
use crate::crypto::KeyBytes;

pub use load::{SecretOptions, SecretSource};

/// The bytes of a secret.
pub struct Secret(KeyBytes);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// All secrets by their ids, shared by whoever makes them and the drivers that need them.
#[derive(Debug, Clone, Default)]
pub struct Secrets(ById<Secret>);

impl Secrets {
    /// Makes a secret known under an id.
    pub fn add(&self, id: &str, secret: Secret) {
        self.0.put(id, secret);
    }

    /// Forgets a secret. Whoever has used it goes on with the keys that it gave.
    pub fn remove(&self, id: &str) {
        self.0.remove(id);
    }

    /// The secret of an id.
    ///
    /// # Errors
    /// There is none.
    fn find(&self, id: &str) -> Result<Arc<Secret>> {
        let found = self.0.find(id);
        found.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("No secret with id '{id}'")))
    }

    /// The password that the secret of an id is.
    ///
    /// # Errors
    /// There is no such secret, or it is no text.
    pub fn password(&self, id: &str) -> Result<Password> {
        let secret = self.find(id)?;
        if std::str::from_utf8(&secret.0).is_err() {
            let text = format!("Data from secret {id} is not valid UTF-8");
            return Err(Error::new(ErrorKind::InvalidArgument, text));
        }
        Ok(Password(secret))
    }

    /// The same where an id must be given, by the option `name`.
    ///
    /// # Errors
    /// As above, or there is no id.
    pub(crate) fn required_password(&self, id: Option<&str>, name: &str) -> Result<Password> {
        let missing = || {
            let text = format!("Parameter '{name}' is required for cipher");
            Error::new(ErrorKind::InvalidArgument, text)
        };
        self.password(id.ok_or_else(missing)?)
    }
}

/// A secret that is text.
#[derive(Debug, Clone)]
pub struct Password(Arc<Secret>);

impl Password {
    /// The bytes of the text.
    pub fn bytes(&self) -> &[u8] {
        &self.0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_found_until_it_is_removed_and_never_shown() {
        let secrets = Secrets::default();
        secrets.add("key", Secret(KeyBytes::new(b"hunter2".to_vec())));
        assert_eq!(secrets.password("key").unwrap().bytes(), b"hunter2");
        let shown = format!("{secrets:?} {:?}", secrets.password("key").unwrap());
        assert!(!shown.contains("hunter2"), "{shown}");
        assert!(!shown.contains("104"), "nor as numbers: {shown}");
        secrets.remove("key");
        let error = secrets.password("key").unwrap_err();
        assert_eq!(error.to_string(), "No secret with id 'key'");
    }

    #[test]
    fn a_password_is_text() {
        let secrets = Secrets::default();
        secrets.add("key", Secret(KeyBytes::new(vec![0xff, 0xfe])));
        let error = secrets.password("key").unwrap_err();
        assert_eq!(error.to_string(), "Data from secret key is not valid UTF-8");
    }
}
