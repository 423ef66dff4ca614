//! Checks: what refers to each cluster, against what the refcounts say.

use millpond_messages::{CheckResult, Error, FragmentInfo, IoError, IoResult, Result};

use super::references::References;
use crate::api::Repair;
use crate::format::qcow2::bitmaps::listed::Bits;
use crate::format::qcow2::header::MAX_L1_BYTES;
use crate::format::qcow2::image::Qcow2;
use crate::format::qcow2::layout::entry::{COPIED, Cluster, cluster, compressed, l2_table, refblock};
use crate::format::qcow2::layout::geometry::Geometry;
use crate::format::qcow2::layout::space::{HostCluster, HostOffset};
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
    /// One past the file's last cluster, which counts as whole.
    pub file_end: HostCluster,
    /// One past the last cluster that is counted though nothing refers to it: the image ends behind it too.
    pub leaked_end: HostCluster,
    /// Where the next guest cluster is expected if nothing is scattered, once there was one.
    next_contiguous: Option<HostOffset>,
}

impl Qcow2 {
    /// Checks the image and repairs the kinds of error that `repair` names.
    pub(crate) async fn check_image(&self, repair: Repair) -> Result<CheckResult> {
        let failed = |error: IoError| Error::io("Check failed", error);
        self.state.borrow().check_own_tables()?;
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
            file_end: end.round_up(&geometry).cluster(&geometry),
            leaked_end: HostCluster::default(),
            next_contiguous: None,
        };
        check.run().await.map_err(failed)?;
        Ok(check.result)
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
        let end = self.references.end.max(self.leaked_end);
        self.result.image_end_offset = end.offset(&self.geometry).get();
        Ok(())
    }

    /// Takes note of an error that endangers data.
    pub fn corruption(&mut self, text: &str) {
        tracing::warn!("qcow2 check: ERROR {text}");
        self.result.corruptions += 1;
    }

    /// Counts a reference to each cluster of a range; those that leave the file are errors.
    fn count_range(&mut self, start: HostOffset, len: u64) -> IoResult<()> {
        if len == 0 {
            return Ok(());
        }
        let first = start.cluster(&self.geometry);
        let last = start.saturating_add(len - 1).cluster(&self.geometry);
        if last >= self.file_end {
            let text = format!(
                "counting reference for region exceeding the end of the file by one cluster or more: offset {start:#x} \
                 size {len:#x}"
            );
            self.corruption(&text);
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
            if !table.is_aligned(&self.geometry) {
                self.corruption(&format!(
                    "L2 table offset {table:#x}: Table is not cluster aligned; L1 entry corrupted"
                ));
                continue;
            }
            let before = self.result.corruptions;
            self.count_range(table, cluster_size)?;
            if self.result.corruptions == before {
                let entries = self.image.read_l2_table(table).await?;
                for entry in entries {
                    self.count_entry(entry, active)?;
                }
            }
        }
        Ok(())
    }

    /// Counts a snapshot's tables and clusters.
    async fn count_snapshot(&mut self, snapshot: &Snapshot) -> IoResult<()> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let fault = match snapshot.l1_offset.is_aligned(&self.geometry) {
            false => "L1 table is not cluster aligned",
            true if u64::from(snapshot.l1_entries) * 8 > MAX_L1_BYTES => "L1 table is too large",
            true => {
                let l1 = self.image.read_l1(snapshot).await?;
                return self.count_tables(&l1, snapshot.l1_offset, false).await;
            }
        };
        self.corruption(&format!(
            "snapshot {} ({}) l1_offset={:#x}: {fault}; snapshot table entry corrupted",
            text(&snapshot.id),
            text(&snapshot.name),
            snapshot.l1_offset
        ));
        Ok(())
    }

    fn count_entry(&mut self, entry: u64, active: bool) -> IoResult<()> {
        let cluster_size = self.geometry.cluster_size();
        let (host, len, scattered) = match cluster(entry) {
            Cluster::Unallocated | Cluster::ZeroPlain => return Ok(()),
            Cluster::Compressed => {
                if entry & COPIED != 0 {
                    self.corruption("copied flag must never be set for compressed clusters");
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
                    return Ok(());
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
        // What a compressed cluster's last sector has past the file's end is not missed.
        let end = self.file_end.offset(&self.geometry).bytes_since(host);
        let len = if cluster(entry) == Cluster::Compressed && end > 0 {
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
            Err(fault) => {
                self.corruption(&fault.to_string());
                return Ok(());
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
            if !block.is_aligned(&self.geometry) {
                self.corruption(&format!(
                    "refcount block {index} is not cluster aligned; refcount table entry corrupted"
                ));
                self.forget_block(index);
                continue;
            }
            if block.cluster(&self.geometry) >= self.file_end {
                self.corruption(&format!("refcount block {index} is outside image"));
                self.forget_block(index);
                continue;
            }
            self.count_range(block, self.geometry.cluster_size())?;
        }
        Ok(())
    }
}
