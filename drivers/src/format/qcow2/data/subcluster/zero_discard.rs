//! Zero writes and discards of clusters with subclusters.

use millpond_messages::IoError;

use crate::format::qcow2::data::zero_discard::{Changed, Storage, ZeroWrite};
use crate::format::qcow2::layout::entry::Cluster;
use crate::format::qcow2::layout::space::GuestOffset;
use crate::format::qcow2::layout::subcluster::Extended;
use crate::format::qcow2::state::{Blocked, FreeReason, State, Step};

use super::locate::is_sound;

/// What becomes of an entry.
type Change = (Extended, Storage);

/// An entry without a cluster, all of which reads as zeroes.
const ZEROES: Extended = Extended {
    word: 0,
    data: 0,
    zero: u32::MAX,
};

impl State {
    /// Makes the start of a range of subclusters read as zeroes.
    pub fn zero_subclusters(&mut self, offset: GuestOffset, len: u64, wanted: ZeroWrite) -> Step<Changed> {
        let (keep, geometry) = (self.settings.discard_no_unref, self.geometry);
        let refused = || Err(Blocked::Fail(IoError::NotSupported));
        self.change_subclusters(offset, len, |old, touched| {
            let kind = geometry.cluster(old.word);
            if kind == Cluster::Compressed && touched != u32::MAX {
                return refused();
            }
            if wanted.partial && old.data & touched != 0 {
                return refused();
            }
            let zeroed = Extended {
                data: old.data & !touched,
                zero: old.zero | touched,
                ..old
            };
            let is_data = matches!(kind, Cluster::Normal(_));
            Ok(match kind {
                _ if touched != u32::MAX => (zeroed, Storage::Stays),
                Cluster::Compressed => (ZEROES, Storage::Freed),
                Cluster::Normal(_) if wanted.unmap && !keep => (ZEROES, Storage::Freed),
                _ if is_data && wanted.unmap && old.zero != u32::MAX => (zeroed, Storage::Emptied),
                _ => (zeroed, Storage::Stays),
            })
        })
    }

    /// Forgets the start of a range of whole clusters.
    pub fn discard_subclusters(&mut self, offset: GuestOffset, len: u64, backing: bool) -> Step<Changed> {
        let (keep, geometry) = (self.settings.discard_no_unref, self.geometry);
        self.change_subclusters(offset, len, |old, _| {
            Ok(match geometry.cluster(old.word) {
                Cluster::Normal(_) if keep => {
                    let storage = if old.zero == u32::MAX {
                        Storage::Stays
                    } else {
                        Storage::Emptied
                    };
                    let word = old.word;
                    (Extended { word, ..ZEROES }, storage)
                }
                Cluster::Normal(_) | Cluster::Compressed => (ZEROES, Storage::Freed),
                _ if backing => (ZEROES, Storage::Stays),
                _ => (old, Storage::Stays),
            })
        })
    }

    /// Drops the start of a range that is no longer part of the disk; answers how many bytes of it.
    pub fn drop_subclusters(&mut self, offset: GuestOffset, len: u64) -> Step<u64> {
        let geometry = self.geometry;
        let dropped = self.change_subclusters(offset, len, |old, _| {
            let has_storage = matches!(
                geometry.cluster(old.word),
                Cluster::Normal(_) | Cluster::Compressed
            );
            let storage = if has_storage {
                Storage::Freed
            } else {
                Storage::Stays
            };
            Ok((Extended::default(), storage))
        })?;
        Ok(dropped.len)
    }

    /// Changes the entries of a range as far as one slice has them. `change` is told which of an entry's subclusters the range
    /// touches, and answers for the entry.
    fn change_subclusters(
        &mut self,
        offset: GuestOffset,
        len: u64,
        change: impl Fn(Extended, u32) -> Step<Change>,
    ) -> Step<Changed> {
        let geometry = self.geometry;
        let wanted = offset.clusters(len, &geometry);
        let count = self.before_in_flight(offset.cluster(&geometry), wanted)?;
        let key = self.writable_slice(offset)?;
        self.slice(key)?;
        self.check_pressure()?;
        let index = geometry.slice_index(offset);
        let count = count.min((geometry.slice_entries() - index) as u64);
        let (start, end) = (offset.cluster_start(&geometry), offset + len);
        let mut changed = Changed::tables(end.min(start + geometry.bytes(count)) - offset);
        for n in 0..count {
            let (at, cluster) = (index + n as usize, start + geometry.bytes(n));
            let old = Extended::of(self.slice(key)?, at);
            let kind = self.checked_cluster(old.word, key, at)?;
            self.check_in_data_file(kind, cluster)?;
            let host = match kind {
                Cluster::Normal(host) => Some(host),
                _ => None,
            };
            if kind != Cluster::Compressed && !is_sound(old, host) {
                return Err(self.invalid_entry(key, at, ""));
            }
            let (new, storage) = change(old, geometry.touched(cluster, offset, end))?;
            if new != old {
                self.set_extended(key, at, new);
                match storage {
                    Storage::Stays => {}
                    Storage::Freed if geometry.external => {
                        self.note_emptied(old.word, &mut changed.emptied);
                    }
                    Storage::Freed => self.drop_cluster(old.word, FreeReason::Request),
                    Storage::Emptied => self.note_emptied(old.word, &mut changed.emptied),
                }
            }
        }
        Ok(changed)
    }
}
