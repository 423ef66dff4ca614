//! An open image's state, and the rule by which it changes: in synchronous steps that either happen whole or say what
//! must be loaded first.

use std::collections::{BTreeSet, HashSet};

use millpond_messages::{ChildSlot, Error, ErrorKind, IoError, SnapshotName};

use super::bitmaps::listed::ImageBitmaps;
use super::encryption::Encryption;
use super::header::{DIRTY, Header};
use super::layout::bytes::Hex;
use super::layout::entry::{COPIED, l2_table};
use super::layout::geometry::Geometry;
use super::layout::index::{L1Index, SliceKey};
use super::layout::space::{GuestCluster, GuestOffset, HostCluster, HostOffset};
use super::layout::subcluster::Extended;
use super::options::Settings;
use super::snapshot::table::Snapshot;
use super::table::cache::Cache;
use super::table::overlap::MetadataMap;
use crate::api::Notices;

/// The child with the guest's data, where that is not in the image's file.
pub(super) const DATA_FILE: ChildSlot = ChildSlot(2);

/// Why a step did not happen.
#[derive(Debug)]
pub(super) enum Blocked {
    /// Something must be done first. Then the step is tried again.
    Need(Need),
    /// The step cannot be done, for this reason.
    Fail(IoError),
    /// The image contradicts itself.
    Corrupt(Corruption),
}

/// What is wrong with an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Corruption {
    /// What is wrong, for people.
    pub text: String,
    /// The bytes of the file that were about to be overwritten: where they start, and how many.
    pub range: Option<(HostOffset, u64)>,
}

impl From<String> for Corruption {
    fn from(text: String) -> Self {
        Self { text, range: None }
    }
}

/// What a step waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    /// The L2 slice at this offset of the file.
    Slice(SliceKey),
    /// The refcount block of this number.
    Refblock(u64),
    /// An L2 table of the image's own for this L1 entry.
    Table(L1Index),
    /// Metadata must be written back before more may change.
    Writeback,
    /// The clusters of the allocation ticket of this number are being written.
    Allocation(u64),
    /// The file is being cut: nothing may be allocated.
    Thaw,
    /// The image must be readied for changes.
    Activation,
    /// Whether clusters were allocated in advance is not known yet.
    Preallocation,
}

/// The result of a step, or why it must wait.
pub(super) type Step<T> = Result<T, Blocked>;

impl From<Need> for Blocked {
    fn from(need: Need) -> Self {
        Self::Need(need)
    }
}

impl From<IoError> for Blocked {
    fn from(error: IoError) -> Self {
        Self::Fail(error)
    }
}

/// Why a cluster is freed, which decides whether the file gets a discard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FreeReason {
    /// The guest discarded it.
    Request,
    /// It is an L2 table behind the end of a disk that became shorter.
    Shrink,
    /// It belonged to a snapshot.
    Snapshot,
    /// For any reason besides those.
    Other,
}

/// References that are gone from the tables in memory, while tables in the file may still hold them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Free {
    /// The first of the clusters that are freed.
    pub cluster: HostCluster,
    /// How many clusters are freed.
    pub count: u64,
    /// Why the clusters are freed.
    pub reason: FreeReason,
}

/// Clusters that a write was given and has not written yet.
#[derive(Debug, Clone, Copy)]
pub(super) struct InFlight {
    /// The number of the ticket.
    pub id: u64,
    /// The guest's first cluster.
    pub first: GuestCluster,
    /// How many clusters it stands for.
    pub count: u64,
    /// Where they are in the file.
    pub host: HostOffset,
    /// They were allocated for this write, rather than reserved for the guest's clusters before.
    pub fresh: bool,
    /// Where the subclusters that will hold data begin and end, where clusters have them.
    pub covers: (GuestOffset, GuestOffset),
    /// Data of the guest's is copied along, so it must be durable before the tables say so.
    pub copies: bool,
}

/// The state of an open image. Nothing in it is bound to a thread.
pub(super) struct State {
    pub header: Header,
    pub geometry: Geometry,
    pub settings: Settings,
    /// The child that has the guest's data.
    pub data_slot: ChildSlot,
    pub l1: Vec<u64>,
    /// L1 entries that the file does not have yet.
    pub l1_dirty: BTreeSet<u64>,
    pub l2: Cache<Vec<u64>>,
    /// The refcount table, perhaps without a tail of entries that are 0.
    pub reftable: Vec<u64>,
    /// Refcount table entries that the file does not have yet.
    pub reftable_dirty: BTreeSet<u64>,
    pub refblocks: Cache<Vec<u8>>,
    /// No cluster below this is free.
    pub free_hint: HostCluster,
    /// Where the compressed data written last ends. On a cluster's boundary, or at 0, no more compressed data goes behind it.
    pub compressed_end: HostOffset,
    /// The end of the file as far as it was ever used: nothing was ever stored from here on.
    pub file_end: HostOffset,
    pub frees: Vec<Free>,
    pub in_flight: Vec<InFlight>,
    pub next_ticket: u64,
    pub metadata: MetadataMap,
    /// L2 tables of snapshots, where they are guarded.
    pub inactive_l2: HashSet<HostOffset>,
    /// The snapshots inside the image, in the order of their table.
    pub snapshots: Vec<Snapshot>,
    /// The snapshot table was read: not yet where one that cannot be read is to be checked.
    pub knows_snapshots: bool,
    /// The snapshot that is shown in place of the disk.
    pub shows: Option<SnapshotName>,
    /// The dirty bitmaps that the image stores.
    pub bitmaps: ImageBitmaps,
    /// Where the snapshot table ends.
    pub snapshots_end: HostOffset,
    /// Data that the tables in memory refer to must be made durable before they are written.
    pub barrier: bool,
    pub writable: bool,
    /// The image was readied for changes.
    pub active: bool,
    /// The file's end is being cut off: nothing may be allocated.
    pub frozen: bool,
    /// What encrypts the guest's data, if anything does.
    pub encryption: Option<Encryption>,
    /// Corruption was reported; it is reported once.
    pub reported: bool,
    /// Set once corruption made the image unusable.
    pub broken: bool,
    /// Where corruption is reported.
    pub notices: Notices,
    /// Whether clusters may be allocated without being used, found out when first asked.
    pub preallocated: Option<bool>,
}

impl State {
    /// The state of an image whose tables are not read yet.
    pub fn new(header: Header, settings: Settings, writable: bool) -> Self {
        let geometry = header.geometry(settings.slice_size);
        Self {
            l1: Vec::new(),
            l1_dirty: BTreeSet::new(),
            l2: Cache::new(settings.slices),
            reftable: Vec::new(),
            reftable_dirty: BTreeSet::new(),
            refblocks: Cache::new(settings.refblocks),
            free_hint: HostCluster::default(),
            compressed_end: HostOffset::default(),
            file_end: HostOffset::default(),
            frees: Vec::new(),
            in_flight: Vec::new(),
            next_ticket: 0,
            metadata: MetadataMap::default(),
            inactive_l2: HashSet::new(),
            snapshots: Vec::new(),
            knows_snapshots: false,
            shows: None,
            bitmaps: ImageBitmaps::default(),
            snapshots_end: HostOffset::default(),
            barrier: false,
            writable,
            active: false,
            frozen: false,
            encryption: None,
            reported: false,
            broken: false,
            notices: Notices::nowhere(),
            preallocated: None,
            data_slot: if geometry.external {
                DATA_FILE
            } else {
                ChildSlot::FILE
            },
            header,
            geometry,
            settings,
        }
    }

    /// The L2 table of an L1 entry, if it has one.
    pub fn l2_table(&self, l1_index: L1Index) -> Step<Option<HostOffset>> {
        let table = l2_table(l1_index.entry(&self.l1).unwrap_or(0));
        if let Some(table) = table.filter(|table| !table.is_aligned(&self.geometry)) {
            let index = Hex(l1_index.0);
            let text = format!("L2 table offset {table:#x} unaligned (L1 index: {index})");
            return Err(Blocked::Corrupt(text.into()));
        }
        Ok(table)
    }

    /// Where the slice that maps guest `offset` is in the file, if there is one.
    pub fn slice_key(&self, offset: GuestOffset) -> Step<Option<SliceKey>> {
        let table = self.l2_table(self.geometry.l1_index(offset))?;
        Ok(table.map(|table| SliceKey::of(&self.geometry, table, offset)))
    }

    /// The slice at `key`, or that it has to be read.
    pub fn slice(&self, key: SliceKey) -> Step<&[u64]> {
        self.l2
            .get(key.offset())
            .map(Vec::as_slice)
            .ok_or(Blocked::Need(Need::Slice(key)))
    }

    /// The first word of an entry of the slice at `key`.
    pub fn word(&self, key: SliceKey, index: usize) -> Step<u64> {
        let at = index * self.geometry.entry_words();
        Ok(self.slice(key)?.get(at).copied().unwrap_or(0))
    }

    /// The slice at `key`, of a table that may be changed: the image's own.
    pub fn writable_slice(&self, offset: GuestOffset) -> Step<SliceKey> {
        let l1_index = self.geometry.l1_index(offset);
        let entry = l1_index.entry(&self.l1).unwrap_or(0);
        match self.slice_key(offset)? {
            Some(key) if entry & COPIED != 0 => Ok(key),
            _ => Err(Blocked::Need(Need::Table(l1_index))),
        }
    }

    /// Sets an extended entry of a slice that is in the cache.
    pub fn set_extended(&mut self, key: SliceKey, index: usize, entry: Extended) {
        let words = 2 * index..2 * index + 2;
        if let Some(slice) = self
            .l2
            .change(key.offset(), words.clone())
            .and_then(|slice| slice.get_mut(words))
        {
            slice.copy_from_slice(&entry.words());
        }
    }

    /// Sets an entry of a slice that is in the cache. Of an extended one, no subcluster is anything then.
    pub fn set_entry(&mut self, key: SliceKey, index: usize, value: u64) {
        if self.geometry.has_subclusters() {
            let entry = Extended {
                word: value,
                ..Extended::default()
            };
            return self.set_extended(key, index, entry);
        }
        if let Some(entry) = self
            .l2
            .change(key.offset(), index..index + 1)
            .and_then(|slice| slice.get_mut(index))
        {
            *entry = value;
        }
    }

    /// Sets an L1 entry, which is written back later.
    pub fn set_l1(&mut self, index: L1Index, value: u64) {
        if let Some(entry) = self.l1.get_mut(index.0 as usize) {
            *entry = value;
            self.l1_dirty.insert(index.0);
        }
    }

    /// Puts no more compressed data into clusters of the file that are freed or about to be.
    pub fn close_compressed(&mut self, cluster: HostCluster, count: u64) {
        let open = self.compressed_end.cluster(&self.geometry);
        if (cluster..cluster.saturating_add(count)).contains(&open) {
            self.compressed_end = HostOffset::default();
        }
    }

    /// Takes note that `count` clusters from `cluster` lose a reference.
    pub fn free_later(&mut self, cluster: HostCluster, count: u64, reason: FreeReason) {
        match self.frees.last_mut() {
            Some(last) if last.reason == reason && last.cluster + last.count == cluster => {
                last.count += count
            }
            _ => self.frees.push(Free {
                cluster,
                count,
                reason,
            }),
        }
    }

    /// Whether the file's refcounts may lag behind: the image is marked dirty.
    pub fn refcounts_lag(&self) -> bool {
        self.header.incompatible & DIRTY != 0
    }

    /// Whether anything in memory differs from the file.
    pub fn is_dirty(&self) -> bool {
        self.l2.dirty() > 0
            || !self.l1_dirty.is_empty()
            || !self.frees.is_empty()
            || (!self.refcounts_lag() && self.refcounts_dirty())
    }

    /// Whether refcounts in memory differ from the file's.
    pub fn refcounts_dirty(&self) -> bool {
        self.refblocks.dirty() > 0 || !self.reftable_dirty.is_empty()
    }

    /// Refuses what looks at the disk's own tables where a snapshot is shown in its place.
    pub fn check_own_tables(&self) -> Result<(), Error> {
        if self.shows.is_some() {
            let text = "The node shows a snapshot of its image";
            return Err(Error::new(ErrorKind::InvalidArgument, text));
        }
        Ok(())
    }

    /// Refuses requests once the image is unusable.
    pub fn check_usable(&self) -> Step<()> {
        if self.broken {
            Err(Blocked::Fail(IoError::NoMedium))
        } else {
            Ok(())
        }
    }
}
