//! Changes of the space that an export's ranges have.

use millpond_messages::{Range, RequestFlags};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::answer::Session;
use super::lengths::Change;
use super::reply::told;
use super::wire::Fallocate;

/// Bytes of a range that are made zero in one request.
const STEP: u64 = 1 << 30;

impl Session {
    /// Changes the space that a range has, as `fallocate(2)` does.
    pub(super) async fn fallocate(&self, change: Fallocate) -> Result<(), Errno> {
        if !self.standing.rules().writable {
            return Err(Errno::ACCESS);
        }
        let Fallocate { offset, len, mode } = change;
        let mode = FallocateFlags::from_bits_retain(mode);
        let end = offset.checked_add(len).ok_or(Errno::FBIG)?;
        let keeps_size = mode.contains(FallocateFlags::KEEP_SIZE);
        if mode.is_empty() {
            return self
                .standing
                .lengths
                .change(Change::Allocate { offset, end })
                .await;
        }
        if mode.contains(FallocateFlags::PUNCH_HOLE) {
            if !keeps_size {
                return Err(Errno::INVAL);
            }
            let flags = RequestFlags::MAY_UNMAP | RequestFlags::NO_FALLBACK;
            let range = self.within(offset, end).await?;
            return self.zero(range, flags).await;
        }
        if !mode.contains(FallocateFlags::ZERO_RANGE) {
            return Err(Errno::OPNOTSUPP);
        }
        let range = match keeps_size {
            true => self.within(offset, end).await?,
            false => {
                self.standing.lengths.change(Change::Reach(end)).await?;
                Range::new(offset, len).map_err(|_| Errno::FBIG)?
            }
        };
        self.zero(range, RequestFlags::empty()).await
    }

    /// The part of a range that the node has.
    async fn within(&self, offset: u64, end: u64) -> Result<Range, Errno> {
        let end = end.min(self.length().await?);
        let len = end.checked_sub(offset).ok_or(Errno::IO)?;
        Range::new(offset, len).map_err(|_| Errno::FBIG)
    }

    /// Makes a range read as zeroes.
    async fn zero(&self, range: Range, flags: RequestFlags) -> Result<(), Errno> {
        let mut rest = range;
        while !rest.is_empty() {
            let step = rest.first(STEP);
            let zeroed = self.client.write_zeroes(step.offset(), step.len(), flags).await;
            zeroed.map_err(told)?;
            rest = rest.after(step.len());
        }
        Ok(())
    }
}
