//! The memory that the kernel puts requests into, and takes answers from.

use std::any::Any;
use std::io;
use std::mem::offset_of;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use super::{HEAD, OPERATION};
use crate::buffer::{Buffer, Buffers};

/// Bytes that the head of an entry has in memory; more than a [`Head`] needs, so that none shares a cache line.
const HEAD_ROOM: usize = 512;
/// What payloads are aligned to: pages.
const PAGE: usize = 4096;

const _: () = assert!(size_of::<Head>() <= HEAD_ROOM);
const _: () = assert!(offset_of!(Head, parts) == 288, "the kernel's head of an entry");

/// The head of an entry as the kernel lays it out (`struct fuse_uring_req_header`), and where its parts are.
#[repr(C)]
struct Head {
    /// The head of the request, or of its answer.
    message: [u8; 128],
    /// What its operation says.
    operation: [u8; OPERATION],
    flags: u64,
    commit: u64,
    payload_len: u32,
    padding: u32,
    reserved: u64,
    /// What the kernel is told when the entry is made known: this head, and the payload.
    parts: [libc::iovec; 2],
}

/// A mapping that holds the heads of all entries, and then their payloads. Pages that nobody has written to take no memory.
#[derive(Debug)]
struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: it is a range of addresses. Who touches which bytes of it is the business of `Place`.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(len: usize) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping, which touches no memory that there is.
        let base = unsafe { libc::mmap(ptr::null_mut(), len, protection, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        // A forked child would share pages that the kernel writes to for this process.
        // SAFETY: the range is the mapping made above.
        unsafe { libc::madvise(base.as_ptr().cast(), len, libc::MADV_DONTFORK) };
        Ok(Self { base, len })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is the mapping made in `new`, and nobody uses it any more: every `Place` and every buffer on
        // one holds the mapping.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// The memory of one entry. The kernel writes to it from the moment when it is given the entry until it hands it back.
#[derive(Debug)]
pub(super) struct Place {
    head: NonNull<Head>,
    payload: NonNull<u8>,
    payload_len: usize,
    /// Shared by the buffers on the payload: there are none while this is the only one.
    mapping: Arc<Owner>,
}

/// What keeps the mapping while there are buffers on it.
#[derive(Debug)]
struct Owner {
    _mapping: Arc<Mapping>,
}

// SAFETY: the pointers lead into the mapping, which is held, and a place is the only one that uses them, besides the kernel.
unsafe impl Send for Place {}

/// The length of a payload as the kernel wants it, and that of a mapping for so many entries.
fn lengths(entries: usize, payload_len: usize) -> Option<(usize, usize)> {
    let heads = entries.checked_mul(HEAD_ROOM)?.checked_next_multiple_of(PAGE)?;
    let payload_len = payload_len.checked_next_multiple_of(PAGE)?;
    let len = entries.checked_mul(payload_len)?.checked_add(heads)?;
    Some((payload_len, len))
}

/// Memory for so many entries, with payloads of this length.
pub(super) fn places(entries: usize, payload_len: usize) -> io::Result<Vec<Place>> {
    let (payload_len, len) = lengths(entries, payload_len).ok_or(io::ErrorKind::InvalidInput)?;
    if entries == 0 {
        return Ok(Vec::new());
    }
    let mapping = Arc::new(Mapping::new(len)?);
    let payloads = len - entries * payload_len;
    let place = |index: usize| {
        // SAFETY: the offset is below `payloads`, and so within the mapping.
        let head = unsafe { mapping.base.add(index * HEAD_ROOM) };
        // SAFETY: the offset is below `len`.
        let payload = unsafe { mapping.base.add(payloads + index * payload_len) };
        let owner = Owner {
            _mapping: Arc::clone(&mapping),
        };
        let mut place = Place {
            head: head.cast(),
            payload,
            payload_len,
            mapping: Arc::new(owner),
        };
        place.describe();
        place
    };
    Ok((0..entries).map(place).collect())
}

impl Place {
    /// The head, while the kernel does not have the entry.
    fn head(&mut self) -> &mut Head {
        // SAFETY: the pointer is aligned and into the mapping, whose bytes are zero or what was written since: a head has no
        // invalid values. Callers have the entry, so that the kernel leaves it alone.
        unsafe { self.head.as_mut() }
    }

    /// Writes down where the parts of the entry are.
    fn describe(&mut self) {
        let head = libc::iovec {
            iov_base: self.head.as_ptr().cast(),
            iov_len: offset_of!(Head, parts),
        };
        let payload = libc::iovec {
            iov_base: self.payload.as_ptr().cast(),
            iov_len: self.payload_len,
        };
        self.head().parts = [head, payload];
    }

    /// The address of what [`Place::describe`] has written, and how many parts that names.
    pub(super) fn parts(&self) -> (u64, u32) {
        let parts = self.head.as_ptr().addr() + offset_of!(Head, parts);
        (parts as u64, 2)
    }

    /// What came with a request: its head and operation, the name that its answer is committed by, and how many bytes
    /// of the payload it filled.
    pub(super) fn request(&mut self) -> ([u8; HEAD], u64, usize) {
        let room = self.payload_len;
        let head = self.head();
        let mut whole = [0; HEAD];
        let (message, operation) = whole.split_at_mut(HEAD - OPERATION);
        message.copy_from_slice(&head.message[..HEAD - OPERATION]);
        operation.copy_from_slice(&head.operation);
        (whole, head.commit, room.min(head.payload_len as usize))
    }

    /// The payload, for whoever serves the request. None while there is another buffer on it.
    pub(super) fn payload(&mut self) -> Option<Buffer> {
        let len = self.payload_len;
        let payload = self.payload;
        Arc::get_mut(&mut self.mapping)?;
        let owner: Arc<dyn Any + Send + Sync> = self.mapping.clone();
        // SAFETY: the range is in the mapping, which the owner holds. No other handle on it exists, as was just looked at,
        // and the kernel has handed the entry back.
        Some(unsafe { Buffer::foreign(payload, len, owner) })
    }

    /// Writes an answer: its head, and what follows it. False if somebody holds the payload still, or it is too long.
    #[must_use]
    pub(super) fn answer(&mut self, message: &[u8], body: Buffers) -> bool {
        let len = body.len();
        if len > self.payload_len || !self.fill(body) {
            return false;
        }
        let head = self.head();
        head.message[..message.len()].copy_from_slice(message);
        // It fits a payload, whose length the kernel knows as 32 bits.
        head.payload_len = len as u32;
        true
    }

    /// Makes `body` the beginning of the payload, by a copy unless it is that.
    fn fill(&mut self, body: Buffers) -> bool {
        let begins_here = |buffer: &Buffer| ptr::eq(buffer.as_ptr(), self.payload.as_ptr());
        let is_there = body.count() == 1 && body.iter().all(begins_here);
        if body.is_empty() || is_there {
            drop(body);
            return self.payload().is_some();
        }
        if let Some(mut payload) = self.payload() {
            copy(&body, &mut payload);
            return true;
        }
        // It may hold parts of the payload itself, in another order.
        let bytes = body.to_vec();
        drop(body);
        let Some(mut payload) = self.payload() else {
            return false;
        };
        payload[..bytes.len()].copy_from_slice(&bytes);
        true
    }
}

fn copy(from: &Buffers, to: &mut [u8]) {
    let mut at = 0;
    for buffer in from.iter() {
        to[at..at + buffer.len()].copy_from_slice(buffer);
        at += buffer.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> Place {
        let places = places(3, 10_000).unwrap();
        places.into_iter().nth(1).unwrap()
    }

    #[test]
    fn what_was_read_into_the_payload_is_not_copied() {
        let mut place = place();
        let mut payload = place.payload().unwrap();
        assert_eq!(payload.len(), 12_288);
        payload[..4].copy_from_slice(b"data");
        payload.truncate(4);
        assert!(place.answer(b"head", payload.into()));
        assert_eq!(place.head().payload_len, 4);
        assert_eq!(&place.head().message[..4], b"head");
        assert_eq!(&place.payload().unwrap()[..4], b"data");
    }

    #[test]
    fn what_was_read_elsewhere_or_in_pieces_is_copied() {
        let mut place = place();
        let mut body = Buffers::from(Buffer::from_slice(b"one"));
        body.push(Buffer::from_slice(b"two"));
        assert!(place.answer(b"", body));
        assert_eq!(&place.payload().unwrap()[..6], b"onetwo");
        let mut late = place.payload().unwrap();
        let mut rest = late.split_off(3);
        rest.truncate(3);
        late.truncate(3);
        let mut body = Buffers::from(rest);
        body.push(late);
        assert!(place.answer(b"", body));
        assert_eq!(&place.payload().unwrap()[..6], b"twoone");
    }

    #[test]
    fn nothing_is_answered_while_the_payload_is_in_use_or_too_small() {
        let mut place = place();
        let payload = place.payload().unwrap();
        assert!(place.payload().is_none());
        assert!(!place.answer(b"", Buffers::new()));
        assert!(!place.answer(b"", Buffer::from_slice(b"other").into()));
        drop(payload);
        assert!(!place.answer(b"", Buffers::zeroed(12_289)));
        assert!(place.answer(b"", Buffers::zeroed(12_288)));
    }

    #[test]
    fn buffers_outlive_the_places_they_are_on() {
        let mut place = place();
        let mut payload = place.payload().unwrap();
        drop(place);
        payload.fill(7);
        assert!(places(usize::MAX, 1).is_err());
        assert!(places(0, 1).unwrap().is_empty());
    }
}
