//! How an image is encrypted, found out as it is opened.

use std::sync::Arc;

use millpond_messages::graph::Options;
use millpond_messages::qapi::schema::{QCryptoCipherAlgo, QCryptoCipherMode, QCryptoIVGenAlgo};
use millpond_messages::{Error, ErrorKind, Result};
use millpond_ring::Ring;

use super::method::{EncryptOptions, Encryption};
use crate::crypto::{CipherSpec, KeyBytes, Locked, SectorCipher};
use crate::format::luks::{HeaderFile, Volume, is_looked_at};
use crate::format::qcow2::file::ImageFile;
use crate::format::qcow2::header::extensions::CryptoHeader;
use crate::format::qcow2::header::{CryptMethod, Header};
use crate::format::qcow2::image::GivenOptions;
use crate::format::qcow2::layout::space::HostOffset;
use crate::secret::Password;

/// Bytes of the old method's key.
const AES_KEY: usize = 16;

/// The option that names the secret.
pub(super) const KEY_SECRET: &str = "encrypt.key-secret";

impl GivenOptions {
    /// The password that the node's options name.
    pub fn password(&self) -> Result<Password> {
        let options = EncryptOptions::parse(self.options.get("encrypt"))?;
        self.secrets
            .required_password(options.key_secret.as_deref(), KEY_SECRET)
    }

    /// Only what is said of encryption.
    pub fn about_encryption(options: &Options) -> Options {
        let all = options.iter();
        let some = all.filter(|(name, _)| *name == "encrypt");
        some.map(|(name, value)| (name.clone(), value.clone())).collect()
    }
}

/// What encrypts the data of the image that `header` heads. Where that is `known` already the secret is not asked for again.
pub(crate) async fn open(
    file: &ImageFile,
    ring: &Ring,
    given: &GivenOptions,
    header: &Header,
    known: Option<Encryption>,
) -> Result<Option<Encryption>> {
    let Some(method) = header.encryption else {
        return Ok(None);
    };
    let encryption = match (method, known) {
        (CryptMethod::Aes, Some(known @ Encryption::Aes(_))) => known,
        (CryptMethod::Aes, _) if is_looked_at(given.flags) => Encryption::Aes(Arc::new(Locked)),
        (CryptMethod::Aes, _) => Encryption::Aes(aes_cipher(&given.password()?)?),
        (CryptMethod::Luks, known) => open_luks(file, ring, given, header, known).await?,
    };
    Ok(Some(encryption))
}

async fn open_luks(
    file: &ImageFile,
    ring: &Ring,
    given: &GivenOptions,
    header: &Header,
    known: Option<Encryption>,
) -> Result<Encryption> {
    let Some(place) = header.extensions.crypto() else {
        let text = format!(
            "Missing CRYPTO header for crypt method {}",
            CryptMethod::Luks as u32
        );
        return Err(Error::new(ErrorKind::InvalidArgument, text));
    };
    header.check_crypto_place(place)?;
    let luks = file.luks_header(place);
    if let Some(volume) = known_volume(&luks, known).await {
        return Ok(Encryption::Luks(Arc::new(volume)));
    }
    if is_looked_at(given.flags) {
        return Ok(Encryption::Luks(Arc::new(Volume::look_at(&luks).await?)));
    }
    let password = given.password()?;
    let volume = Volume::open(&luks, ring, &password).await?;
    Ok(Encryption::Luks(Arc::new(volume)))
}

/// The volume that is known, if it is the one whose header is there.
async fn known_volume(luks: &HeaderFile, known: Option<Encryption>) -> Option<Volume> {
    let Some(Encryption::Luks(volume)) = known else {
        return None;
    };
    volume.with_header(luks.read().await.ok()?)
}

/// The cipher of the old method, whose key is the start of the password.
fn aes_cipher(password: &Password) -> Result<Arc<dyn SectorCipher>> {
    let mut key = KeyBytes::new(vec![0; AES_KEY]);
    let bytes = password.bytes().iter();
    key.iter_mut().zip(bytes).for_each(|(byte, new)| *byte = *new);
    let spec = CipherSpec {
        algorithm: QCryptoCipherAlgo::Aes128,
        mode: QCryptoCipherMode::Cbc,
        ivgen: QCryptoIVGenAlgo::Plain64,
        ivgen_hash: None,
    };
    spec.with_key(&key).map(Arc::from)
}

impl Header {
    /// Refuses an encryption header that lies on other parts of the image: keys that are changed would be stored there.
    fn check_crypto_place(&self, place: CryptoHeader) -> Result<()> {
        let cluster = 1_u64 << self.cluster_bits;
        let tables = [
            ("image header", HostOffset::default(), cluster),
            ("L1 table", self.l1_offset, u64::from(self.l1_size) * 8),
            (
                "refcount table",
                self.reftable_offset,
                u64::from(self.reftable_clusters) * cluster,
            ),
            // An entry of the snapshot table has 40 bytes and more.
            (
                "snapshot table",
                self.snapshots_offset,
                u64::from(self.snapshots) * 40,
            ),
        ];
        let end = place.offset.get().checked_add(place.len);
        let text = if end.is_none_or(|end| i64::try_from(end).is_err()) {
            "Encryption header is out of range".to_owned()
        } else {
            let on = tables.iter().find(|(_, start, len)| place.touches(*start, *len));
            match on {
                Some((what, ..)) => format!("Encryption header overlaps with the {what}"),
                None => return Ok(()),
            }
        };
        Err(Error::new(ErrorKind::Corrupt, text))
    }
}

impl CryptoHeader {
    /// Whether it and a range of the file have bytes in common.
    pub fn touches(&self, start: HostOffset, len: u64) -> bool {
        start < self.offset.saturating_add(self.len) && self.offset < start.saturating_add(len)
    }
}
