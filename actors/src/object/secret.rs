//! The object `secret`: a password or key, given as text or in a file. What it is can never be asked for.

use std::cell::RefCell;
use std::fmt;
use std::path::PathBuf;
use std::rc::Rc;

use futures_util::FutureExt;
use futures_util::future::ready;
use millpond_drivers::secret::{SecretOptions, SecretSource};
use millpond_messages::qapi::schema::QCryptoSecretFormat;
use millpond_messages::qapi::{Object, QmpError};
use serde_json::Value;
use zeroize::Zeroizing;

use super::kind::{Effect, Kind, Site, UserObject, aside};

const DATA: &str = "data";
const FILE: &str = "file";
const IV: &str = "iv";
const KEYID: &str = "keyid";
const FORMAT: &str = "format";

/// What QEMU calls the type of all secrets.
pub(super) const PARENT: &str = "secret_common";

pub(super) const KIND: Kind = Kind {
    name: "secret",
    parent: PARENT,
    properties: &[
        (IV, "string"),
        (KEYID, "string"),
        (FORMAT, "QCryptoSecretFormat"),
        (FILE, "string"),
        (DATA, "string"),
    ],
    help: None,
    is_single: false,
    make: |options| Ok(Rc::new(SecretObject::from_options(options)?)),
};

/// What the kinds of secrets have in common.
#[derive(Clone, Debug)]
pub(super) struct Common {
    /// The object's id, which its user chose.
    pub id: String,
    format: QCryptoSecretFormat,
    /// The id of the secret that it is encrypted with.
    keyid: Option<String>,
    iv: Option<String>,
}

/// A text among the options, which leaves them.
pub(super) fn take(options: &mut Object, name: &str) -> Option<String> {
    match options.shift_remove(name) {
        Some(Value::String(text)) => Some(text),
        _ => None,
    }
}

impl Common {
    /// Takes what they have in common from the checked arguments of `object-add`.
    pub fn from_options(options: &mut Object) -> Result<Self, QmpError> {
        let format = options
            .shift_remove(FORMAT)
            .map(serde_json::from_value)
            .transpose();
        let format = format.map_err(|error| QmpError::generic(error.to_string()))?;
        Ok(Self {
            id: take(options, "id").unwrap_or_default(),
            format: format.unwrap_or_default(),
            keyid: take(options, KEYID),
            iv: take(options, IV),
        })
    }

    /// How the secret is made of a source.
    pub fn with_source(&self, source: SecretSource) -> SecretOptions {
        SecretOptions {
            source,
            format: self.format,
            wrapped_by: self.keyid.clone().map(|id| (id, self.iv.clone())),
        }
    }

    /// The value of one of their properties.
    pub fn get(&self, property: &str) -> Option<Value> {
        let text = |text: &Option<String>| Some(text.clone().unwrap_or_default().into());
        match property {
            IV => text(&self.iv),
            KEYID => text(&self.keyid),
            FORMAT => serde_json::to_value(self.format).ok(),
            _ => None,
        }
    }

    /// The arguments that make them anew.
    pub fn options(&self) -> Object {
        let given = [(IV, &self.iv), (KEYID, &self.keyid)].into_iter();
        let given = given.filter_map(|(name, text)| Some((name.to_owned(), text.clone()?.into())));
        let format = self.get(FORMAT).map(|format| (FORMAT.to_owned(), format));
        given.chain(format).collect()
    }

    /// Makes the secret on a thread that nobody waits for, and has it known.
    pub fn begin<'a>(&'a self, site: &'a Site, source: SecretSource) -> Effect<'a> {
        let (options, secrets) = (self.with_source(source), site.secrets.clone());
        async move {
            let loaded = aside(move || options.load(&secrets)).await?;
            site.secrets.add(&self.id, loaded);
            Ok(())
        }
        .boxed_local()
    }

    /// Forgets the secret. Nodes that it has opened stay open.
    pub fn end<'a>(&'a self, site: &'a Site) -> Effect<'a> {
        site.secrets.remove(&self.id);
        ready(Ok(())).boxed_local()
    }
}

/// The error of changing a secret: it is what it was made of.
pub(super) fn not_writable(kind: &str, property: &str) -> QmpError {
    QmpError::generic(format!("Property '{kind}.{property}' is not writable"))
}

/// A secret, as an object of the daemon.
struct SecretObject {
    common: Common,
    /// The text that was given, until the secret is made of it.
    data: RefCell<Option<Zeroizing<Vec<u8>>>>,
    file: Option<String>,
}

impl fmt::Debug for SecretObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecretObject")
            .field("common", &self.common)
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}

impl SecretObject {
    /// Makes one from the checked arguments of `object-add`.
    fn from_options(mut options: Object) -> Result<Self, QmpError> {
        let common = Common::from_options(&mut options)?;
        let data = take(&mut options, DATA).map(|text| Zeroizing::new(text.into_bytes()));
        let file = take(&mut options, FILE);
        let refused = match (&data, &file) {
            (Some(_), Some(_)) => "'file' and 'data' are mutually exclusive",
            (None, None) => "Either 'file' or 'data' must be provided",
            _ => {
                let data = RefCell::new(data);
                return Ok(Self { common, data, file });
            }
        };
        Err(QmpError::generic(refused))
    }

    fn source(&self) -> SecretSource {
        match self.data.take() {
            Some(data) => SecretSource::Data(data),
            None => SecretSource::File(PathBuf::from(self.file.clone().unwrap_or_default())),
        }
    }
}

impl UserObject for SecretObject {
    fn kind(&self) -> &'static str {
        KIND.name
    }

    fn id(&self) -> &str {
        &self.common.id
    }

    /// QEMU shows the data. Here a secret is what nobody can ask for.
    fn get(&self, property: &str) -> Option<Value> {
        match property {
            FILE => Some(self.file.clone().unwrap_or_default().into()),
            _ => self.common.get(property),
        }
    }

    fn with(&self, property: &str, _: &Value) -> Result<Rc<dyn UserObject>, QmpError> {
        Err(not_writable(KIND.name, property))
    }

    /// Without the data: what is saved may be read by others. A later daemon reads the file again, or is given the data.
    fn options(&self) -> Object {
        let mut options = self.common.options();
        if let Some(file) = &self.file {
            options.insert(FILE.to_owned(), file.clone().into());
        }
        options
    }

    fn begin<'a>(&'a self, site: &'a Site) -> Effect<'a> {
        self.common.begin(site, self.source())
    }

    fn change<'a>(&'a self, _: &'a Site) -> Effect<'a> {
        ready(Ok(())).boxed_local()
    }

    fn end<'a>(&'a self, site: &'a Site) -> Effect<'a> {
        self.common.end(site)
    }
}
