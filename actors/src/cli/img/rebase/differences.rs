//! What an overlay has to be given so that it shows the same on another backing image.

use std::cell::Cell;
use std::future::ready;

use futures_util::future::join;
use futures_util::stream::{TryStreamExt, try_unfold};
use millpond_messages::{IoError, IoResult, NodeId, Range, RequestFlags, StatusFlags};
use millpond_ring::buffer::Buffers;

use crate::cli::img::copy::BufferPool;
use crate::cli::img::progress::ShownProgress;
use crate::cli::tool::Failure;
use crate::node::Client;

/// Bytes that are looked at in one go: a multiple of every cluster size.
const PIECE: u64 = 2 << 20;
/// Pieces that are looked at at once.
const AT_ONCE: usize = 8;

/// An image below the overlay, now or from now on.
pub struct Below {
    pub client: Client,
    pub length: u64,
    /// It is this node of the chain that the overlay stands on now, and what no image above it has is the same in both.
    pub shared: Option<NodeId>,
}

impl Below {
    /// The same image, as a part of the chain.
    pub fn in_chain(self, node: NodeId) -> Self {
        Self {
            shared: Some(node),
            ..self
        }
    }
}

/// What the overlay is given, and what is looked at for that.
pub struct Differences {
    pub overlay: Client,
    pub length: u64,
    /// Writes begin and end with a block of so many bytes.
    pub block: u64,
    pub compresses: bool,
    pub old: Option<Below>,
    pub new: Option<Below>,
}

/// The steps by which progress is told. They are QEMU's: each piece that is looked at counts as a whole one, however short it
/// is.
struct Steps<'a> {
    progress: &'a ShownProgress,
    /// What a step is worth, in percent.
    worth: f32,
    /// What has been counted.
    until: Cell<u64>,
}

impl<'a> Steps<'a> {
    fn new(length: u64, progress: &'a ShownProgress) -> Self {
        let steps = length / length.clamp(1, PIECE);
        Self {
            progress,
            worth: 100.0 / steps as f32,
            until: Cell::new(0),
        }
    }

    /// A range is looked at.
    fn take(&self, range: Range) {
        let mut at = self.until.get().max(range.offset());
        while at < range.end() {
            self.progress.add(self.worth);
            at = range.end().min(at.saturating_add(PIECE));
        }
        self.until.set(at);
    }
}

fn no_status(error: IoError) -> Failure {
    Failure::new(format!("error while reading image metadata: {error}"))
}

impl Differences {
    /// Gives the overlay all that it needs.
    ///
    /// # Errors
    /// An image cannot be read, or the overlay not written.
    pub async fn write(&self, progress: &ShownProgress) -> Result<(), Failure> {
        let pool = BufferPool::default();
        let told = Steps::new(self.length, progress);
        let parts = try_unfold(0, |offset| self.next(offset, &told));
        parts
            .map_ok(|part| self.settle(part, &pool))
            .try_buffer_unordered(AT_ONCE)
            .try_for_each(|()| ready(Ok(())))
            .await
    }

    /// The first part from an offset on that has to be read, and where to go on.
    async fn next(&self, mut offset: u64, steps: &Steps<'_>) -> Result<Option<(Range, u64)>, Failure> {
        while offset < self.length {
            let rest = Range::between(offset, self.length);
            let own = self.overlay.block_status(rest.offset(), rest.len(), false, false);
            let own = own.await.map_err(no_status)?;
            let extent = rest.first(own.len);
            if extent.is_empty() {
                return Err(no_status(IoError::Corrupt));
            }
            let is_own = own.flags.contains(StatusFlags::ALLOCATED);
            let alike = match is_own {
                true => extent.len(),
                false => self.alike(extent, steps).await?,
            };
            // What does not cover a whole block is looked at with the rest of that.
            let whole = (offset + alike) / self.block * self.block;
            offset = match alike == extent.len() {
                true => extent.end(),
                false if whole > offset => whole,
                false => {
                    let part = extent.first(PIECE);
                    return Ok(Some((part, part.end())));
                }
            };
        }
        Ok(None)
    }

    /// For how many bytes from the start of a range that the overlay does not have both images are known to be the same; none
    /// if that is not known.
    async fn alike(&self, extent: Range, steps: &Steps<'_>) -> Result<u64, Failure> {
        let shared = self.shared(extent).await.map_err(no_status)?;
        if shared > 0 {
            return Ok(shared);
        }
        steps.take(extent);
        let old = zeroes(self.old.as_ref(), extent);
        let new = zeroes(self.new.as_ref(), extent);
        let (old, new) = join(old, new).await;
        Ok(old.map_err(no_status)?.min(new.map_err(no_status)?))
    }

    /// For how many bytes the old chain shows what the new image has, which is a part of it.
    async fn shared(&self, rest: Range) -> IoResult<u64> {
        let (Some(old), Some(new)) = (&self.old, &self.new) else {
            return Ok(0);
        };
        let Some(node) = new.shared else {
            return Ok(0);
        };
        let rest = Range::between(rest.offset(), rest.end().min(old.length));
        if rest.is_empty() {
            return Ok(0);
        }
        let status = old
            .client
            .block_status_above(rest.offset(), rest.len(), false, node)
            .await?;
        match status.flags.contains(StatusFlags::ALLOCATED) {
            true => Ok(0),
            false => Ok(status.len),
        }
    }

    /// Writes what of a part is not the same in both images, as the old one has it.
    async fn settle(&self, part: Range, pool: &BufferPool) -> Result<(), Failure> {
        let old = read(self.old.as_ref(), part, pool);
        let new = read(self.new.as_ref(), part, pool);
        let (old, new) = join(old, new).await;
        let told = |which| {
            move |error| Failure::new(format!("error while reading from {which} backing file: {error}"))
        };
        let (old, new) = (old.map_err(told("old"))?, new.map_err(told("new"))?);
        self.write_differences(part, old, &new).await?;
        pool.give_back(new, part.len() as usize);
        Ok(())
    }

    async fn write_differences(&self, range: Range, mut old: Buffers, new: &Buffers) -> Result<(), Failure> {
        let block = usize::try_from(self.block).unwrap_or(usize::MAX);
        let runs = runs(&old.to_vec(), &new.to_vec(), block);
        let mut offset = range.offset();
        for (len, differs) in runs {
            let bytes = old.split_to(len);
            if differs {
                let failed = |error| Failure::new(format!("Error while writing to COW image: {error}"));
                self.write_run(offset, bytes).await.map_err(failed)?;
            }
            offset += len as u64;
        }
        Ok(())
    }

    async fn write_run(&self, offset: u64, bytes: Buffers) -> IoResult<()> {
        let mut flags = RequestFlags::empty();
        if bytes.is_zero() {
            return self.overlay.write_zeroes(offset, bytes.len() as u64, flags).await;
        }
        flags.set(RequestFlags::WRITE_COMPRESSED, self.compresses);
        self.overlay.write(offset, bytes, flags).await.0
    }
}

/// For how many bytes from the start of a range an image reads as zeroes, as it does behind its end.
async fn zeroes(below: Option<&Below>, rest: Range) -> IoResult<u64> {
    let there = match below {
        Some(below) => Range::between(rest.offset(), rest.end().min(below.length)),
        None => Range::default(),
    };
    let Some(below) = below.filter(|_| !there.is_empty()) else {
        return Ok(rest.len());
    };
    let status = below
        .client
        .block_status(there.offset(), there.len(), true, true)
        .await?;
    match status.flags.contains(StatusFlags::ZERO) {
        true => Ok(status.len),
        false => Ok(0),
    }
}

/// The bytes of a range of an image, which are zeroes behind its end.
async fn read(below: Option<&Below>, range: Range, pool: &BufferPool) -> IoResult<Buffers> {
    let mut room = pool.take(range.len() as usize)?;
    let there = below.map_or(0, |below| below.length.saturating_sub(range.offset()));
    let mut behind = room.split_off(there.min(range.len()) as usize);
    behind.fill_zero(0..behind.len());
    let mut bytes = Buffers::new();
    if let Some(below) = below.filter(|_| !room.is_empty()) {
        let (result, read) = below.client.read(range.offset(), room).await;
        result?;
        bytes = read;
    }
    behind.into_iter().for_each(|buffer| bytes.push_joined(buffer));
    Ok(bytes)
}

/// Runs of blocks that are the same or not, and how long each is.
fn runs(old: &[u8], new: &[u8], block: usize) -> Vec<(usize, bool)> {
    let mut runs: Vec<(usize, bool)> = Vec::new();
    for (old, new) in old.chunks(block).zip(new.chunks(block)) {
        let differs = old != new;
        match runs.last_mut() {
            Some((len, same)) if *same == differs => *len += old.len(),
            _ => runs.push((old.len(), differs)),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_that_differ_are_found_whole() {
        assert_eq!(
            runs(b"aabbccd", b"aabxccd", 2),
            [(2, false), (2, true), (3, false)]
        );
        assert_eq!(runs(b"abc", b"abd", 2), [(2, false), (1, true)]);
        assert!(runs(b"", b"", 2).is_empty());
    }
}
