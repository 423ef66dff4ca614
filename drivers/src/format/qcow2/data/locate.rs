//! Where a guest range is: the look-up that every read starts with.

use millpond_messages::IoError;

use crate::api::{At, Extent, Purpose};
use crate::format::qcow2::layout::bytes::Hex;
use crate::format::qcow2::layout::entry::Cluster;
use crate::format::qcow2::layout::geometry::Geometry;
use crate::format::qcow2::layout::index::SliceKey;
use crate::format::qcow2::layout::space::{GuestOffset, HostOffset};
use crate::format::qcow2::state::{Blocked, Need, State, Step};

impl State {
    /// Where the bytes from `offset` are, for at most `len` bytes. Answers for as much as one look at the tables tells:
    /// up to the end of a slice, of the slices in memory that have nothing, or of all L1 entries without a table.
    pub fn locate(&self, purpose: Purpose, offset: GuestOffset, len: u64) -> Step<Extent> {
        self.check_usable()?;
        let Some(key) = self.slice_key(offset)? else {
            return Ok(Extent::new(self.without_table(offset, len), At::Unallocated));
        };
        if self.geometry.has_subclusters() {
            return self.locate_subclusters(purpose, key, offset, len);
        }
        let slice = self.slice(key)?;
        let index = self.geometry.slice_index(offset);
        let in_cluster = offset.in_cluster(&self.geometry);
        let wanted = offset.clusters(len, &self.geometry) as usize;
        let entries = slice.get(index..).unwrap_or_default();
        let entries = entries.get(..wanted).unwrap_or(entries);
        let Some(&first) = entries.first() else {
            return Err(Blocked::Fail(IoError::Corrupt));
        };
        let kind = self.checked_cluster(first, key, index)?;
        self.check_in_data_file(kind, offset)?;
        let count = self.run_length(purpose, kind, entries);
        let mut run = self.geometry.bytes(count as u64) - in_cluster;
        if kind == Cluster::Unallocated && index + count == slice.len() {
            run = self.unallocated_behind(key, run, len);
        }
        let len = len.min(run);
        let at = match kind {
            Cluster::Unallocated => At::Unallocated,
            Cluster::ZeroPlain => At::Zero { reserved: None },
            Cluster::ZeroAllocated(host) => At::Zero {
                reserved: Some((self.data_slot, (host + in_cluster).get())),
            },
            Cluster::Normal(host) => At::Child {
                slot: self.data_slot,
                offset: (host + in_cluster).get(),
            },
            Cluster::Compressed => At::Special,
        };
        let is_data = matches!(kind, Cluster::Normal(_));
        if is_data && self.preallocated.is_none() && purpose == (Purpose::Status { want_zero: true }) {
            return Err(Blocked::Need(Need::Preallocation));
        }
        let recurse = is_data && self.preallocated == Some(true);
        Ok(Extent { len, at, recurse })
    }

    /// Adds to `run`, the bytes that are unallocated up to the end of the slice at `key`, those that are in the slices behind it,
    /// as far as these are in memory: until there are `len` at least, or the table ends.
    fn unallocated_behind(&self, key: SliceKey, mut run: u64, len: u64) -> u64 {
        let mut behind = key.behind(&self.geometry);
        while run < len
            && let Some(slice) = behind.next().and_then(|next| self.l2.get(next.offset()))
        {
            let entries = slice.iter();
            let count = entries
                .take_while(|&&entry| self.geometry.cluster(entry) == Cluster::Unallocated)
                .count();
            run += self.geometry.bytes(count as u64);
            if count < slice.len() {
                break;
            }
        }
        run
    }

    /// How far from `offset` no L1 entry has a table, at most `len`.
    fn without_table(&self, offset: GuestOffset, len: u64) -> u64 {
        let span = 1_u64 << self.geometry.l2_span_bits();
        let mut covered = self.geometry.rest_of_table(offset);
        while covered < len && matches!(self.l2_table(self.geometry.l1_index(offset + covered)), Ok(None)) {
            covered = covered.saturating_add(span);
        }
        covered.min(len)
    }

    /// What an entry says, unless it says what cannot be.
    pub fn checked_cluster(&self, entry: u64, key: SliceKey, index: usize) -> Step<Cluster> {
        let kind = self.geometry.cluster(entry);
        let what = match kind {
            Cluster::Compressed if self.geometry.external => {
                "Compressed cluster entry found in image with external data file".to_owned()
            }
            Cluster::ZeroPlain | Cluster::ZeroAllocated(_) if self.geometry.version < 3 => {
                "Zero cluster entry found in pre-v3 image".to_owned()
            }
            Cluster::Normal(host) if !host.is_aligned(&self.geometry) => {
                format!("Cluster allocation offset {host:#x} unaligned")
            }
            Cluster::ZeroAllocated(host) if !host.is_aligned(&self.geometry) => {
                format!("Preallocated zero cluster offset {host:#x} unaligned")
            }
            _ => return Ok(kind),
        };
        let text = format!("{what} {}", self.entry_place(key, index));
        Err(Blocked::Corrupt(text.into()))
    }

    /// How messages to people name an entry of a slice.
    pub fn entry_place(&self, key: SliceKey, index: usize) -> String {
        let table = key.offset().cluster_start(&self.geometry);
        let at = Hex(((key.offset() - table) >> self.geometry.entry_bits) + index as u64);
        format!("(L2 offset: {table:#x}, L2 index: {at})")
    }

    /// Refuses a cluster of a data file that is not where the guest's is.
    #[inline]
    pub fn check_in_data_file(&self, kind: Cluster, offset: GuestOffset) -> Step<()> {
        match kind {
            Cluster::Normal(host) | Cluster::ZeroAllocated(host) if self.geometry.external => {
                self.check_same_place(host, offset)
            }
            _ => Ok(()),
        }
    }

    #[cold]
    fn check_same_place(&self, host: HostOffset, offset: GuestOffset) -> Step<()> {
        let (guest, index) = (
            offset.cluster_start(&self.geometry),
            self.geometry.slice_index(offset),
        );
        if host == guest.in_data_file() {
            return Ok(());
        }
        let (guest, index) = (Hex(guest.get()), Hex(index as u64));
        let text = format!(
            "External data file host cluster offset {host:#x} does not match guest cluster offset: {guest}, L2 index: {index})"
        );
        Err(Blocked::Corrupt(text.into()))
    }

    /// How many of `entries` go on as the first, a `kind`, began.
    fn run_length(&self, purpose: Purpose, kind: Cluster, entries: &[u64]) -> usize {
        let bytes = |count| self.geometry.bytes(count);
        match kind {
            Cluster::Unallocated => run(&self.geometry, entries, |_, other| other == Cluster::Unallocated),
            Cluster::ZeroPlain | Cluster::ZeroAllocated(_) if purpose == Purpose::Read => {
                run(&self.geometry, entries, |_, other| {
                    matches!(other, Cluster::ZeroPlain | Cluster::ZeroAllocated(_))
                })
            }
            Cluster::ZeroPlain => run(&self.geometry, entries, |_, other| other == Cluster::ZeroPlain),
            Cluster::ZeroAllocated(host) => run(&self.geometry, entries, |n, other| {
                other == Cluster::ZeroAllocated(host + bytes(n))
            }),
            Cluster::Normal(host) => run(&self.geometry, entries, |n, other| {
                other == Cluster::Normal(host + bytes(n))
            }),
            Cluster::Compressed => 1,
        }
    }
}

/// How many entries there are until one is not as `same` wants the `n`th to be; at least the first.
fn run(geometry: &Geometry, entries: &[u64], same: impl Fn(u64, Cluster) -> bool) -> usize {
    let rest = entries.iter().skip(1).zip(1_u64..);
    1 + rest
        .take_while(|&(&entry, n)| same(n, geometry.cluster(entry)))
        .count()
}
