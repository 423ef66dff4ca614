//! Reads of compressed clusters: finding and decompressing them, and keeping the last one.

use std::io::Read;
use std::rc::Rc;

use millpond_messages::{DebugEvent, IoError, IoResult};

use crate::api::{At, Purpose, Transfer};
use crate::format::qcow2::header::Compression;
use crate::format::qcow2::image::{LastCluster, Qcow2};
use crate::format::qcow2::layout::entry::{Cluster, Compressed, compressed};
use crate::format::qcow2::layout::space::{GuestOffset, HostOffset};
use crate::format::qcow2::state::{State, Step};
use millpond_ring::buffer::{Buffer, Buffers};

/// Decompresses one cluster of `size` bytes. Anything may follow the compressed data; what comes out is never more than a
/// cluster, whatever the input claims.
fn decompress(kind: Compression, compressed: &[u8], size: usize) -> IoResult<Vec<u8>> {
    let mut data = vec![0; size];
    let whole = match kind {
        Compression::Zlib => flate2::read::DeflateDecoder::new(compressed).read_exact(&mut data),
        Compression::Zstd => zstd::stream::read::Decoder::with_buffer(compressed).and_then(|mut decoder| {
            // The window of a frame of one cluster is never larger than that; 2 MiB is the largest cluster.
            decoder.window_log_max(27)?;
            decoder.read_exact(&mut data)
        }),
    };
    whole
        .map(|()| data)
        .map_err(|_| IoError::Os(millpond_messages::error::errno::EIO))
}

impl State {
    /// The L2 entry of the cluster at guest `offset`, 0 where there is none.
    pub fn entry(&self, offset: GuestOffset) -> Step<u64> {
        self.check_usable()?;
        let Some(key) = self.slice_key(offset)? else {
            return Ok(0);
        };
        self.word(key, self.geometry.slice_index(offset))
    }
}

impl Qcow2 {
    /// Reads a range that was found to be compressed. It may have been written to meanwhile, and its old place been given
    /// to another cluster: so what was decompressed counts only if the entry is still the same.
    pub(crate) async fn read_special(&self, offset: GuestOffset, mut buffers: Buffers) -> Transfer {
        let mut done = 0;
        let len = buffers.len();
        while done < len {
            match self.read_piece(offset + done as u64, len - done).await {
                Ok(piece) => done += buffers.copy_from_slice(done, &piece).max(1),
                Err(error) => return (Err(error), buffers),
            }
        }
        (Ok(()), buffers)
    }

    /// Some bytes from `offset`, at least one and at most `len`, from wherever they are.
    async fn read_piece(&self, offset: GuestOffset, len: usize) -> IoResult<Buffer> {
        let extent = self
            .run(move |state| state.locate(Purpose::Read, offset, len as u64))
            .await?;
        let part = extent.len as usize;
        let end = self.state.borrow().header.end();
        match extent.at {
            At::Special => self.read_compressed(offset, part).await,
            At::Zero { .. } => Ok(Buffer::zeroed(part)),
            At::Child { offset: host, .. } => {
                let host = HostOffset::new(host);
                Ok(self.read_data(host, offset, part).await?.into_single())
            }
            // Behind the disk's end is no part of the backing file.
            At::Unallocated if self.backing.is_connected() && offset < end => {
                Ok(self.backing.read_vec(offset, part).await?.into_single())
            }
            At::Unallocated | At::Own => Ok(Buffer::zeroed(part)),
        }
    }

    async fn read_compressed(&self, offset: GuestOffset, len: usize) -> IoResult<Buffer> {
        loop {
            let entry = self.run(move |state| state.entry(offset)).await?;
            if self.state.borrow().geometry.cluster(entry) != Cluster::Compressed {
                // Overwritten since: the caller's next look finds the new place.
                return Box::pin(self.read_piece(offset, len)).await;
            }
            let result = self.decompressed(entry).await;
            if self.run(move |state| state.entry(offset)).await? != entry {
                continue;
            }
            let data = result?;
            let start = offset.in_cluster(&self.state.borrow().geometry) as usize;
            let part = data.get(start..).unwrap_or_default();
            let part = part.get(..len).unwrap_or(part);
            return Ok(Buffer::from_slice(part));
        }
    }

    /// The data of a compressed cluster.
    async fn decompressed(&self, entry: u64) -> IoResult<Rc<Vec<u8>>> {
        let found = self
            .last
            .borrow()
            .as_ref()
            .filter(|last| last.entry == entry)
            .map(|last| last.data.clone());
        if let Some(data) = found {
            return Ok(data);
        }
        let (place, kind, size) = {
            let state = self.state.borrow();
            (
                compressed(&state.geometry, entry),
                state.header.compression,
                state.geometry.cluster_size(),
            )
        };
        let Compressed { offset, len } = place;
        self.file.raise(DebugEvent::ReadCompressed).await;
        let compressed = self.file.read_vec(offset, len as usize).await?.into_single();
        let data = self
            .ring
            .blocking(move || decompress(kind, &compressed, size as usize))
            .await?;
        let data = Rc::new(data);
        *self.last.borrow_mut() = Some(LastCluster {
            entry,
            data: data.clone(),
        });
        Ok(data)
    }

    /// Forgets the cluster decompressed last: clusters of the file changed hands.
    pub(crate) fn forget_decompressed(&self) {
        self.last.borrow_mut().take();
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn what_comes_out_is_bounded() {
        let bomb = vec![0_u8; 64 << 20];
        let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(&bomb).unwrap();
        let compressed = encoder.finish().unwrap();
        assert_eq!(
            decompress(Compression::Zlib, &compressed, 65536).unwrap().len(),
            65536
        );
        let compressed = zstd::encode_all(bomb.as_slice(), 1).unwrap();
        assert_eq!(
            decompress(Compression::Zstd, &compressed, 65536).unwrap().len(),
            65536
        );
    }

    #[test]
    fn too_little_or_nonsense_is_an_error() {
        for kind in [Compression::Zlib, Compression::Zstd] {
            assert!(decompress(kind, &[0xff; 100], 65536).is_err());
            assert!(decompress(kind, &[], 65536).is_err());
        }
        let compressed = zstd::encode_all([1_u8; 100].as_slice(), 1).unwrap();
        assert!(decompress(Compression::Zstd, &compressed, 65536).is_err());
    }
}
