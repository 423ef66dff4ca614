//! Zero writes and discards of whole clusters.

use messages::{DebugEvent, IoError, IoResult, RequestFlags};

use super::Qcow2;
use super::entry::{COPIED, Cluster, ZERO, cluster};
use super::state::{FreeReason, State, Stop, Try};

/// What becomes of an L2 entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Change {
    entry: u64,
    /// The old entry's clusters lose a reference.
    freed: bool,
}

impl State {
    /// Makes the start of a range of whole clusters read as zeroes; answers how many bytes of it.
    fn zero_some(&mut self, offset: u64, len: u64, flags: RequestFlags) -> Try<u64> {
        self.check_writable()?;
        let len = self.whole_clusters(offset, len)?;
        if self.geometry.version < 3 {
            return Err(Stop::Fail(IoError::NotSupported));
        }
        let unmap = flags.contains(RequestFlags::MAY_UNMAP);
        self.change_some(offset, len, FreeReason::Request, |entry| match cluster(entry) {
            Cluster::ZeroPlain => None,
            Cluster::Unallocated => Some(Change {
                entry: ZERO,
                freed: false,
            }),
            Cluster::Compressed => Some(Change {
                entry: ZERO,
                freed: true,
            }),
            Cluster::Normal(_) | Cluster::ZeroAllocated(_) if unmap && entry & COPIED != 0 => Some(Change {
                entry: ZERO,
                freed: true,
            }),
            Cluster::ZeroAllocated(_) => None,
            Cluster::Normal(_) => Some(Change {
                entry: entry | ZERO,
                freed: false,
            }),
        })
    }

    /// Forgets the start of a range of whole clusters; answers how many bytes of it.
    fn discard_some(&mut self, offset: u64, len: u64, backing: bool) -> Try<u64> {
        self.check_writable()?;
        let len = self.whole_clusters(offset, len)?;
        let v3 = self.geometry.version >= 3;
        if !v3 && backing {
            // What the backing file holds would come to light.
            return Err(Stop::Fail(IoError::NotSupported));
        }
        if self.slice_key(offset)?.is_none() && !backing {
            return Ok(self.to_table_end(offset, len));
        }
        let keep = self.settings.discard_no_unref;
        let empty = if v3 { ZERO } else { 0 };
        self.change_some(offset, len, FreeReason::Request, |entry| match cluster(entry) {
            Cluster::ZeroPlain => None,
            Cluster::Unallocated => backing.then_some(Change {
                entry: empty,
                freed: false,
            }),
            Cluster::Normal(_) | Cluster::ZeroAllocated(_) if keep => (entry & ZERO == 0).then_some(Change {
                entry: entry | ZERO,
                freed: false,
            }),
            Cluster::Normal(_) | Cluster::ZeroAllocated(_) | Cluster::Compressed => Some(Change {
                entry: empty,
                freed: true,
            }),
        })
    }

    /// Drops the start of a range that is no longer part of the disk; answers how many bytes of it.
    pub fn drop_some(&mut self, offset: u64, len: u64) -> Try<u64> {
        if self.slice_key(offset)?.is_none() {
            return Ok(self.to_table_end(offset, len));
        }
        self.change_some(offset, len, FreeReason::Request, |entry| match cluster(entry) {
            Cluster::Unallocated => None,
            Cluster::ZeroPlain => Some(Change {
                entry: 0,
                freed: false,
            }),
            _ => Some(Change {
                entry: 0,
                freed: true,
            }),
        })
    }

    fn to_table_end(&self, offset: u64, len: u64) -> u64 {
        let span = 1_u64 << self.geometry.l2_span_bits();
        len.min(span - (offset & (span - 1)))
    }

    /// The length of a range in bytes, widened to a cluster's end where the disk ends in it.
    fn whole_clusters(&self, offset: u64, len: u64) -> Try<u64> {
        let rest = self.geometry.in_cluster(offset + len);
        if self.geometry.in_cluster(offset) != 0 || (rest != 0 && offset + len != self.header.size) {
            return Err(Stop::Fail(IoError::NotSupported));
        }
        Ok(if rest == 0 {
            len
        } else {
            len + self.geometry.cluster_size() - rest
        })
    }

    /// Changes the entries of a range as far as one slice has them.
    fn change_some(
        &mut self,
        offset: u64,
        len: u64,
        reason: FreeReason,
        change: impl Fn(u64) -> Option<Change>,
    ) -> Try<u64> {
        let bits = self.geometry.cluster_bits;
        let count = self.before_in_flight(offset >> bits, len >> bits)?;
        let key = self.writable_slice(offset)?;
        self.slice(key)?;
        self.check_pressure()?;
        let index = self.geometry.slice_index(offset);
        let count = count.min((self.geometry.slice_entries() - index) as u64);
        for at in index..index + count as usize {
            let old = self.slice(key)?.get(at).copied().unwrap_or(0);
            self.checked_cluster(old, key, at)?;
            if let Some(Change { entry, freed }) = change(old) {
                self.set_entry(key, at, entry);
                if freed {
                    self.drop_cluster(old, reason);
                }
            }
        }
        Ok(count << bits)
    }
}

impl Qcow2 {
    /// Makes a range read as zeroes. Only whole clusters can.
    pub(super) async fn zero(&self, mut offset: u64, len: u64, flags: RequestFlags) -> IoResult<()> {
        let end = offset + len;
        while offset < end {
            offset += self
                .run(move |state| state.zero_some(offset, end - offset, flags))
                .await?;
        }
        Ok(())
    }

    /// Forgets everything. Whatever the version, nothing is left that hides the backing file.
    pub(super) async fn empty(&self) -> IoResult<()> {
        let end = {
            let state = self.state.borrow();
            let cluster = state.geometry.cluster_size();
            state.header.size.div_ceil(cluster).saturating_mul(cluster)
        };
        self.file.debug_event(DebugEvent::EmptyImagePrepare).await;
        let mut offset = 0;
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
    pub(super) async fn forget(&self, mut offset: u64, len: u64) -> IoResult<()> {
        let end = offset + len;
        while offset < end {
            let backing = self.backing.is_connected();
            offset += self
                .run(move |state| state.discard_some(offset, end - offset, backing))
                .await?;
        }
        Ok(())
    }
}
