//! Reads and writes, flushes, and copies from file to file.

use std::io;

use millpond_messages::{CopySource, IoError, IoResult, Range};
use rustix::io::Errno;

use super::node::File;
use super::open::errno;
use crate::api::Transfer;
use millpond_ring::buffer::{Buffer, Buffers};

/// The most one `copy_file_range` is asked for: a thread of the pool is not kept for longer than this takes.
const COPY_AT_ONCE: u64 = 64 << 20;

impl File {
    /// Fills `buffers`; what lies past the end of the file reads as zeroes.
    pub(super) async fn read_all(&self, offset: u64, buffers: Buffers) -> Transfer {
        let len = buffers.len();
        let reading = self.ops.borrow().of_length(len).read_at(buffers, offset);
        let (result, buffers) = reading.await;
        match result {
            Ok(count) if count >= len => (Ok(()), buffers),
            Err(error) if !is_retried(&error) => (Err(error.into()), buffers),
            Ok(count) => self.read_rest(offset, buffers, count).await,
            Err(_) => self.read_rest(offset, buffers, 0).await,
        }
    }

    /// Goes on after a read that stopped after `done` bytes.
    #[cold]
    async fn read_rest(&self, offset: u64, mut buffers: Buffers, mut done: usize) -> Transfer {
        let len = buffers.len();
        let request = self.handle.borrow().alignment.request as usize;
        // Past the page cache only the end of the file stops a read in the middle of a block.
        while done < len && done.is_multiple_of(request) {
            let rest = buffers.split_off(done);
            let reading = self.ops.borrow().all.read_at(rest, offset + done as u64);
            let (result, rest) = reading.await;
            buffers = joined(buffers, rest);
            match result {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if is_retried(&error) => {}
                Err(error) => return (Err(error.into()), buffers),
            }
        }
        buffers.fill_zero(done..len);
        (Ok(()), buffers)
    }

    /// Stores all of `buffers`, making the file longer if it must.
    pub(super) async fn write_all(&self, offset: u64, buffers: Buffers, fua: bool) -> Transfer {
        let len = buffers.len();
        let writing = self.ops.borrow().of_length(len).write_at(buffers, offset, fua);
        let (result, buffers) = writing.await;
        match result {
            Ok(count) if count >= len => (self.is_durable(fua), buffers),
            Err(error) if !is_retried(&error) => (Err(self.write_failed(error.into(), fua)), buffers),
            Ok(0) => (Err(IoError::NoSpace), buffers),
            Ok(count) => self.write_rest(offset, buffers, count, fua).await,
            Err(_) => self.write_rest(offset, buffers, 0, fua).await,
        }
    }

    /// Goes on after a write that stopped after `done` bytes.
    #[cold]
    async fn write_rest(&self, offset: u64, mut buffers: Buffers, mut done: usize, fua: bool) -> Transfer {
        let len = buffers.len();
        while done < len {
            let rest = buffers.split_off(done);
            let writing = self.ops.borrow().all.write_at(rest, offset + done as u64, fua);
            let (result, rest) = writing.await;
            buffers = joined(buffers, rest);
            match result {
                Ok(0) => return (Err(IoError::NoSpace), buffers),
                Ok(count) => done += count,
                Err(error) if is_retried(&error) => {}
                Err(error) => return (Err(self.write_failed(error.into(), fua)), buffers),
            }
        }
        (self.is_durable(fua), buffers)
    }

    /// Whether what the kernel calls durable is: it tells of what it could not store but once, to whoever asks first.
    fn is_durable(&self, asked: bool) -> IoResult<()> {
        match self.flush_error.get() {
            Some(error) if asked => Err(error),
            _ => Ok(()),
        }
    }

    /// A synchronous write that failed may have taken the error that the next flush should have reported.
    fn write_failed(&self, error: IoError, fua: bool) -> IoError {
        if fua && error == IoError::from_errno(libc::EIO) {
            self.flush_failed(error);
        }
        error
    }

    fn flush_failed(&self, error: IoError) {
        // What direct I/O acknowledged never was in the page cache: a later flush can still be true.
        if !self.handle.borrow().access.direct {
            self.flush_error.set(Some(error));
        }
    }

    /// Makes what was written durable.
    pub(super) async fn sync(&self) -> IoResult<()> {
        self.is_durable(true)?;
        loop {
            let syncing = self.ops.borrow().all.sync(true);
            match syncing.await {
                // A durable write that failed meanwhile may have been told instead.
                Ok(()) => return self.is_durable(true),
                Err(error) if is_retried(&error) => {}
                Err(error) => {
                    let error = IoError::from(error);
                    self.flush_failed(error);
                    return Err(error);
                }
            }
        }
    }

    /// Copies from another file, or this one, inside the kernel; answers how much it did.
    pub(super) async fn copy_in(&self, source: CopySource, range: Range) -> IoResult<u64> {
        let to = self.fd();
        let copied = self.copies.call(&self.ring, move || {
            let (mut from_offset, mut to_offset) = (source.offset, range.offset());
            // It is bounded well below what a usize holds.
            let count = range.len().min(COPY_AT_ONCE) as usize;
            loop {
                let (from, at) = (Some(&mut from_offset), Some(&mut to_offset));
                match rustix::fs::copy_file_range(&source.file, from, &to, at, count) {
                    Err(Errno::INTR) => {}
                    other => return other,
                }
            }
        });
        match copied.await.unwrap_or(Err(Errno::IO)) {
            // The source ends here: only a read knows how to fill what is missing.
            Ok(0) => Err(IoError::NotSupported),
            Ok(count) => Ok(count as u64),
            Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM | Errno::BADF) => {
                Err(IoError::NotSupported)
            }
            Err(error) => Err(errno(error)),
        }
    }
}

/// The kernel did nothing yet and says so.
fn is_retried(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
    )
}

/// The list that was split into these two, with a buffer that was cut in the middle made whole again.
fn joined(front: Buffers, back: Buffers) -> Buffers {
    let mut list: Vec<Buffer> = front.into_iter().collect();
    for buffer in back {
        let Some(last) = list.pop() else {
            list.push(buffer);
            continue;
        };
        match last.try_unsplit(buffer) {
            Ok(whole) => list.push(whole),
            Err(both) => list.extend(<[Buffer; 2]>::from(both)),
        }
    }
    list.into_iter().collect()
}
