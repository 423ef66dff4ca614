//! Whether an image's maker allocated clusters without writing them, so that the file may know zeroes that the tables call
//! data.

use millpond_messages::IoResult;

use crate::format::qcow2::image::Qcow2;

impl Qcow2 {
    /// Finds out by comparing the clusters in use with what the file takes on its host.
    pub(crate) async fn detect_preallocation(&self) -> IoResult<()> {
        let found = self.is_preallocated().await;
        self.state.borrow_mut().preallocated = Some(found);
        Ok(())
    }

    async fn is_preallocated(&self) -> bool {
        let Ok(taken) = self.file.allocated_size().await else {
            return false;
        };
        let Ok(end) = self.file.end().await else {
            return false;
        };
        let (geometry, blocks) = {
            let state = self.state.borrow();
            (state.geometry, state.reftable.len() as u64)
        };
        let real = taken >> geometry.cluster_bits;
        // A tenth more, or two, may be due to the host's own blocks.
        let threshold = (real + real / 9).max(real + 2);
        // There are no more clusters in use than the file has: most files need no look at their refcounts.
        if geometry.clusters(end.get()) < threshold {
            return false;
        }
        let mut used = 0;
        for block in 0..blocks {
            match self.run(move |state| state.used_in_block(block)).await {
                Ok(more) => used += more,
                Err(_) => return false,
            }
            if used >= threshold {
                return true;
            }
        }
        false
    }
}
