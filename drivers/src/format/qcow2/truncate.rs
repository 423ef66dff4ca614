//! Changes of the virtual disk's length, with what is allocated in advance or given back.

use millpond_messages::io::Preallocation;
use millpond_messages::{
    DebugEvent, Error, ErrorKind, IoError, IoResult, Range, RequestFlags, Result, SECTOR_SIZE,
};

use super::header::MAX_L1_BYTES;
use super::header::fields::{L1, SIZE};
use super::image::Qcow2;
use super::layout::bytes::table_to_be;
use super::layout::entry::{Cluster, l2_table, own};
use super::layout::index::{L1Index, SliceKey};
use super::layout::space::{GuestOffset, HostCluster, HostOffset};
use super::state::{Blocked, FreeReason, Need, State, Step};
use super::wait::Key;
use millpond_ring::buffer::Buffers;

fn invalid(text: &'static str) -> Error {
    Error::new(ErrorKind::InvalidArgument, text)
}

/// What becomes of the space of a file whose clusters are allocated in this mode.
fn of_file(mode: Preallocation) -> Preallocation {
    match mode {
        Preallocation::Metadata => Preallocation::Off,
        mode => mode,
    }
}

/// What is told where there is no room for what a disk is to have from the start.
const fn not_preallocated(mode: Preallocation) -> &'static str {
    match mode {
        Preallocation::Falloc => "Failed to resize underlying file: Could not preallocate new data",
        Preallocation::Full => "Failed to resize underlying file: Could not write zeros for preallocation",
        Preallocation::Off | Preallocation::Metadata => "Could not preallocate",
    }
}

impl State {
    /// Allocates clusters in advance for the start of a range; answers how many bytes of it. Only the untouched end of the
    /// file is used, which reads as zeroes.
    fn preallocate_some(&mut self, offset: GuestOffset, len: u64) -> Step<u64> {
        let key = self.writable_slice(offset)?;
        let index = self.geometry.slice_index(offset);
        let (geometry, words) = (self.geometry, self.geometry.entry_words());
        let slice = self.slice(key)?;
        let entries = slice.get(index * words..).unwrap_or_default();
        let entries = entries
            .iter()
            .step_by(words)
            .take(geometry.clusters(len) as usize);
        let empty = |entry: &&u64| geometry.cluster(**entry) == Cluster::Unallocated;
        let used = entries.clone().take_while(|entry| !empty(entry)).count();
        if used > 0 {
            return Ok(self.geometry.bytes(used as u64));
        }
        let count = entries.take_while(empty).count() as u64;
        self.check_pressure()?;
        let (host, count) = self.allocate_untouched(offset, count)?;
        for n in 0..count {
            let place = host + self.geometry.bytes(n);
            self.set_entry(key, index + n as usize, own(place));
        }
        Ok(self.geometry.bytes(count))
    }

    /// Allocates for at most `count` clusters from `offset` on: behind all that was ever stored, or in the data file.
    fn allocate_untouched(&mut self, offset: GuestOffset, count: u64) -> Step<(HostOffset, u64)> {
        if self.geometry.external {
            return Ok((offset.in_data_file(), count));
        }
        let hint = self.free_hint;
        self.free_hint = hint.max(self.file_end.round_up(&self.geometry).cluster(&self.geometry));
        let allocated = self.allocate(count);
        self.free_hint = hint;
        let (host, count) = allocated?;
        self.file_end = self.file_end.max((host + count).offset(&self.geometry));
        Ok((host.offset(&self.geometry), count))
    }

    /// Gives back the tables of L1 entries from `first` on, which map nothing any more.
    fn drop_tables(&mut self, first: u64) {
        for index in (first..self.l1.len() as u64).map(L1Index) {
            if let Some(table) = l2_table(index.entry(&self.l1).unwrap_or(0)) {
                SliceKey::all(&self.geometry, table).for_each(|slice| self.l2.remove(slice.offset()));
                let cluster = table.cluster(&self.geometry);
                self.metadata.remove(cluster, 1);
                self.free_later(cluster, 1, FreeReason::Shrink);
                self.set_l1(index, 0);
            }
        }
    }

    /// The last cluster of the file that is in use, looked for from refcount block `block` down.
    fn last_used(&self, block: u64) -> Step<Option<HostCluster>> {
        let first = self.geometry.refblock_start(block);
        if self.refblock_offset(block).is_none() {
            return Ok(None);
        }
        for n in (0..self.geometry.refblock_entries()).rev() {
            let cluster = first + n;
            if self.refcount(cluster)? != 0 {
                return Ok(Some(cluster));
            }
        }
        Ok(None)
    }
}

impl Qcow2 {
    /// Changes the length of the virtual disk.
    pub(super) async fn resize(
        &self,
        size: u64,
        preallocation: Preallocation,
        flags: RequestFlags,
    ) -> Result<()> {
        let _held = self.waits.hold(Key::Resize).await;
        let (old, snapshots, version) = {
            let state = self.state.borrow();
            (state.header.size, state.header.snapshots, state.header.version)
        };
        if !size.is_multiple_of(SECTOR_SIZE) {
            return Err(invalid("The new size must be a multiple of 512"));
        }
        if snapshots > 0 && version < 3 {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "Can't resize a v2 image which has snapshots",
            ));
        }
        if size < old && preallocation != Preallocation::Off {
            return Err(invalid("Preallocation can't be used for shrinking an image"));
        }
        self.state.borrow().check_bitmaps_follow()?;
        let (old_end, end) = (GuestOffset::new(old), GuestOffset::new(size));
        let failed = |context: &'static str| move |error| Error::io(context, error);
        self.log_change(Range::between(size.min(old), size.max(old)))
            .await
            .map_err(failed("Failed to update the log of the image's bitmaps"))?;
        // It is where the disk ends: a longer disk would show it, and a shorter one look for it elsewhere.
        self.drop_vm_state()
            .await
            .map_err(failed("Failed to discard the machine's state"))?;
        if size < old {
            return self.shrink(old_end, end).await;
        }
        self.grow_l1(size)
            .await
            .map_err(failed("Failed to grow the L1 table"))?;
        let preallocation = self.resize_data_file(end, preallocation).await?;
        self.clear_old_end(old_end, end)
            .await
            .map_err(failed("Failed to zero out the new area"))?;
        if preallocation != Preallocation::Off {
            self.preallocate(old_end, end, preallocation)
                .await
                .map_err(failed(not_preallocated(preallocation)))?;
        } else if flags.contains(RequestFlags::ZERO_WRITE) {
            self.zero_new(old_end, end)
                .await
                .map_err(failed("Failed to zero out the new area"))?;
        }
        self.set_size(size)
            .await
            .map_err(failed("Failed to update the image size"))
    }

    async fn shrink(&self, old: GuestOffset, new: GuestOffset) -> Result<()> {
        let failed = |context: &'static str| move |error| Error::io(context, error);
        self.drop_data(new, old)
            .await
            .map_err(failed("Failed to discard cropped clusters"))?;
        self.shrink_l1(new.get())
            .await
            .map_err(failed("Failed to reduce the number of L2 tables"))?;
        self.set_size(new.get())
            .await
            .map_err(failed("Failed to update the image size"))?;
        self.cut_file()
            .await
            .map_err(failed("Failed to truncate the tail of the image"))?;
        self.resize_data_file(new, Preallocation::Off).await.map(drop)
    }

    /// Makes an external data file as long as the disk. Answers how clusters are to be allocated: all that a raw data file has
    /// is the disk's.
    async fn resize_data_file(&self, end: GuestOffset, wanted: Preallocation) -> Result<Preallocation> {
        let (external, raw) = {
            let state = self.state.borrow();
            (state.geometry.external, state.header.data_file_is_raw())
        };
        if external {
            let end = end.in_data_file();
            self.data
                .truncate(end, of_file(wanted))
                .await
                .map_err(|error| Error::io("Failed to resize the data file", error))?;
        }
        Ok(match wanted {
            Preallocation::Off if raw => Preallocation::Metadata,
            wanted => wanted,
        })
    }

    async fn set_size(&self, size: u64) -> IoResult<()> {
        self.write_back(true).await?;
        self.file.flush().await?;
        let old = std::mem::replace(&mut self.state.borrow_mut().header.size, size);
        if let Err(error) = self.write_header_part(SIZE).await {
            self.state.borrow_mut().header.size = old;
            return Err(error);
        }
        // The client may rely on the new length once it has the answer. Where the flush fails the file has the new length all the same.
        self.file.flush().await
    }

    /// Gives the L1 table a larger place if a disk of `size` needs one.
    pub(super) async fn grow_l1(&self, size: u64) -> IoResult<()> {
        let (needed, clusters) = {
            let state = self.state.borrow();
            let needed = state.geometry.l1_entries(size);
            (needed, state.geometry.clusters(needed * 8))
        };
        if needed <= self.state.borrow().l1.len() as u64 {
            return Ok(());
        }
        if needed > MAX_L1_BYTES / 8 {
            return Err(IoError::Os(millpond_messages::error::errno::EFBIG));
        }
        // Nobody else may write the L1 table while it moves.
        let _held = self.waits.hold(Key::Writeback).await;
        self.file.raise(DebugEvent::L1GrowAllocTable).await;
        self.file.raise(DebugEvent::ClusterAlloc).await;
        let first = self.run(move |state| state.allocate_row(clusters)).await?;
        self.write_back_held(true).await?;
        let (offset, bytes, old) = {
            let mut state = self.state.borrow_mut();
            let mut table = table_to_be(&state.l1);
            table.resize(state.geometry.bytes(clusters) as usize, 0);
            let offset = first.offset(&state.geometry);
            let old = (state.header.l1_offset, state.header.l1_size);
            (state.header.l1_offset, state.header.l1_size) = (offset, needed as u32);
            (offset, table, old)
        };
        let moved = async {
            self.file.raise(DebugEvent::L1GrowWriteTable).await;
            self.file.write(offset, bytes.into()).await?;
            self.file.flush().await?;
            self.file.raise(DebugEvent::L1GrowActivateTable).await;
            self.write_header_part(L1).await
        };
        let moved = moved.await;
        // The file's header names the new table once it is written, whether or not that can be made durable: from then on
        // changes go there.
        let result = match &moved {
            Ok(()) => self.file.flush().await,
            Err(error) => Err(*error),
        };
        let mut state = self.state.borrow_mut();
        if moved.is_err() {
            (state.header.l1_offset, state.header.l1_size) = old;
            return result;
        }
        state.l1.resize(needed as usize, 0);
        let geometry = state.geometry;
        let (old, old_clusters) = (old.0.cluster(&geometry), geometry.clusters(u64::from(old.1) * 8));
        state.metadata.remove(old, old_clusters);
        state.mark_range(offset, geometry.bytes(clusters));
        if old_clusters > 0 {
            state.free_later(old, old_clusters, FreeReason::Other);
        }
        result
    }

    /// Zeroes what the cluster that held the old end has behind it, where that is not zero anyway.
    async fn clear_old_end(&self, old: GuestOffset, new: GuestOffset) -> IoResult<()> {
        let geometry = self.state.borrow().geometry;
        let end = old.round_up(&geometry).min(new);
        if end <= old {
            return Ok(());
        }
        if geometry.has_subclusters() {
            return match self.zero(old, end - old, RequestFlags::empty()).await {
                Err(IoError::NotSupported) => self.store(old, Buffers::zeroed((end - old) as usize)).await,
                zeroed => zeroed,
            };
        }
        let entry = self.run(move |state| state.entry(old)).await?;
        match geometry.cluster(entry) {
            Cluster::ZeroPlain | Cluster::ZeroAllocated(_) => Ok(()),
            Cluster::Unallocated if !self.backing.is_connected() => Ok(()),
            _ => self.store(old, Buffers::zeroed((end - old) as usize)).await,
        }
    }

    /// Makes whole clusters of the new part read as zeroes, whatever the backing file has there.
    async fn zero_new(&self, old: GuestOffset, new: GuestOffset) -> IoResult<()> {
        let geometry = self.state.borrow().geometry;
        let (start, end) = (old.round_up(&geometry), new.round_up(&geometry));
        if start >= end || (!self.backing.is_connected() && self.state.borrow().header.backing.is_none()) {
            return Ok(());
        }
        self.zero(start, end - start, RequestFlags::empty()).await
    }

    /// Writes within one cluster as the node would: for the driver's own needs.
    pub(super) async fn store(&self, offset: GuestOffset, data: Buffers) -> IoResult<()> {
        let (offset, data) = self.whole_sectors(offset, data).await?;
        let len = data.len() as u64;
        let backing = self.backing.is_connected();
        let placement = self.run(move |state| state.place(offset, len, backing)).await?;
        let around = async {
            let before = self.beside(offset - placement.head, placement.head).await?;
            let behind = self.beside(offset + len, placement.tail).await?;
            Ok((before, behind))
        };
        let around = around.await;
        self.store_placed(offset, placement, data, around).await.0
    }

    /// What a cluster holds beside what is written to it.
    pub(super) async fn beside(&self, start: GuestOffset, len: u64) -> IoResult<Buffers> {
        let (result, buffers) = self.read_special(start, Buffers::zeroed(len as usize)).await;
        result.map(|()| buffers)
    }

    async fn preallocate(&self, old: GuestOffset, new: GuestOffset, mode: Preallocation) -> IoResult<()> {
        let geometry = self.state.borrow().geometry;
        let mut offset = old.cluster_start(&geometry);
        while offset < new {
            offset += self
                .run(move |state| state.preallocate_some(offset, new - offset))
                .await?;
            if of_file(mode) != Preallocation::Off {
                // Before a table is written behind it: what the file has already gets no space any more.
                self.reach_end(mode).await?;
            }
        }
        self.reach_end(mode).await
    }

    /// Makes the file as long as what is allocated in it.
    async fn reach_end(&self, mode: Preallocation) -> IoResult<()> {
        let (end, external) = {
            let state = self.state.borrow();
            (state.file_end, state.geometry.external)
        };
        // An external data file was made as long as the disk.
        if !external && self.file.end().await? < end {
            self.file.truncate(end, of_file(mode)).await?;
        }
        Ok(())
    }

    /// Gives back the data that a shorter disk does not have.
    async fn drop_data(&self, new: GuestOffset, old: GuestOffset) -> IoResult<()> {
        let geometry = self.state.borrow().geometry;
        let end = old.round_up(&geometry);
        let mut offset = new.round_up(&geometry);
        while offset < end {
            offset += self
                .run(move |state| state.drop_some(offset, end - offset))
                .await?;
        }
        // The slices of tables that go away must not be dirty any more.
        self.write_back(true).await
    }

    /// Gives back the tables that a shorter disk does not need.
    async fn shrink_l1(&self, size: u64) -> IoResult<()> {
        self.file.raise(DebugEvent::L1ShrinkWriteTable).await;
        let kept = self.state.borrow().geometry.l1_entries(size);
        self.state.borrow_mut().drop_tables(kept);
        self.write_back(true).await
    }

    /// Cuts off the end of the file that holds nothing, while nothing is allocated.
    async fn cut_file(&self) -> IoResult<()> {
        self.state.borrow_mut().frozen = true;
        let result = self.cut_frozen_file().await;
        self.state.borrow_mut().frozen = false;
        result
    }

    async fn cut_frozen_file(&self) -> IoResult<()> {
        let _held = self.waits.hold(Key::Writeback).await;
        self.write_back_held(true).await?;
        let blocks = self.state.borrow().reftable.len() as u64;
        for block in (0..blocks).rev() {
            let Some(last) = self.run(move |state| state.last_used(block)).await? else {
                continue;
            };
            let end = (last + 1).offset(&self.state.borrow().geometry);
            if end < self.file.end().await? {
                self.file.truncate(end, Preallocation::Off).await?;
                self.state.borrow_mut().file_end = end;
            }
            return Ok(());
        }
        Ok(())
    }
}

impl State {
    /// Holds allocations back while the file is cut.
    pub fn check_not_frozen(&self) -> Step<()> {
        if self.frozen {
            Err(Blocked::Need(Need::Thaw))
        } else {
            Ok(())
        }
    }
}
