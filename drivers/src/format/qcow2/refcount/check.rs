//! Checks: what refers to each cluster, against what the refcounts say.

use millpond_messages::{CheckResult, Error, FINDINGS, FragmentInfo, IoError, IoResult, Result};

use super::references::References;
use crate::api::Repair;
use crate::format::qcow2::bitmaps::listed::Bits;
use crate::format::qcow2::header::{
    AUTOCLEAR_BITMAP_LOG, AUTOCLEAR_BITMAPS, AUTOCLEAR_DATA_FILE_RAW, MAX_L1_BYTES,
};
use crate::format::qcow2::image::Qcow2;
use crate::format::qcow2::layout::entry::{
    COPIED, Cluster, L2_RESERVED, REFTABLE_RESERVED, ZERO, compressed, l2_table, refblock,
};
use crate::format::qcow2::layout::geometry::Geometry;
use crate::format::qcow2::layout::space::{GuestCluster, HostCluster, HostOffset};
use crate::format::qcow2::layout::subcluster::Extended;
use crate::format::qcow2::snapshot::table::Snapshot;

/// Bits of an L1 entry that must be zero.
const L1_RESERVED: u64 = 0x7f00_0000_0000_01ff;

/// A check in progress.
pub(crate) struct Check<'a> {
    pub image: &'a Qcow2,
    pub geometry: Geometry,
    pub references: References,
    pub result: CheckResult,
    pub repair: Repair,
    /// The bytes of the file. Less than a cluster may be missing there, as QEMU counts.
    pub file_len: HostOffset,
    /// One past the file's last cluster, which counts as whole.
    pub file_end: HostCluster,
    /// One past the last cluster that is counted though nothing refers to it: the image ends behind it too.
    pub leaked_end: HostCluster,
    /// What is wrong with the snapshot table itself, which is written anew once all else is right.
    pub table_faults: u64,
    /// COPIED flags are repaired.
    pub repairs_flags: bool,
    /// Where the next guest cluster of a table is expected if nothing is scattered, once there was one.
    next_contiguous: Option<HostOffset>,
}

impl Qcow2 {
    /// Checks the image and repairs the kinds of error that `repair` names.
    pub(crate) async fn check_image(&self, repair: Repair) -> Result<CheckResult> {
        let failed = |error: IoError| Error::io("Check failed", error);
        self.state.borrow().check_own_tables()?;
        let table_faults = self.check_snapshot_table(repair).await?;
        if self.state.borrow().writable {
            self.write_back(true).await.map_err(failed)?;
            self.write_back(true).await.map_err(failed)?;
        }
        let geometry = self.state.borrow().geometry;
        let end = self.file.end().await.map_err(failed)?;
        let mut check = Check {
            image: self,
            geometry,
            references: References::default(),
            result: CheckResult::default(),
            repair,
            file_len: end,
            file_end: end.round_up(&geometry).cluster(&geometry),
            leaked_end: HostCluster::default(),
            table_faults,
            repairs_flags: false,
            next_contiguous: None,
        };
        check.run().await.map_err(failed)?;
        let result = check.result;
        if repair.is_wanted() {
            // The disk's data, of which bitmaps tell, are what they were.
            let kept = AUTOCLEAR_BITMAPS | AUTOCLEAR_BITMAP_LOG | AUTOCLEAR_DATA_FILE_RAW;
            self.clear_unkept(kept).await.map_err(failed)?;
        }
        Ok(result)
    }
}

impl Check<'_> {
    async fn run(&mut self) -> IoResult<()> {
        let (size, l1, l1_offset, snapshots) = {
            let state = self.image.state.borrow();
            (
                state.header.size,
                state.l1.clone(),
                state.header.l1_offset,
                state.snapshots.clone(),
            )
        };
        self.result.fragments = FragmentInfo {
            total_clusters: self.geometry.clusters(size),
            ..Default::default()
        };
        self.count_range(HostOffset::default(), self.geometry.cluster_size())?;
        self.count_tables(&l1, l1_offset, true).await?;
        for snapshot in &snapshots {
            self.count_snapshot(snapshot).await?;
        }
        self.count_snapshot_table()?;
        self.count_crypto_header()?;
        self.count_bitmaps().await?;
        self.count_refcounts()?;
        self.compare().await?;
        self.check_copied(&l1).await?;
        self.mend_snapshot_table().await?;
        let end = self.references.end.max(self.leaked_end);
        self.result.image_end_offset = end.offset(&self.geometry).get();
        Ok(())
    }

    /// Takes note of an error that endangers data.
    pub fn corruption(&mut self, text: &str) {
        tracing::warn!(target: FINDINGS, "ERROR {text}");
        self.result.corruptions += 1;
    }

    /// Counts a reference to each cluster of a range; those that leave the file are errors.
    fn count_range(&mut self, start: HostOffset, len: u64) -> IoResult<()> {
        if len == 0 {
            return Ok(());
        }
        let first = start.cluster(&self.geometry);
        let last = start.saturating_add(len - 1).cluster(&self.geometry);
        let beyond = start.saturating_add(len).bytes_since(self.file_len);
        if beyond >= self.geometry.cluster_size() {
            tracing::warn!(
                target: FINDINGS,
                "ERROR: counting reference for region exceeding the end of the file by one cluster or more: \
                 offset {start:#x} size {len:#x}"
            );
            self.result.corruptions += 1;
            return Ok(());
        }
        first
            .row(last - first + 1)
            .try_for_each(|cluster| self.references.add(cluster))
    }

    /// Counts an L1 table, and all that its entries lead to.
    async fn count_tables(&mut self, l1: &[u64], offset: HostOffset, active: bool) -> IoResult<()> {
        self.count_range(offset, l1.len() as u64 * 8)?;
        let cluster_size = self.geometry.cluster_size();
        for (&entry, index) in l1.iter().zip(0_u64..) {
            if entry & L1_RESERVED != 0 {
                self.corruption(&format!("reserved bit set in L1 entry {index}: {entry:#x}"));
            }
            let Some(table) = l2_table(entry) else { continue };
            let before = self.result.corruptions;
            self.count_range(table, cluster_size)?;
            let is_within = self.result.corruptions == before;
            // Nothing is freed that the table may lead to.
            if !table.is_aligned(&self.geometry) {
                self.corruption(&format!(
                    "L2 table offset {table:#x}: Table is not cluster aligned; L1 entry corrupted"
                ));
            }
            if is_within {
                let first = GuestCluster::default() + (index << self.geometry.l2_bits());
                self.count_table(table, first, active).await?;
            }
        }
        Ok(())
    }

    /// Counts what an L2 table refers to, which maps the guest's clusters from `first` on.
    async fn count_table(&mut self, table: HostOffset, first: GuestCluster, active: bool) -> IoResult<()> {
        let mut entries = self.image.read_l2_table(table).await?;
        let mut mended = false;
        // What follows is expected within a table, as QEMU counts: tables themselves lie between.
        self.next_contiguous = None;
        let words = self.geometry.entry_words();
        for (words, n) in entries.chunks_exact_mut(words).zip(0..) {
            if let Some(entry) = words.first_mut() {
                mended |= self.mend_misplaced_zeroes(entry);
            }
            self.count_entry(words, first + n, active)?;
        }
        if mended {
            self.image.rewrite_l2_table(table, &entries).await?;
        }
        Ok(())
    }

    /// Zeroes whose reserved cluster cannot be where the entry says are zeroes all the same.
    fn mend_misplaced_zeroes(&mut self, entry: &mut u64) -> bool {
        let Cluster::ZeroAllocated(host) = self.geometry.cluster(*entry) else {
            return false;
        };
        if host.is_aligned(&self.geometry) || !self.repair.errors {
            return false;
        }
        tracing::warn!(
            target: FINDINGS,
            "Repairing a preallocated cluster at {host:#x}, which is not properly aligned"
        );
        self.result.corruptions_fixed += 1;
        *entry = ZERO;
        true
    }

    /// Counts a snapshot's tables and clusters.
    async fn count_snapshot(&mut self, snapshot: &Snapshot) -> IoResult<()> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let fault = match snapshot.l1_offset.is_aligned(&self.geometry) {
            false => format!(
                "l1_offset={:#x}: L1 table is not cluster aligned",
                snapshot.l1_offset
            ),
            true if u64::from(snapshot.l1_entries) * 8 > MAX_L1_BYTES => {
                format!("l1_size={:#x}: L1 table is too large", snapshot.l1_entries)
            }
            true => {
                let l1 = self.image.read_l1(snapshot).await?;
                return self.count_tables(&l1, snapshot.l1_offset, false).await;
            }
        };
        self.corruption(&format!(
            "snapshot {} ({}) {fault}; snapshot table entry corrupted",
            text(&snapshot.id),
            text(&snapshot.name)
        ));
        Ok(())
    }

    /// Counts what an entry refers to, that of the guest's cluster `guest` if it is in the active tables.
    fn count_entry(&mut self, words: &[u64], guest: GuestCluster, active: bool) -> IoResult<()> {
        let entry = words.first().copied().unwrap_or(0);
        let cluster_size = self.geometry.cluster_size();
        let fault = fault_of(&self.geometry, words, guest);
        if let Some(text) = &fault {
            self.corruption(text);
        }
        let kind = self.geometry.cluster(entry);
        if entry & L2_RESERVED != 0 && kind != Cluster::Compressed {
            self.corruption(&format!("found l2 entry with reserved bits set: {entry:x}"));
        }
        let (host, len, scattered) = match kind {
            Cluster::Unallocated | Cluster::ZeroPlain => return Ok(()),
            Cluster::Compressed => {
                if entry & COPIED != 0 {
                    self.corruption("copied flag must never be set for compressed clusters");
                }
                if fault.is_some() {
                    return Ok(());
                }
                self.result.fragments.compressed_clusters += u64::from(active);
                let place = compressed(&self.geometry, entry);
                (place.offset, place.len, true)
            }
            Cluster::Normal(host) | Cluster::ZeroAllocated(host) => {
                if !host.is_aligned(&self.geometry) {
                    self.corruption(&format!(
                        "offset={host:#x}: Cluster is not properly aligned; L2 entry corrupted."
                    ));
                }
                (
                    host,
                    cluster_size,
                    self.next_contiguous.is_some_and(|next| host != next),
                )
            }
        };
        if active {
            let fragments = &mut self.result.fragments;
            fragments.allocated_clusters += 1;
            fragments.fragmented_clusters += u64::from(scattered);
            self.next_contiguous = Some(host.saturating_add(len));
        }
        if self.geometry.external {
            return Ok(());
        }
        // What a compressed cluster's last sector has past the file's end is not missed.
        let end = self.file_end.offset(&self.geometry).bytes_since(host);
        let len = if kind == Cluster::Compressed && end > 0 {
            len.min(end)
        } else {
            len
        };
        self.count_range(host, len)
    }

    fn count_snapshot_table(&mut self) -> IoResult<()> {
        let (start, end) = {
            let state = self.image.state.borrow();
            (state.header.snapshots_offset, state.snapshots_end)
        };
        self.count_range(start, end.bytes_since(start))
    }

    fn count_crypto_header(&mut self) -> IoResult<()> {
        let place = self.image.state.borrow().header.extensions.crypto();
        place.map_or(Ok(()), |place| self.count_range(place.offset, place.len))
    }

    /// Counts the bitmap directory, the bitmaps' tables and their clusters, where they are valid.
    async fn count_bitmaps(&mut self) -> IoResult<()> {
        let directory = self.image.state.borrow().bitmap_directory();
        let Some(directory) = directory else { return Ok(()) };
        self.count_range(directory.offset, directory.size)?;
        let listed = match self.image.read_directory(directory).await? {
            // What belongs to bitmaps is not known, so nothing may be freed.
            Err(fault) => {
                tracing::warn!(target: FINDINGS, "ERROR {fault}");
                return Err(IoError::Invalid);
            }
            Ok(listed) => listed,
        };
        for listed in listed {
            self.count_range(listed.table, u64::from(listed.entries) * 8)?;
            for entry in self.image.read_bitmap_table(&listed).await? {
                match Bits::of(entry, &self.geometry) {
                    Some(Bits::Cluster(cluster)) => {
                        self.count_range(cluster, self.geometry.cluster_size())?;
                    }
                    Some(Bits::Zeroes | Bits::Ones) => {}
                    None => self.corruption(&format!("bitmap table entry {entry:#x} is impossible")),
                }
            }
        }
        Ok(())
    }

    /// Counts the refcount table and its blocks.
    fn count_refcounts(&mut self) -> IoResult<()> {
        let (offset, clusters, blocks) = {
            let state = self.image.state.borrow();
            (
                state.header.reftable_offset,
                u64::from(state.header.reftable_clusters),
                state.reftable.clone(),
            )
        };
        self.count_range(offset, self.geometry.bytes(clusters))?;
        for (&entry, index) in blocks.iter().zip(0_u64..) {
            let Some(block) = refblock(entry) else { continue };
            self.count_block(entry, block, index)?;
        }
        Ok(())
    }

    /// Counts a refcount block that can be used. One that shares its place cannot.
    fn count_block(&mut self, entry: u64, block: HostOffset, index: u64) -> IoResult<()> {
        let cluster = block.cluster(&self.geometry);
        if !block.is_aligned(&self.geometry) {
            self.forget_block(index, "is not cluster aligned; refcount table entry corrupted");
        } else if cluster >= self.file_end {
            self.forget_block(index, "is outside image");
        } else if entry & REFTABLE_RESERVED != 0 {
            self.forget_block(index, "has reserved bits set in its refcount table entry");
            // Whoever repairs only leaks does not take the block for one.
            if self.repair.leaks && !self.repair.errors {
                self.count_range(block, self.geometry.cluster_size())?;
            }
        } else {
            let others = self.references.get(cluster);
            if others > 0 {
                self.forget_block(index, &format!("refcount={}", others + 1));
            }
            if others == 0 || !self.repair.errors {
                self.count_range(block, self.geometry.cluster_size())?;
            }
        }
        Ok(())
    }
}

/// What contradicts itself in the entry of a guest's cluster, besides the place of its own cluster.
fn fault_of(geometry: &Geometry, words: &[u64], guest: GuestCluster) -> Option<String> {
    let entry = words.first().copied().unwrap_or(0);
    let index = guest.get() & ((1 << geometry.l2_bits()) - 1);
    let Extended { data, zero, .. } = if geometry.has_subclusters() {
        Extended::of(words, 0)
    } else {
        Extended::default()
    };
    let wanted = guest.offset(geometry).in_data_file();
    match geometry.cluster(entry) {
        Cluster::Unallocated | Cluster::ZeroPlain if data != 0 => {
            Some("Unallocated cluster has non-zero subcluster allocation map".to_owned())
        }
        Cluster::Compressed if geometry.external => Some(format!(
            "compressed cluster {index} with data file, entry={entry:#x}"
        )),
        Cluster::Compressed if data | zero != 0 => Some(format!(
            "compressed cluster {index} with non-zero subcluster allocation bitmap, entry={entry:#x}"
        )),
        Cluster::Normal(host) if data & zero != 0 => Some(format!(
            "offset={host:x}: Allocated cluster has corrupted subcluster allocation bitmap"
        )),
        Cluster::Normal(host) | Cluster::ZeroAllocated(host)
            if geometry.external && host.is_aligned(geometry) && host != wanted =>
        {
            Some(format!(
                "External data file host cluster offset {host:#x} does not match guest cluster offset: {wanted:#x}"
            ))
        }
        _ => None,
    }
}
