//! The L2 tables of snapshots, which are kept from being overwritten if that is asked for.

use std::collections::HashSet;

use millpond_messages::{Error, IoError, Result};

use crate::format::qcow2::image::Qcow2;
use crate::format::qcow2::layout::entry::l2_table;
use crate::format::qcow2::layout::space::HostOffset;
use crate::format::qcow2::snapshot::table::Snapshot;
use crate::format::qcow2::table::overlap::{Guarded, Kind};

/// The most tables that are guarded: a crafted image must not make memory grow without end.
const MAX_TABLES: usize = 1 << 20;
/// The most bytes of L1 tables that are read to find them: of a crafted image's 65,536 snapshots each may have 32 MiB.
const MAX_READ: u64 = 256 << 20;

impl Qcow2 {
    /// Guards what is metadata now, as these switches want it.
    pub(crate) async fn guard_metadata(&self, guarded: Guarded) -> Result<()> {
        let tables = match guarded.has(Kind::InactiveL2) {
            true => self.inactive_tables().await,
            false => Ok(HashSet::new()),
        };
        let tables = tables.map_err(|error| Error::io("Could not read the L1 tables of snapshots", error))?;
        let mut state = self.state.borrow_mut();
        state.inactive_l2 = tables;
        state.mark_again();
        Ok(())
    }

    async fn inactive_tables(&self) -> Result<HashSet<HostOffset>, IoError> {
        let snapshots = {
            let state = self.state.borrow();
            let sound = |one: &&Snapshot| one.check_l1(&state.header).is_ok();
            let sound: Vec<Snapshot> = state.snapshots.iter().filter(sound).cloned().collect();
            sound
        };
        let mut tables = HashSet::new();
        let mut read = 0;
        for snapshot in &snapshots {
            read += u64::from(snapshot.l1_entries) * 8;
            if read > MAX_READ || tables.len() > MAX_TABLES {
                tracing::warn!(
                    "the L2 tables of some snapshots of '{}' are not guarded: there are too many",
                    self.file.name()
                );
                break;
            }
            let l1 = self.read_l1(snapshot).await?;
            tables.extend(l1.into_iter().filter_map(l2_table));
        }
        Ok(tables)
    }
}
