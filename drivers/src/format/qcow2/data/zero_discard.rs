//! Zero writes and discards. Both change the tables alone, cluster by cluster; what must happen to storage that stays
//! behind is left to the caller.

use millpond_messages::{DebugEvent, IoError, IoResult, RequestFlags, StatusFlags};

use crate::api::{At, Purpose};
use crate::format::qcow2::image::Qcow2;
use crate::format::qcow2::layout::entry::{COPIED, Cluster, ZERO};
use crate::format::qcow2::layout::space::{GuestOffset, HostOffset};
use crate::format::qcow2::state::{Blocked, FreeReason, State, Step};

/// What becomes of an L2 entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Change {
    entry: u64,
    storage: Storage,
}

/// What becomes of the clusters that an old entry refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Storage {
    /// They are as they were.
    Stays,
    /// They lose a reference.
    Freed,
    /// They stay the guest's, and the file may have their space back.
    Emptied,
}

impl Change {
    const fn to(entry: u64) -> Self {
        let storage = Storage::Stays;
        Self { entry, storage }
    }

    const fn freed(entry: u64) -> Self {
        let storage = Storage::Freed;
        Self { entry, storage }
    }

    /// A zero cluster that keeps what `entry` refers to, so that it does not have to be allocated again.
    const fn kept(entry: u64) -> Self {
        Self {
            entry: entry | ZERO,
            storage: Storage::Emptied,
        }
    }
}

/// Bytes of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HostRange {
    start: HostOffset,
    len: u64,
}

/// What a step did for the start of a range.
#[derive(Debug)]
pub(crate) struct Changed {
    /// How many bytes of the guest's.
    pub len: u64,
    /// What the file may have back, though it stays the guest's.
    pub emptied: Vec<HostRange>,
    /// What must be overwritten with zeroes before the range reads as such.
    overwritten: Option<HostRange>,
}

impl Changed {
    pub const fn tables(len: u64) -> Self {
        Self {
            len,
            emptied: Vec::new(),
            overwritten: None,
        }
    }
}

/// A zero write, its range widened to whole clusters or subclusters.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ZeroWrite {
    /// Clusters may lose their storage.
    pub unmap: bool,
    /// The range is a part of one cluster or subcluster, whose rest shows zeroes unless that holds data.
    pub partial: bool,
}

impl ZeroWrite {
    /// Leaves a cluster with data alone where only a part of it is to be zeroed.
    const fn whole(self, change: Change) -> Step<Change> {
        if self.partial {
            return Err(Blocked::Fail(IoError::NotSupported));
        }
        Ok(change)
    }
}

impl State {
    /// Makes the start of a range of clusters read as zeroes. Without zero clusters, nothing hides a backing file: there is
    /// none then.
    fn zero_some(&mut self, offset: GuestOffset, len: u64, wanted: ZeroWrite) -> Step<Changed> {
        self.check_writable()?;
        if self.geometry.has_subclusters() {
            return self.zero_subclusters(offset, len, wanted);
        }
        if self.geometry.version < 3 {
            return self.zero_without_zero_clusters(offset, len, wanted);
        }
        let (keep, geometry) = (self.settings.discard_no_unref, self.geometry);
        self.change_some(offset, len, |entry| match geometry.cluster(entry) {
            Cluster::Unallocated | Cluster::ZeroPlain => Ok(Change::to(ZERO)),
            Cluster::ZeroAllocated(_) if !wanted.unmap || keep => Ok(Change::to(entry)),
            Cluster::ZeroAllocated(_) => Ok(Change::freed(ZERO)),
            Cluster::Normal(_) if !wanted.unmap => wanted.whole(Change::to(entry | ZERO)),
            Cluster::Normal(_) if keep => wanted.whole(Change::kept(entry)),
            Cluster::Normal(_) | Cluster::Compressed => wanted.whole(Change::freed(ZERO)),
        })
    }

    /// The same in version 2, where what is unallocated reads as zeroes. The image's own clusters are overwritten in place
    /// unless they may lose their storage.
    fn zero_without_zero_clusters(
        &mut self,
        offset: GuestOffset,
        len: u64,
        wanted: ZeroWrite,
    ) -> Step<Changed> {
        if self.slice_key(offset)?.is_none() {
            return Ok(Changed::tables(len.min(self.geometry.rest_of_table(offset))));
        }
        let geometry = self.geometry;
        let count = self.before_in_flight(offset.cluster(&geometry), geometry.clusters(len))?;
        let key = self.writable_slice(offset)?;
        let index = self.geometry.slice_index(offset);
        let entries = self.slice(key)?.get(index..).unwrap_or_default();
        let entries = entries.get(..count as usize).unwrap_or(entries);
        let stays = |entry: u64| {
            !wanted.unmap && entry & COPIED != 0 && matches!(geometry.cluster(entry), Cluster::Normal(_))
        };
        let Some(&first) = entries.first() else {
            return Err(Blocked::Fail(IoError::Corrupt));
        };
        if !stays(first) {
            let run = entries.iter().take_while(|&&entry| !stays(entry)).count() as u64;
            return self.change_some(offset, geometry.bytes(run), |entry| {
                match geometry.cluster(entry) {
                    Cluster::Unallocated => Ok(Change::to(entry)),
                    _ => wanted.whole(Change::freed(0)),
                }
            });
        }
        let Cluster::Normal(host) = self.checked_cluster(first, key, index)? else {
            return Err(Blocked::Fail(IoError::Corrupt));
        };
        wanted.whole(Change::to(first))?;
        let follow = entries.iter().zip((first..).step_by(1 << geometry.cluster_bits));
        let run = follow.take_while(|&(&entry, expected)| entry == expected).count() as u64;
        self.check_not_metadata(host, geometry.bytes(run))?;
        Ok(Changed {
            overwritten: Some(HostRange {
                start: host,
                len: geometry.bytes(run),
            }),
            ..Changed::tables(geometry.bytes(run))
        })
    }

    /// Forgets the start of a range of whole clusters.
    fn discard_some(&mut self, offset: GuestOffset, len: u64, backing: bool) -> Step<Changed> {
        self.check_writable()?;
        let v3 = self.geometry.version >= 3;
        if !v3 && backing {
            // What the backing file holds would come to light.
            return Err(Blocked::Fail(IoError::NotSupported));
        }
        if self.slice_key(offset)?.is_none() && !backing {
            return Ok(Changed::tables(len.min(self.geometry.rest_of_table(offset))));
        }
        if self.geometry.has_subclusters() {
            return self.discard_subclusters(offset, len, backing);
        }
        let (keep, geometry) = (self.settings.discard_no_unref, self.geometry);
        let empty = if v3 { ZERO } else { 0 };
        self.change_some(offset, len, |entry| {
            Ok(match geometry.cluster(entry) {
                Cluster::Unallocated if backing => Change::to(empty),
                Cluster::Unallocated | Cluster::ZeroPlain => Change::to(entry),
                Cluster::ZeroAllocated(_) if keep => Change::to(entry),
                Cluster::Normal(_) if keep => Change::kept(entry),
                Cluster::Normal(_) | Cluster::ZeroAllocated(_) | Cluster::Compressed => Change::freed(empty),
            })
        })
    }

    /// Drops the start of a range that is no longer part of the disk; answers how many bytes of it.
    pub fn drop_some(&mut self, offset: GuestOffset, len: u64) -> Step<u64> {
        if self.slice_key(offset)?.is_none() {
            return Ok(len.min(self.geometry.rest_of_table(offset)));
        }
        if self.geometry.has_subclusters() {
            return self.drop_subclusters(offset, len);
        }
        let geometry = self.geometry;
        let dropped = self.change_some(offset, len, |entry| {
            Ok(match geometry.cluster(entry) {
                Cluster::Unallocated | Cluster::ZeroPlain => Change::to(0),
                _ => Change::freed(0),
            })
        })?;
        Ok(dropped.len)
    }

    /// Changes the entries of a range as far as one slice has them.
    fn change_some(
        &mut self,
        offset: GuestOffset,
        len: u64,
        change: impl Fn(u64) -> Step<Change>,
    ) -> Step<Changed> {
        let geometry = self.geometry;
        let count = self.before_in_flight(offset.cluster(&geometry), geometry.clusters(len))?;
        let key = self.writable_slice(offset)?;
        self.slice(key)?;
        self.check_pressure()?;
        let index = self.geometry.slice_index(offset);
        let count = count.min((geometry.slice_entries() - index) as u64);
        let mut changed = Changed::tables(geometry.bytes(count));
        for at in index..index + count as usize {
            let old = self.slice(key)?.get(at).copied().unwrap_or(0);
            let kind = self.checked_cluster(old, key, at)?;
            self.check_in_data_file(kind, offset + geometry.bytes((at - index) as u64))?;
            let Change { entry, storage } = change(old)?;
            if entry != old {
                self.set_entry(key, at, entry);
                match storage {
                    Storage::Stays => {}
                    Storage::Freed if geometry.external => self.note_emptied(old, &mut changed.emptied),
                    Storage::Freed => self.drop_cluster(old, FreeReason::Request),
                    Storage::Emptied => self.note_emptied(old, &mut changed.emptied),
                }
            }
        }
        Ok(changed)
    }

    /// Takes note that the file may have a cluster's space back. One that a snapshot shares still holds its data.
    pub(super) fn note_emptied(&self, entry: u64, emptied: &mut Vec<HostRange>) {
        let start = match self.geometry.cluster(entry) {
            Cluster::Normal(start) => start,
            Cluster::ZeroAllocated(start) if self.geometry.external => start,
            _ => return,
        };
        // What a raw data file has there is overwritten already.
        let is_done = self.header.data_file_is_raw();
        if is_done || entry & COPIED == 0 || !self.settings.pass_discard_request {
            return;
        }
        let len = self.geometry.cluster_size();
        match emptied.last_mut() {
            Some(last) if last.start + last.len == start => last.len += len,
            _ => emptied.push(HostRange { start, len }),
        }
    }

    /// A range widened to whole units, as bytes, and whether the range is all of that: the disk may end within the last.
    fn widened(&self, offset: GuestOffset, len: u64, unit: u64) -> (GuestOffset, GuestOffset, bool) {
        let (start, end) = (offset - offset.get() % unit, offset + len);
        let whole_end = GuestOffset::new(end.get().next_multiple_of(unit));
        let is_whole = start == offset && (end == whole_end || end == self.header.end());
        (start, whole_end, is_whole)
    }
}

impl Qcow2 {
    /// Makes a range read as zeroes: whole clusters, or a part of one that holds no data and else reads as zeroes too.
    pub(crate) async fn zero(&self, offset: GuestOffset, len: u64, flags: RequestFlags) -> IoResult<()> {
        let ((mut at, end, is_whole), version) = {
            let state = self.state.borrow();
            (
                state.widened(offset, len, state.geometry.zero_unit()),
                state.geometry.version,
            )
        };
        let (is_encrypted, unmap) = (
            self.encryption().is_some(),
            flags.contains(RequestFlags::MAY_UNMAP),
        );
        // Without zero clusters zeroes may have to be stored, and then encrypted as the writer's own.
        if version < 3 && (self.backing.is_connected() || (is_encrypted && !unmap)) {
            return Err(IoError::NotSupported);
        }
        if !is_whole && !self.rest_reads_as_zeroes(offset, len).await? {
            return Err(IoError::NotSupported);
        }
        self.zero_raw(offset, len, flags).await?;
        let wanted = ZeroWrite {
            unmap,
            partial: !is_whole,
        };
        while at < end {
            let changed = self
                .run(move |state| state.zero_some(at, end - at, wanted))
                .await?;
            // Old entries in the file would show zeroes decrypted, which is anything.
            let emptied = changed.emptied.into_iter().filter(|_| !is_encrypted);
            for HostRange { start, len } in emptied {
                // As zeroes, not as a discard: until the tables are in the file, its old entries show what is there.
                let flags = RequestFlags::MAY_UNMAP | RequestFlags::NO_FALLBACK;
                if let Err(error) = self.data.write_zeroes(start, len, flags).await {
                    tracing::debug!(%error, "the file keeps the space of zeroed clusters");
                }
            }
            if let Some(host) = changed.overwritten {
                // What lies behind the disk's end in its last cluster is not the guest's.
                let len = host.len.min(offset + len - at);
                self.data.write_zeroes(host.start, len, flags).await?;
            }
            at += changed.len;
        }
        Ok(())
    }

    /// Overwrites what a raw data file has of a range, as far as the disk goes: without its image it must read the same.
    async fn zero_raw(&self, offset: GuestOffset, len: u64, flags: RequestFlags) -> IoResult<()> {
        if !self.state.borrow().header.data_file_is_raw() {
            return Ok(());
        }
        let end = self
            .run(|state| {
                state.check_writable()?;
                Ok(state.header.end())
            })
            .await?;
        let end = end.min(offset + len);
        if end <= offset {
            return Ok(());
        }
        let start = offset.in_data_file();
        self.data.write_zeroes(start, end - offset, flags).await
    }

    /// Whether a cluster that a range is a part of holds no data, and reads as zeroes beside the range.
    async fn rest_reads_as_zeroes(&self, offset: GuestOffset, len: u64) -> IoResult<bool> {
        let (start, end, disk_end, unit) = {
            let state = self.state.borrow();
            let unit = state.geometry.zero_unit();
            let (start, end, _) = state.widened(offset, len, unit);
            (start, end, state.header.end(), unit)
        };
        if end - start > unit {
            return Ok(false);
        }
        let extent = self
            .run(move |state| state.locate(Purpose::Read, start, unit))
            .await?;
        match extent.at {
            At::Zero { .. } => Ok(true),
            At::Unallocated => Ok(self.backing_is_zero(start, offset).await
                && self.backing_is_zero(offset + len, end.min(disk_end)).await),
            At::Own | At::Child { .. } | At::Special => Ok(false),
        }
    }

    /// Whether what shows through from `at` up to `end` is known to be zeroes.
    async fn backing_is_zero(&self, mut at: GuestOffset, end: GuestOffset) -> bool {
        while at < end && self.backing.is_connected() {
            match self.backing.status(at, end - at).await {
                // Nothing is behind the backing file's end.
                Ok(status) if status.len == 0 => return true,
                Ok(status) if status.flags.contains(StatusFlags::ZERO) => at += status.len,
                _ => return false,
            }
        }
        true
    }

    /// Forgets everything. Whatever the version, nothing is left that hides the backing file.
    pub(crate) async fn empty(&self) -> IoResult<()> {
        let end = {
            let state = self.state.borrow();
            state.header.end().round_up(&state.geometry)
        };
        self.file.raise(DebugEvent::EmptyImagePrepare).await;
        let mut offset = GuestOffset::default();
        self.zero_raw(offset, end - offset, RequestFlags::MAY_UNMAP)
            .await?;
        while offset < end {
            offset += self
                .run(move |state| {
                    state.check_writable()?;
                    state.drop_some(offset, end - offset)
                })
                .await?;
        }
        Ok(())
    }

    /// Forgets a range. Only whole clusters can be.
    pub(crate) async fn forget(&self, offset: GuestOffset, len: u64) -> IoResult<()> {
        let (mut at, end, is_whole) = {
            let state = self.state.borrow();
            state.widened(offset, len, state.geometry.cluster_size())
        };
        if !is_whole {
            return Err(IoError::NotSupported);
        }
        self.zero_raw(offset, len, RequestFlags::MAY_UNMAP).await?;
        while at < end {
            let backing = self.backing.is_connected();
            let changed = self
                .run(move |state| state.discard_some(at, end - at, backing))
                .await?;
            for HostRange { start, len } in changed.emptied {
                if let Err(error) = self.data.discard(start, len).await {
                    tracing::debug!(%error, "the file does not discard clusters that stay in use");
                }
            }
            at += changed.len;
        }
        Ok(())
    }
}
