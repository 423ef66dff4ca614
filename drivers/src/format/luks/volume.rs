//! An open volume: its header and its cipher, and the ways between the header and the image that holds it.

use std::sync::Arc;

use millpond_messages::{Error, ErrorKind, IoError, RequestFlags, Result};
use millpond_ring::Ring;

use crate::api::Child;
use crate::crypto::SectorCipher;
use crate::crypto::luks::{HEADER_LEN, LuksHeader, MasterKey};
use crate::secret::Password;

/// Bytes of a sector, in which headers count.
const SECTOR_BYTES: u64 = 512;

/// An open volume. It has no secret any more, only what the secret gave.
pub(super) struct Volume {
    pub header: LuksHeader,
    pub cipher: Arc<dyn SectorCipher>,
}

/// The child that holds the header and the keys.
#[derive(Clone)]
pub(super) struct HeaderFile {
    child: Child,
    /// The data is in another child.
    is_separate: bool,
}

impl HeaderFile {
    /// The child that a new header is made in.
    pub const fn new(child: Child, is_separate: bool) -> Self {
        Self { child, is_separate }
    }

    /// The child of its own that the header has, or else the one with the data.
    pub fn among([file, header]: &[Child; 2]) -> Self {
        let is_separate = header.is_connected();
        let child = if is_separate { header } else { file }.clone();
        Self { child, is_separate }
    }

    /// Reads the header, and checks it.
    pub async fn read(&self) -> Result<LuksHeader> {
        let failed = |error: IoError| Error::io("Unable to read LUKS header", error);
        if self.child.length().await.map_err(failed)? < HEADER_LEN as u64 {
            return Err(Error::new(ErrorKind::Corrupt, "Volume is not in LUKS format"));
        }
        let bytes = self.child.read_vec(0, HEADER_LEN).await.map_err(failed)?;
        let header = LuksHeader::parse(&bytes.into_single())?;
        if header.is_detached() && !self.is_separate {
            let text = "LUKS payload is overlapping with the header";
            return Err(Error::new(ErrorKind::Corrupt, text));
        }
        Ok(header)
    }

    /// Stores the header at the child's start.
    pub async fn write(&self, header: &LuksHeader) -> Result<()> {
        let bytes = header.encode()?;
        let written = self.child.write_slice(0, &bytes, RequestFlags::empty()).await;
        written.map_err(|error| Error::io("Unable to write LUKS header", error))
    }

    /// Where a slot has its stripes, in bytes.
    fn start(header: &LuksHeader, slot: usize) -> u64 {
        u64::from(header.slots[slot].start) * SECTOR_BYTES
    }

    /// Reads the stripes of a slot.
    pub async fn read_stripes(&self, header: &LuksHeader, slot: usize) -> Result<Vec<u8>> {
        let read = self
            .child
            .read_vec(Self::start(header, slot), header.material_len())
            .await;
        let bytes = read.map_err(|error| Error::io("Failed to read key material", error))?;
        Ok(bytes.to_vec())
    }

    /// Stores the stripes of a slot.
    pub async fn write_stripes(&self, header: &LuksHeader, slot: usize, stripes: &[u8]) -> Result<()> {
        let start = Self::start(header, slot);
        let written = self
            .child
            .write_slice(start, stripes, RequestFlags::empty())
            .await;
        written.map_err(|error| Error::io("Unable to store key material", error))
    }

    /// Makes what was stored durable.
    pub async fn flush(&self) -> Result<()> {
        let flushed = self.child.flush().await;
        flushed.map_err(|error| Error::io("Unable to flush LUKS header", error))
    }

    /// Looks for the master key in one slot. `None` where the password is not the slot's, or the slot has no key.
    pub async fn unlock_slot(
        &self,
        ring: &Ring,
        header: &Arc<LuksHeader>,
        slot: usize,
        password: &Password,
    ) -> Result<Option<MasterKey>> {
        if !header.slots[slot].active {
            return Ok(None);
        }
        let stripes = self.read_stripes(header, slot).await?;
        let (header, password) = (Arc::clone(header), password.clone());
        let unlock = move || header.slots[slot].unlock(&header, password.bytes(), stripes);
        ring.blocking(unlock).await
    }

    /// Looks for the master key in all slots.
    ///
    /// # Errors
    /// The password is that of no slot.
    pub async fn unlock(
        &self,
        ring: &Ring,
        header: &Arc<LuksHeader>,
        password: &Password,
    ) -> Result<MasterKey> {
        for slot in 0..header.slots.len() {
            if let Some(key) = self.unlock_slot(ring, header, slot, password).await? {
                return Ok(key);
            }
        }
        let text = "Invalid password, cannot unlock any keyslot";
        Err(Error::new(ErrorKind::Permission, text))
    }
}

/// Opens the volume whose header is in `file`.
pub(super) async fn open(file: &HeaderFile, ring: &Ring, password: &Password) -> Result<Arc<Volume>> {
    let header = Arc::new(file.read().await?);
    let key = file.unlock(ring, &header, password).await?;
    let cipher = Arc::from(key.cipher(&header)?);
    Ok(Arc::new(Volume {
        header: LuksHeader::clone(&header),
        cipher,
    }))
}
