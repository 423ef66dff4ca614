//! The driver as its node sees it: each operation is handed to the file that does it.

use std::rc::Rc;

use millpond_messages::graph::Options;
use millpond_messages::io::Preallocation;
use millpond_messages::qapi::ImageInfoSpecific;
use millpond_messages::{
    CheckResult, ChildSlot, DebugEvent, DriverInfo, Error, ErrorKind, InternalSnapshot, IoError, IoResult,
    Limits, Range, RequestFlags, Result, SECTOR_SIZE, SnapshotChange,
};

use super::header::{DIRTY, Header};
use super::image::Qcow2;
use super::layout::space::{GuestOffset, HostOffset};
use super::snapshot::table::Snapshot;
use super::state::{Blocked, State};
use super::wait::Key;
use crate::api::{
    Abilities, Ability, AllocationTicket, Answer, At, BackingLink, DataFileLink, DebugEvents, Driver,
    Exchanged, Extent, Image, LengthSource, Lifecycle, Moved, Placement, Purpose, ReopenRequest, Repair,
    SavesState, StoresBitmaps, Transfer, arrived,
};
use millpond_ring::buffer::Buffers;

impl Driver for Qcow2 {
    fn abilities(&self) -> Abilities {
        let state = self.state.borrow();
        let cluster = state.geometry.cluster_size();
        let alignment = 1 << state.geometry.cluster_bits;
        let is_encrypted = state.encryption.is_some();
        Abilities {
            limits: Limits {
                // Sectors are encrypted whole.
                request_alignment: if is_encrypted { SECTOR_SIZE as u32 } else { 1 },
                write_zeroes_alignment: state.geometry.zero_unit() as u32,
                discard_alignment: alignment,
                ..Limits::default()
            },
            grows: false,
            write_zeroes: Ability::Native,
            zero_unmap: true,
            discard: Ability::Native,
            fua: Ability::Emulated,
            // What is compressed would be stored as it is, for all to read.
            write_compressed: !is_encrypted && !state.geometry.external,
            transparent: false,
            supports_backing: true,
            serialise_granularity: cluster,
            has_zero_init: state.has_zero_init(),
            events: DebugEvents::Ignore,
            length: LengthSource::Requests,
        }
    }

    fn locate(&self, purpose: Purpose, range: Range) -> Answer<'_, IoResult<Extent>> {
        let located =
            self.run(move |state| state.locate_shown(purpose, GuestOffset::new(range.offset()), range.len()));
        if purpose == Purpose::Read && self.file.observes() {
            return Answer::wait(self.located_for_read(located));
        }
        located
    }

    fn read(
        self: Rc<Self>,
        offset: u64,
        buffers: Buffers,
        _flags: RequestFlags,
    ) -> Answer<'static, Transfer> {
        Answer::wait(async move {
            let offset = GuestOffset::new(offset);
            match self.encryption() {
                Some(encryption) => self.read_encrypted(&encryption, offset, buffers).await,
                None => self.read_special(offset, buffers).await,
            }
        })
    }

    fn place(&self, range: Range, flags: RequestFlags) -> Answer<'_, IoResult<Placement>> {
        if self.state.borrow().may_miss(range) && !flags.contains(RequestFlags::WRITE_UNCHANGED) {
            return Answer::wait(self.place_logged(range, flags));
        }
        if flags.contains(RequestFlags::WRITE_COMPRESSED) {
            return Answer::ready(
                self.check_compressed(GuestOffset::new(range.offset()), range.len())
                    .map(|()| Placement::own(range.len())),
            );
        }
        if self.state.borrow().encryption.is_some() {
            // What is stored is made by this driver, which then places it.
            return Answer::ready(Ok(Placement::own(range.len())));
        }
        if self.file.observes() {
            return Answer::wait(self.placed_for_write(GuestOffset::new(range.offset()), range.len()));
        }
        self.place_bytes(GuestOffset::new(range.offset()), range.len())
    }

    fn settle(&self, ticket: AllocationTicket, written: IoResult<()>) -> Answer<'_, IoResult<()>> {
        let (id, written) = (ticket.0, written.is_ok());
        let step = self.state.borrow_mut().settle(id, written);
        match step {
            Ok(()) => {
                self.waits.release(Key::Allocation(id));
                Answer::ready(Ok(()))
            }
            Err(blocked) => Answer::wait(self.settle_later(id, written, blocked)),
        }
    }

    fn write(
        self: Rc<Self>,
        offset: u64,
        buffers: Buffers,
        _flags: RequestFlags,
    ) -> Answer<'static, Transfer> {
        // Nothing else is placed here: images that are encrypted take no compressed writes.
        Answer::wait(async move {
            let offset = GuestOffset::new(offset);
            match self.encryption() {
                Some(_) => self.write_encrypted(offset, buffers).await,
                None => self.write_compressed(offset, buffers).await,
            }
        })
    }

    fn write_zeroes(&self, range: Range, flags: RequestFlags) -> Answer<'_, IoResult<()>> {
        Answer::wait(async move {
            self.log_change(range).await?;
            self.zero(GuestOffset::new(range.offset()), range.len(), flags)
                .await
        })
    }

    fn discard(&self, range: Range) -> Answer<'_, IoResult<()>> {
        Answer::wait(async move {
            self.log_change(range).await?;
            self.forget(GuestOffset::new(range.offset()), range.len()).await
        })
    }

    fn flush(&self) -> Answer<'_, IoResult<()>> {
        if self.waits.is_held(Key::Writeback) || self.state.borrow().is_dirty() {
            return Answer::wait(self.write_back(false));
        }
        Answer::ready(Ok(()))
    }

    fn truncate(
        &self,
        size: u64,
        _exact: bool,
        preallocation: Preallocation,
        flags: RequestFlags,
    ) -> Answer<'_, Result<()>> {
        Answer::wait(self.resize(size, preallocation, flags))
    }

    fn length(&self) -> Answer<'_, IoResult<u64>> {
        Answer::ready(Ok(self.state.borrow().header.size))
    }

    fn allocated_size(&self) -> Answer<'_, IoResult<u64>> {
        Answer::ready(Err(IoError::NotSupported))
    }

    fn image(&self) -> &dyn Image {
        self
    }
}

impl Image for Qcow2 {
    fn info(&self) -> DriverInfo {
        self.state.borrow().info()
    }

    fn specific_info(&self) -> Option<ImageInfoSpecific> {
        Some(self.state.borrow().specific_info())
    }

    fn data_file(&self) -> Option<DataFileLink> {
        self.state.borrow().data_file_link()
    }

    fn check(&self, repair: Repair) -> Answer<'_, Result<CheckResult>> {
        Answer::wait(self.check_and_repair(repair))
    }

    fn make_empty(&self) -> Answer<'_, Result<()>> {
        Answer::wait(async {
            let emptied = self.empty().await;
            emptied.map_err(|error| Error::io("Failed to empty the image", error))
        })
    }

    fn prepare_amend(&self, options: &Options, force: bool) -> Answer<'_, Result<()>> {
        let options = options.clone();
        Answer::wait(async move {
            let prepared = self.prepare_keys(&options, force).await?;
            self.prepared_keys.replace(prepared);
            Ok(())
        })
    }

    fn amend(&self, options: &Options, force: bool) -> Answer<'_, Result<()>> {
        let options = options.clone();
        Answer::wait(async move {
            let prepared = match self.prepared_keys.take() {
                Some(prepared) => Some(prepared),
                None => self.prepare_keys(&options, force).await?,
            };
            self.amend_image(&options).await?;
            match prepared {
                Some(prepared) => self.change_keys(prepared).await,
                None => Ok(()),
            }
        })
    }

    fn snapshots(&self) -> Vec<InternalSnapshot> {
        self.state
            .borrow()
            .snapshots
            .iter()
            .map(Snapshot::shown)
            .collect()
    }

    fn change_snapshots(&self, change: &SnapshotChange) -> Answer<'_, Result<InternalSnapshot>> {
        let change = change.clone();
        Answer::wait(async move { self.change_snapshot(&change).await })
    }

    fn save_vm_state(&self, offset: u64, state: Buffers) -> Answer<'_, IoResult<()>> {
        Answer::wait(Qcow2::save_vm_state(self, offset, state))
    }

    fn load_vm_state(&self, offset: u64, len: usize) -> Answer<'_, IoResult<Buffers>> {
        Answer::wait(Qcow2::load_vm_state(self, offset, len))
    }

    fn bitmaps(&self) -> Option<&dyn StoresBitmaps> {
        Some(self)
    }

    fn change_backing_file(&self, link: Option<BackingLink>) -> Answer<'_, Result<()>> {
        Answer::wait(self.record_backing(link))
    }
}

impl Lifecycle for Qcow2 {
    fn reopen_prepare(&self, request: ReopenRequest) -> Answer<'_, Result<()>> {
        Answer::wait(self.prepare_reopen(request))
    }

    fn reopen_commit(&self) {
        self.commit_reopen();
    }

    fn invalidate(&self) -> Answer<'_, Result<()>> {
        Answer::wait(self.reload())
    }

    fn reopen_abort(&self) {
        self.abort_reopen();
    }

    fn exchange_prepare(&self, _slots: &[ChildSlot]) -> Answer<'_, Result<()>> {
        Answer::wait(self.flush_and_close())
    }

    fn exchange(self: Rc<Self>, _slots: &[ChildSlot]) -> Answer<'static, Result<Exchanged>> {
        Answer::wait(self.exchange_image())
    }

    fn saved_state(&self) -> Option<&dyn SavesState> {
        Some(self)
    }

    fn depart(&self) -> Moved {
        // The node is still: no step is under way, and nobody looks at this driver again.
        let mut state = self.state.borrow_mut();
        let left = State::new(state.header.clone(), state.settings, state.writable);
        let state = std::mem::replace(&mut *state, left);
        let state = (Box::new(state), self.given.take());
        Moved::new(state, |(state, given), children, ring| {
            Qcow2::new(arrived(children), ring, *state, given)
        })
    }

    fn close(&self) -> Answer<'_, Result<()>> {
        Answer::wait(self.flush_and_close())
    }
}

impl Qcow2 {
    /// Raises the event of a read that is about to be made.
    async fn located_for_read(&self, located: Answer<'_, IoResult<Extent>>) -> IoResult<Extent> {
        let extent = located.await?;
        match extent.at {
            At::Child { .. } => self.file.raise(DebugEvent::ReadAio).await,
            At::Unallocated if self.backing.is_connected() => {
                self.file.raise(DebugEvent::ReadBackingAio).await;
            }
            At::Unallocated | At::Own | At::Special | At::Zero { .. } => {}
        }
        Ok(extent)
    }

    /// Places a write once the log says what it changes.
    async fn place_logged(&self, range: Range, flags: RequestFlags) -> IoResult<Placement> {
        self.log_change(range).await?;
        self.place(range, flags).await
    }

    fn place_bytes(&self, offset: GuestOffset, len: u64) -> Answer<'_, IoResult<Placement>> {
        self.run(move |state| {
            let placement = state.place(offset, len, self.backing.is_connected())?;
            if let Some(ticket) = &placement.ticket {
                self.waits.try_take(Key::Allocation(ticket.0));
            }
            Ok(placement)
        })
    }

    /// Raises the events of a write that is about to be made.
    pub(super) async fn placed_for_write(&self, offset: GuestOffset, len: u64) -> IoResult<Placement> {
        let placement = self.place_bytes(offset, len).await?;
        if placement.ticket.is_some() {
            self.file.raise(DebugEvent::ClusterAlloc).await;
            self.file.raise(DebugEvent::RefblockAlloc).await;
        }
        self.file.raise(DebugEvent::WriteAio).await;
        Ok(placement)
    }

    /// Settles a ticket that needs a table loaded first. Where that fails, its clusters are leaked rather than used.
    async fn settle_later(&self, id: u64, written: bool, blocked: Blocked) -> IoResult<()> {
        let result = match self.satisfy(blocked).await {
            Ok(()) => self.run(move |state| state.settle(id, written)).await,
            Err(error) => Err(error),
        };
        if result.is_err() {
            self.state.borrow_mut().in_flight.retain(|entry| entry.id != id);
        }
        self.waits.release(Key::Allocation(id));
        result
    }

    async fn check_and_repair(&self, repair: Repair) -> Result<CheckResult> {
        let repairs = repair.leaks || repair.errors;
        if repairs && !self.state.borrow().writable {
            return Err(Error::new(ErrorKind::ReadOnly, "Image is read-only"));
        }
        let mut result = self.check_image(repair).await?;
        let (corruptions_fixed, leaks_fixed) = (result.corruptions_fixed, result.leaks_fixed);
        if corruptions_fixed + leaks_fixed > 0 {
            // What is left of tables that share their place is known only now.
            result = CheckResult {
                corruptions_fixed,
                leaks_fixed,
                ..self.check_image(Repair::default()).await?
            };
        }
        if repair.leaks && repair.errors && result.corruptions == 0 && result.check_errors == 0 {
            self.clear_marks()
                .await
                .map_err(|error| Error::io("Could not update qcow2 header", error))?;
        }
        Ok(result)
    }

    async fn record_backing(&self, link: Option<BackingLink>) -> Result<()> {
        if !self.state.borrow().writable {
            return Err(Error::new(ErrorKind::ReadOnly, "Image is read-only"));
        }
        let mut header = self.state.borrow().header.clone();
        if link.is_some() && header.data_file_is_raw() {
            return Err(Error::io(
                "A raw data file leaves nothing to a backing file",
                IoError::Invalid,
            ));
        }
        let name = link.as_ref().map(|link| link.filename.as_str());
        header.set_backing(name, link.as_ref().and_then(|link| link.format.as_deref()))?;
        self.replace_header(header, |header, old| {
            header.backing = old.backing;
            header.extensions.backing_format = old.extensions.backing_format;
        })
        .await
    }

    /// Writes the whole header cluster anew. Where that fails `restore` puts back what had changed, because the next write of
    /// the header must not store what was refused.
    pub(super) async fn replace_header(
        &self,
        header: Header,
        restore: impl FnOnce(&mut Header, Header),
    ) -> Result<()> {
        let mut bytes = header.encode()?;
        bytes.resize(1 << header.cluster_bits, 0);
        let old = std::mem::replace(&mut self.state.borrow_mut().header, header);
        let written = self.file.write(HostOffset::default(), bytes.into()).await;
        let flushed = match written {
            Ok(()) => self.file.flush().await,
            Err(error) => Err(error),
        };
        let Err(error) = flushed else { return Ok(()) };
        restore(&mut self.state.borrow_mut().header, old);
        if written.is_ok() {
            self.write_old_header().await;
        }
        Err(Error::io("Could not update the image header", error))
    }

    /// Takes back a header that was written and is not to hold, since what follows is stored by the old one.
    async fn write_old_header(&self) {
        if let Err(error) = self.write_header().await {
            tracing::error!(%error, "qcow2: the image has a header that could not be taken back");
        }
    }

    /// Writes the whole header cluster as it is in memory, durably.
    pub(super) async fn store_header(&self) -> IoResult<()> {
        self.write_header().await?;
        self.file.flush().await
    }

    /// Writes the whole header cluster as it is in memory.
    async fn write_header(&self) -> IoResult<()> {
        let (encoded, bits) = {
            let state = self.state.borrow();
            (state.header.encode(), state.header.cluster_bits)
        };
        let mut bytes = encoded.map_err(|_| IoError::Invalid)?;
        bytes.resize(1 << bits, 0);
        self.file.write(HostOffset::default(), bytes.into()).await
    }

    /// Brings the file up to date as the image is closed, so that nothing is left to repair.
    pub(super) async fn flush_and_close(&self) -> Result<()> {
        if !self.state.borrow().writable || self.state.borrow().broken {
            return Ok(());
        }
        let written = async {
            // References that are dropped by the first round lower refcounts, which the second writes.
            self.write_back(true).await?;
            self.write_back(true).await?;
            // An image that was not readied for changes may have been marked dirty by somebody else: that is not repaired.
            if self.state.borrow().active && self.state.borrow().refcounts_lag() {
                self.file.flush().await?;
                self.state.borrow_mut().header.incompatible &= !DIRTY;
                self.write_features().await?;
            }
            Ok(())
        };
        written
            .await
            .map_err(|error| Error::io("Failed to write back the image's metadata", error))
    }
}
