//! L2 tables of the image's own: made where there is none, copied where a snapshot shares it.

use millpond_messages::{DebugEvent, IoError, IoResult};

use crate::format::qcow2::image::Qcow2;
use crate::format::qcow2::layout::entry::{COPIED, l2_table, own};
use crate::format::qcow2::layout::index::{L1Index, SliceKey};
use crate::format::qcow2::layout::space::HostOffset;
use crate::format::qcow2::state::{FreeReason, State, Step};
use crate::format::qcow2::wait::Key;
use millpond_ring::buffer::Buffers;

impl State {
    /// Allocates a cluster for an L2 table, and answers where it is.
    fn allocate_table(&mut self) -> Step<HostOffset> {
        self.check_pressure()?;
        let (cluster, _) = self.allocate(1)?;
        let offset = cluster.offset(&self.geometry);
        self.file_end = self.file_end.max(offset + self.geometry.cluster_size());
        Ok(offset)
    }

    /// Puts a table that is in the file in place of what an L1 entry had.
    fn install_table(&mut self, index: L1Index, offset: HostOffset) {
        let old = l2_table(index.entry(&self.l1).unwrap_or(0));
        // Slices of a table that was here in an earlier life of the cluster.
        SliceKey::all(&self.geometry, offset).for_each(|slice| self.l2.remove(slice.offset()));
        self.set_l1(index, own(offset));
        self.mark_range(offset, self.geometry.cluster_size());
        if let Some(old) = old.map(|old| old.cluster(&self.geometry)) {
            self.free_later(old, 1, FreeReason::Other);
            self.metadata.remove(old, 1);
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
        self.file.raise(DebugEvent::ClusterAlloc).await;
        let offset = self.run(State::allocate_table).await?;
        let contents = match table {
            Some(table) => {
                self.file.raise(DebugEvent::L2AllocCowRead).await;
                self.file.read_vec(table, size).await
            }
            None => Ok(Buffers::zeroed(size)),
        };
        self.file.raise(DebugEvent::ClusterAlloc).await;
        self.file.raise(DebugEvent::L2AllocWrite).await;
        let written = match contents {
            Ok(contents) => self.file.write(offset, contents).await,
            Err(error) => Err(error),
        };
        if let Err(error) = written {
            self.run(move |state| state.set_refcounts(offset.cluster(&state.geometry), 1, 0))
                .await?;
            return Err(error);
        }
        self.state.borrow_mut().install_table(index, offset);
        Ok(())
    }
}
