//! The part of an image that holds a LUKS header: the header and its places for keys, read and written there.

use std::sync::Arc;

use millpond_messages::{Error, ErrorKind, IoError, RequestFlags, Result};
use millpond_ring::Ring;

use crate::api::Child;
use crate::crypto::luks::{HEADER_LEN, LuksHeader, MasterKey, SlotKey};
use crate::secret::Password;

/// Bytes of a sector, in which headers count.
const SECTOR_BYTES: u64 = 512;

/// The sector that a header begins in, and what lies in the next.
fn sectors(header: &[u8]) -> (&[u8], &[u8]) {
    header
        .split_at_checked(SECTOR_BYTES as usize)
        .unwrap_or((header, &[]))
}

/// Where a header is.
#[derive(Clone)]
pub(crate) struct HeaderFile {
    child: Child,
    /// Where the header begins in the child.
    start: u64,
    /// Bytes that the header and the keys may take, where another format says so.
    room: Option<u64>,
    /// The data is in another child.
    is_separate: bool,
}

impl HeaderFile {
    /// A header at the start of a child, whose data may be in another.
    pub const fn new(child: Child, is_separate: bool) -> Self {
        Self {
            child,
            start: 0,
            room: None,
            is_separate,
        }
    }

    /// A header that has so many bytes of an image of another format to itself.
    pub const fn within(child: Child, start: u64, room: u64) -> Self {
        Self {
            child,
            start,
            room: Some(room),
            is_separate: false,
        }
    }

    /// The child of its own that the header has, or else the one with the data.
    pub fn among([file, header]: &[Child; 2]) -> Self {
        let is_separate = header.is_connected();
        let child = if is_separate { header } else { file };
        Self::new(child.clone(), is_separate)
    }

    /// Where a part of the header is in the child.
    fn place(&self, offset: u64, len: usize) -> Result<u64> {
        let end = offset.checked_add(len as u64);
        let within = self.room.is_none_or(|room| end.is_some_and(|end| end <= room));
        let place = self.start.checked_add(offset).filter(|_| within);
        place.ok_or_else(|| {
            let text = "Request for data outside of extension header";
            Error::new(ErrorKind::InvalidArgument, text)
        })
    }

    /// Reads the header, and checks it.
    pub async fn read(&self) -> Result<LuksHeader> {
        let failed = |error: IoError| Error::io("Unable to read LUKS header", error);
        let start = self.place(0, HEADER_LEN)?;
        let end = start.saturating_add(HEADER_LEN as u64);
        if self.child.length().await.map_err(failed)? < end {
            return Err(Error::new(ErrorKind::Corrupt, "Volume is not in LUKS format"));
        }
        let bytes = self.child.read_vec(start, HEADER_LEN).await.map_err(failed)?;
        let header = LuksHeader::parse(&bytes.into_single())?;
        if header.is_detached() && !self.is_separate {
            let text = "LUKS payload is overlapping with the header";
            return Err(Error::new(ErrorKind::Corrupt, text));
        }
        Ok(header)
    }

    /// Stores a header in which keys were put in. A slot that lies in two sectors says in the first of them that it has a
    /// key, so that one is stored last: a crash between them leaves a slot without a key, not one with half a key.
    pub async fn write(&self, header: &LuksHeader) -> Result<()> {
        let bytes = header.encode()?;
        let (head, tail) = sectors(&bytes);
        self.write_part(SECTOR_BYTES, tail).await?;
        self.flush().await?;
        self.write_part(0, head).await
    }

    /// Stores a header from which keys were taken: the other way round, for the same reason.
    pub async fn write_erased(&self, header: &LuksHeader) -> Result<()> {
        let bytes = header.encode()?;
        let (head, tail) = sectors(&bytes);
        self.write_part(0, head).await?;
        self.flush().await?;
        self.write_part(SECTOR_BYTES, tail).await
    }

    async fn write_part(&self, offset: u64, part: &[u8]) -> Result<()> {
        let start = self.place(offset, part.len())?;
        let written = self.child.write_slice(start, part, RequestFlags::empty()).await;
        written.map_err(|error| Error::io("Unable to write LUKS header", error))
    }

    /// Stores a new header with its only key: the key first, and then that it is there.
    pub async fn store(&self, header: &LuksHeader, key: &SlotKey) -> Result<()> {
        self.write_stripes(header, 0, &key.material).await?;
        self.flush().await?;
        self.write(header).await?;
        self.flush().await
    }

    /// Where a slot has its stripes, in bytes from the header's start.
    fn start_of(header: &LuksHeader, slot: usize) -> u64 {
        u64::from(header.slots[slot].start) * SECTOR_BYTES
    }

    /// Reads the stripes of a slot.
    pub async fn read_stripes(&self, header: &LuksHeader, slot: usize) -> Result<Vec<u8>> {
        let len = header.material_len();
        let start = self.place(Self::start_of(header, slot), len)?;
        let read = self.child.read_vec(start, len).await;
        let bytes = read.map_err(|error| Error::io("Failed to read key material", error))?;
        Ok(bytes.to_vec())
    }

    /// Stores the stripes of a slot.
    pub async fn write_stripes(&self, header: &LuksHeader, slot: usize, stripes: &[u8]) -> Result<()> {
        let start = self.place(Self::start_of(header, slot), stripes.len())?;
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
