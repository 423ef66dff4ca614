//! Write-back of metadata that changed in memory, in the order that the module's head tells.

use std::collections::BTreeSet;
use std::future::ready;

use futures_util::stream::{self, StreamExt};
use millpond_messages::{DebugEvent, IoResult};

use super::cache::Piece;
use crate::format::qcow2::header::DIRTY;
use crate::format::qcow2::header::fields::{FEATURES, REFTABLE};
use crate::format::qcow2::image::Qcow2;
use crate::format::qcow2::layout::bytes::{store_be, table_to_be};
use crate::format::qcow2::layout::space::{HostCluster, HostOffset};
use crate::format::qcow2::state::{Free, FreeReason, State, Step};
use crate::format::qcow2::wait::Key;
use millpond_ring::buffer::{Buffer, Buffers};

/// Pieces of tables that adjoin are joined up to this many bytes.
const MAX_WRITE: usize = 1 << 20;
/// Pieces joined at the most: the kernel's bound is 1024 for one call.
const MAX_PIECES: usize = 512;
/// Writes in flight at once: enough to keep a disk busy without flooding it.
const PARALLEL: usize = 16;
/// Bytes of the L1 and refcount tables that are written together.
const CHUNK: u64 = 4096;

/// All that changed, as it was at one moment.
#[derive(Default)]
struct Batch {
    refblocks: Vec<Piece>,
    reftable: Vec<Piece>,
    reftable_entries: BTreeSet<u64>,
    slices: Vec<Piece>,
    l1: Vec<Piece>,
    l1_entries: BTreeSet<u64>,
    frees: Vec<Free>,
    barrier: bool,
}

/// Pieces that follow each other in the file.
struct Joined {
    offset: HostOffset,
    len: usize,
    buffers: Buffers,
}

/// Joins pieces, which are in the file's order, to as few writes as there can be.
fn join_pieces(pieces: Vec<Piece>) -> Vec<Joined> {
    let mut writes: Vec<Joined> = Vec::new();
    for Piece { offset, bytes } in pieces {
        let follows = |last: &&mut Joined| {
            last.offset.saturating_add(last.len as u64) == offset
                && last.len + bytes.len() <= MAX_WRITE
                && last.buffers.count() < MAX_PIECES
        };
        match writes.last_mut().filter(follows) {
            Some(last) => {
                last.len += bytes.len();
                last.buffers.push(bytes);
            }
            None => writes.push(Joined {
                offset,
                len: bytes.len(),
                buffers: bytes.into(),
            }),
        }
    }
    writes
}

/// A batch on its way to the file. Dropped before it got there, all of it is dirty again.
struct Writing<'a> {
    image: &'a Qcow2,
    batch: Option<Batch>,
}

impl Writing<'_> {
    /// The batch is in the file: what is left to do is to lower refcounts.
    fn finish(&mut self) -> Vec<Free> {
        let mut state = self.image.state.borrow_mut();
        state.refblocks.written(true);
        state.l2.written(true);
        self.batch.take().map(|batch| batch.frees).unwrap_or_default()
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        if let Some(batch) = self.batch.take() {
            let mut state = self.image.state.borrow_mut();
            state.refblocks.written(false);
            state.l2.written(false);
            state.restore(batch);
        }
    }
}

impl State {
    /// Takes what changed. `refcounts` are left where they may lag behind.
    fn batch(&mut self, refcounts: bool) -> Batch {
        let mut batch = Batch::default();
        if refcounts {
            batch.refblocks = self.refblocks.snapshot();
            batch.reftable_entries = std::mem::take(&mut self.reftable_dirty);
            batch.reftable = self.chunks(
                &self.reftable,
                self.header.reftable_offset,
                &batch.reftable_entries,
            );
        }
        batch.slices = self.l2.snapshot();
        batch.l1_entries = std::mem::take(&mut self.l1_dirty);
        batch.l1 = self.chunks(&self.l1, self.header.l1_offset, &batch.l1_entries);
        batch.frees = std::mem::take(&mut self.frees);
        // From here on their counts go down, in steps that no compressed write may come between.
        for free in &batch.frees {
            self.close_compressed(free.cluster, free.count);
        }
        batch.barrier = std::mem::take(&mut self.barrier);
        batch
    }

    /// The parts of a table that hold changed entries. A table's last cluster is all its own, so the part behind its last
    /// entry may be written too.
    fn chunks(&self, table: &[u64], offset: HostOffset, changed: &BTreeSet<u64>) -> Vec<Piece> {
        let entries = CHUNK.min(self.geometry.cluster_size()) / 8;
        let starts: BTreeSet<u64> = changed.iter().map(|index| index / entries * entries).collect();
        let piece = |start: u64| {
            let part = table.get(start as usize..).unwrap_or_default();
            let mut bytes = Buffer::zeroed(entries as usize * 8);
            store_be(part, &mut bytes);
            Piece {
                offset: offset + start * 8,
                bytes,
            }
        };
        starts.into_iter().map(piece).collect()
    }

    /// Takes back what could not be written.
    fn restore(&mut self, batch: Batch) {
        self.reftable_dirty.extend(batch.reftable_entries);
        self.l1_dirty.extend(batch.l1_entries);
        self.frees.splice(0..0, batch.frees);
        self.barrier |= batch.barrier;
    }

    /// The refcount of a cluster, and how many of `count` clusters from it on have the same, in the same block.
    pub fn same_refcounts(&self, cluster: HostCluster, most: u64) -> Step<(u64, u64)> {
        let count = self.refcount(cluster)?;
        let entries = self.geometry.refblock_entries();
        let in_block = entries - self.geometry.refblock_of(cluster).1 as u64;
        let mut same = 1;
        while same < most.min(in_block) && self.refcount(cluster + same)? == count {
            same += 1;
        }
        Ok((count, same))
    }

    fn passes_discard(&self, reason: FreeReason) -> bool {
        match reason {
            FreeReason::Request => self.settings.pass_discard_request,
            FreeReason::Shrink => true,
            FreeReason::Snapshot => self.settings.pass_discard_snapshot,
            FreeReason::Other => self.settings.pass_discard_other,
        }
    }
}

impl Qcow2 {
    /// Writes back what changed; with `everything`, also refcounts that might lag behind.
    pub(crate) async fn write_back(&self, everything: bool) -> IoResult<()> {
        let _held = self.waits.hold(Key::Writeback).await;
        self.write_back_held(everything).await
    }

    /// As [`Qcow2::write_back`], for who holds [`Key::Writeback`] already.
    pub(crate) async fn write_back_held(&self, everything: bool) -> IoResult<()> {
        self.mark_dirty_for_lazy_refcounts().await?;
        let refcounts = everything || !self.state.borrow().refcounts_lag();
        if refcounts {
            self.move_reftable().await?;
        }
        let mut writing = {
            let mut state = self.state.borrow_mut();
            let differs = state.is_dirty() || (refcounts && state.refcounts_dirty());
            if !differs {
                return Ok(());
            }
            Writing {
                image: self,
                batch: Some(state.batch(refcounts)),
            }
        };
        if let Some(batch) = &mut writing.batch {
            self.write_batch(batch).await?;
        }
        let frees = writing.finish();
        self.apply_frees(frees).await
    }

    /// Writes a batch's pieces, and leaves in it what is needed where that fails.
    async fn write_batch(&self, batch: &mut Batch) -> IoResult<()> {
        let [refblocks, reftable, slices, l1] = [
            &mut batch.refblocks,
            &mut batch.reftable,
            &mut batch.slices,
            &mut batch.l1,
        ]
        .map(std::mem::take);
        let counts = !refblocks.is_empty() || !reftable.is_empty();
        let references = !slices.is_empty() || !l1.is_empty();
        if !reftable.is_empty() {
            self.file.raise(DebugEvent::RefblockAlloc).await;
            self.file.raise(DebugEvent::RefblockAllocWrite).await;
        }
        self.write_tables(refblocks, DebugEvent::RefblockUpdatePart)
            .await?;
        if !reftable.is_empty() {
            self.file.flush().await?;
            self.write_tables(reftable, DebugEvent::RefblockAllocHookup)
                .await?;
        }
        if references {
            let external = self.state.borrow().geometry.external;
            if counts || (batch.barrier && !external) {
                self.file.flush().await?;
            }
            if batch.barrier && external {
                self.data.flush().await?;
            }
        }
        self.write_tables(slices, DebugEvent::L2Update).await?;
        if !l1.is_empty() {
            self.file.flush().await?;
            self.write_tables(l1, DebugEvent::L1Update).await?;
        }
        if !batch.frees.is_empty() {
            self.file.flush().await?;
        }
        Ok(())
    }

    async fn write_tables(&self, pieces: Vec<Piece>, event: DebugEvent) -> IoResult<()> {
        if !pieces.is_empty() {
            self.file.raise(event).await;
        }
        self.write_pieces(pieces).await
    }

    async fn write_pieces(&self, pieces: Vec<Piece>) -> IoResult<()> {
        let writes = join_pieces(pieces)
            .into_iter()
            .map(|joined| async move { self.file.write(joined.offset, joined.buffers).await });
        // All of them end, also after one has failed: one left behind could overwrite what is written there next.
        stream::iter(writes)
            .buffer_unordered(PARALLEL)
            .fold(Ok(()), |result, written| ready(result.and(written)))
            .await
    }

    /// Lowers the refcounts of references that are gone from the file for good.
    async fn apply_frees(&self, frees: Vec<Free>) -> IoResult<()> {
        if frees.is_empty() {
            return Ok(());
        }
        self.forget_decompressed();
        if frees.iter().any(|free| free.reason == FreeReason::Shrink) {
            self.file.raise(DebugEvent::L1ShrinkFreeL2Clusters).await;
        }
        self.file.raise(DebugEvent::ClusterFree).await;
        self.file.raise(DebugEvent::RefblockAlloc).await;
        for mut free in frees {
            while free.count > 0 {
                self.relieve_refblocks().await?;
                let Free { cluster, count, .. } = free;
                let (refcount, count) = self
                    .run(move |state| state.same_refcounts(cluster, count))
                    .await?;
                if refcount == 1 && self.state.borrow().passes_discard(free.reason) {
                    let geometry = self.state.borrow().geometry;
                    let start = free.cluster.offset(&geometry);
                    if let Err(error) = self.file.discard(start, geometry.bytes(count)).await {
                        tracing::debug!(%error, "the file does not discard freed clusters");
                    }
                }
                match refcount.checked_sub(1) {
                    Some(less) => {
                        self.run(move |state| state.set_refcounts(free.cluster, count, less))
                            .await?
                    }
                    None => tracing::error!(
                        cluster = free.cluster.get(),
                        "a cluster without references was freed"
                    ),
                }
                free.cluster += count;
                free.count -= count;
            }
        }
        Ok(())
    }

    /// Writes refcount blocks where too many changed. Those that count too much do no harm, and those that count less
    /// changed because the references are gone from the file.
    pub(crate) async fn relieve_refblocks(&self) -> IoResult<()> {
        let pieces = {
            let mut state = self.state.borrow_mut();
            if !state.too_many_refblocks() {
                return Ok(());
            }
            state.refblocks.snapshot()
        };
        let result = self.write_pieces(pieces).await;
        self.state.borrow_mut().refblocks.written(result.is_ok());
        result
    }

    /// Writes a part of the header's fixed fields.
    pub(crate) async fn write_header_part(&self, part: std::ops::Range<usize>) -> IoResult<()> {
        let bytes = self.state.borrow().header.encode_fields();
        let start = HostOffset::new(part.start as u64);
        match bytes.get(part) {
            Some(bytes) => self.file.write_slice(start, bytes).await,
            None => Ok(()),
        }
    }

    /// Writes the header's feature words.
    pub(crate) async fn write_features(&self) -> IoResult<()> {
        self.write_header_part(FEATURES).await
    }

    /// Writes the header's feature words, durably.
    pub(crate) async fn store_features(&self) -> IoResult<()> {
        self.write_features().await?;
        self.file.flush().await
    }

    /// With lazy refcounts, tells the file that its refcounts are about to be wrong.
    async fn mark_dirty_for_lazy_refcounts(&self) -> IoResult<()> {
        let lags = {
            let state = self.state.borrow();
            state.settings.lazy_refcounts && state.refcounts_dirty()
        };
        if lags { self.mark_dirty().await } else { Ok(()) }
    }

    /// Tells the file that its refcounts or the flags that follow from them are about to be wrong, where it can say so.
    pub(crate) async fn mark_dirty(&self) -> IoResult<()> {
        {
            let mut state = self.state.borrow_mut();
            if state.refcounts_lag() || state.header.version < 3 {
                return Ok(());
            }
            state.header.incompatible |= DIRTY;
        }
        let result = self.store_features().await;
        if result.is_err() {
            self.state.borrow_mut().header.incompatible &= !DIRTY;
        }
        result
    }

    /// Gives the refcount table a larger place once it does not fit in its own.
    async fn move_reftable(&self) -> IoResult<()> {
        let Some((clusters, bytes)) = self.wanted_reftable() else {
            return Ok(());
        };
        self.file.raise(DebugEvent::ReftableGrow).await;
        let first = self.run(move |state| state.allocate_row(clusters)).await?;
        // Allocating may have added blocks, but there is room to spare.
        let offset = {
            let mut state = self.state.borrow_mut();
            let entries = state.reftable.len().max((bytes / 8) as usize);
            state.reftable.resize(entries, 0);
            first.offset(&state.geometry)
        };
        // The blocks that the new table names must be in the file before it.
        let (pieces, table) = {
            let mut state = self.state.borrow_mut();
            (state.refblocks.snapshot(), table_to_be(&state.reftable))
        };
        let written = async {
            self.write_tables(pieces, DebugEvent::RefblockAllocWriteBlocks)
                .await?;
            self.file.flush().await?;
            self.file.raise(DebugEvent::RefblockAllocWriteTable).await;
            self.file.write(offset, table.into()).await?;
            self.file.flush().await
        };
        let result = written.await;
        let old = {
            let mut state = self.state.borrow_mut();
            state.refblocks.written(result.is_ok());
            result?;
            let old = (state.header.reftable_offset, state.header.reftable_clusters);
            state.header.reftable_offset = offset;
            state.header.reftable_clusters = clusters as u32;
            old
        };
        self.file.raise(DebugEvent::RefblockAllocSwitchTable).await;
        let switched = self.write_header_part(REFTABLE).await;
        // As with an L1 table that moves: the header names the new one now, durably or not.
        let result = match &switched {
            Ok(()) => self.file.flush().await,
            Err(error) => Err(*error),
        };
        let mut state = self.state.borrow_mut();
        if switched.is_err() {
            (state.header.reftable_offset, state.header.reftable_clusters) = old;
            return result;
        }
        let geometry = state.geometry;
        let (old, old_clusters) = (old.0.cluster(&geometry), u64::from(old.1));
        state.metadata.remove(old, old_clusters);
        state.mark_range(offset, geometry.bytes(clusters));
        state.free_later(old, old_clusters, FreeReason::Other);
        result
    }

    /// How large the refcount table should be, in clusters and bytes, if that is more than it is in the file.
    fn wanted_reftable(&self) -> Option<(u64, u64)> {
        let state = self.state.borrow();
        let size = state.geometry.cluster_size();
        let have = u64::from(state.header.reftable_clusters) * size;
        let need = state.reftable.len() as u64 * 8;
        if need <= have {
            return None;
        }
        let clusters = (need + need / 2).div_ceil(size) + 1;
        Some((clusters, clusters * size))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(offset: u64, len: usize) -> Piece {
        let bytes = Buffer::from_slice(&vec![offset as u8; len]);
        let offset = HostOffset::new(offset);
        Piece { offset, bytes }
    }

    fn shape(pieces: Vec<Piece>) -> Vec<(u64, usize, usize)> {
        let joined = join_pieces(pieces).into_iter();
        joined
            .inspect(|one| assert_eq!(one.len, one.buffers.len()))
            .map(|one| (one.offset.get(), one.len, one.buffers.count()))
            .collect()
    }

    #[test]
    fn pieces_that_adjoin_are_one_write_as_long_as_it_is_not_too_large() {
        let pieces = vec![piece(1, 511), piece(512, 512), piece(1025, 8)];
        assert_eq!(shape(pieces), [(1, 1023, 2), (1025, 8, 1)]);
        let half = MAX_WRITE / 2;
        let pieces = (0..3).map(|n| piece((n * half) as u64, half)).collect();
        assert_eq!(shape(pieces), [(0, MAX_WRITE, 2), (MAX_WRITE as u64, half, 1)]);
        let many = MAX_PIECES as u64 + 1;
        let pieces = (0..many).map(|n| piece(n * 8, 8)).collect();
        assert_eq!(
            shape(pieces),
            [(0, MAX_PIECES * 8, MAX_PIECES), (MAX_PIECES as u64 * 8, 8, 1)]
        );
        assert!(join_pieces(Vec::new()).is_empty());
    }
}
