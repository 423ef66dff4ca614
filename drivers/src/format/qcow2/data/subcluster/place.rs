//! Places for writes whose clusters have subclusters: only the parts of subclusters that a write leaves out are copied, and
//! what a new cluster has to take over from an old one.

use crate::api::{Placement, Target};
use crate::format::qcow2::layout::entry::{COPIED, Cluster, own};
use crate::format::qcow2::layout::index::SliceKey;
use crate::format::qcow2::layout::space::{GuestCluster, GuestOffset, HostOffset};
use crate::format::qcow2::layout::subcluster::{Extended, Subcluster};
use crate::format::qcow2::state::{FreeReason, InFlight, State, Step};

use super::locate::is_sound;

/// A write, and the slice that has the entries of its first clusters.
pub(crate) struct Wanted {
    /// The slice of the first cluster's entry.
    pub key: SliceKey,
    /// Where the write begins.
    pub start: GuestOffset,
    /// Where the write ends.
    pub end: GuestOffset,
    /// How many clusters may be given at once.
    pub clusters: u64,
    /// What is unallocated shows a backing file.
    pub backing: bool,
}

/// Clusters for the start of a write.
struct Given {
    /// Where the first is in the file.
    host: HostOffset,
    /// How many there are, one behind the other.
    count: u64,
    /// They were allocated for it.
    fresh: bool,
    /// The file reads as zeroes where they are.
    untouched: bool,
}

impl State {
    /// As [`State::place`], in clusters that have subclusters.
    pub fn place_subclusters(&mut self, wanted: &Wanted) -> Step<Placement> {
        let index = self.geometry.slice_index(wanted.start);
        let entry = Extended::of(self.slice(wanted.key)?, index);
        let kind = self.cluster_for_write(entry.word, wanted.key, wanted.start)?;
        if kind != Cluster::Compressed && !is_sound(entry, host_of(kind)) {
            return Err(self.invalid_entry(wanted.key, index, ""));
        }
        match self.own_cluster(entry) {
            Some(host) => self.place_in_own(wanted, host),
            None => self.place_in_new(wanted),
        }
    }

    /// Where an entry's cluster is, if it may be written in place.
    fn own_cluster(&self, entry: Extended) -> Option<HostOffset> {
        let is_own = entry.word & COPIED != 0 || self.geometry.external;
        host_of(self.geometry.cluster(entry.word)).filter(|_| is_own)
    }

    /// How many of the write's clusters go on as the first, by what `goes_on` says of the `n`th entry.
    fn clusters_alike(&self, wanted: &Wanted, goes_on: impl Fn(u64, Extended) -> bool) -> Step<u64> {
        let index = self.geometry.slice_index(wanted.start);
        let slice = self.slice(wanted.key)?;
        let most = wanted
            .clusters
            .min((self.geometry.slice_entries() - index) as u64);
        let alike = (1..most).take_while(|&n| goes_on(n, Extended::of(slice, index + n as usize)));
        Ok(1 + alike.count() as u64)
    }

    fn place_in_own(&mut self, wanted: &Wanted, host: HostOffset) -> Step<Placement> {
        let geometry = self.geometry;
        let count = self.clusters_alike(wanted, |n, entry| {
            self.own_cluster(entry) == Some(host + geometry.bytes(n)) && is_sound(entry, Some(host))
        })?;
        let (start, end) = (wanted.start, self.end_within(wanted, count));
        let in_cluster = start.in_cluster(&geometry);
        self.check_target(host + in_cluster, end - start)?;
        let slice = self.slice(wanted.key)?;
        let (index, first) = (geometry.slice_index(start), start.cluster_start(&geometry));
        let has_data = |n: u64| {
            let touched = geometry.touched(first + geometry.bytes(n), start, end);
            Extended::of(slice, index + n as usize).data & touched == touched
        };
        if (0..count).all(has_data) {
            return Ok(Placement {
                len: end - start,
                target: Target::Child {
                    slot: self.data_slot,
                    offset: (host + in_cluster).get(),
                },
                head: 0,
                tail: 0,
                ticket: None,
            });
        }
        let is_data = |offset: GuestOffset, n: u64| {
            let entry = Extended::of(slice, index + n as usize);
            entry.at(geometry.subcluster(offset)) == Subcluster::Data
        };
        let from = if is_data(start, 0) {
            start
        } else {
            geometry.subcluster_start(start)
        };
        let to = if is_data(end - 1, count - 1) {
            end
        } else {
            geometry.subcluster_end(end)
        };
        self.check_pressure()?;
        let given = Given {
            host,
            count,
            fresh: false,
            untouched: false,
        };
        Ok(self.placed(wanted, &given, (from, to), (true, true)))
    }

    fn place_in_new(&mut self, wanted: &Wanted) -> Step<Placement> {
        let geometry = self.geometry;
        let count = self.clusters_alike(wanted, |_, entry| self.own_cluster(entry).is_none())?;
        self.check_pressure()?;
        let given = self.give_new(wanted.start, count)?;
        let (start, end) = (wanted.start, self.end_within(wanted, given.count));
        let slice = self.slice(wanted.key)?;
        let index = geometry.slice_index(start);
        let (first, last) = (
            Extended::of(slice, index),
            Extended::of(slice, index + given.count as usize - 1),
        );
        // The old cluster's data comes along, from its first subcluster to its last.
        let (first_start, last_start) = (start.cluster_start(&geometry), (end - 1).cluster_start(&geometry));
        let kept = |entry: Extended| match geometry.cluster(entry.word) {
            Cluster::Compressed => u32::MAX,
            _ => entry.data,
        };
        let size = geometry.subcluster_size();
        let from = match kept(first) {
            0 => geometry.subcluster_start(start),
            data => geometry
                .subcluster_start(start)
                .min(first_start + u64::from(data.trailing_zeros()) * size),
        };
        let to = match kept(last) {
            0 => geometry.subcluster_end(end),
            data => geometry
                .subcluster_end(end)
                .max(last_start + u64::from(32 - data.leading_zeros()) * size),
        };
        let shows = |entry: Extended, touched: u32| {
            let unallocated = !(entry.data | entry.zero);
            kept(entry) & touched != 0 || (wanted.backing && unallocated & touched != 0)
        };
        let head = !given.untouched || shows(first, geometry.touched(first_start, from, start));
        let tail = !given.untouched || shows(last, geometry.touched(last_start, end, to));
        Ok(self.placed(wanted, &given, (from, to), (head, tail)))
    }

    /// Allocates at most `count` clusters for the guest's from `start` on.
    fn give_new(&mut self, start: GuestOffset, count: u64) -> Step<Given> {
        if self.geometry.external {
            return Ok(Given {
                host: start.cluster_start(&self.geometry).in_data_file(),
                count,
                fresh: true,
                untouched: false,
            });
        }
        let (host, count) = self.allocate(count)?;
        let host = host.offset(&self.geometry);
        // Zeroes that are encrypted are written like all else.
        let untouched = host >= self.file_end && self.encryption.is_none();
        self.file_end = self.file_end.max(host + self.geometry.bytes(count));
        Ok(Given {
            host,
            count,
            fresh: true,
            untouched,
        })
    }

    /// Where the write ends within so many clusters.
    fn end_within(&self, wanted: &Wanted, count: u64) -> GuestOffset {
        let first = wanted.start.cluster_start(&self.geometry);
        wanted.end.min(first + self.geometry.bytes(count))
    }

    /// The answer to a write that goes to the clusters given, after which the subclusters between `from` and `to` hold data.
    /// `copies` says whether what is beside the write there is copied.
    fn placed(
        &mut self,
        wanted: &Wanted,
        given: &Given,
        (from, to): (GuestOffset, GuestOffset),
        copies: (bool, bool),
    ) -> Placement {
        let geometry = self.geometry;
        let (start, end) = (wanted.start, self.end_within(wanted, given.count));
        let head = if copies.0 { start - from } else { 0 };
        let tail = if copies.1 {
            let place = given.host + (end - start.cluster_start(&geometry));
            self.within_disk(place, to - end)
        } else {
            0
        };
        let first: GuestCluster = start.cluster(&geometry);
        let ticket = self.set_aside(first, given.count, given.host, given.fresh);
        if let Some(entry) = self.in_flight.last_mut() {
            entry.covers = (from, to);
            entry.copies = head > 0 || tail > 0;
        }
        let offset = given.host + (start - head - first.offset(&geometry));
        Placement {
            len: end - start,
            target: Target::Child {
                slot: self.data_slot,
                offset: offset.get(),
            },
            head,
            tail,
            ticket: Some(ticket),
        }
    }

    /// Points the guest's clusters at their places, where what the write covers is data now.
    pub fn link_subclusters(&mut self, write: &InFlight) -> Step<()> {
        let geometry = self.geometry;
        let start = write.first.offset(&geometry);
        let key = self.writable_slice(start)?;
        self.slice(key)?;
        let index = geometry.slice_index(start);
        for n in 0..write.count {
            let at = index + n as usize;
            let place = write.host + geometry.bytes(n);
            let old = Extended::of(self.slice(key)?, at);
            let covered = geometry.touched(start + geometry.bytes(n), write.covers.0, write.covers.1);
            let stays = geometry.cluster(old.word) == Cluster::Normal(place);
            let new = Extended {
                word: own(place),
                data: covered | if stays { old.data } else { 0 },
                zero: old.zero & !covered,
            };
            self.set_extended(key, at, new);
            if !stays {
                self.drop_cluster(old.word, FreeReason::Other);
            }
        }
        Ok(())
    }
}

const fn host_of(kind: Cluster) -> Option<HostOffset> {
    match kind {
        Cluster::Normal(host) => Some(host),
        _ => None,
    }
}
