//! Changes of an export's length, and of the space that its ranges have.

use millpond_messages::graph::SetRootPermissions;
use millpond_messages::io::{Operation, Preallocation};
use millpond_messages::{Permissions, Range, RequestFlags};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::answer::{Session, code, told};
use super::wire::Fallocate;

/// Bytes of a range that are made zero in one request.
const STEP: u64 = 1 << 30;

impl Session {
    /// Changes the length of the node.
    pub(super) async fn set_length(&self, size: u64) -> Result<(), Errno> {
        let _alone = self.standing.lengths.lock().await;
        self.truncate(size, Preallocation::Off, RequestFlags::ZERO_WRITE)
            .await
    }

    /// Makes the node reach at least to `end`.
    pub(super) async fn grow(&self, end: u64) -> Result<(), Errno> {
        let _alone = self.standing.lengths.lock().await;
        if self.length().await? >= end {
            // Another write was as long.
            return Ok(());
        }
        self.truncate(end, Preallocation::Off, RequestFlags::ZERO_WRITE)
            .await
    }

    /// Changes the length. An export that does not grow by being written to asks for the permission for as long as this takes.
    async fn truncate(
        &self,
        size: u64,
        preallocation: Preallocation,
        flags: RequestFlags,
    ) -> Result<(), Errno> {
        let held = self.client.client().permissions();
        let lent = !held.contains(Permissions::RESIZE);
        if lent {
            self.permit(held | Permissions::RESIZE).await?;
        }
        let truncate = Operation::Truncate {
            size,
            exact: true,
            preallocation,
            flags,
        };
        let done = self.client.request(truncate).await.into_done();
        if lent && let Err(error) = self.permit(held).await {
            tracing::warn!(%error, "a FUSE export keeps the permission to change the length of its node");
        }
        done.map_err(told)
    }

    /// Has the graph change what the export may do with its node.
    async fn permit(&self, permissions: Permissions) -> Result<(), Errno> {
        let request = SetRootPermissions {
            root: self.client.client().root(),
            permissions,
            shared: Permissions::all(),
        };
        let permitted = self.graph.ask(request).await;
        permitted.map_err(|error| code(error.errno()))
    }

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
            return self.allocate(offset, end).await;
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
                self.grow(end).await?;
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

    /// Allocates behind the end, where it can be done by making the node longer.
    async fn allocate(&self, offset: u64, end: u64) -> Result<(), Errno> {
        let _alone = self.standing.lengths.lock().await;
        let length = self.length().await?;
        if offset < length {
            return Err(Errno::OPNOTSUPP);
        }
        if offset > length {
            self.truncate(offset, Preallocation::Off, RequestFlags::ZERO_WRITE)
                .await?;
        }
        self.truncate(end, Preallocation::Falloc, RequestFlags::ZERO_WRITE)
            .await
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
