//! Lengths of files, and the space reserved for what is new.

use std::os::fd::{AsFd, BorrowedFd};

use millpond_messages::io::Preallocation;
use millpond_messages::{Error, ErrorKind, IoError, Result, SECTOR_SIZE};
use rustix::fs::{FallocateFlags, fallocate, fsync, ftruncate};
use rustix::io::Errno;

use super::node::File;
use super::open::{Access, Kind, errno};
use millpond_ring::buffer::Buffer;

/// How many zeroes are written at once.
const CHUNK: u64 = 1 << 20;
/// How much of a file is written so that there is something to probe.
const FIRST_BLOCK: u64 = 4096;

fn name(preallocation: Preallocation) -> &'static str {
    match preallocation {
        Preallocation::Off => "off",
        Preallocation::Metadata => "metadata",
        Preallocation::Falloc => "falloc",
        Preallocation::Full => "full",
    }
}

fn failed(what: &'static str) -> impl Fn(Errno) -> Error {
    move |error| Error::io(what, errno(error))
}

impl File {
    /// Changes the length. A new part reads as zeroes.
    pub(super) async fn resize(&self, size: u64, exact: bool, preallocation: Preallocation) -> Result<()> {
        if self.kind() != Kind::Regular {
            return self.resize_device(size, exact, preallocation);
        }
        let handle = self.handle.borrow().clone();
        let filename = self.config.borrow().parsed.filename.clone();
        self.known_data.forget();
        let resized = self.ring.blocking(move || {
            if preallocation == Preallocation::Full && handle.access.direct {
                // The rest of a block cannot be written past the page cache.
                let buffered = handle.reopen(
                    &filename,
                    Access {
                        write: true,
                        direct: false,
                    },
                )?;
                return resize_file(&buffered.fd, size, preallocation);
            }
            resize_file(&handle.fd, size, preallocation)
        });
        let resized = resized.await;
        self.known_data.forget();
        resized
    }

    /// A device has the length it has; `exact` says whether to mind if that is more than asked.
    fn resize_device(&self, size: u64, exact: bool, preallocation: Preallocation) -> Result<()> {
        if preallocation != Preallocation::Off {
            let mode = name(preallocation);
            let text = format!("Preallocation mode '{mode}' unsupported for this non-regular file");
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
        let length = self
            .length_now()
            .map_err(|error| Error::io("Could not get image size", error))?;
        if size != length && exact {
            return Err(Error::new(ErrorKind::Unsupported, "Cannot resize device files"));
        }
        if size > length {
            return Err(Error::new(ErrorKind::InvalidArgument, "Cannot grow device files"));
        }
        Ok(())
    }
}

/// Changes a regular file's length. On failure it has the old one again. Blocks.
///
/// # Errors
/// The mode is not one for files, space is to be reserved for a file that shrinks, or the file system refuses.
pub(super) fn resize_file(fd: impl AsFd, size: u64, preallocation: Preallocation) -> Result<()> {
    let fd = fd.as_fd();
    let facts = rustix::fs::fstat(fd).map_err(failed("Could not stat file"))?;
    let old = u64::try_from(facts.st_size).unwrap_or(0);
    if old > size && preallocation != Preallocation::Off {
        let text = "Cannot use preallocation for shrinking files";
        return Err(Error::new(ErrorKind::Unsupported, text));
    }
    if i64::try_from(size).is_err() {
        return Err(Error::io("Could not resize file", IoError::Invalid));
    }
    let resized = match preallocation {
        Preallocation::Off => {
            set_length(fd, size)?;
            if old == 0 && size > 0 {
                write_first_block(fd, size);
            }
            return Ok(());
        }
        Preallocation::Falloc => reserve(fd, old, size),
        Preallocation::Full => set_length(fd, size).and_then(|()| write_zeroes(fd, old, size)),
        Preallocation::Metadata => {
            let text = format!("Unsupported preallocation mode: {}", name(preallocation));
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
    };
    if resized.is_err()
        && let Err(error) = ftruncate(fd, old)
    {
        tracing::error!("Failed to restore old file length: {error}");
    }
    resized
}

fn set_length(fd: BorrowedFd<'_>, size: u64) -> Result<()> {
    ftruncate(fd, size).map_err(failed("Could not resize file"))
}

/// Writes the beginning of a file that was empty: what alignment the file system demands can be probed only where it has
/// allocated something. It may fail without harm.
fn write_first_block(fd: BorrowedFd<'_>, size: u64) {
    let len = if size < FIRST_BLOCK {
        SECTOR_SIZE
    } else {
        FIRST_BLOCK
    };
    let block = Buffer::zeroed(len as usize);
    if let Err(error) = rustix::io::pwrite(fd, &block, 0) {
        tracing::debug!("the first block of a new file stays unallocated: {error}");
    }
}

/// Reserves space for the bytes from `old` to `size`, by writing them where the file system knows no other way.
fn reserve(fd: BorrowedFd<'_>, old: u64, size: u64) -> Result<()> {
    if old == size {
        return Ok(());
    }
    match fallocate(fd, FallocateFlags::empty(), old, size - old) {
        Ok(()) => Ok(()),
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
            set_length(fd, size).and_then(|()| write_zeroes(fd, old, size))
        }
        Err(error) => Err(failed("Could not preallocate data for the new file")(error)),
    }
}

fn write_zeroes(fd: BorrowedFd<'_>, mut offset: u64, end: u64) -> Result<()> {
    // The chunk fits in memory, so in a usize.
    let zeroes = Buffer::zeroed(CHUNK.min(end - offset) as usize);
    while offset < end {
        let len = zeroes
            .len()
            .min(usize::try_from(end - offset).unwrap_or(usize::MAX));
        match rustix::io::pwrite(fd, zeroes.get(..len).unwrap_or_default(), offset) {
            Ok(0) => return Err(failed("Could not write zeros for preallocation")(Errno::NOSPC)),
            Ok(count) => offset += count as u64,
            Err(Errno::INTR) => {}
            Err(error) => return Err(failed("Could not write zeros for preallocation")(error)),
        }
    }
    fsync(fd).map_err(failed("Could not flush file to disk"))
}
