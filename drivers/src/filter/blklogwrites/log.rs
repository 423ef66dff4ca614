//! A log that is being written: where the next entry goes, and when the superblock is brought up to date.

use std::cell::{Cell, RefCell};

use millpond_messages::error::errno::{EFBIG, ENOMEM};
use millpond_messages::{Error, ErrorKind, IoError, IoResult, Range, RequestFlags, Result};

use super::format::{ENTRY_LEN, Kind, SUPERBLOCK_LEN, Sector, entry_sectors, read_superblock};
use super::options::LogOptions;
use crate::api::{Child, Transfer};
use crate::replica::copies::{Ranges, Use};
use millpond_ring::buffer::Buffers;

/// How far a log has grown, and how it grows.
#[derive(Debug, Clone)]
pub(super) struct Progress {
    pub sector: Sector,
    /// The superblock is written whenever the number of entries is a multiple of this.
    interval: u64,
    /// The sector where the next entry goes.
    next: Cell<u64>,
    entries: Cell<u64>,
}

/// A log on a child.
pub(super) struct Log {
    progress: RefCell<Progress>,
    child: Child,
    /// The superblock has one writer at a time, so that an older one never replaces a newer.
    superblock: Ranges,
}

/// The data that is written behind an entry.
pub(super) enum Data {
    None,
    Bytes(Buffers),
    /// So many zero bytes.
    Zeroes(u64),
}

impl Progress {
    /// The progress of a log before its first new entry.
    pub async fn start(options: &LogOptions, log: &Child) -> Result<Self> {
        if !options.append {
            let bytes = options.sector_size.unwrap_or(512);
            let sector = Sector::of(u64::from(bytes))
                .ok_or_else(|| wrong(format!("Invalid log sector size {bytes}")))?;
            return Ok(Self::new(sector, options.interval, 1, 0));
        }
        if options.sector_size.is_some() {
            return Err(wrong("log-append and log-sector-size are mutually exclusive"));
        }
        let length = log.length().await.unwrap_or(0);
        if length == 0 {
            let sector = Sector::of(512).unwrap_or_else(|| unreachable!("512 is a sector's size"));
            return Ok(Self::new(sector, options.interval, 1, 0));
        }
        let superblock = read_at(log, 0, SUPERBLOCK_LEN, length).await;
        let superblock = superblock.map_err(|error| Error::io("Could not read log superblock", error))?;
        let (sector, entries) = read_superblock(&superblock).map_err(|error| wrong(error.to_string()))?;
        let next = end_of(log, length, sector, entries).await?;
        Ok(Self::new(sector, options.interval, next, entries))
    }

    fn new(sector: Sector, interval: u64, next: u64, entries: u64) -> Self {
        Self {
            sector,
            interval,
            next: Cell::new(next),
            entries: Cell::new(entries),
        }
    }

    /// The size of a sector in bytes, the superblock's interval, the next sector, and the number of entries.
    pub fn numbers(&self) -> (u32, u64, u64, u64) {
        let (next, entries) = (self.next.get(), self.entries.get());
        (self.sector.bytes(), self.interval, next, entries)
    }

    /// The progress that has these numbers, if there can be one: the superblock has the first sector.
    pub fn of_numbers(sector: u32, interval: u64, next: u64, entries: u64) -> Option<Self> {
        let sector = Sector::of(u64::from(sector))?;
        (interval > 0 && next > 0).then(|| Self::new(sector, interval, next, entries))
    }

    /// Sets aside the sectors of an entry with so much data: the entry's offset and number.
    fn reserve(&self, data: u64) -> IoResult<(u64, u64)> {
        let first = self.next.get();
        let offset = self.sector.start(first).ok_or(IoError::Os(EFBIG))?;
        let next = first.checked_add(1 + self.sector.count(data));
        let number = self.entries.get().saturating_add(1);
        self.next.set(next.ok_or(IoError::Os(EFBIG))?);
        self.entries.set(number);
        Ok((offset, number))
    }
}

fn wrong(text: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidArgument, text)
}

/// Bytes of the log; those beyond its end are left out.
async fn read_at(log: &Child, offset: u64, len: usize, length: u64) -> IoResult<Vec<u8>> {
    let left = usize::try_from(length.saturating_sub(offset)).unwrap_or(usize::MAX);
    Ok(log.read_vec(offset, len.min(left)).await?.to_vec())
}

/// The sector behind the last of so many entries. What lies beyond the log's end reads as zeroes, which are entries
/// without data: they are counted, not read.
async fn end_of(log: &Child, length: u64, sector: Sector, entries: u64) -> Result<u64> {
    let mut next: u64 = 1;
    for index in 0..entries {
        let too_long = || wrong(format!("Log entry {index} ends beyond every file"));
        let offset = sector.start(next).ok_or_else(too_long)?;
        if offset >= length {
            return next.checked_add(entries - index).ok_or_else(too_long);
        }
        let entry = read_at(log, offset, ENTRY_LEN, length).await;
        let entry = entry.map_err(|error| Error::io(&format!("Failed to read log entry {index}"), error))?;
        let taken = entry_sectors(&entry, index).map_err(|error| wrong(error.to_string()))?;
        next = next.checked_add(taken).ok_or_else(too_long)?;
    }
    Ok(next)
}

impl Log {
    pub fn new(progress: Progress, child: Child) -> Self {
        Self {
            progress: RefCell::new(progress),
            child,
            superblock: Ranges::default(),
        }
    }

    /// The size of the log's sectors.
    pub fn sector(&self) -> Sector {
        self.progress.borrow().sector
    }

    /// How far the log has grown.
    pub fn progress(&self) -> Progress {
        self.progress.borrow().clone()
    }

    /// Begins the log that the child has now; answers how far the old one has grown.
    pub async fn start(&self, options: &LogOptions) -> Result<Progress> {
        let progress = Progress::start(options, &self.child).await?;
        Ok(self.progress.replace(progress))
    }

    /// Continues a log at this progress.
    pub fn go_on(&self, progress: Progress) {
        self.progress.replace(progress);
    }

    /// Adds an entry for a request on `len` bytes at `offset`. Gives back the data's buffers. Entries are in the order of
    /// the calls, and an entry that cannot be written leaves its place unused.
    pub async fn add(&self, kind: Kind, offset: u64, len: u64, data: Data) -> Transfer {
        let sector = self.sector();
        let behind = match &data {
            Data::None => 0,
            Data::Bytes(_) | Data::Zeroes(_) => len,
        };
        let (buffers, zeroes) = match data {
            Data::None => (Buffers::new(), 0),
            Data::Bytes(buffers) => (buffers, 0),
            Data::Zeroes(zeroes) => (Buffers::new(), zeroes),
        };
        let Some(entry) = sector.entry(kind, offset, len) else {
            return (Err(IoError::Os(ENOMEM)), buffers);
        };
        let reserved = self.progress.borrow().reserve(behind);
        let (at, number) = match reserved {
            Ok(place) => place,
            Err(error) => return (Err(error), buffers),
        };
        let mut whole = Buffers::from(entry);
        whole.append(buffers);
        let (mut result, mut whole) = self.child.write(at, whole, RequestFlags::empty()).await;
        let head = (sector.bytes() as usize).min(whole.len());
        drop(whole.split_to(head));
        if result.is_ok() && zeroes > 0 {
            let at = at.saturating_add(u64::from(sector.bytes()));
            let behind = Range::between(at, at.saturating_add(zeroes));
            result = self.child.write_zeroes(behind, RequestFlags::empty()).await;
        }
        let due = kind == Kind::Flush || number.is_multiple_of(self.progress.borrow().interval);
        if result.is_ok() && due {
            result = self.write_superblock().await;
        }
        (result, whole)
    }

    /// Writes the number of entries into the superblock, and makes it and them durable.
    async fn write_superblock(&self) -> IoResult<()> {
        let sector = self.sector();
        let alone = self
            .superblock
            .hold(0, u64::from(sector.bytes()), Use::Write)
            .await;
        let entries = self.progress.borrow().entries.get();
        let superblock = sector.superblock(entries).ok_or(IoError::Os(ENOMEM))?;
        let (result, _) = self
            .child
            .write(0, Buffers::from(superblock), RequestFlags::empty())
            .await;
        drop(alone);
        result?;
        self.child.flush().await
    }
}
