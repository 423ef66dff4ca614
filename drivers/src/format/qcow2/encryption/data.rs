//! The way of encrypted data to and from the file: the only place where a guest's sectors are encrypted and decrypted.
//!
//! The node is told that the driver has such data itself, and hands reads and writes of it on. Each write then is placed,
//! what its clusters hold beside it is read and decrypted, and all together is encrypted into buffers of its own.

use millpond_messages::{DebugEvent, IoError, IoResult, SECTOR_SIZE};
use millpond_ring::buffer::Buffers;

use super::method::Encryption;
use crate::api::{At, Driver, Extent, Placement, Purpose, Target, Transfer, bytes_in};
use crate::crypto::buffers::{decrypt, encrypted, pieces};
use crate::format::qcow2::image::Qcow2;
use crate::format::qcow2::layout::space::{GuestOffset, HostOffset};
use crate::format::qcow2::state::{State, Step};

impl State {
    /// Where a guest range is, as far as the node has to know: encrypted data is in no child that could be read instead.
    pub fn shown(&self, extent: Extent) -> Extent {
        if self.encryption.is_none() {
            return extent;
        }
        let at = match extent.at {
            At::Child { .. } => At::Own,
            At::Zero { .. } => At::Zero { reserved: None },
            other => other,
        };
        Extent {
            at,
            recurse: false,
            ..extent
        }
    }

    /// [`State::locate`], as the node has to know it.
    pub fn locate_shown(&self, purpose: Purpose, offset: GuestOffset, len: u64) -> Step<Extent> {
        Ok(self.shown(self.locate(purpose, offset, len)?))
    }

    /// Whether what is allocated and not written reads as zeroes. Zeroes that are decrypted are anything, and so is what an
    /// external data file holds.
    pub fn has_zero_init(&self) -> bool {
        let known = self.encryption.is_none() && !self.geometry.external;
        known || self.l1.iter().all(|entry| *entry == 0)
    }
}

/// The whole sectors around a range: where they start, and how many bytes of them are in front of the range and behind it.
struct Sectors {
    head: u64,
    tail: u64,
}

impl Sectors {
    const fn around(offset: GuestOffset, len: u64) -> Self {
        let head = offset.get() % SECTOR_SIZE;
        let behind = (head + len) % SECTOR_SIZE;
        let tail = if behind == 0 { 0 } else { SECTOR_SIZE - behind };
        Self { head, tail }
    }

    const fn is_aligned(&self) -> bool {
        self.head == 0 && self.tail == 0
    }
}

impl Qcow2 {
    /// What encrypts the guest's data, if anything does.
    pub(crate) fn encryption(&self) -> Option<Encryption> {
        self.state.borrow().encryption.clone()
    }

    /// Reads whole sectors of the guest's, which are encrypted where they are data.
    pub(crate) async fn read_encrypted(
        &self,
        encryption: &Encryption,
        mut offset: GuestOffset,
        mut rest: Buffers,
    ) -> Transfer {
        let mut filled = Buffers::new();
        while !rest.is_empty() {
            let (at, len) = (offset, bytes_in(&rest));
            let located = self.run(move |state| state.locate(Purpose::Read, at, len)).await;
            let extent = match located {
                Ok(extent) => extent,
                Err(error) => return (Err(error), joined(filled, rest)),
            };
            let piece = rest.split_to(extent.len as usize);
            let (result, piece) = match extent.at {
                At::Child { offset: host, .. } => {
                    self.file.raise(DebugEvent::ReadAio).await;
                    let host = HostOffset::new(host);
                    self.read_sectors(encryption, host, offset, piece).await
                }
                _ => self.read_special(offset, piece).await,
            };
            filled.append(piece);
            if result.is_err() {
                return (result, joined(filled, rest));
            }
            offset += extent.len;
        }
        (Ok(()), filled)
    }

    async fn read_sectors(
        &self,
        encryption: &Encryption,
        host: HostOffset,
        guest: GuestOffset,
        buffers: Buffers,
    ) -> Transfer {
        let (result, mut buffers) = self.data.read(host, buffers).await;
        if result.is_err() {
            return (result, buffers);
        }
        let first = encryption.sector(host, guest);
        let result = decrypt(encryption.cipher(), first, &mut buffers);
        (result, buffers)
    }

    /// Reads guest data from where it is in the file: any bytes of it, for the driver's own needs.
    pub(crate) async fn read_data(
        &self,
        host: HostOffset,
        guest: GuestOffset,
        len: usize,
    ) -> IoResult<Buffers> {
        let Some(encryption) = self.encryption() else {
            return self.data.read_vec(host, len).await;
        };
        let around = Sectors::around(guest, len as u64);
        let whole = Buffers::zeroed(len + (around.head + around.tail) as usize);
        let start = host - around.head;
        let (result, mut whole) = self
            .read_sectors(&encryption, start, guest - around.head, whole)
            .await;
        result?;
        drop(whole.split_to(around.head as usize));
        whole.truncate(len);
        Ok(whole)
    }

    /// Writes whole sectors of the guest's.
    pub(crate) async fn write_encrypted(&self, mut offset: GuestOffset, mut rest: Buffers) -> Transfer {
        let mut written = Buffers::new();
        while !rest.is_empty() {
            let placement = match self.placed_for_write(offset, bytes_in(&rest)).await {
                Ok(placement) => placement,
                Err(error) => return (Err(error), joined(written, rest)),
            };
            let len = placement.len;
            let piece = rest.split_to(len as usize);
            let (result, piece) = self.write_placed(offset, placement, piece).await;
            written.append(piece);
            if result.is_err() {
                return (result, joined(written, rest));
            }
            offset += len;
        }
        (Ok(()), written)
    }

    async fn write_placed(&self, offset: GuestOffset, placement: Placement, piece: Buffers) -> Transfer {
        let (len, head, tail) = (bytes_in(&piece), placement.head, placement.tail);
        let around = self.around(offset, len, head, tail).await;
        self.store_placed(offset, placement, piece, around).await
    }

    /// Stores a part of a write where it was placed, with what there is in front of it and behind it, and settles that.
    pub(crate) async fn store_placed(
        &self,
        offset: GuestOffset,
        placement: Placement,
        piece: Buffers,
        around: IoResult<(Buffers, Buffers)>,
    ) -> Transfer {
        let (len, head) = (piece.len(), placement.head);
        let (result, piece) = match around {
            Ok((mut all, behind)) => {
                all.append(piece);
                all.append(behind);
                let result = self.store_at(placement.target, offset - head, &all).await;
                drop(all.split_to(head as usize));
                all.truncate(len);
                (result, all)
            }
            Err(error) => (Err(error), piece),
        };
        match placement.ticket {
            Some(ticket) => (self.settle(ticket, result).await.and(result), piece),
            None => (result, piece),
        }
    }

    /// What the clusters of a write hold in front of it and behind it.
    async fn around(
        &self,
        offset: GuestOffset,
        len: u64,
        head: u64,
        tail: u64,
    ) -> IoResult<(Buffers, Buffers)> {
        let copies = head > 0 || tail > 0;
        if copies {
            self.file.raise(DebugEvent::CowRead).await;
        }
        let before = self.beside(offset - head, head).await?;
        let behind = self.beside(offset + len, tail).await?;
        if copies {
            self.file.raise(DebugEvent::CowWrite).await;
        }
        Ok((before, behind))
    }

    async fn store_at(&self, target: Target, guest: GuestOffset, all: &Buffers) -> IoResult<()> {
        match target {
            Target::Child { offset, .. } => self.write_data(HostOffset::new(offset), guest, all).await,
            Target::Own => Err(IoError::NotSupported),
        }
    }

    /// Stores guest data in its place in the file: whole sectors, where they are encrypted.
    pub(crate) async fn write_data(
        &self,
        host: HostOffset,
        guest: GuestOffset,
        data: &Buffers,
    ) -> IoResult<()> {
        let Some(encryption) = self.encryption() else {
            return self.data.write_slice(host, &data.to_vec()).await;
        };
        let first = encryption.sector(host, guest);
        for part in pieces(data.len()) {
            let at = host + part.start as u64;
            let piece = encrypted(encryption.cipher(), first, data, part)?;
            self.data.write(at, piece.into()).await?;
        }
        Ok(())
    }

    /// Data for a place of the guest's, made whole sectors where those are encrypted: with what the sectors hold beside it.
    pub(crate) async fn whole_sectors(
        &self,
        offset: GuestOffset,
        data: Buffers,
    ) -> IoResult<(GuestOffset, Buffers)> {
        let len = bytes_in(&data);
        let around = Sectors::around(offset, len);
        if around.is_aligned() || self.encryption().is_none() {
            return Ok((offset, data));
        }
        let start = offset - around.head;
        let mut whole = self.beside(start, around.head).await?;
        let behind = self.beside(offset + len, around.tail).await?;
        whole.append(data);
        whole.append(behind);
        Ok((start, whole))
    }
}

fn joined(mut first: Buffers, second: Buffers) -> Buffers {
    first.append(second);
    first
}
