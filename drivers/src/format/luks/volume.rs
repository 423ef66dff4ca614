//! An open volume: its header and its cipher.

use std::sync::Arc;

use millpond_messages::{OpenFlags, Result};
use millpond_ring::Ring;

use super::header_file::HeaderFile;
use crate::crypto::luks::LuksHeader;
use crate::crypto::{Locked, SectorCipher};
use crate::secret::Password;

/// An open volume. It has no secret any more, only what the secret gave.
pub(crate) struct Volume {
    pub header: LuksHeader,
    pub cipher: Arc<dyn SectorCipher>,
}

/// Whether a node that is opened like this is only to be looked at: then no key is needed.
pub(crate) fn is_looked_at(flags: OpenFlags) -> bool {
    flags.contains(OpenFlags::NO_IO) && flags.is_read_only()
}

impl Volume {
    /// Looks at the volume whose header is in `file`. Its data stays locked.
    pub async fn look_at(file: &HeaderFile) -> Result<Self> {
        Ok(Self {
            header: file.read().await?,
            cipher: Arc::new(Locked),
        })
    }

    /// Opens the volume whose header is in `file`.
    pub async fn open(file: &HeaderFile, ring: &Ring, password: &Password) -> Result<Self> {
        let header = Arc::new(file.read().await?);
        let key = file.unlock(ring, &header, password).await?;
        let cipher = Arc::from(key.cipher(&header)?);
        Ok(Self {
            header: LuksHeader::clone(&header),
            cipher,
        })
    }

    /// The same volume with another header, whose keys changed: the master key is the same, and so is what encrypts the
    /// data. `None` where the header is that of another volume.
    pub fn with_header(&self, header: LuksHeader) -> Option<Self> {
        let is_same = header.is_of_same_volume(&self.header);
        is_same.then(|| Self {
            header,
            cipher: Arc::clone(&self.cipher),
        })
    }
}
