//! Operations on one file with the engine its user chose for it.

use super::future::{Finished, Moved, Pending};
use super::op::{AioMode, Fd, Op};
use super::ring::Ring;
use crate::buffer::Buffers;

/// A file on a ring, and how its operations run there.
#[derive(Clone, Debug)]
pub struct FileOps {
    ring: Ring,
    fd: Fd,
    aio: AioMode,
    direct: bool,
}

impl FileOps {
    /// The file `fd`, served by `ring` as `aio` says.
    pub fn new(ring: &Ring, fd: Fd, aio: AioMode) -> Self {
        Self {
            ring: ring.clone(),
            fd,
            aio,
            direct: false,
        }
    }

    /// The same for a file whose bytes go past the page cache: its device gets them as it can take them, and not only at the
    /// end of the ring's turn.
    #[must_use]
    pub fn past_the_page_cache(self) -> Self {
        Self { direct: true, ..self }
    }

    /// The ring that the operations go through.
    pub fn ring(&self) -> &Ring {
        &self.ring
    }

    /// The descriptor of the file.
    pub fn fd(&self) -> &Fd {
        &self.fd
    }

    /// The engine asked for.
    pub fn aio(&self) -> AioMode {
        self.aio
    }

    /// Reads as [`Ring::read_at`] does.
    #[inline]
    pub fn read_at(&self, bufs: Buffers, offset: u64) -> Pending<Moved> {
        self.ring.start(Op::Read {
            fd: self.fd.clone(),
            bufs,
            offset,
            aio: self.aio,
            direct: self.direct,
        })
    }

    /// Writes as [`Ring::write_at`] does.
    #[inline]
    pub fn write_at(&self, bufs: Buffers, offset: u64, fua: bool) -> Pending<Moved> {
        self.ring.start(Op::Write {
            fd: self.fd.clone(),
            bufs,
            offset,
            fua,
            aio: self.aio,
            direct: self.direct,
        })
    }

    /// Makes durable as [`Ring::sync`] does.
    pub fn sync(&self, datasync: bool) -> Pending<Finished> {
        self.ring.start(Op::Sync {
            fd: self.fd.clone(),
            datasync,
            aio: self.aio,
        })
    }

    /// Changes the file's space as [`Ring::fallocate`] does.
    pub fn fallocate(&self, mode: i32, offset: u64, len: u64) -> Pending<Finished> {
        self.ring.start(Op::Fallocate {
            fd: self.fd.clone(),
            mode,
            offset,
            len,
            aio: self.aio,
        })
    }
}
