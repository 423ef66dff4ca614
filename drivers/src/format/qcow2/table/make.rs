//! L2 tables of the image's own: made where there is none, copied where a snapshot shares it.

use millpond_messages::{DebugEvent, IoError, IoResult, RequestFlags};

use crate::format::qcow2::image::Qcow2;
use crate::format::qcow2::layout::entry::{COPIED, L1_OFFSET};
use crate::format::qcow2::layout::index::{L1Index, SliceKey};
use crate::format::qcow2::state::{FreeReason, State, Step};
use crate::format::qcow2::wait::Key;
use millpond_ring::buffer::Buffers;

impl State {
    /// Allocates a cluster for an L2 table: its offset.
    fn allocate_table(&mut self) -> Step<u64> {
        self.check_pressure()?;
        let (cluster, _) = self.allocate(1)?;
        let offset = cluster << self.geometry.cluster_bits;
        self.file_end = self.file_end.max(offset + self.geometry.cluster_size());
        Ok(offset)
    }

    /// Puts a table that is in the file in place of what an L1 entry had.
    fn install_table(&mut self, index: L1Index, offset: u64) {
        let bits = self.geometry.cluster_bits;
        let old = index.entry(&self.l1).unwrap_or(0) & L1_OFFSET;
        // Slices of a table that was here in an earlier life of the cluster.
        SliceKey::all(&self.geometry, offset).for_each(|slice| self.l2.remove(slice.0));
        self.set_l1(index, offset | COPIED);
        self.mark_range(offset, self.geometry.cluster_size());
        if old != 0 {
            self.free_later(old >> bits, 1, FreeReason::Other);
            self.metadata.remove(old >> bits, 1);
        }
    }
}

impl Qcow2 {
    /// Makes a table that may be changed for an L1 entry. It is in the file before any entry names it.
    pub(crate) async fn make_table(&self, index: L1Index) -> IoResult<()> {
        let Some(_held) = self.waits.try_hold(Key::Table(index)) else {
            self.waits.wait(Key::Table(index)).await;
            return Ok(());
        };
        let (old, size) = {
            let state = self.state.borrow();
            let entry = index.entry(&state.l1).ok_or(IoError::OutOfRange)?;
            (entry, state.geometry.cluster_size() as usize)
        };
        let table = self.run(move |state| state.l2_table(index)).await?;
        if table.is_some() && old & COPIED != 0 {
            return Ok(());
        }
        self.file.debug_event(DebugEvent::ClusterAlloc).await;
        let offset = self.run(State::allocate_table).await?;
        let contents = match table {
            Some(table) => {
                self.file.debug_event(DebugEvent::L2AllocCowRead).await;
                self.file.read_vec(table, size).await
            }
            None => Ok(Buffers::zeroed(size)),
        };
        self.file.debug_event(DebugEvent::ClusterAlloc).await;
        self.file.debug_event(DebugEvent::L2AllocWrite).await;
        let written = match contents {
            Ok(contents) => self.file.write(offset, contents, RequestFlags::empty()).await.0,
            Err(error) => Err(error),
        };
        if let Err(error) = written {
            self.run(move |state| state.set_refcounts(offset >> state.geometry.cluster_bits, 1, 0))
                .await?;
            return Err(error);
        }
        self.state.borrow_mut().install_table(index, offset);
        Ok(())
    }
}
