//! Buffers of requests: filled before, checked after.

use millpond_messages::error::errno::ENOMEM;
use millpond_messages::{IoError, IoResult};
use millpond_ring::buffer::{Buffer, Buffers};

/// What the buffers of reads are filled with, so that bytes that nobody has read are seen.
pub const READ_FILL: u8 = 0xab;
/// What is written where nothing else is said.
pub const WRITE_FILL: u8 = 0xcd;

/// Buffers of these lengths, filled with a byte.
///
/// # Errors
/// There is not so much memory.
pub fn filled(parts: &[u64], byte: u8) -> IoResult<Buffers> {
    let mut buffers = Buffers::new();
    for &len in parts {
        let mut buffer = allocated(len)?;
        buffer.fill(byte);
        buffers.push(buffer);
    }
    Ok(buffers)
}

/// One buffer of `len` bytes that repeats `bytes`, of which there are some.
///
/// # Errors
/// There is not so much memory.
pub fn repeated(bytes: &[u8], len: u64) -> IoResult<Buffers> {
    let mut buffer = allocated(len)?;
    for part in buffer.chunks_mut(bytes.len().max(1)) {
        let count = part.len();
        part.copy_from_slice(bytes.get(..count).unwrap_or_default());
    }
    Ok(Buffers::from(buffer))
}

/// Whether `range` (an offset and a length) of the buffers has nothing but this byte.
pub fn is_all(buffers: &Buffers, (offset, len): (u64, u64), byte: u8) -> bool {
    let (mut skip, mut left) = (offset, len);
    for buffer in buffers.iter() {
        let begin = skip.min(buffer.len() as u64);
        skip -= begin;
        let here = left.min(buffer.len() as u64 - begin);
        left -= here;
        // Both are at most the buffer's length.
        let (begin, here) = (begin as usize, here as usize);
        if buffer[begin..begin + here].iter().any(|&other| other != byte) {
            return false;
        }
    }
    true
}

fn allocated(len: u64) -> IoResult<Buffer> {
    let len = usize::try_from(len).ok();
    len.and_then(Buffer::try_alloc).ok_or(IoError::from_errno(ENOMEM))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_looks_at_its_range_only() {
        let mut buffers = filled(&[4, 0, 4], 1).unwrap();
        buffers.copy_from_slice(5, &[2]);
        for (range, byte, expected) in [
            ((0, 8), 1, false),
            ((0, 5), 1, true),
            ((6, 2), 1, true),
            ((5, 1), 2, true),
            ((4, 2), 1, false),
            ((8, 0), 7, true),
        ] {
            assert_eq!(is_all(&buffers, range, byte), expected, "{range:?}");
        }
    }

    #[test]
    fn a_source_is_repeated_and_cut() {
        assert_eq!(repeated(b"abc", 7).unwrap().to_vec(), b"abcabca");
        assert_eq!(repeated(b"abc", 2).unwrap().to_vec(), b"ab");
    }
}
