//! What an operation is made of: everything the kernel (or a pool thread) may touch while it runs.

use std::fmt;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::Arc;

use rustix::net::SocketAddrAny;

use crate::buffer::{Buffer, Buffers};

/// A descriptor shared by its user and the operations on it: it closes when the last of them is gone.
pub type Fd = Arc<OwnedFd>;

/// The name of a slot: an index, and a generation that tells its uses apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SlotId {
    pub(super) index: u32,
    pub(super) generation: u32,
}

/// How operations on a file are to be run (QEMU's option `aio`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AioMode {
    /// On the ring's thread pool, whatever the ring's own engine.
    Threads,
    /// By the kernel asynchronously; the ring does the same as for [`AioMode::IoUring`].
    Native,
    /// By the ring's engine.
    #[default]
    IoUring,
}

/// Work for the thread pool.
pub type Job = Box<dyn FnOnce() + Send>;

/// An operation, owned by its slot until its last completion.
pub enum Op {
    /// Read at an offset into buffers.
    Read {
        /// The file to read from.
        fd: Fd,
        /// Where the bytes go.
        bufs: Buffers,
        /// Where they come from, in bytes.
        offset: u64,
        /// Who carries out the read.
        aio: AioMode,
        /// The bytes come from a device, not from memory: it can begin while more is being handed over.
        direct: bool,
    },
    /// Write buffers at an offset.
    Write {
        /// The file to write to.
        fd: Fd,
        /// The bytes to be written.
        bufs: Buffers,
        /// Where they go, in bytes.
        offset: u64,
        /// Complete only when the data is on stable storage (`RWF_DSYNC`).
        fua: bool,
        /// Who carries out the write.
        aio: AioMode,
        /// The bytes go to a device, not to memory: it can begin while more is being handed over.
        direct: bool,
    },
    /// Make a file durable, by `fsync(2)` or `fdatasync(2)`.
    Sync {
        /// The file to make durable.
        fd: Fd,
        /// Skip metadata that is not needed to read the data back.
        datasync: bool,
        /// Who makes it durable.
        aio: AioMode,
    },
    /// Change which space a file has, by `fallocate(2)`.
    Fallocate {
        /// The file whose space changes.
        fd: Fd,
        /// The mode: bits of `FALLOC_FL_*`.
        mode: i32,
        /// The first byte of the range.
        offset: u64,
        /// The number of bytes.
        len: u64,
        /// Who carries it out.
        aio: AioMode,
    },
    /// Receive into a buffer.
    Recv {
        /// The socket to receive from.
        fd: Fd,
        /// Where the bytes go.
        buf: Buffer,
        /// How many came already.
        received: usize,
        /// Go on until the buffer is full, rather than take what there is.
        all: bool,
    },
    /// Send all of these bytes.
    Send {
        /// The socket to send to.
        fd: Fd,
        /// The bytes to be sent.
        bufs: Buffers,
        /// How many went out already.
        sent: usize,
    },
    /// Accept a connection; the result is its descriptor.
    Accept {
        /// The socket that listens.
        fd: Fd,
    },
    /// Connect a socket to an address.
    Connect {
        /// The socket to be connected.
        fd: Fd,
        /// The peer; boxed since the kernel may read it late.
        addr: Box<SocketAddrAny>,
        /// The connection was begun, and writability tells its end.
        begun: bool,
    },
    /// Wait for `poll(2)` events; the result is the mask of those that came.
    Poll {
        /// The descriptor to wait for.
        fd: Fd,
        /// What to wait for: `POLLIN`, `POLLOUT`, ...
        events: u32,
    },
    /// Run a job on the pool. None once it was handed over.
    Blocking(Option<Job>),
}

impl Op {
    /// Whether the operation is disk work, during which waiting rightly counts as I/O wait.
    pub(super) fn is_disk(&self) -> bool {
        matches!(
            self,
            Op::Read { .. } | Op::Write { .. } | Op::Sync { .. } | Op::Fallocate { .. }
        )
    }

    /// Whether a device works on the operation from the moment when it is handed over.
    #[inline]
    pub(super) fn is_direct(&self) -> bool {
        matches!(
            self,
            Op::Read { direct: true, .. } | Op::Write { direct: true, .. }
        )
    }

    /// Whether the operation wants the thread pool even where the engine could do without.
    pub(super) fn wants_pool(&self) -> bool {
        match self {
            Op::Read { aio, .. } | Op::Write { aio, .. } => *aio == AioMode::Threads,
            Op::Sync { aio, .. } | Op::Fallocate { aio, .. } => *aio == AioMode::Threads,
            Op::Blocking(_) => true,
            _ => false,
        }
    }

    /// Ends an operation nobody waits for: a connection accepted too late is closed.
    pub(super) fn dispose(self, result: i32) {
        if let (Op::Accept { .. }, 0..) = (&self, result) {
            // SAFETY: the kernel just made this descriptor for us, and nobody else knows of it.
            drop(unsafe { OwnedFd::from_raw_fd(result) });
        }
    }
}

impl fmt::Debug for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Op::Read { .. } => "Read",
            Op::Write { .. } => "Write",
            Op::Sync { .. } => "Sync",
            Op::Fallocate { .. } => "Fallocate",
            Op::Recv { .. } => "Recv",
            Op::Send { .. } => "Send",
            Op::Accept { .. } => "Accept",
            Op::Connect { .. } => "Connect",
            Op::Poll { .. } => "Poll",
            Op::Blocking(_) => "Blocking",
        })
    }
}
