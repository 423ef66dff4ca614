//! The snapshot table itself in a check: what is beyond its limits, and entries that miss a part.

use millpond_messages::{FINDINGS, IoResult, Repair, Result};

use super::check::Check;
use crate::format::qcow2::image::Qcow2;
use crate::format::qcow2::snapshot::table;

impl Qcow2 {
    /// Counts the faults of the snapshot table. One that could not be read when the image was opened is read now, if it can be.
    pub(super) async fn check_snapshot_table(&self, repair: Repair) -> Result<u64> {
        let mut faults = 0;
        let (is_known, header) = {
            let state = self.state.borrow();
            (state.knows_snapshots, state.header.clone())
        };
        if !is_known {
            let table = table::read(&self.file, &header, repair.errors).await;
            let table = table.map_err(|error| error.within("Failed to read the snapshot table"))?;
            if table.cut > 0 {
                tracing::warn!(
                    target: FINDINGS,
                    "Repairing {} entries of the snapshot table, which is too large",
                    table.cut
                );
            }
            faults += table.cut;
            let mut state = self.state.borrow_mut();
            state.learn_snapshots(table);
            state.mark_again();
        }
        if header.version < 3 {
            return Ok(faults);
        }
        let state = self.state.borrow();
        let incomplete = state.snapshots.iter().zip(0_u64..);
        for (_, index) in incomplete.filter(|(snapshot, _)| snapshot.is_incomplete) {
            let action = if repair.errors { "Repairing" } else { "ERROR" };
            tracing::warn!(target: FINDINGS, "{action} snapshot table entry {index} is incomplete");
            faults += 1;
        }
        Ok(faults)
    }
}

impl Check<'_> {
    /// Writes the snapshot table anew where something was wrong with it.
    pub(super) async fn mend_snapshot_table(&mut self) -> IoResult<()> {
        if self.table_faults > 0 && self.repair.errors {
            let snapshots = self.image.state.borrow().snapshots.clone();
            self.image.store_snapshots(snapshots).await?;
            self.result.corruptions_fixed += self.table_faults;
        } else {
            self.result.corruptions += self.table_faults;
        }
        Ok(())
    }
}
