//! What encrypts the guest's data of an open image, what its options may say of that, and a change of keys to be written.

use std::sync::Arc;

use millpond_messages::qapi::schema::ImageInfoSpecificQCow2Encryption;
use millpond_messages::{Error, ErrorKind, Result, SECTOR_SIZE};
use serde_json::Value;

use crate::api::{invalid_options, parse_options};
use crate::crypto::SectorCipher;
use crate::format::luks::{Prepared, Volume};
use crate::format::qcow2::header::CryptMethod;
use crate::format::qcow2::header::extensions::CryptoHeader;
use crate::format::qcow2::layout::space::{GuestOffset, HostOffset};

/// What encrypts the guest's data.
#[derive(Clone)]
pub(crate) enum Encryption {
    /// The old method: sectors have the numbers that the guest knows them by.
    Aes(Arc<dyn SectorCipher>),
    /// Sectors have their numbers in the file.
    Luks(Arc<Volume>),
}

impl Encryption {
    /// What encrypts and decrypts sectors.
    pub fn cipher(&self) -> &dyn SectorCipher {
        match self {
            Self::Aes(cipher) => &**cipher,
            Self::Luks(volume) => &*volume.cipher,
        }
    }

    /// The number that the sector at a place is encrypted with.
    pub const fn sector(&self, host: HostOffset, guest: GuestOffset) -> u64 {
        match self {
            Self::Aes(_) => guest.get() / SECTOR_SIZE,
            Self::Luks(_) => host.get() / SECTOR_SIZE,
        }
    }

    /// What queries show of it.
    pub fn info(&self) -> ImageInfoSpecificQCow2Encryption {
        match self {
            Self::Aes(_) => ImageInfoSpecificQCow2Encryption::Aes,
            Self::Luks(volume) => ImageInfoSpecificQCow2Encryption::Luks(volume.header.info()),
        }
    }
}

/// A node's option `encrypt`, read.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct EncryptOptions {
    format: Option<String>,
    /// The id of the secret that opens the image.
    pub key_secret: Option<String>,
}

impl EncryptOptions {
    /// Reads a node's option.
    pub fn parse(option: Option<&Value>) -> Result<Self> {
        match option {
            None => Ok(Self::default()),
            Some(Value::Object(options)) => parse_options(options.clone()),
            Some(_) => Err(invalid_options("encrypt is no object")),
        }
    }

    /// Refuses options for an image that is encrypted in another way.
    pub fn check(&self, method: Option<CryptMethod>) -> Result<()> {
        let Some(given) = &self.format else { return Ok(()) };
        let text = match method {
            None => format!("No encryption in image header, but options specified format '{given}'"),
            Some(method) if method.name() != given => format!(
                "Header reported '{}' encryption format but options specify '{given}'",
                method.name()
            ),
            Some(_) => return Ok(()),
        };
        Err(Error::new(ErrorKind::InvalidArgument, text))
    }
}

/// A change of keys that only has to be written, and the place of the header that it was prepared for.
pub(crate) struct PreparedKeys {
    pub change: Prepared,
    pub place: CryptoHeader,
}
