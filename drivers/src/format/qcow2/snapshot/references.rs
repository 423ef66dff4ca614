//! References from L1 tables on: counted up, given up, and the flags that follow from the counts.

use millpond_messages::IoError;
use millpond_messages::IoResult;

use crate::format::qcow2::image::Qcow2;
use crate::format::qcow2::layout::bytes::{Hex, table_from_be, table_to_be};
use crate::format::qcow2::layout::entry::{COPIED, Cluster, compressed, l2_table};
use crate::format::qcow2::layout::geometry::Geometry;
use crate::format::qcow2::layout::index::SliceKey;
use crate::format::qcow2::layout::space::{HostCluster, HostOffset};
use crate::format::qcow2::state::{Blocked, FreeReason, State};
use crate::format::qcow2::wait::Key;

/// Rows of clusters that are given up, beyond which they are written back.
const MAX_FREES: usize = 4096;

/// Clusters that follow each other in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Row {
    first: HostCluster,
    count: u64,
}

/// What an L2 table refers to, each reference once, and the table itself. What is in a data file is not counted.
fn rows(geometry: &Geometry, table: HostOffset, entries: &[u64]) -> Result<Vec<Row>, String> {
    let mut rows = vec![Row {
        first: table.cluster(geometry),
        count: 1,
    }];
    for (&entry, index) in entries.iter().step_by(geometry.entry_words()).zip(0_u64..) {
        let (first, count) = match geometry.cluster(entry) {
            Cluster::Unallocated | Cluster::ZeroPlain => continue,
            _ if geometry.external => continue,
            Cluster::Normal(host) | Cluster::ZeroAllocated(host) if !host.is_aligned(geometry) => {
                return Err(format!(
                    "Cluster allocation offset {host:#x} unaligned (L2 offset: {table:#x}, L2 index: {})",
                    Hex(index)
                ));
            }
            Cluster::Normal(host) | Cluster::ZeroAllocated(host) => (host.cluster(geometry), 1),
            Cluster::Compressed => {
                let place = compressed(geometry, entry);
                let first = place.offset.cluster(geometry);
                (first, place.offset.clusters(place.len, geometry))
            }
        };
        match rows.last_mut() {
            Some(last) if last.first + last.count == first => last.count += count,
            _ => rows.push(Row { first, count }),
        }
    }
    Ok(rows)
}

/// The cluster that an L2 entry has for itself, if it can be one.
fn aligned(geometry: &Geometry, entry: u64) -> Option<HostOffset> {
    match geometry.cluster(entry) {
        Cluster::Normal(host) | Cluster::ZeroAllocated(host) => {
            Some(host).filter(|host| host.is_aligned(geometry))
        }
        Cluster::Unallocated | Cluster::ZeroPlain | Cluster::Compressed => None,
    }
}

impl Qcow2 {
    /// Reads an L2 table from the file, which has all that changed.
    pub(crate) async fn read_l2_table(&self, offset: HostOffset) -> IoResult<Vec<u64>> {
        let size = self.state.borrow().geometry.cluster_size() as usize;
        let bytes = self.file.read_vec(offset, size).await?;
        Ok(table_from_be(&bytes.into_single()))
    }

    /// Counts each reference of an L1 table once more.
    ///
    /// # Errors
    /// A count cannot be higher, or the tables cannot be read. Some are counted then.
    pub(super) async fn raise_references(&self, l1: &[u64]) -> IoResult<()> {
        for (&entry, index) in l1.iter().zip(0_u64..) {
            for row in self.rows_of(entry, index).await? {
                self.raise_row(row).await?;
            }
        }
        Ok(())
    }

    async fn raise_row(&self, mut row: Row) -> IoResult<()> {
        let max = self.state.borrow().geometry.refcount_max();
        while row.count > 0 {
            {
                let _held = self.waits.hold(Key::Writeback).await;
                self.relieve_refblocks().await?;
            }
            let Row { first, count } = row;
            let (refcount, same) = self.run(move |state| state.same_refcounts(first, count)).await?;
            match refcount {
                0 => {
                    let offset = first.offset(&self.state.borrow().geometry);
                    let text = format!("Cluster at {offset:#x} is in use and has a refcount of 0");
                    return self.satisfy(Blocked::Corrupt(text.into())).await;
                }
                full if full >= max => return Err(IoError::Invalid),
                _ => {}
            }
            self.run(move |state| state.set_refcounts(first, same, refcount + 1))
                .await?;
            row = Row {
                first: first + same,
                count: count - same,
            };
        }
        Ok(())
    }

    /// Gives up each reference of an L1 table, which nothing in the file leads to any more.
    pub(super) async fn lower_references(&self, l1: &[u64]) -> IoResult<()> {
        for (&entry, index) in l1.iter().zip(0_u64..) {
            for Row { first, count } in self.rows_of(entry, index).await? {
                self.state
                    .borrow_mut()
                    .free_later(first, count, FreeReason::Snapshot);
                if self.state.borrow().frees.len() > MAX_FREES {
                    self.write_back(true).await?;
                }
            }
        }
        self.write_back_all().await
    }

    /// Writes back all that changed. References that are given up by a first round lower counts, which a second one writes.
    pub(super) async fn write_back_all(&self) -> IoResult<()> {
        self.write_back(true).await?;
        self.write_back(true).await?;
        self.file.flush().await
    }

    /// What one entry of an L1 table refers to.
    async fn rows_of(&self, entry: u64, index: u64) -> IoResult<Vec<Row>> {
        let Some(table) = l2_table(entry) else {
            return Ok(Vec::new());
        };
        let geometry = self.state.borrow().geometry;
        let found = if table.is_aligned(&geometry) {
            rows(&geometry, table, &self.read_l2_table(table).await?)
        } else {
            let index = Hex(index);
            Err(format!(
                "L2 table offset {table:#x} unaligned (L1 index: {index})"
            ))
        };
        match found {
            Ok(rows) => Ok(rows),
            Err(text) => {
                self.satisfy(Blocked::Corrupt(text.into())).await?;
                Err(IoError::Corrupt)
            }
        }
    }

    /// Brings the flags of an L1 table's tables in line with the counts, in the file. Answers the L1 table with the flags
    /// that it should have.
    pub(super) async fn refresh_copied(&self, l1: &[u64]) -> IoResult<Vec<u64>> {
        let mut refreshed = Vec::with_capacity(l1.len());
        for &entry in l1 {
            let Some(table) = l2_table(entry) else {
                refreshed.push(entry);
                continue;
            };
            self.refresh_table_copied(table, |_, _| true).await?;
            let copied = if self.is_referenced_once(table).await? {
                COPIED
            } else {
                0
            };
            refreshed.push(entry & !COPIED | copied);
        }
        Ok(refreshed)
    }

    /// Brings the flags of an L2 table in the file in line with the counts, where `wanted` says so of the entry.
    pub(crate) async fn refresh_table_copied(
        &self,
        table: HostOffset,
        mut wanted: impl FnMut(u64, u64) -> bool,
    ) -> IoResult<()> {
        let geometry = self.state.borrow().geometry;
        let mut entries = self.read_l2_table(table).await?;
        let (mut at, mut changed) = (0, false);
        // One step for all entries, which goes on with the one that it had to wait for a refcount block for.
        let step = |state: &mut State| {
            let mut refcounts = state.refcounts();
            while let Some(entry) = entries.get_mut(at) {
                if let Some(host) = aligned(&geometry, *entry) {
                    // Nothing shares a data file's clusters.
                    let refcount = match geometry.external {
                        true => 1,
                        false => refcounts.of(host.cluster(&geometry))?,
                    };
                    if (*entry & COPIED != 0) != (refcount == 1) && wanted(*entry, refcount) {
                        *entry ^= COPIED;
                        changed = true;
                    }
                }
                at += geometry.entry_words();
            }
            Ok(())
        };
        self.run(step).await?;
        if changed {
            self.rewrite_l2_table(table, &entries).await?;
        }
        Ok(())
    }

    /// Writes an L2 table to the file, in place of what it says there and in memory.
    pub(crate) async fn rewrite_l2_table(&self, table: HostOffset, entries: &[u64]) -> IoResult<()> {
        self.file.write(table, table_to_be(entries).into()).await?;
        let mut state = self.state.borrow_mut();
        let geometry = state.geometry;
        SliceKey::all(&geometry, table).for_each(|slice| state.l2.remove(slice.offset()));
        Ok(())
    }

    /// Whether only one thing refers to the cluster at `offset`.
    pub(crate) async fn is_referenced_once(&self, offset: HostOffset) -> IoResult<bool> {
        Ok(self.refcount_at(offset).await? == 1)
    }

    /// How many things refer to the cluster at `offset`, by its refcount.
    pub(crate) async fn refcount_at(&self, offset: HostOffset) -> IoResult<u64> {
        let cluster = offset.cluster(&self.state.borrow().geometry);
        self.run(move |state| state.refcount(cluster)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_follows_in_the_file_is_one_row() {
        let geometry = Geometry::new(16, 4, 4096, 3);
        let table = HostOffset::new(5 << 16);
        let compressed = (1 << 62) | (9 << 16);
        let entries = [
            0,
            1,
            COPIED | 6 << 16,
            7 << 16 | 1,
            9 << 16,
            compressed,
            compressed,
        ];
        let found = rows(&geometry, table, &entries).unwrap();
        let found: Vec<_> = found.iter().map(|row| (row.first.get(), row.count)).collect();
        assert_eq!(found, [(5, 3), (9, 1), (9, 1), (9, 1)]);
        let text = rows(&geometry, table, &[0, 0x8200]).unwrap_err();
        assert_eq!(
            text,
            "Cluster allocation offset 0x8200 unaligned (L2 offset: 0x50000, L2 index: 0x1)"
        );
    }
}
