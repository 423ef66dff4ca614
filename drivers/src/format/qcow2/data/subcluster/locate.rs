//! Where a guest range is, subcluster by subcluster.

use crate::api::{At, Extent, Purpose};
use crate::format::qcow2::layout::entry::Cluster;
use crate::format::qcow2::layout::index::SliceKey;
use crate::format::qcow2::layout::space::{GuestOffset, HostOffset};
use crate::format::qcow2::layout::subcluster::{Extended, SUBCLUSTERS, Subcluster};
use crate::format::qcow2::state::{Blocked, Corruption, Need, State, Step};

impl State {
    /// As [`State::locate`], in the slice at `key`: up to the end of what is alike there.
    pub fn locate_subclusters(
        &self,
        purpose: Purpose,
        key: SliceKey,
        offset: GuestOffset,
        len: u64,
    ) -> Step<Extent> {
        let geometry = &self.geometry;
        let index = geometry.slice_index(offset);
        let entry = Extended::of(self.slice(key)?, index);
        let host = match self.checked_cluster(entry.word, key, index)? {
            Cluster::Compressed => {
                let rest = geometry.cluster_size() - offset.in_cluster(geometry);
                return Ok(Extent::new(len.min(rest), At::Special));
            }
            Cluster::Normal(host) => Some(host),
            _ => None,
        };
        self.check_in_data_file(geometry.cluster(entry.word), offset)?;
        if !is_sound(entry, host) {
            return Err(self.invalid_entry(key, index, " "));
        }
        let number = geometry.subcluster(offset);
        let kind = entry.at(number);
        // Of what is read, it does not matter where its zeroes would be.
        let follows = host.filter(|_| kind == Subcluster::Data || purpose != Purpose::Read);
        let count = self.alike(key, offset, kind, follows, len)?;
        let in_subcluster = offset - geometry.subcluster_start(offset);
        let len = len.min(u64::from(count) * geometry.subcluster_size() - in_subcluster);
        let place = host.map(|host| (self.data_slot, (host + offset.in_cluster(geometry)).get()));
        let at = match (kind, place) {
            (Subcluster::Data, Some((slot, offset))) => At::Child { slot, offset },
            (Subcluster::Zero, reserved) => At::Zero { reserved },
            _ => At::Unallocated,
        };
        let is_data = kind == Subcluster::Data;
        if is_data && self.preallocated.is_none() && purpose == (Purpose::Status { want_zero: true }) {
            return Err(Blocked::Need(Need::Preallocation));
        }
        let recurse = is_data && self.preallocated == Some(true);
        Ok(Extent { len, at, recurse })
    }

    /// How many subclusters from guest `offset` on are `kind`, as far as that matters for `len` bytes and the slice goes. With
    /// `host`, where the first cluster is, all must follow each other in the file.
    fn alike(
        &self,
        key: SliceKey,
        offset: GuestOffset,
        kind: Subcluster,
        host: Option<HostOffset>,
        len: u64,
    ) -> Step<u32> {
        let geometry = &self.geometry;
        let (index, number) = (geometry.slice_index(offset), geometry.subcluster(offset));
        let slice = self.slice(key)?;
        let mut count = Extended::of(slice, index).run(number, kind);
        let mut whole = number + count == SUBCLUSTERS;
        let clusters = offset
            .clusters(len, geometry)
            .min((geometry.slice_entries() - index) as u64);
        for n in 1..clusters {
            let entry = Extended::of(slice, index + n as usize);
            let place = match geometry.cluster(entry.word) {
                Cluster::Compressed => break,
                Cluster::Normal(place) => Some(place),
                _ => None,
            };
            let follows = host.is_none_or(|host| place == Some(host + geometry.bytes(n)));
            if !whole || !follows || !is_sound(entry, place) {
                break;
            }
            let more = entry.run(0, kind);
            count += more;
            whole = more == SUBCLUSTERS;
        }
        Ok(count)
    }

    /// The error for an entry whose bitmaps cannot be.
    pub fn invalid_entry(&self, key: SliceKey, index: usize, space: &str) -> Blocked {
        let at = self.entry_place(key, index);
        Blocked::Corrupt(Corruption::from(format!(
            "Invalid cluster entry found{space} {at}"
        )))
    }
}

/// Whether an entry's bitmaps go together, and with the place of its cluster.
pub(crate) fn is_sound(entry: Extended, host: Option<HostOffset>) -> bool {
    entry.data & entry.zero == 0 && (host.is_some() || entry.data == 0)
}
