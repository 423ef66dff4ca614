//! What is data and what are holes.

use std::os::fd::BorrowedFd;

use millpond_messages::{IoResult, Range};
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use super::node::File;
use super::open::Kind;
use crate::api::{Answer, At, Extent, Purpose};

/// What a file has at an offset, and where that ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Data { end: u64 },
    Hole { end: u64 },
}

impl File {
    pub(super) fn locate_data(&self, purpose: Purpose, range: Range) -> Answer<'_, IoResult<Extent>> {
        let (offset, len) = (range.offset(), range.len());
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
        let changes = self.known_data.changes();
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
        if at == At::Own {
            self.known_data.remember(changes, offset, end);
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
