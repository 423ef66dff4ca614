//! Pieces of sources read and written, several at once.

use std::future::ready;

use futures_util::future::Either;
use futures_util::stream::{TryStreamExt, try_unfold};
use millpond_drivers::replica::offload::{Asked, Offload};
use millpond_messages::io::{Operation, Outcome};
use millpond_messages::{IoError, IoResult, Range, RequestFlags, SECTOR_SIZE};
use millpond_ring::buffer::Buffers;

use super::pool::BufferPool;
use super::scan::{Kind, Piece, Scan, Shape, Unknown};
use super::sparse::Sparse;
use crate::cli::img::pace::CopyPace;
use crate::node::Client;

/// Why a copy failed.
#[derive(Clone, Copy, Debug, thiserror::Error)]
pub enum CopyFault {
    /// It cannot be told what is at an offset of the source.
    #[error("error while reading block status at offset {}: {}", .0.offset, .0.error)]
    Status(Unknown),
    /// The source cannot be read.
    #[error("error while reading at byte {offset}: {error}")]
    Read {
        /// Where, in bytes of the target.
        offset: u64,
        /// The request's error that it was.
        error: IoError,
    },
    /// The target cannot be written.
    #[error("error while writing at byte {offset}: {error}")]
    Write {
        /// Where, in bytes of the target.
        offset: u64,
        /// The request's error that it was.
        error: IoError,
    },
}

/// How pieces are written.
pub struct Way {
    /// Zeroes among data are looked for, and left out; without this all is written as data.
    pub sparse: Option<Sparse>,
    /// What is not written reads as zeroes.
    pub has_zero_init: bool,
    /// Data is stored compressed.
    pub compresses: bool,
    /// Pieces are written in the order of the disk.
    pub in_order: bool,
    /// How many are read at once, and how many written.
    pub at_once: usize,
    /// Data goes from file to file of the host where it can, not cut to less than so many bytes.
    pub offload: Option<u64>,
}

/// A copy of sources to a target.
pub struct Copy<'a> {
    /// What is copied, and by what pieces.
    pub shape: &'a Shape,
    /// The handle to write the target by.
    pub target: &'a Client,
    /// How that is done.
    pub way: Way,
    /// How fast the target may be written.
    pub pace: CopyPace,
    /// Told of each sector that could not be read, and counts as zeroes.
    pub warn: &'a dyn Fn(&str),
    /// Told of each piece that has something to be done.
    pub begins: &'a dyn Fn(Piece),
    /// Memory that is used again.
    pub pool: BufferPool,
}

/// A piece that was read.
struct Loaded {
    piece: Piece,
    /// Its bytes, where they are to be written.
    bytes: Option<Buffers>,
}

/// One end of a copy in which the bytes pass no buffer. Nobody drains the nodes of a tool, so that no request waits.
struct End<'a>(&'a Client);

impl Asked for End<'_> {
    fn ask(&self, operation: Operation<Buffers>) -> impl Future<Output = Outcome<Buffers>> {
        self.0.request(operation)
    }

    fn takes_now(&self) -> bool {
        true
    }
}

impl Copy<'_> {
    /// Copies everything.
    ///
    /// # Errors
    /// The first fault. What was under way then goes on by itself.
    pub async fn run(&self) -> Result<(), CopyFault> {
        let warn = |unknown: Unknown| (self.warn)(&CopyFault::Status(unknown).to_string());
        let scan = Scan::new(self.shape, &warn);
        let offload = self.way.offload.map(|_| Offload::new(true));
        let pieces = try_unfold(scan, |mut scan| async move {
            let piece = scan.next().await.map_err(CopyFault::Status)?;
            Ok(piece.map(|piece| (piece, scan)))
        });
        let pieces = pieces.try_filter(|piece| ready(self.is_work(piece.kind)));
        let loads = pieces.map_ok(|piece| {
            (self.begins)(piece);
            self.load(piece, offload.as_ref())
        });
        let loaded = match self.way.in_order {
            true => Either::Left(loads.try_buffered(self.way.at_once)),
            false => Either::Right(loads.try_buffer_unordered(self.way.at_once)),
        };
        loaded
            .map_ok(|loaded| self.store(loaded, offload.as_ref()))
            .try_buffer_unordered(self.way.at_once)
            .try_for_each(|()| ready(Ok(())))
            .await
    }

    /// Whether there is anything to be done about such a piece.
    const fn is_work(&self, kind: Kind) -> bool {
        match kind {
            Kind::Data => true,
            Kind::Zero => self.writes_zeroes_as_data() || !self.way.has_zero_init,
            Kind::Backing => false,
        }
    }

    const fn writes_zeroes_as_data(&self) -> bool {
        self.way.sparse.is_none()
    }

    async fn load(&self, piece: Piece, offload: Option<&Offload>) -> Result<Loaded, CopyFault> {
        let is_copied_below = offload.is_some_and(Offload::is_on);
        let bytes = match piece.kind {
            Kind::Data if !is_copied_below => Some(self.read(piece.range).await?),
            _ => None,
        };
        Ok(Loaded { piece, bytes })
    }

    /// The bytes of a range of the target, from all sources that it touches.
    async fn read(&self, range: Range) -> Result<Buffers, CopyFault> {
        let failed = |offset| move |error| CopyFault::Read { offset, error };
        let len = usize::try_from(range.len()).map_err(|_| failed(range.offset())(IoError::Invalid))?;
        let mut room = self.pool.take(len).map_err(failed(range.offset()))?;
        let mut bytes = Buffers::new();
        let mut rest = range;
        while !rest.is_empty() {
            let at = rest.offset();
            let (_, source) = self.shape.source_at(at).ok_or(CopyFault::Read {
                offset: at,
                error: IoError::OutOfRange,
            })?;
            let part = rest.first(source.end() - at);
            let there = source.part(part);
            let mut room = room.split_to(part.len() as usize);
            // The last sector of a disk that ends within one is filled with zeroes.
            let mut behind = room.split_off(there.len() as usize);
            behind.fill_zero(0..behind.len());
            let read = self.read_source(&source.client, there.offset(), room).await;
            for buffer in [read.map_err(failed(at))?, behind].into_iter().flatten() {
                bytes.push_joined(buffer);
            }
            rest = rest.after(part.len());
        }
        Ok(bytes)
    }

    async fn read_source(&self, source: &Client, offset: u64, room: Buffers) -> IoResult<Buffers> {
        let len = room.len();
        let (result, bytes) = source.read(offset, room).await;
        match result {
            Ok(()) => Ok(bytes),
            Err(_) if self.shape.salvages => self.salvage(source, offset, len).await,
            Err(error) => Err(error),
        }
    }

    /// Reads sector after sector, and takes zeroes for those that cannot be read.
    async fn salvage(&self, source: &Client, offset: u64, len: usize) -> IoResult<Buffers> {
        let mut whole = self.pool.take(len)?;
        let mut rest = Range::new(offset, len as u64)?;
        let mut sector = [0; SECTOR_SIZE as usize];
        while !rest.is_empty() {
            let next = rest.first(SECTOR_SIZE);
            let part = sector.get_mut(..next.len() as usize).unwrap_or_default();
            if let Err(error) = source.read_at(part, next.offset()).await {
                part.fill(0);
                (self.warn)(&format!("error while reading offset {}: {error}", next.offset()));
            }
            whole.copy_from_slice((next.offset() - offset) as usize, part);
            rest = rest.after(next.len());
        }
        Ok(whole)
    }

    async fn store(&self, loaded: Loaded, offload: Option<&Offload>) -> Result<(), CopyFault> {
        let Loaded { piece, bytes } = loaded;
        self.pace.pass(piece.range.len()).await;
        let bytes = match (piece.kind, bytes) {
            (Kind::Data, Some(bytes)) => bytes,
            (Kind::Data, None) => {
                if self.copy_below(piece.range, offload).await {
                    return Ok(());
                }
                self.read(piece.range).await?
            }
            (_, _) if self.writes_zeroes_as_data() => return self.write_zeroes_as_data(piece.range).await,
            (_, _) => return self.zero(piece.range).await,
        };
        match self.way.sparse {
            None => self.write(piece.range.offset(), bytes).await,
            Some(_) if self.way.compresses && bytes.is_zero() => self.zero(piece.range).await,
            Some(_) if self.way.compresses => self.write(piece.range.offset(), bytes).await,
            Some(sparse) => self.write_runs(piece.range, bytes, sparse).await,
        }
    }

    /// Has the host copy a range; false where its bytes have to pass a buffer.
    async fn copy_below(&self, range: Range, offload: Option<&Offload>) -> bool {
        let (Some(offload), Some(chunk)) = (offload, self.way.offload) else {
            return false;
        };
        match self.shape.source_at(range.offset()) {
            // Both ends are asked for the same range, which only the first source has.
            Some((0, source)) if source.part(range) == range => {
                let ends = [&End(&source.client), &End(self.target)];
                offload.copy(ends, range, chunk).await
            }
            _ => false,
        }
    }

    async fn write_zeroes_as_data(&self, range: Range) -> Result<(), CopyFault> {
        let offset = range.offset();
        let room = self.pool.take(range.len() as usize);
        let mut room = room.map_err(|error| CopyFault::Write { offset, error })?;
        room.fill_zero(0..room.len());
        self.write(offset, room).await
    }

    /// Writes the runs that have data, and makes the others read as zeroes.
    async fn write_runs(&self, range: Range, bytes: Buffers, sparse: Sparse) -> Result<(), CopyFault> {
        let offset = range.offset();
        let mut rest = Buffers::from(bytes.into_single());
        let runs = rest
            .iter()
            .next()
            .map(|buffer| sparse.runs(buffer, offset / SECTOR_SIZE));
        let runs = runs.unwrap_or_default();
        let (mut at, mut used) = (offset, Buffers::new());
        for run in runs {
            let mut part = rest.split_to(run.len);
            if run.is_data {
                part = self.write_part(at, part).await?;
            } else {
                self.zero(Range::between(at, at + run.len as u64)).await?;
            }
            at += run.len as u64;
            part.into_iter().for_each(|buffer| used.push_joined(buffer));
        }
        self.pool.give_back(used, range.len() as usize);
        Ok(())
    }

    async fn write(&self, offset: u64, bytes: Buffers) -> Result<(), CopyFault> {
        let len = bytes.len();
        let bytes = self.write_part(offset, bytes).await?;
        self.pool.give_back(bytes, len);
        Ok(())
    }

    async fn write_part(&self, offset: u64, bytes: Buffers) -> Result<Buffers, CopyFault> {
        let mut flags = RequestFlags::empty();
        flags.set(RequestFlags::WRITE_COMPRESSED, self.way.compresses);
        let (result, bytes) = self.target.write(offset, bytes, flags).await;
        match result {
            Ok(()) => Ok(bytes),
            Err(error) => Err(CopyFault::Write { offset, error }),
        }
    }

    /// Makes a range of the target read as zeroes, if it does not yet.
    async fn zero(&self, range: Range) -> Result<(), CopyFault> {
        if self.way.has_zero_init {
            return Ok(());
        }
        let offset = range.offset();
        self.target
            .write_zeroes(offset, range.len(), RequestFlags::MAY_UNMAP)
            .await
            .map_err(|error| CopyFault::Write { offset, error })
    }
}
