//! Whether an image's maker allocated clusters without writing them, so that the file may know zeroes that the tables call
//! data.

use messages::IoResult;

use super::Qcow2;
use super::state::{State, Try};

impl State {
    /// How many clusters of a refcount block are in use.
    fn used_in_block(&self, block: u64) -> Try<u64> {
        if self.refblock_offset(block).is_none() {
            return Ok(0);
        }
        let first = block << self.geometry.refblock_bits();
        let mut used = 0;
        for cluster in first..first + self.geometry.refblock_entries() {
            used += u64::from(self.refcount(cluster)? != 0);
        }
        Ok(used)
    }
}

impl Qcow2 {
    /// Finds out by comparing the clusters in use with what the file takes on its host.
    pub(super) async fn detect_preallocation(&self) -> IoResult<()> {
        let found = self.is_preallocated().await;
        self.state.borrow_mut().preallocated = Some(found);
        Ok(())
    }

    async fn is_preallocated(&self) -> bool {
        let Ok(taken) = self.file.allocated_size().await else {
            return false;
        };
        let (bits, blocks) = {
            let state = self.state.borrow();
            (state.geometry.cluster_bits, state.reftable.len() as u64)
        };
        let real = taken >> bits;
        // A tenth more, or two, may be due to the host's own blocks.
        let threshold = (real + real / 9).max(real + 2);
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
