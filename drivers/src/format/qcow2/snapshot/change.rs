//! Snapshots made, deleted, applied and shown.

use millpond_messages::error::errno::EFBIG;
use millpond_messages::{
    Error, ErrorKind, InternalSnapshot, IoError, IoResult, MAX_LENGTH, Repair, Result, SECTOR_SIZE,
    SnapshotChange, SnapshotName,
};

use super::table::{self, Snapshot};
use crate::format::qcow2::header::fields::{L1, SIZE, SNAPSHOTS};
use crate::format::qcow2::header::{MAX_L1_BYTES, MAX_SNAPSHOTS};
use crate::format::qcow2::image::Qcow2;
use crate::format::qcow2::layout::bytes::{table_from_be, table_to_be};
use crate::format::qcow2::layout::entry::COPIED;
use crate::format::qcow2::layout::index::L1Index;
use crate::format::qcow2::layout::space::{HostCluster, HostOffset};
use crate::format::qcow2::state::{FreeReason, State};
use crate::format::qcow2::table::cache::Cache;
use crate::format::qcow2::wait::Key;

/// A change that is in the file.
struct Changed {
    snapshot: InternalSnapshot,
    /// Whether what nothing leads to any more is given up.
    cleared: IoResult<()>,
}

fn refused(text: &'static str) -> Error {
    Error::new(ErrorKind::InvalidArgument, text)
}

impl State {
    /// Makes the L1 table at `offset` the disk's.
    fn switch_l1(&mut self, table: Vec<u64>) {
        self.l1 = table;
        self.l1_dirty.clear();
        self.l2 = Cache::new(self.settings.slices);
    }

    /// The header's words about snapshots for this many, whose table is at `offset`.
    fn set_snapshots(&mut self, count: usize, offset: HostOffset) {
        // The table's length bounds it.
        self.header.snapshots = count as u32;
        self.header.snapshots_offset = offset;
    }
}

impl Qcow2 {
    /// Does to the snapshots what is asked for, and answers which one that was.
    pub(crate) async fn change_snapshot(&self, change: &SnapshotChange) -> Result<InternalSnapshot> {
        let _held = self.waits.hold(Key::Resize).await;
        self.state.borrow().check_snapshots_known()?;
        if self.state.borrow().geometry.external {
            let text = "An image with an external data file takes no snapshots";
            return Err(Error::io(text, IoError::NotSupported));
        }
        match change {
            SnapshotChange::Create(new) => {
                let failed = |error| Error::io("Could not create the snapshot", error);
                self.check_room().map_err(failed)?;
                self.marked(self.create_snapshot(new), failed).await
            }
            SnapshotChange::Delete(name) => {
                let (at, snapshot) = self.found(name)?;
                snapshot.check_l1(&self.state.borrow().header)?;
                let failed = |error| Error::io("Could not delete the snapshot", error);
                self.marked(self.delete_snapshot(at, &snapshot), failed).await
            }
            SnapshotChange::Apply(text) => {
                // What is an id is one, and else a name.
                let by_id = self.found(&SnapshotName::with_id(text));
                let (_, snapshot) = by_id.or_else(|_| self.found(&SnapshotName::named(text)))?;
                self.check_applies(&snapshot)?;
                let failed = |error| Error::io("Could not apply the snapshot", error);
                self.marked(self.apply_snapshot(&snapshot), failed).await
            }
            SnapshotChange::Show(name) => self.show_snapshot(name).await,
        }
    }

    fn check_room(&self) -> IoResult<()> {
        if self.state.borrow().snapshots.len() as u64 >= MAX_SNAPSHOTS {
            return Err(IoError::Os(EFBIG));
        }
        Ok(())
    }

    /// The snapshot that is meant, and its number.
    fn found(&self, name: &SnapshotName) -> Result<(usize, Snapshot)> {
        let state = self.state.borrow();
        let at = table::find(&state.snapshots, name);
        let found = at.and_then(|at| Some((at, state.snapshots.get(at)?.clone())));
        found.ok_or_else(|| Error::new(ErrorKind::NotFound, "Can't find the snapshot"))
    }

    /// Carries a change out while the image is marked dirty. What is left of one that fails is mended at once, or by whoever
    /// opens the image next. A change that is in the file has not failed, whatever comes of what it leaves to be cleared away.
    async fn marked(
        &self,
        change: impl Future<Output = IoResult<Changed>>,
        failed: impl Fn(IoError) -> Error,
    ) -> Result<InternalSnapshot> {
        let begun = async {
            self.run(|state| state.check_writable()).await?;
            self.write_back_all().await?;
            self.mark_dirty().await
        };
        begun.await.map_err(&failed)?;
        let changed = change.await;
        let settled = match &changed {
            Ok(Changed { cleared: Ok(()), .. }) => self.clear_marks().await,
            Ok(Changed { cleared, .. }) => *cleared,
            Err(error) => Err(*error),
        };
        if let Err(error) = settled {
            tracing::warn!(%error, "a change of a qcow2 image's snapshots leaves something to be mended");
            self.mend_change().await;
        }
        let guarded = self.state.borrow().settings.guarded;
        if let Err(error) = self.guard_metadata(guarded).await {
            tracing::warn!(%error, "the tables of a qcow2 image's snapshots are not guarded");
            self.state.borrow_mut().mark_again();
        }
        changed.map(|changed| changed.snapshot).map_err(failed)
    }

    async fn mend_change(&self) {
        if self.state.borrow().broken {
            return;
        }
        let everything = Repair {
            leaks: true,
            errors: true,
        };
        let mended = match self.check_image(everything).await {
            Ok(result) if result.corruptions == 0 && result.check_errors == 0 => {
                self.clear_marks().await.is_ok()
            }
            _ => false,
        };
        if !mended {
            tracing::error!(
                "a failed change of a qcow2 image's snapshots is mended when the image is written to next"
            );
            self.state.borrow_mut().active = false;
        }
    }

    async fn create_snapshot(&self, new: &InternalSnapshot) -> IoResult<Changed> {
        let (l1, mut snapshots, disk_size) = {
            let state = self.state.borrow();
            (state.l1.clone(), state.snapshots.clone(), state.header.size)
        };
        self.raise_references(&l1).await?;
        self.write_back_all().await?;
        self.refresh_active().await?;
        // The flags stand in the active table only.
        let copy: Vec<u64> = l1.iter().map(|entry| entry & !COPIED).collect();
        let snapshot = Snapshot {
            l1_offset: self.store_l1(&copy).await?,
            l1_entries: copy.len() as u32,
            id: table::new_id(&snapshots),
            name: new.name.clone().into_bytes(),
            date_sec: new.date_sec,
            date_nsec: new.date_nsec,
            vm_clock_nsec: new.vm_clock_nsec,
            vm_state_size: new.vm_state_size,
            disk_size,
            icount: new.icount.unwrap_or(u64::MAX),
            extra: Vec::new(),
            is_incomplete: false,
        };
        let shown = snapshot.shown();
        snapshots.push(snapshot);
        self.store_snapshots(snapshots).await?;
        // The snapshot has the machine's state now: in the active table it would be copied by the next one.
        let cleared = async {
            self.drop_vm_state().await?;
            self.write_back_all().await
        };
        Ok(Changed {
            snapshot: shown,
            cleared: cleared.await,
        })
    }

    async fn delete_snapshot(&self, at: usize, snapshot: &Snapshot) -> IoResult<Changed> {
        let l1 = self.read_l1(snapshot).await?;
        let mut snapshots = self.state.borrow().snapshots.clone();
        snapshots.remove(at);
        self.store_snapshots(snapshots).await?;
        self.free_table(snapshot.l1_offset, l1.len() as u64 * 8);
        let cleared = async {
            self.lower_references(&l1).await?;
            self.refresh_active().await
        };
        Ok(Changed {
            snapshot: snapshot.shown(),
            cleared: cleared.await,
        })
    }

    /// Refuses a snapshot that the disk cannot become.
    fn check_applies(&self, snapshot: &Snapshot) -> Result<()> {
        let state = self.state.borrow();
        snapshot.check_l1(&state.header)?;
        let size = snapshot.disk_size;
        if size == state.header.size {
            return Ok(());
        }
        if !size.is_multiple_of(SECTOR_SIZE) {
            return Err(refused("The new size must be a multiple of 512"));
        }
        if state.header.version < 3 {
            let text = "Can't resize a v2 image which has snapshots";
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
        if size > MAX_LENGTH || state.geometry.l1_entries(size) > MAX_L1_BYTES / 8 {
            return Err(Error::io("Could not resize the image", IoError::Os(EFBIG)));
        }
        Ok(())
    }

    async fn apply_snapshot(&self, snapshot: &Snapshot) -> IoResult<Changed> {
        let mut l1 = self.read_l1(snapshot).await?;
        let (needed, old) = {
            let state = self.state.borrow();
            let needed = state.geometry.l1_entries(snapshot.disk_size) as usize;
            (needed, state.l1.clone())
        };
        l1.resize(l1.len().max(needed), 0);
        l1.iter_mut().for_each(|entry| *entry &= !COPIED);
        self.raise_references(&l1).await?;
        self.write_back_all().await?;
        // Before the tables are the disk's: what they share must not be overwritten.
        let l1 = self.refresh_copied(&l1).await?;
        let offset = self.store_l1(&l1).await?;
        self.write_back_all().await?;
        let before = {
            let header = &mut self.state.borrow_mut().header;
            let before = (header.l1_offset, header.l1_size, header.size);
            // Its entries are bounded by the check of the snapshot's table, or of the disk's length.
            (header.l1_offset, header.l1_size, header.size) = (offset, l1.len() as u32, snapshot.disk_size);
            before
        };
        // One write of neighbouring fields: the disk is the one or the other.
        if let Err(error) = self.write_header_part(SIZE.start..L1.end).await {
            let header = &mut self.state.borrow_mut().header;
            (header.l1_offset, header.l1_size, header.size) = before;
            return Err(error);
        }
        let (old_offset, old_size) = (before.0, u64::from(before.1) * 8);
        self.forget_decompressed();
        self.state.borrow_mut().switch_l1(l1);
        self.file.flush().await?;
        self.free_table(old_offset, old_size);
        Ok(Changed {
            snapshot: snapshot.shown(),
            cleared: self.lower_references(&old).await,
        })
    }

    /// Lets a read-only node show a snapshot in place of the disk, whose length stays.
    pub(crate) async fn show_snapshot(&self, name: &SnapshotName) -> Result<InternalSnapshot> {
        if self.state.borrow().writable {
            return Err(refused("Device is not readonly"));
        }
        let (_, snapshot) = self
            .found(name)
            .map_err(|_| Error::new(ErrorKind::NotFound, "Can't find snapshot"))?;
        snapshot.check_l1(&self.state.borrow().header)?;
        let l1 = self.read_l1(&snapshot).await;
        let l1 = l1.map_err(|error| Error::io("Failed to read l1 table for snapshot", error))?;
        self.forget_decompressed();
        let mut state = self.state.borrow_mut();
        state.switch_l1(l1);
        state.shows = Some(SnapshotName::with_id(snapshot.shown().id));
        Ok(snapshot.shown())
    }

    /// Brings the flags of the active tables in line with the counts.
    async fn refresh_active(&self) -> IoResult<()> {
        let l1 = self.state.borrow().l1.clone();
        let refreshed = self.refresh_copied(&l1).await?;
        {
            let mut state = self.state.borrow_mut();
            for (entry, index) in refreshed.into_iter().zip(0_u64..) {
                if L1Index(index).entry(&state.l1) != Some(entry) {
                    state.set_l1(L1Index(index), entry);
                }
            }
        }
        self.write_back_all().await
    }

    /// Reads a snapshot's L1 table, which passed the check that bounds it.
    pub(crate) async fn read_l1(&self, snapshot: &Snapshot) -> IoResult<Vec<u64>> {
        let bytes = self
            .file
            .read_vec(snapshot.l1_offset, snapshot.l1_entries as usize * 8)
            .await?;
        Ok(table_from_be(&bytes.into_single()))
    }

    /// Stores a table that nothing leads to yet, in whole clusters of its own. One without entries is nowhere.
    async fn store_l1(&self, table: &[u64]) -> IoResult<HostOffset> {
        self.store_row(table_to_be(table)).await
    }

    async fn store_row(&self, mut bytes: Vec<u8>) -> IoResult<HostOffset> {
        let geometry = self.state.borrow().geometry;
        let clusters = geometry.clusters(bytes.len() as u64);
        if clusters == 0 {
            return Ok(HostOffset::default());
        }
        bytes.resize(geometry.bytes(clusters) as usize, 0);
        let first: HostCluster = self.run(move |state| state.allocate_row(clusters)).await?;
        let offset = first.offset(&geometry);
        self.file.write(offset, bytes.into()).await?;
        Ok(offset)
    }

    /// Gives up a table that nothing in the file leads to any more. Only one that a check takes away can be behind the file's end.
    fn free_table(&self, offset: HostOffset, len: u64) {
        let mut state = self.state.borrow_mut();
        let clusters = state.geometry.clusters(len);
        let end = state.file_end.round_up(&state.geometry);
        if clusters > 0 && offset.saturating_add(len) <= end {
            let first = offset.cluster(&state.geometry);
            state.free_later(first, clusters, FreeReason::Snapshot);
        }
    }

    /// Makes these the image's snapshots, by one write of the header.
    pub(crate) async fn store_snapshots(&self, snapshots: Vec<Snapshot>) -> IoResult<()> {
        let bytes = table::encode(&snapshots)?;
        let len = bytes.len() as u64;
        let offset = self.store_row(bytes).await?;
        // What the header is about to name is counted, and in the file.
        self.write_back_all().await?;
        let (old_offset, old_count) = {
            let mut state = self.state.borrow_mut();
            let before = (state.header.snapshots_offset, state.header.snapshots);
            state.set_snapshots(snapshots.len(), offset);
            before
        };
        if let Err(error) = self.write_header_part(SNAPSHOTS).await {
            let header = &mut self.state.borrow_mut().header;
            (header.snapshots_offset, header.snapshots) = (old_offset, old_count);
            return Err(error);
        }
        if let Err(error) = self.file.flush().await {
            // Nobody knows which of them the file names. As long as that is so nothing is allocated: a change that fails is
            // followed by a flush that does not.
            {
                let header = &mut self.state.borrow_mut().header;
                (header.snapshots_offset, header.snapshots) = (old_offset, old_count);
            }
            self.write_header_part(SNAPSHOTS).await?;
            return Err(error);
        }
        let old_len = {
            let mut state = self.state.borrow_mut();
            state.snapshots = snapshots;
            state
                .snapshots
                .iter_mut()
                .for_each(|snapshot| snapshot.is_incomplete = false);
            let old_end = std::mem::replace(&mut state.snapshots_end, offset + len);
            old_end.bytes_since(old_offset)
        };
        self.free_table(old_offset, old_len);
        Ok(())
    }
}
