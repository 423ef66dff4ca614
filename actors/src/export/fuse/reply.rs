//! Answers to the kernel's messages, as bytes.

use millpond_messages::IoError;
use millpond_ring::buffer::Buffer;
use rustix::io::Errno;

/// The largest error that the kernel takes.
const MOST_ERRNO: i32 = 511;

/// What the kernel is told of an error of the node.
pub(super) fn told(error: IoError) -> Errno {
    code(error.errno())
}

/// An error number, if it is one that the kernel takes.
pub(super) fn code(number: i32) -> Errno {
    match number {
        1..=MOST_ERRNO => Errno::from_raw_os_error(number),
        _ => Errno::IO,
    }
}

/// Bytes of the head of every answer.
const OUT_HEADER: usize = 16;

/// The number of the one file.
const INODE: u64 = 1;

bitflags::bitflags! {
    /// How an open file is used.
    struct OpenFlags: u32 {
        const DIRECT_IO = 1 << 0;
        const PARALLEL_DIRECT_WRITES = 1 << 6;
    }
}

/// What a GETATTR is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Attributes {
    pub(super) size: u64,
    /// In units of 512 bytes.
    pub(super) blocks: u64,
    pub(super) block_size: u32,
    /// Of the last access and the last change, in seconds and nanoseconds.
    pub(super) time: (u64, u32),
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// An answer that is being written. What is not written of it is zero.
pub(super) struct Answer {
    buffer: Buffer,
    at: usize,
}

impl Answer {
    /// Begins an answer with so many bytes behind its head.
    pub(super) fn begin(unique: u64, len: usize) -> Self {
        Self::with_data(unique, len, 0)
    }

    /// The same, with `data` bytes behind it in another buffer.
    fn with_data(unique: u64, len: usize, data: usize) -> Self {
        let buffer = Buffer::zeroed(OUT_HEADER + len);
        let mut answer = Self { buffer, at: 0 };
        // No answer is larger than a read is.
        answer.u32((OUT_HEADER + len + data) as u32).u32(0).u64(unique);
        answer
    }

    fn put(&mut self, bytes: &[u8]) -> &mut Self {
        if let Some(room) = self.buffer.get_mut(self.at..self.at + bytes.len()) {
            room.copy_from_slice(bytes);
            self.at += bytes.len();
        }
        self
    }

    pub(super) fn u16(&mut self, number: u16) -> &mut Self {
        self.put(&number.to_ne_bytes())
    }

    pub(super) fn u32(&mut self, number: u32) -> &mut Self {
        self.put(&number.to_ne_bytes())
    }

    fn u64(&mut self, number: u64) -> &mut Self {
        self.put(&number.to_ne_bytes())
    }

    pub(super) fn end(self) -> Buffer {
        self.buffer
    }

    /// It was done; there is nothing to tell.
    pub(super) fn done(unique: u64) -> Buffer {
        Self::begin(unique, 0).end()
    }

    /// It was not done.
    pub(super) fn failed(unique: u64, error: Errno) -> Buffer {
        let mut answer = Self::begin(unique, 0);
        answer.at = 4;
        answer.u32(error.raw_os_error().wrapping_neg().cast_unsigned());
        answer.end()
    }

    /// The file is open.
    pub(super) fn opened(unique: u64, direct: bool) -> Buffer {
        let flags = match direct {
            true => OpenFlags::DIRECT_IO | OpenFlags::PARALLEL_DIRECT_WRITES,
            false => OpenFlags::empty(),
        };
        let mut answer = Self::begin(unique, 16);
        answer.u64(0).u32(flags.bits());
        answer.end()
    }

    /// The head before `len` bytes that were read.
    pub(super) fn read(unique: u64, len: usize) -> Buffer {
        Self::with_data(unique, 0, len).end()
    }

    /// So many bytes were written.
    pub(super) fn written(unique: u64, len: u32) -> Buffer {
        let mut answer = Self::begin(unique, 8);
        answer.u32(len);
        answer.end()
    }

    /// Where the search has ended.
    pub(super) fn found(unique: u64, offset: u64) -> Buffer {
        let mut answer = Self::begin(unique, 8);
        answer.u64(offset);
        answer.end()
    }

    /// About the file system: names have up to 255 bytes, and nothing else is known.
    pub(super) fn statistics(unique: u64) -> Buffer {
        let mut answer = Self::begin(unique, 80);
        answer.at += 40;
        answer.u32(512).u32(255);
        answer.end()
    }

    /// About the file. The kernel asks again each time: the length may change at any moment.
    pub(super) fn attributes(unique: u64, file: &Attributes) -> Buffer {
        let (seconds, nanoseconds) = file.time;
        let mut answer = Self::begin(unique, 104);
        answer.u64(0).u32(0).u32(0);
        answer.u64(INODE).u64(file.size).u64(file.blocks);
        answer.u64(seconds).u64(seconds).u64(seconds);
        answer.u32(nanoseconds).u32(nanoseconds).u32(nanoseconds);
        answer.u32(file.mode).u32(1).u32(file.uid).u32(file.gid);
        answer.u32(0).u32(file.block_size);
        answer.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_say_how_long_they_are() {
        let answers = [
            (Answer::done(7), 16),
            (Answer::failed(7, Errno::INVAL), 16),
            (Answer::opened(7, true), 32),
            (Answer::read(7, 4096), 16 + 4096),
            (Answer::written(7, 1), 24),
            (Answer::statistics(7), 96),
        ];
        for (answer, len) in answers {
            assert_eq!(answer[..4], u32::to_ne_bytes(len));
            assert_eq!(answer[8..16], 7_u64.to_ne_bytes());
        }
        assert_eq!(Answer::failed(7, Errno::INVAL)[4..8], (-22_i32).to_ne_bytes());
    }
}
