//! Places for writes: in place where the cluster is the image's own, else in new or reserved clusters, which become
//! visible when the write is settled.

use millpond_messages::IoError;

use super::subcluster::place::Wanted;
use crate::api::{AllocationTicket, Placement, Target};
use crate::format::qcow2::layout::bytes::Hex;
use crate::format::qcow2::layout::entry::{COPIED, Cluster, compressed, l2_table, own, refblock};
use crate::format::qcow2::layout::geometry::Geometry;
use crate::format::qcow2::layout::index::SliceKey;
use crate::format::qcow2::layout::space::{GuestCluster, GuestOffset, HostCluster, HostOffset};
use crate::format::qcow2::state::{Blocked, Corruption, FreeReason, InFlight, Need, State, Step};
use crate::format::qcow2::table::overlap::Kind;

/// Dirty L2 slices and refcount blocks, and dropped references, beyond which writers wait for a write-back: 4 MiB of
/// default slices, so that one snapshot of all is copied in about a millisecond.
const MAX_DIRTY_SLICES: usize = 1024;
const MAX_DIRTY_REFBLOCKS: usize = 16;
const MAX_FREES: usize = 4096;

/// The guest clusters of a write.
struct Span {
    /// Its length in bytes.
    len: u64,
    /// The first byte, within its cluster.
    head: u64,
}

impl Span {
    /// How many bytes of the write are in clusters of `bytes` bytes in all.
    fn within(&self, bytes: u64) -> u64 {
        self.len.min(bytes - self.head)
    }
}

/// The clusters that a write goes to.
struct Chosen {
    /// Where the first is in the file.
    host: HostOffset,
    /// How many there are, one behind the other.
    count: u64,
    /// What the first cluster held in front of the write is copied along.
    copies_head: bool,
    /// What the last cluster held behind the write is copied along.
    copies_tail: bool,
}

impl State {
    /// Where a write of `len` bytes at `offset` goes. `backing` says whether what is unallocated shows a backing file.
    pub fn place(&mut self, offset: GuestOffset, len: u64, backing: bool) -> Step<Placement> {
        self.check_writable()?;
        let span = Span {
            len,
            head: offset.in_cluster(&self.geometry),
        };
        let first = offset.cluster(&self.geometry);
        let wanted = self.before_in_flight(first, offset.clusters(len, &self.geometry))?;
        let key = self.writable_slice(offset)?;
        if self.geometry.has_subclusters() {
            return self.place_subclusters(&Wanted {
                key,
                start: offset,
                end: offset + len,
                clusters: wanted,
                backing,
            });
        }
        let index = self.geometry.slice_index(offset);
        let slice = self.slice(key)?;
        let entries = slice.get(index..).unwrap_or_default();
        let entries = entries.get(..wanted as usize).unwrap_or(entries);
        let Some(&entry) = entries.first() else {
            return Err(Blocked::Fail(IoError::Corrupt));
        };
        let kind = self.cluster_for_write(entry, key, offset)?;
        let geometry = self.geometry;
        let follows = |n: u64, entry: u64, kind: Cluster| {
            entry & COPIED != 0 && geometry.cluster(entry) == kind_at(kind, geometry.bytes(n))
        };
        match kind {
            Cluster::Normal(host) | Cluster::ZeroAllocated(host) if entry & COPIED != 0 => {
                let count = run(entries, |n, entry| follows(n, entry, kind));
                let has_data = matches!(kind, Cluster::Normal(_));
                self.place_in_place(&span, first, (host, count), has_data)
            }
            _ => {
                let count = run(entries, |_, entry| needs_new(&geometry, entry));
                let copies = |entry: &u64| match geometry.cluster(*entry) {
                    Cluster::Unallocated => backing,
                    Cluster::ZeroPlain | Cluster::ZeroAllocated(_) => false,
                    Cluster::Normal(_) | Cluster::Compressed => true,
                };
                let old: Vec<bool> = entries.iter().take(count as usize).map(copies).collect();
                self.place_new(&span, first, &old)
            }
        }
    }

    /// In the image's own clusters: what has data is written to as it is, and what is behind zeroes comes to light.
    #[inline]
    fn place_in_place(
        &mut self,
        span: &Span,
        first: GuestCluster,
        (host, count): (HostOffset, u64),
        has_data: bool,
    ) -> Step<Placement> {
        self.check_target(host + span.head, span.within(self.geometry.bytes(count)))?;
        let ticket = if has_data {
            None
        } else {
            self.check_pressure()?;
            Some(self.set_aside(first, count, host, false))
        };
        let chosen = Chosen {
            host,
            count,
            copies_head: !has_data,
            copies_tail: !has_data,
        };
        Ok(self.placement(span, &chosen, ticket))
    }

    /// Allocates for as many clusters as `old` has, which says of each whether it shows anything but zeroes, or fewer.
    fn place_new(&mut self, span: &Span, first: GuestCluster, old: &[bool]) -> Step<Placement> {
        self.check_pressure()?;
        if self.geometry.external {
            return self.place_in_data_file(span, first, old.len() as u64);
        }
        let (host, count) = self.allocate(old.len() as u64)?;
        let host = host.offset(&self.geometry);
        // The file reads as zeroes where nothing was ever stored: so do the new clusters' parts that are not written.
        // Zeroes that are encrypted are written like all else.
        let untouched = host >= self.file_end && self.encryption.is_none();
        self.file_end = self.file_end.max(host + self.geometry.bytes(count));
        let copy = |at: usize| !untouched || old.get(at).copied().unwrap_or(true);
        let chosen = Chosen {
            host,
            count,
            copies_head: copy(0),
            copies_tail: copy(count as usize - 1),
        };
        let ticket = self.set_aside(first, count, host, true);
        Ok(self.placement(span, &chosen, Some(ticket)))
    }

    /// The data file has a place for every cluster. What it held there may be anything.
    fn place_in_data_file(&mut self, span: &Span, first: GuestCluster, count: u64) -> Step<Placement> {
        let host = first.offset(&self.geometry).in_data_file();
        let chosen = Chosen {
            host,
            count,
            copies_head: true,
            copies_tail: true,
        };
        let ticket = self.set_aside(first, count, host, true);
        Ok(self.placement(span, &chosen, Some(ticket)))
    }

    pub fn set_aside(
        &mut self,
        first: GuestCluster,
        count: u64,
        host: HostOffset,
        fresh: bool,
    ) -> AllocationTicket {
        let id = self.next_ticket;
        self.next_ticket += 1;
        self.in_flight.push(InFlight {
            id,
            first,
            count,
            host,
            fresh,
            covers: Default::default(),
            copies: false,
        });
        AllocationTicket(id)
    }

    /// The answer to a write that goes to the clusters chosen for it.
    fn placement(&mut self, span: &Span, chosen: &Chosen, ticket: Option<AllocationTicket>) -> Placement {
        let len = span.within(self.geometry.bytes(chosen.count));
        let behind = self.geometry.part(span.head + len);
        let head = if chosen.copies_head { span.head } else { 0 };
        let tail = if chosen.copies_tail && behind != 0 {
            let end = chosen.host + (span.head + len);
            self.within_disk(end, self.geometry.cluster_size() - behind)
        } else {
            0
        };
        if (head > 0 || tail > 0)
            && let Some(id) = &ticket
            && let Some(entry) = self.in_flight.iter_mut().find(|entry| entry.id == id.0)
        {
            entry.copies = true;
        }
        let target = Target::Child {
            slot: self.data_slot,
            offset: (chosen.host + (span.head - head)).get(),
        };
        Placement {
            len,
            target,
            head,
            tail,
            ticket,
        }
    }

    /// How many of `len` bytes behind a write that ends at `end` of the file are to be copied: a data file is as long as the
    /// disk, and must not become longer.
    pub fn within_disk(&self, end: HostOffset, len: u64) -> u64 {
        let disk_end = self.header.end().in_data_file();
        if self.geometry.external && end <= disk_end {
            len.min(disk_end - end)
        } else {
            len
        }
    }

    /// How many of `count` guest clusters from `first` no write in flight was given; at least the first.
    pub fn before_in_flight(&self, first: GuestCluster, count: u64) -> Step<u64> {
        let mut end = first + count;
        for other in &self.in_flight {
            if other.first < end && first < other.first + other.count {
                if other.first <= first {
                    return Err(Blocked::Need(Need::Allocation(other.id)));
                }
                end = other.first;
            }
        }
        Ok(end - first)
    }

    /// Makes visible what a write was given, or gives it back.
    pub fn settle(&mut self, id: u64, written: bool) -> Step<()> {
        let Some(at) = self.in_flight.iter().position(|entry| entry.id == id) else {
            return Ok(());
        };
        let Some(&write) = self.in_flight.get(at) else {
            return Ok(());
        };
        let InFlight {
            first,
            count,
            host,
            fresh,
            copies,
            ..
        } = write;
        if written {
            if self.geometry.has_subclusters() {
                self.link_subclusters(&write)?;
            } else {
                self.link(first, count, host)?;
            }
            // The refcounts of new clusters have the file flushed before the tables are written. Clusters that had theirs before
            // still hold what the zeroes have hidden, and with lazy refcounts new ones do: their data is to be durable first.
            self.barrier |= copies || !fresh || self.settings.lazy_refcounts || self.geometry.external;
        } else if fresh && !self.geometry.external {
            self.set_refcounts(host.cluster(&self.geometry), count, 0)?;
        }
        self.in_flight.swap_remove(at);
        Ok(())
    }

    /// Points the guest's clusters at their new places.
    fn link(&mut self, first: GuestCluster, count: u64, host: HostOffset) -> Step<()> {
        let geometry = self.geometry;
        let offset = first.offset(&geometry);
        let key = self.writable_slice(offset)?;
        self.slice(key)?;
        let index = self.geometry.slice_index(offset);
        let range = index..index + count as usize;
        let Some(entries) = self
            .l2
            .change(key.offset(), range.clone())
            .and_then(|slice| slice.get_mut(range))
        else {
            return Err(Blocked::Fail(IoError::Corrupt));
        };
        let mut old = Vec::new();
        for (entry, n) in entries.iter_mut().zip(0_u64..) {
            let place = host + geometry.bytes(n);
            let before = std::mem::replace(entry, own(place));
            if !matches!(
                geometry.cluster(before),
                Cluster::Unallocated | Cluster::ZeroPlain
            ) {
                old.push((before, place));
            }
        }
        for (before, place) in old {
            if geometry.cluster(before) != Cluster::ZeroAllocated(place) {
                self.drop_cluster(before, FreeReason::Other);
            }
        }
        Ok(())
    }

    /// Takes note that an L2 entry's references are gone. Those to a data file are not counted.
    pub fn drop_cluster(&mut self, entry: u64, reason: FreeReason) {
        match self.geometry.cluster(entry) {
            _ if self.geometry.external => {}
            Cluster::Unallocated | Cluster::ZeroPlain => {}
            Cluster::ZeroAllocated(host) | Cluster::Normal(host) => {
                self.free_later(host.cluster(&self.geometry), 1, reason)
            }
            Cluster::Compressed => {
                let place = compressed(&self.geometry, entry);
                let first = place.offset.cluster(&self.geometry);
                self.free_later(first, place.offset.clusters(place.len, &self.geometry), reason);
            }
        }
    }

    /// Refuses to write to an image that is read-only or unusable.
    pub fn check_writable(&self) -> Step<()> {
        self.check_usable()?;
        match (self.writable, self.active) {
            (true, true) if !self.bitmaps.is_stored => Ok(()),
            (true, _) => Err(Blocked::Need(Need::Activation)),
            (false, _) => Err(Blocked::Fail(IoError::ReadOnly)),
        }
    }

    /// Asks for a write-back where too much in memory waits for one.
    pub fn check_pressure(&self) -> Step<()> {
        self.check_not_frozen()?;
        if self.l2.dirty() > self.most_dirty_slices()
            || self.too_many_refblocks()
            || self.frees.len() > MAX_FREES
        {
            return Err(Blocked::Need(Need::Writeback));
        }
        Ok(())
    }

    /// How many slices may be dirty. Where the cache has room for those of the whole disk, none of them has to be clean so
    /// that it can make room for another.
    fn most_dirty_slices(&self) -> usize {
        let span_bits = self.geometry.slice_bits + self.geometry.cluster_bits;
        let all = self.header.size.div_ceil(1 << span_bits);
        let capacity = self.l2.capacity();
        let room = if all <= capacity as u64 {
            capacity
        } else {
            capacity / 2
        };
        room.min(MAX_DIRTY_SLICES)
    }

    /// Whether more refcount blocks changed than should wait in memory.
    pub fn too_many_refblocks(&self) -> bool {
        self.refblocks.dirty() > MAX_DIRTY_REFBLOCKS.min(self.refblocks.capacity() / 2)
    }

    /// Refuses to write guest data over metadata. A data file has none.
    pub fn check_target(&self, offset: HostOffset, len: u64) -> Step<()> {
        if self.geometry.external {
            return Ok(());
        }
        self.check_not_metadata(offset, len)
    }

    /// Refuses to write over metadata, at `offset` of the file: the tables contradict each other where that comes up.
    pub fn check_not_metadata(&self, offset: HostOffset, len: u64) -> Step<()> {
        let mut first = offset.cluster(&self.geometry);
        let end = first + offset.clusters(len, &self.geometry);
        while let Some(cluster) = self.metadata.find(first, end - first) {
            let kind = self.metadata_kind(cluster);
            if let Some(kind) = kind.filter(|kind| self.settings.guarded.has(*kind)) {
                return Err(Blocked::Corrupt(Corruption {
                    text: format!(
                        "Preventing invalid write on metadata (overlaps with {})",
                        kind.description()
                    ),
                    range: Some((offset, len)),
                }));
            }
            first = cluster + 1;
        }
        if offset.cluster(&self.geometry) == HostCluster::default() {
            let text = "Preventing invalid allocation of data cluster at offset 0".to_owned();
            return Err(Blocked::Corrupt(text.into()));
        }
        Ok(())
    }

    /// The same for whole clusters.
    pub fn check_free_of_metadata(&self, first: HostCluster, count: u64) -> Step<()> {
        self.check_not_metadata(first.offset(&self.geometry), self.geometry.bytes(count))
    }

    /// What the entry of guest `offset` says, unless nothing can be written there.
    pub fn cluster_for_write(&self, entry: u64, key: SliceKey, offset: GuestOffset) -> Step<Cluster> {
        let unaligned = |host: HostOffset| !host.is_aligned(&self.geometry);
        let (what, host) = match self.geometry.cluster(entry) {
            Cluster::Normal(host) if unaligned(host) => ("Data", host),
            Cluster::ZeroAllocated(host) if unaligned(host) => ("Preallocated zero", host),
            kind => {
                self.check_in_data_file(kind, offset)?;
                return self.checked_cluster(entry, key, self.geometry.slice_index(offset));
            }
        };
        let offset = Hex(offset.get());
        let text = format!("{what} cluster offset {host:#x} unaligned (guest offset: {offset})");
        Err(Blocked::Corrupt(text.into()))
    }

    /// What metadata a cluster holds.
    fn metadata_kind(&self, cluster: HostCluster) -> Option<Kind> {
        let size = self.geometry.cluster_size();
        let at = cluster.offset(&self.geometry);
        let within = |start: HostOffset, len: u64| start < at + size && at < start.saturating_add(len);
        let header = &self.header;
        if at == HostOffset::default() {
            return Some(Kind::MainHeader);
        }
        let crypto = header.extensions.crypto();
        if crypto.is_some_and(|crypto| crypto.touches(at, size)) {
            return Some(Kind::MainHeader);
        }
        if within(header.l1_offset, u64::from(header.l1_size) * 8) {
            return Some(Kind::ActiveL1);
        }
        if within(header.reftable_offset, u64::from(header.reftable_clusters) * size) {
            return Some(Kind::RefcountTable);
        }
        if self.reftable.iter().any(|&entry| refblock(entry) == Some(at)) {
            return Some(Kind::RefcountBlock);
        }
        if self.l1.iter().any(|&entry| l2_table(entry) == Some(at)) {
            return Some(Kind::ActiveL2);
        }
        if within(
            header.snapshots_offset,
            self.snapshots_end.bytes_since(header.snapshots_offset),
        ) {
            return Some(Kind::SnapshotTable);
        }
        let inactive = self
            .snapshots
            .iter()
            .any(|snapshot| within(snapshot.l1_offset, u64::from(snapshot.l1_entries) * 8));
        if inactive {
            return Some(Kind::InactiveL1);
        }
        if self.inactive_l2.contains(&at) {
            return Some(Kind::InactiveL2);
        }
        let directory = self.bitmap_directory()?;
        within(directory.offset, directory.size).then_some(Kind::BitmapDirectory)
    }
}

/// Whether a write to the cluster of this entry needs a new one.
fn needs_new(geometry: &Geometry, entry: u64) -> bool {
    match geometry.cluster(entry) {
        Cluster::Unallocated | Cluster::ZeroPlain | Cluster::Compressed => true,
        Cluster::Normal(_) | Cluster::ZeroAllocated(_) => entry & COPIED == 0,
    }
}

/// The kind of the cluster `bytes` behind one of `kind`, where they follow each other in the file.
fn kind_at(kind: Cluster, bytes: u64) -> Cluster {
    match kind {
        Cluster::Normal(host) => Cluster::Normal(host + bytes),
        Cluster::ZeroAllocated(host) => Cluster::ZeroAllocated(host + bytes),
        other => other,
    }
}

/// How many entries from the first on are as `wanted`; at least the first.
fn run(entries: &[u64], wanted: impl Fn(u64, u64) -> bool) -> u64 {
    let rest = entries.iter().skip(1).zip(1_u64..);
    1 + rest.take_while(|&(&entry, n)| wanted(n, entry)).count() as u64
}
