//! New images that are encrypted.

use std::sync::Arc;

use millpond_messages::{Error, ErrorKind, IoError, RequestFlags, Result};
use serde_json::Value;

use super::open::KEY_SECRET;
use crate::api::{invalid_options, parse_options};
use crate::crypto::luks::NewVolume;
use crate::format::qcow2::header::CryptMethod;
use crate::format::qcow2::header::extensions::CryptoHeader;
use crate::format::qcow2::image::Qcow2;
use crate::secret::{Password, Secrets};

/// How a new image is to be encrypted.
pub(crate) enum NewEncryption {
    /// By the old method. The secret is checked, and not needed until the image is opened.
    Aes,
    /// By LUKS, with this password.
    Luks(Arc<NewVolume>, Password),
}

/// Options of the old method, as QAPI's `QCryptoBlockOptionsQCow`.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct AesOptions {
    key_secret: Option<String>,
}

/// An error about options, by the names that they have outside.
fn named(error: Error) -> Error {
    let text = error.to_string();
    match text.strip_prefix("Parameter '") {
        Some(rest) => Error::new(ErrorKind::InvalidArgument, format!("Parameter 'encrypt.{rest}")),
        None => error,
    }
}

impl NewEncryption {
    /// Reads the option `encrypt`, which is QAPI's `QCryptoBlockCreateOptions`.
    ///
    /// # Errors
    /// What is asked for is not served, or there is no such secret.
    pub fn parse(secrets: &Secrets, option: Value) -> Result<Self> {
        let Value::Object(mut options) = option else {
            return Err(invalid_options("encrypt is no object"));
        };
        let format = options.remove("format");
        let required = |id: Option<&str>| secrets.required_password(id, KEY_SECRET);
        match format.as_ref().and_then(Value::as_str) {
            Some("qcow") => {
                let AesOptions { key_secret } = parse_options(options).map_err(named)?;
                required(key_secret.as_deref())?;
                Ok(Self::Aes)
            }
            Some("luks") => {
                // The data is the image's own matter.
                options.insert("size".to_owned(), 0.into());
                let volume: NewVolume = parse_options(options).map_err(named)?;
                let password = required(volume.key_secret.as_deref())?;
                volume.spec()?;
                Ok(Self::Luks(Arc::new(volume), password))
            }
            Some(other) => {
                let text = format!("Parameter 'format' does not accept value '{other}'");
                Err(Error::new(ErrorKind::InvalidArgument, text))
            }
            None => Err(invalid_options("missing field `encrypt.format`")),
        }
    }

    /// Bytes of the header that it needs inside the image.
    ///
    /// # Errors
    /// There can be no key as long as it would be.
    pub fn header_len(&self) -> Result<u64> {
        match self {
            Self::Aes => Ok(0),
            Self::Luks(volume, _) => volume.header_len(),
        }
    }
}

impl Qcow2 {
    /// Makes an image that has no data yet an encrypted one.
    pub(crate) async fn set_up_encryption(&self, new: NewEncryption) -> Result<()> {
        let mut header = self.state.borrow().header.clone();
        header.encryption = Some(match new {
            NewEncryption::Aes => CryptMethod::Aes,
            NewEncryption::Luks(volume, password) => {
                let place = self.store_luks_header(volume, password).await?;
                header = self.state.borrow().header.clone();
                header.extensions.set_crypto(place);
                CryptMethod::Luks
            }
        });
        self.replace_header(header, |header, old| *header = old).await
    }

    /// Stores a new LUKS header in clusters of its own, which are counted before the image's header tells of them.
    async fn store_luks_header(&self, volume: Arc<NewVolume>, password: Password) -> Result<CryptoHeader> {
        let build = move || volume.build(password.bytes(), false);
        let (made, key) = self.ring.blocking(build).await?;
        let len = made.payload_offset();
        let (geometry, clusters) = {
            let state = self.state.borrow();
            (state.geometry, state.geometry.clusters(len))
        };
        let failed = |context: String| move |error: IoError| Error::io(&context, error);
        let first = self.run(move |state| state.allocate_row(clusters)).await;
        let first = first.map_err(failed(format!(
            "Cannot allocate cluster for LUKS header size {len}"
        )))?;
        let place = CryptoHeader {
            offset: first.offset(&geometry),
            len,
        };
        let all = geometry.bytes(clusters);
        let zeroed = self
            .file
            .write_zeroes(place.offset, all, RequestFlags::empty())
            .await;
        zeroed.map_err(failed("Could not zero fill encryption header".to_owned()))?;
        self.file.luks_header(place).store(&made, &key).await?;
        let counted = self.write_back(true).await;
        counted.map_err(failed(
            "Could not write the refcounts of the encryption header".to_owned(),
        ))?;
        let flushed = self.file.flush().await;
        flushed.map_err(failed("Could not flush the encryption header".to_owned()))?;
        Ok(place)
    }
}
