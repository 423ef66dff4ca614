//! The second half of a check: comparing counts with refcounts and flags, and repairing what differs.

use millpond_messages::{CheckResult, FINDINGS, IoResult};

use super::check::Check;
use crate::format::qcow2::header::{CORRUPT, DIRTY};
use crate::format::qcow2::image::Qcow2;
use crate::format::qcow2::layout::entry::{COPIED, l2_table};
use crate::format::qcow2::layout::index::L1Index;
use crate::format::qcow2::layout::space::{HostCluster, HostOffset};
use crate::format::qcow2::state::{State, Step};
use crate::format::qcow2::wait::Key;

/// Differences between refcounts and the count: cluster, refcount, references.
type Differences = Vec<(HostCluster, u64, u64)>;

/// Clusters that are compared at once: their differences are all in memory.
const PIECE: u64 = 1 << 15;

impl State {
    /// Sets a refcount whatever it was.
    fn repair_refcount(&mut self, cluster: HostCluster, count: u64) -> Step<()> {
        self.refcount(cluster)?;
        self.set_refcounts(cluster, 1, count)
    }

    /// Adds the refcount block for a cluster, where it is missing, at `end` or behind.
    fn repair_block(&mut self, cluster: HostCluster, end: HostCluster) -> Step<()> {
        let (block, _) = self.geometry.refblock_of(cluster);
        if self.refblock_offset(block).is_none() {
            self.add_refblock(block, end)
        } else {
            Ok(())
        }
    }

    /// Takes out an entry of the refcount table that leads nowhere.
    fn forget_refblock(&mut self, block: u64) {
        if let Some(entry) = self.reftable.get_mut(block as usize) {
            *entry = 0;
            self.reftable_dirty.insert(block);
        }
    }
}

impl Check<'_> {
    /// Treats a refcount block that cannot be used as missing, if errors are repaired: all it counted is then counted anew.
    pub fn forget_block(&mut self, block: u64, fault: &str) {
        if self.repair.errors {
            tracing::warn!(target: FINDINGS, "Repairing refcount block {block}, which {fault}");
            self.result.corruptions_fixed += 1;
            self.image.state.borrow_mut().forget_refblock(block);
        } else {
            self.corruption(&format!("refcount block {block} {fault}"));
        }
    }

    /// Compares all refcounts. Where they are to be repaired, all that is wrong is told first, as QEMU does.
    pub async fn compare(&mut self) -> IoResult<()> {
        if self.repair.is_wanted() {
            let (repair, result) = (std::mem::take(&mut self.repair), self.result);
            let told = self.compare_all().await;
            self.repair = repair;
            self.result = result;
            told?;
        }
        self.compare_all().await
    }

    /// Compares all refcounts, a block at a time.
    async fn compare_all(&mut self) -> IoResult<()> {
        let geometry = self.geometry;
        let entries = geometry.refblock_entries();
        let counted = self.references.end.get().div_ceil(entries);
        let blocks = counted.max(self.image.state.borrow().reftable.len() as u64);
        let image = self.image;
        // What counts past the file's end takes no space.
        let end = self.references.end.max(self.file_end);
        for block in 0..blocks {
            if block >= counted && image.state.borrow().refblock_offset(block).is_none() {
                continue;
            }
            let usable = image.state.borrow().refblock_offset(block);
            if usable.is_some_and(|offset| !offset.is_aligned(&self.geometry)) {
                continue;
            }
            let first = geometry.refblock_start(block);
            let mut from = 0;
            while from < entries && first + from < end {
                let len = PIECE.min(entries - from);
                self.compare_row(first + from, len, end).await?;
                from += len;
            }
        }
        if self.repair.errors || self.repair.leaks {
            image.write_back(true).await?;
            image.write_back(true).await?;
        }
        Ok(())
    }

    /// Compares the refcounts of a row of clusters, which one block has, up to `end`.
    async fn compare_row(&mut self, first: HostCluster, len: u64, end: HostCluster) -> IoResult<()> {
        let (image, references) = (self.image, &self.references);
        let differences: Differences = image
            .run(move |state| {
                let (mut found, mut refcounts) = (Vec::new(), state.refcounts());
                for cluster in first.row(len).take_while(|cluster| *cluster < end) {
                    let (refcount, references) = (refcounts.of(cluster)?, references.get(cluster));
                    if refcount != references {
                        found.push((cluster, refcount, references));
                    }
                }
                Ok(found)
            })
            .await?;
        {
            let _held = image.waits.hold(Key::Writeback).await;
            image.relieve_refblocks().await?;
        }
        for (cluster, refcount, references) in differences {
            self.difference(cluster, refcount, references).await?;
        }
        Ok(())
    }

    async fn difference(&mut self, cluster: HostCluster, refcount: u64, references: u64) -> IoResult<()> {
        let most = self.geometry.refcount_max();
        if references > most {
            // No repair makes room for them.
            let at = cluster.offset(&self.geometry);
            self.corruption(&format!("overflow cluster offset={at:#x}"));
        }
        let references = references.min(most);
        if refcount == references {
            return Ok(());
        }
        let leak = refcount > references;
        if leak {
            self.leaked_end = self.leaked_end.max(cluster + 1);
        }
        let repairs = if leak {
            self.repair.leaks
        } else {
            self.repair.errors
        };
        let action = if repairs {
            "Repairing"
        } else if leak {
            "Leaked"
        } else {
            "ERROR"
        };
        tracing::warn!(
            target: FINDINGS,
            "{action} cluster {} refcount={refcount} reference={references}",
            cluster.get()
        );
        let result = &mut self.result;
        if !repairs {
            let kind = if leak {
                &mut result.leaks
            } else {
                &mut result.corruptions
            };
            *kind += 1;
            return Ok(());
        }
        let kind = if leak {
            &mut result.leaks_fixed
        } else {
            &mut result.corruptions_fixed
        };
        *kind += 1;
        let (block, _) = self.geometry.refblock_of(cluster);
        let missing = self.image.state.borrow().refblock_offset(block).is_none();
        if missing {
            self.add_block(cluster).await?;
        }
        self.image
            .run(move |state| state.repair_refcount(cluster, references))
            .await
    }

    /// Adds the refcount block that a cluster is to be counted in.
    async fn add_block(&mut self, cluster: HostCluster) -> IoResult<()> {
        let end = self.references.end;
        let before = self.image.state.borrow().reftable.clone();
        self.image
            .run(move |state| state.repair_block(cluster, end))
            .await?;
        // Blocks that were added are referred to like everything else.
        let now = self.image.state.borrow().reftable.clone();
        for (index, &entry) in now.iter().enumerate() {
            if before.get(index).copied().unwrap_or(0) != entry {
                self.references
                    .add(HostOffset::new(entry).cluster(&self.geometry))?;
            }
        }
        Ok(())
    }

    /// Compares the COPIED flags of the active tables with the refcounts.
    pub async fn check_copied(&mut self, l1: &[u64]) -> IoResult<()> {
        let CheckResult {
            corruptions, leaks, ..
        } = self.result;
        // As in QEMU: who repairs leaks has flags repaired that were wrong because of them.
        self.repairs_flags = self.repair.errors || (self.repair.leaks && corruptions == 0 && leaks == 0);
        for (&entry, index) in l1.iter().zip(0_u64..) {
            // What is unaligned was counted as an error already.
            let sound = |table: &HostOffset| table.is_aligned(&self.geometry);
            let Some(table) = l2_table(entry).filter(sound) else {
                continue;
            };
            let refcount = self.image.refcount_at(table).await?;
            if (entry & COPIED != 0) != (refcount == 1) {
                let fixed = self.copied_differs(&format!(
                    "OFLAG_COPIED L2 cluster: l1_index={index} l1_entry={entry:x} refcount={refcount}"
                ));
                if fixed {
                    self.image
                        .state
                        .borrow_mut()
                        .set_l1(L1Index(index), entry ^ COPIED);
                }
            }
            if table.cluster(&self.geometry) < self.file_end {
                self.check_table_copied(table).await?;
            }
        }
        if self.repairs_flags {
            self.image.write_back(true).await?;
        }
        Ok(())
    }

    async fn check_table_copied(&mut self, table: HostOffset) -> IoResult<()> {
        let image = self.image;
        let differs = |entry, refcount| {
            self.copied_differs(&format!(
                "OFLAG_COPIED data cluster: l2_entry={entry:x} refcount={refcount}"
            ))
        };
        image.refresh_table_copied(table, differs).await
    }

    /// Counts a wrong COPIED flag; answers whether the caller repairs it.
    fn copied_differs(&mut self, text: &str) -> bool {
        if self.repairs_flags {
            tracing::warn!(target: FINDINGS, "Repairing {text}");
            self.result.corruptions_fixed += 1;
        } else {
            self.corruption(text);
        }
        self.repairs_flags
    }
}

impl Qcow2 {
    /// What a full check with repair leaves clean needs no marks any more.
    pub(crate) async fn clear_marks(&self) -> IoResult<()> {
        self.file.flush().await?;
        let changed = {
            let mut state = self.state.borrow_mut();
            let marked = state.header.incompatible & (DIRTY | CORRUPT) != 0;
            state.header.incompatible &= !(DIRTY | CORRUPT);
            marked
        };
        if changed {
            self.store_features().await?;
        }
        Ok(())
    }
}
