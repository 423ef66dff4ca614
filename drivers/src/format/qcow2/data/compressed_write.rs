//! Compressed writes: whole clusters, compressed, stored one behind the other on no particular boundary.

use millpond_messages::error::errno::{EFBIG, EIO};
use millpond_messages::{DebugEvent, IoError, IoResult, Range, RequestFlags, SECTOR_SIZE};

use crate::api::{Driver, Target, Transfer};
use crate::format::qcow2::header::Compression;
use crate::format::qcow2::image::Qcow2;
use crate::format::qcow2::layout::entry::{COMPRESSED, COPIED, compressed_entry, compressed_may_end_at};
use crate::format::qcow2::layout::space::{GuestOffset, HostOffset};
use crate::format::qcow2::state::{Blocked, FreeReason, InFlight, State, Step};
use crate::format::qcow2::wait::Key;
use millpond_ring::buffer::Buffers;

/// log2 of the window that readers of the format have for deflated data, in bytes.
const WINDOW_BITS: u8 = 12;

/// Compresses a cluster; none where the result would not be shorter.
fn compress(kind: Compression, data: &[u8]) -> Option<Vec<u8>> {
    let most = data.len().saturating_sub(1);
    match kind {
        Compression::Zlib => {
            let level = flate2::Compression::default();
            let mut deflate = flate2::Compress::new_with_window_bits(level, false, WINDOW_BITS);
            let mut compressed = Vec::with_capacity(most);
            let end = deflate.compress_vec(data, &mut compressed, flate2::FlushCompress::Finish);
            matches!(end, Ok(flate2::Status::StreamEnd)).then_some(compressed)
        }
        Compression::Zstd => {
            let compressed = zstd::bulk::compress(data, zstd::DEFAULT_COMPRESSION_LEVEL).ok()?;
            (compressed.len() <= most).then_some(compressed)
        }
    }
}

/// Where a compressed cluster goes.
#[derive(Debug, Clone, Copy)]
struct Place {
    ticket: u64,
    /// Its first byte in the file.
    host: HostOffset,
    /// The L2 entry that leads there.
    entry: u64,
}

impl State {
    /// A place for the compressed cluster at guest `offset`.
    fn place_compressed(&mut self, offset: GuestOffset, len: u64) -> Step<Place> {
        self.check_writable()?;
        let first = offset.cluster(&self.geometry);
        self.before_in_flight(first, 1)?;
        let key = self.writable_slice(offset)?;
        let index = self.geometry.slice_index(offset);
        let old = self.word(key, index)?;
        self.checked_cluster(old, key, index)?;
        if old & (COPIED | COMPRESSED) != 0 {
            // As QEMU has it, what is stored already is not compressed any more.
            return Err(Blocked::Fail(IoError::Os(EIO)));
        }
        self.check_pressure()?;
        let host = self.allocate_bytes(len)?;
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.in_flight.push(InFlight {
            id: ticket,
            first,
            count: 1,
            host,
            fresh: false,
            covers: Default::default(),
            copies: false,
        });
        let entry = compressed_entry(&self.geometry, host, len);
        Ok(Place { ticket, host, entry })
    }

    /// Allocates `len` bytes, less than a cluster: behind the compressed data written last, if its last cluster has room.
    fn allocate_bytes(&mut self, len: u64) -> Step<HostOffset> {
        let geometry = self.geometry;
        let end = self.compressed_end;
        let (open, used) = (end.cluster(&geometry), end.in_cluster(&geometry));
        let mut count = 0;
        if used != 0 {
            count = self.refcount(open)?;
        }
        // Each compressed cluster counts once in every cluster of the file that it touches.
        let shares = count > 0 && count < geometry.refcount_max();
        if shares && used + len <= geometry.cluster_size() {
            self.set_refcounts(open, 1, count + 1)?;
            self.compressed_end = end + len;
            return Ok(end);
        }
        let (new, _) = self.allocate(1)?;
        let new_end = (new + 1).offset(&geometry);
        if !compressed_may_end_at(&geometry, new_end) {
            self.set_refcounts(new, 1, 0)?;
            return Err(Blocked::Fail(IoError::Os(EFBIG)));
        }
        self.file_end = self.file_end.max(new_end);
        // Where the block with the open cluster's count was pushed out meanwhile, that cluster is left as it is.
        let joins = shares && new == open + 1 && self.set_refcounts(open, 1, count + 1).is_ok();
        let host = if joins { end } else { new.offset(&geometry) };
        self.compressed_end = host + len;
        Ok(host)
    }

    /// Points the guest's cluster at its compressed data, or gives the place back.
    fn settle_compressed(&mut self, place: Place, len: u64, written: bool) -> Step<()> {
        let Some(at) = self.in_flight.iter().position(|entry| entry.id == place.ticket) else {
            return Ok(());
        };
        let first = self.in_flight.get(at).map(|entry| entry.first);
        let first = first.unwrap_or_default();
        if written {
            let offset = first.offset(&self.geometry);
            let key = self.writable_slice(offset)?;
            let index = self.geometry.slice_index(offset);
            let old = self.word(key, index)?;
            self.set_entry(key, index, place.entry);
            self.drop_cluster(old, FreeReason::Other);
            // Compressed data that is cut short cannot be decompressed, so it is durable before the entry.
            self.barrier = true;
        } else {
            let start = place.host.cluster(&self.geometry);
            let end = (place.host + (len - 1)).cluster(&self.geometry);
            let (before, behind) = (self.refcount(start)?, self.refcount(end)?);
            self.set_refcounts(end, 1, behind.saturating_sub(1))?;
            if start != end {
                self.set_refcounts(start, 1, before.saturating_sub(1))?;
            }
        }
        self.in_flight.swap_remove(at);
        Ok(())
    }
}

impl Qcow2 {
    /// Whether a compressed write of this range can be: whole clusters, the last of the disk being as long as it is.
    pub(crate) fn check_compressed(&self, offset: GuestOffset, len: u64) -> IoResult<()> {
        let state = self.state.borrow();
        if state.geometry.external {
            return Err(IoError::NotSupported);
        }
        let size = state.header.size.next_multiple_of(SECTOR_SIZE);
        let whole = offset.is_aligned(&state.geometry)
            && (state.geometry.part(len) == 0 || offset + len == GuestOffset::new(size));
        if whole { Ok(()) } else { Err(IoError::Invalid) }
    }

    /// Writes whole clusters compressed, one after the other.
    pub(crate) async fn write_compressed(&self, mut offset: GuestOffset, buffers: Buffers) -> Transfer {
        let cluster = self.state.borrow().geometry.cluster_size();
        let bytes = buffers.to_vec();
        for data in bytes.chunks(cluster as usize) {
            if let Err(error) = self.write_compressed_cluster(offset, data).await {
                return (Err(error), buffers);
            }
            offset += data.len() as u64;
        }
        (Ok(()), buffers)
    }

    async fn write_compressed_cluster(&self, offset: GuestOffset, data: &[u8]) -> IoResult<()> {
        let (kind, cluster) = {
            let state = self.state.borrow();
            (state.header.compression, state.geometry.cluster_size())
        };
        let mut whole = data.to_vec();
        whole.resize(cluster as usize, 0);
        match self.ring.blocking(move || compress(kind, &whole)).await {
            Some(compressed) => self.store_compressed(offset, compressed).await,
            None => self.store_plain(offset, data).await,
        }
    }

    async fn store_compressed(&self, offset: GuestOffset, compressed: Vec<u8>) -> IoResult<()> {
        let len = compressed.len() as u64;
        self.file.raise(DebugEvent::ClusterAllocBytes).await;
        self.file.raise(DebugEvent::RefblockAlloc).await;
        let place = self
            .run(move |state| {
                let place = state.place_compressed(offset, len)?;
                self.waits.try_take(Key::Allocation(place.ticket));
                Ok(place)
            })
            .await?;
        // The cluster decompressed last may have had the same entry.
        self.forget_decompressed();
        self.file.raise(DebugEvent::WriteCompressed).await;
        let written = self.file.write(place.host, compressed.into()).await;
        let ok = written.is_ok();
        if ok {
            self.file.raise(DebugEvent::L2UpdateCompressed).await;
        }
        let settled = self
            .run(move |state| state.settle_compressed(place, len, ok))
            .await;
        if settled.is_err() {
            // Its place is leaked rather than used.
            let mut state = self.state.borrow_mut();
            state.in_flight.retain(|entry| entry.id != place.ticket);
        }
        self.waits.release(Key::Allocation(place.ticket));
        written.and(settled)
    }

    /// Stores a cluster that does not shrink as it is.
    async fn store_plain(&self, offset: GuestOffset, data: &[u8]) -> IoResult<()> {
        let placement = self
            .place(
                Range::new(offset.get(), data.len() as u64)?,
                RequestFlags::empty(),
            )
            .await?;
        let mut bytes = data.to_vec();
        // The write begins with its cluster, and ends with it or with the disk.
        bytes.resize(data.len() + placement.tail as usize, 0);
        let written = match placement.target {
            Target::Child { offset, .. } => self.data.write(HostOffset::new(offset), bytes.into()).await,
            Target::Own => Err(IoError::NotSupported),
        };
        match placement.ticket {
            Some(ticket) => self.settle(ticket, written).await.and(written),
            None => written,
        }
    }
}
