//! The object `secret_keyring`: a password or key that the kernel keeps for the process, and is read from there once.

use std::rc::Rc;

use futures_util::FutureExt;
use futures_util::future::ready;
use millpond_drivers::secret::SecretSource;
use millpond_messages::qapi::{Object, QmpError};
use serde_json::Value;

use super::kind::{Effect, Kind, Site, UserObject};
use super::secret::{Common, PARENT, not_writable};

const SERIAL: &str = "serial";

pub(super) const KIND: Kind = Kind {
    name: "secret_keyring",
    parent: PARENT,
    properties: &[
        ("iv", "string"),
        ("keyid", "string"),
        ("format", "QCryptoSecretFormat"),
        (SERIAL, "int32_t"),
    ],
    help: None,
    is_single: false,
    make: |options| Ok(Rc::new(KeyringSecret::from_options(options)?)),
};

/// A secret of the kernel, as an object of the daemon.
#[derive(Debug)]
struct KeyringSecret {
    common: Common,
    serial: i32,
}

impl KeyringSecret {
    /// Makes one from the checked arguments of `object-add`.
    fn from_options(mut options: Object) -> Result<Self, QmpError> {
        let serial = options.get(SERIAL).and_then(Value::as_i64);
        let serial = serial.and_then(|serial| i32::try_from(serial).ok());
        Ok(Self {
            common: Common::from_options(&mut options)?,
            serial: serial.ok_or_else(|| QmpError::generic("Parameter 'serial' expects int32_t"))?,
        })
    }
}

impl UserObject for KeyringSecret {
    fn kind(&self) -> &'static str {
        KIND.name
    }

    fn id(&self) -> &str {
        &self.common.id
    }

    fn get(&self, property: &str) -> Option<Value> {
        match property {
            SERIAL => Some(self.serial.into()),
            _ => self.common.get(property),
        }
    }

    fn with(&self, property: &str, _: &Value) -> Result<Rc<dyn UserObject>, QmpError> {
        Err(not_writable(KIND.name, property))
    }

    fn options(&self) -> Object {
        let mut options = self.common.options();
        options.insert(SERIAL.to_owned(), self.serial.into());
        options
    }

    fn begin<'a>(&'a self, site: &'a Site) -> Effect<'a> {
        self.common.begin(site, SecretSource::Keyring(self.serial))
    }

    fn change<'a>(&'a self, _: &'a Site) -> Effect<'a> {
        ready(Ok(())).boxed_local()
    }

    fn end<'a>(&'a self, site: &'a Site) -> Effect<'a> {
        self.common.end(site)
    }
}
