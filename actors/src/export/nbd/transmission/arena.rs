//! Memory for short reads: one after the other, each with room before it for the header of its reply, so that replies
//! which go out together are one piece of memory rather than two for each.

use std::cell::RefCell;

use millpond_ring::buffer::Buffer;

/// Bytes of a chunk: what 64 replies of 4 KiB take. A chunk goes back when the last reply in it was sent, so a client holds
/// at most one for each request that it may have in flight.
const CHUNK: usize = 256 << 10;

/// Reads longer than this have memory of their own: two pieces for so many bytes cost nothing, and they would leave much of
/// a chunk unused.
const SHORT: usize = 32 << 10;

/// The chunk that replies are laid out in at present.
#[derive(Debug, Default)]
pub(super) struct Arena {
    free: RefCell<Buffer>,
}

impl Arena {
    /// Room for a header of `header` bytes, and right behind it memory for `len` bytes; `None` if that is not short, or there
    /// is no memory.
    pub(super) fn take(&self, header: usize, len: u64) -> Option<(Buffer, Buffer)> {
        let len = usize::try_from(len)
            .ok()
            .filter(|len| (1..=SHORT).contains(len))?;
        let mut free = self.free.borrow_mut();
        if free.len() < header + len {
            *free = Buffer::try_alloc(CHUNK)?;
        }
        let header = free.split_to(header);
        let data = free.split_to(len);
        Some((header, data))
    }

    /// Gives back what is not in use.
    pub(super) fn release(&self) {
        drop(self.free.take());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_follow_each_other_until_the_chunk_is_full() {
        let arena = Arena::default();
        let mut whole = Buffer::new();
        for taken in 0.. {
            let (header, data) = arena.take(16, 4096).unwrap();
            assert_eq!((header.len(), data.len()), (16, 4096));
            let reply = header.try_unsplit(data).unwrap();
            whole = match whole.is_empty() {
                true => reply,
                false => match whole.try_unsplit(reply) {
                    Ok(longer) => longer,
                    Err((full, _)) => {
                        assert_eq!(full.len(), taken * 4112);
                        assert!(full.len() + 4112 > CHUNK);
                        return;
                    }
                },
            };
        }
    }

    #[test]
    fn what_is_empty_or_long_has_memory_of_its_own() {
        let arena = Arena::default();
        assert!(arena.take(16, 0).is_none());
        assert!(arena.take(16, SHORT as u64 + 1).is_none());
        assert!(arena.take(16, SHORT as u64).is_some());
    }
}
