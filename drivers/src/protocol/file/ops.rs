//! Which descriptor a request takes to the ring: small ones on files in memory are served in place.

use super::open::Handle;
use millpond_ring::{AioMode, FileOps, Ring};

/// Bytes from which on a thread beside the iothread is worth its two wake-ups: some 5 us of copying.
const LARGE: usize = 64 << 10;

/// A file's descriptors, ready for use.
#[derive(Debug)]
pub(super) struct Ops {
    /// The descriptor that every other operation goes through.
    pub(super) all: FileOps,
    /// The descriptor for small reads and writes, if the file lies in memory.
    in_place: Option<FileOps>,
}

impl Ops {
    /// The descriptors of `handle`, served by `ring` as `aio` says. A user who asks for threads gets them.
    pub(super) fn new(ring: &Ring, handle: &Handle, aio: AioMode) -> Self {
        let in_place = handle.in_place.as_ref().filter(|_| aio != AioMode::Threads);
        Self {
            all: match handle.access.direct {
                true => FileOps::new(ring, handle.fd.clone(), aio).past_the_page_cache(),
                false => FileOps::new(ring, handle.fd.clone(), aio),
            },
            in_place: in_place.map(|fd| FileOps::new(ring, fd.clone(), aio)),
        }
    }

    /// The descriptor for a read or write of `len` bytes.
    pub(super) fn of_length(&self, len: usize) -> &FileOps {
        match &self.in_place {
            Some(in_place) if len < LARGE => in_place,
            _ => &self.all,
        }
    }
}
