//! What is data and what are holes.

use std::cell::Cell;
use std::os::fd::BorrowedFd;

use millpond_messages::IoResult;
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use super::File;
use super::open::Kind;
use crate::api::{Answer, At, Extent, Purpose};

/// A range known to be data, so that walking through a file does not ask the kernel at every step.
///
/// Only zero writes, discards and truncation make holes; all of them go through [`KnownData::forget`]. Another
/// process may make holes as well: then data is reported where zeroes could be, which is never wrong.
#[derive(Debug, Default)]
pub(super) struct KnownData {
    range: Cell<Option<(u64, u64)>>,
    /// Counts what may have made holes, so that an answer that was under way meanwhile is not remembered.
    changes: Cell<u64>,
}

impl KnownData {
    /// Holes may have come about, or are about to.
    pub(super) fn forget(&self) {
        self.range.set(None);
        self.changes.set(self.changes.get().wrapping_add(1));
    }

    /// How many bytes from `offset` on are known to be data.
    fn len_from(&self, offset: u64) -> Option<u64> {
        let (start, end) = self.range.get()?;
        (start <= offset && offset < end).then(|| end - offset)
    }
}

/// What a file has at an offset, and where that ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Data { end: u64 },
    Hole { end: u64 },
}

impl File {
    pub(super) fn locate_data(
        &self,
        purpose: Purpose,
        offset: u64,
        len: u64,
    ) -> Answer<'_, IoResult<Extent>> {
        let asks = purpose == Purpose::Status { want_zero: true };
        if !asks || self.kind() != Kind::Regular {
            return Answer::ready(Ok(Extent::new(len, At::Own)));
        }
        if let Some(known) = self.known_data.len_from(offset) {
            return Answer::ready(Ok(Extent::new(known.min(len), At::Own)));
        }
        Answer::wait(self.look(offset, len))
    }

    async fn look(&self, offset: u64, len: u64) -> IoResult<Extent> {
        let changes = self.known_data.changes.get();
        let fd = self.fd();
        let found = self
            .ring
            .blocking(move || find(std::os::fd::AsFd::as_fd(&*fd), offset))
            .await;
        let (end, at) = match found {
            Found::Data { end } => (end, At::Own),
            Found::Hole { end } => (end, At::Zero { reserved: None }),
        };
        // Only at its end does a file stop in the middle of a block: the rest of that reads as zeroes.
        let end = end
            .checked_next_multiple_of(self.handle.borrow().alignment.request.into())
            .unwrap_or(end);
        if at == At::Own && changes == self.known_data.changes.get() {
            self.known_data.range.set(Some((offset, end)));
        }
        Ok(Extent::new(end.saturating_sub(offset).clamp(1, len), at))
    }
}

/// What is at `offset`. A file system that cannot tell has nothing but data.
fn find(fd: BorrowedFd<'_>, offset: u64) -> Found {
    match seek(fd, SeekFrom::Data(offset)) {
        Ok(start) if start > offset => Found::Hole { end: start },
        // There is no data from here to the end of the file, or the offset is past it.
        Err(Errno::NXIO) => Found::Hole { end: u64::MAX },
        Err(_) => Found::Data { end: u64::MAX },
        Ok(_) => match seek(fd, SeekFrom::Hole(offset)) {
            Ok(end) if end > offset => Found::Data { end },
            // The file changes under the question: data is never wrong.
            Ok(_) => Found::Data {
                end: offset.saturating_add(1),
            },
            Err(_) => Found::Data { end: u64::MAX },
        },
    }
}
