//! The data path: every request is encrypted or decrypted on its way to or from the file.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use millpond_messages::graph::Options;
use millpond_messages::io::Preallocation;
use millpond_messages::qapi::ImageInfoSpecific;
use millpond_messages::qapi::schema::ImageInfoSpecificLUKSWrapper;
use millpond_messages::{
    ChildSlot, Error, ErrorKind, IoError, IoResult, Limits, Range, RequestFlags, Result, SECTOR_SIZE,
};
use millpond_ring::Ring;
use millpond_ring::buffer::Buffers;

use super::amend::{KeySlots, Prepared};
use super::header_file::HeaderFile;
use super::kind::password;
use super::volume::Volume;
use crate::api::reopen::check_unchanged;
use crate::api::{
    Abilities, Ability, AllocationTicket, Answer, At, Child, DebugEvents, Driver, Exchanged, Extent, Image,
    LengthSource, Lifecycle, Moved, Placement, Purpose, ReopenRequest, SavesState, Transfer, arrived,
    bytes_in,
};
use crate::crypto::buffers::{decrypt, encrypted, pieces};
use crate::crypto::luks::KeyChange;
use crate::secret::Secrets;

/// The flags that a write hands on.
const WRITE_FLAGS: RequestFlags = RequestFlags::FUA.union(RequestFlags::WRITE_UNCHANGED);

/// A node of the driver that is open.
pub(super) struct Luks {
    pub secrets: Secrets,
    pub options: Options,
    pub volume: RefCell<Arc<Volume>>,
    /// The child that holds the data.
    pub file: Child,
    pub header: HeaderFile,
    pub ring: Ring,
    /// A change of the keys that only has to be written.
    pub prepared: RefCell<Option<Prepared>>,
}

impl Luks {
    pub fn new(
        secrets: Secrets,
        options: Options,
        volume: Arc<Volume>,
        children: [Child; 2],
        ring: Ring,
    ) -> Self {
        let header = HeaderFile::among(&children);
        let [file, _] = children;
        Self {
            secrets,
            options,
            volume: RefCell::new(volume),
            file,
            header,
            ring,
            prepared: RefCell::default(),
        }
    }

    fn volume(&self) -> Arc<Volume> {
        Arc::clone(&self.volume.borrow())
    }

    /// Where a range of the data is in the file.
    fn shift(volume: &Volume, range: Range) -> IoResult<Range> {
        let offset = range.offset().checked_add(volume.header.payload_offset());
        Ok(range.moved_to(offset.ok_or(IoError::OutOfRange)?)?)
    }

    async fn read_sectors(&self, offset: u64, buffers: Buffers) -> Transfer {
        let volume = self.volume();
        let shifted = Range::new(offset, bytes_in(&buffers)).map_err(IoError::from);
        let start = match shifted.and_then(|range| Self::shift(&volume, range)) {
            Ok(range) => range.offset(),
            Err(error) => return (Err(error), buffers),
        };
        let (result, mut buffers) = self.file.read(start, buffers).await;
        if let Err(error) = result {
            return (Err(error), buffers);
        }
        let result = decrypt(&*volume.cipher, offset / SECTOR_SIZE, &mut buffers);
        (result, buffers)
    }

    async fn write_sectors(&self, offset: u64, buffers: &Buffers, flags: RequestFlags) -> IoResult<()> {
        let volume = self.volume();
        let range = Self::shift(&volume, Range::new(offset, bytes_in(buffers))?)?;
        for part in pieces(buffers.len()) {
            let start = range.offset() + part.start as u64;
            let piece = encrypted(&*volume.cipher, offset / SECTOR_SIZE, buffers, part)?;
            let stored = self.file.write(start, piece.into(), flags & WRITE_FLAGS);
            stored.await.0?;
        }
        Ok(())
    }

    async fn resize(
        &self,
        size: u64,
        exact: bool,
        preallocation: Preallocation,
        flags: RequestFlags,
    ) -> Result<()> {
        let end = size.checked_add(self.volume().header.payload_offset());
        let end = end.filter(|end| i64::try_from(*end).is_ok());
        let too_large = || Error::new(ErrorKind::InvalidArgument, "The requested file size is too large");
        let end = end.ok_or_else(too_large)?;
        self.file.resize(end, exact, preallocation, flags).await
    }

    async fn data_length(&self) -> IoResult<u64> {
        let end = self.file.length().await?;
        // A file that ends before its data begins is no volume, as QEMU has it.
        end.checked_sub(self.volume().header.payload_offset())
            .ok_or(IoError::Os(millpond_messages::error::errno::EIO))
    }

    fn key_slots(&self) -> KeySlots<'_> {
        KeySlots {
            file: &self.header,
            ring: &self.ring,
            secrets: &self.secrets,
        }
    }

    /// Checks a change of keys, and makes what is to be written.
    async fn prepare_change(&self, options: Options, force: bool) -> Result<Prepared> {
        let change = KeyChange::parse(options)?;
        let current = || password(&self.secrets, &self.options);
        self.key_slots().prepare(change, current, force).await
    }

    /// Writes a change that was prepared.
    async fn change_keys(&self, prepared: Prepared) -> Result<()> {
        let old = self.volume();
        let (changed, volume) = self.key_slots().change(&old, prepared).await;
        if let Some(volume) = volume {
            self.volume.replace(Arc::new(volume));
        }
        changed
    }

    async fn exchange_volume(self: Rc<Self>) -> Result<Exchanged> {
        let password = password(&self.secrets, &self.options)?;
        let new = Volume::open(&self.header, &self.ring, &password).await?;
        let old = self.volume.replace(Arc::new(new));
        Ok(Exchanged::with_old_state(move || {
            self.volume.replace(old);
        }))
    }
}

impl Driver for Luks {
    fn abilities(&self) -> Abilities {
        Abilities {
            limits: Limits {
                request_alignment: SECTOR_SIZE as u32,
                ..Limits::default()
            },
            // What reads as zeroes is not stored as zeroes.
            write_zeroes: Ability::Emulated,
            zero_unmap: false,
            discard: Ability::None,
            fua: Ability::Native,
            write_compressed: false,
            transparent: false,
            supports_backing: false,
            serialise_granularity: 0,
            has_zero_init: false,
            grows: true,
            events: DebugEvents::Forward,
            length: LengthSource::Children,
        }
    }

    fn locate(&self, _purpose: Purpose, range: Range) -> Answer<'_, IoResult<Extent>> {
        Answer::ready(Ok(Extent::new(range.len(), At::Special)))
    }

    fn read(
        self: Rc<Self>,
        offset: u64,
        buffers: Buffers,
        _flags: RequestFlags,
    ) -> Answer<'static, Transfer> {
        Answer::wait(async move { self.read_sectors(offset, buffers).await })
    }

    fn place(&self, range: Range, _flags: RequestFlags) -> Answer<'_, IoResult<Placement>> {
        Answer::ready(Ok(Placement::own(range.len())))
    }

    fn settle(&self, _ticket: AllocationTicket, written: IoResult<()>) -> Answer<'_, IoResult<()>> {
        Answer::ready(written)
    }

    fn write(
        self: Rc<Self>,
        offset: u64,
        buffers: Buffers,
        flags: RequestFlags,
    ) -> Answer<'static, Transfer> {
        Answer::wait(async move { (self.write_sectors(offset, &buffers, flags).await, buffers) })
    }

    fn write_zeroes(&self, _range: Range, _flags: RequestFlags) -> Answer<'_, IoResult<()>> {
        Answer::ready(Err(IoError::NotSupported))
    }

    fn discard(&self, _range: Range) -> Answer<'_, IoResult<()>> {
        Answer::ready(Err(IoError::NotSupported))
    }

    /// Nothing is kept here that would have to be written back.
    fn flush(&self) -> Answer<'_, IoResult<()>> {
        Answer::ready(Ok(()))
    }

    fn truncate(
        &self,
        size: u64,
        exact: bool,
        preallocation: Preallocation,
        flags: RequestFlags,
    ) -> Answer<'_, Result<()>> {
        Answer::wait(self.resize(size, exact, preallocation, flags))
    }

    fn length(&self) -> Answer<'_, IoResult<u64>> {
        Answer::wait(self.data_length())
    }

    fn allocated_size(&self) -> Answer<'_, IoResult<u64>> {
        Answer::ready(Err(IoError::NotSupported))
    }

    fn image(&self) -> &dyn Image {
        self
    }
}

impl Image for Luks {
    fn specific_info(&self) -> Option<ImageInfoSpecific> {
        let data = self.volume().header.info();
        Some(ImageInfoSpecific::Luks(ImageInfoSpecificLUKSWrapper { data }))
    }

    fn prepare_amend(&self, options: &Options, force: bool) -> Answer<'_, Result<()>> {
        let options = options.clone();
        Answer::wait(async move {
            let prepared = self.prepare_change(options, force).await?;
            self.prepared.replace(Some(prepared));
            Ok(())
        })
    }

    fn amend(&self, options: &Options, force: bool) -> Answer<'_, Result<()>> {
        let options = options.clone();
        Answer::wait(async move {
            let prepared = match self.prepared.take() {
                Some(prepared) => prepared,
                None => self.prepare_change(options, force).await?,
            };
            self.change_keys(prepared).await
        })
    }
}

impl Lifecycle for Luks {
    fn reopen_prepare(&self, request: ReopenRequest) -> Answer<'_, Result<()>> {
        Answer::ready(check_unchanged(&self.options, &request.options, &[]))
    }

    fn exchange_prepare(&self, _slots: &[ChildSlot]) -> Answer<'_, Result<()>> {
        Answer::ready(Ok(()))
    }

    /// The other data has a header of its own, which the same secret must open.
    fn exchange(self: Rc<Self>, _slots: &[ChildSlot]) -> Answer<'static, Result<Exchanged>> {
        Answer::wait(self.exchange_volume())
    }

    /// The options name the secret, and the image has all else.
    fn saved_state(&self) -> Option<&dyn SavesState> {
        None
    }

    fn depart(&self) -> Moved {
        let state = (self.secrets.clone(), self.options.clone(), self.volume());
        Moved::new(state, |(secrets, options, volume), children, ring| {
            Rc::new(Luks::new(secrets, options, volume, arrived(children), ring))
        })
    }

    fn close(&self) -> Answer<'_, Result<()>> {
        Answer::ready(Ok(()))
    }
}
