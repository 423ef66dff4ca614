//! A gather list: several buffers that stand for one range of a device or a stream.

use std::ops::Range;

use smallvec::{IntoIter, SmallVec, smallvec};

use super::{Buffer, is_zero};

/// A list of buffers in order, most often one; its bytes are those of its members one after the other.
#[derive(Debug, Default)]
pub struct Buffers {
    list: SmallVec<[Buffer; 1]>,
}

impl Buffers {
    /// A list without any buffer.
    pub fn new() -> Self {
        Self::default()
    }

    /// One buffer of `len` bytes with unspecified contents: see [`Buffer::alloc`].
    pub fn alloc(len: usize) -> Self {
        Buffer::alloc(len).into()
    }

    /// One buffer of `len` zero bytes.
    pub fn zeroed(len: usize) -> Self {
        Buffer::zeroed(len).into()
    }

    /// Adds a buffer at the end.
    #[inline]
    pub fn push(&mut self, buffer: Buffer) {
        self.list.push(buffer);
    }

    /// Adds a buffer at the end, as a part of the last one if it was split off right behind that.
    #[inline]
    pub fn push_joined(&mut self, buffer: Buffer) {
        let Some(last) = self.list.pop() else {
            return self.list.push(buffer);
        };
        match last.try_unsplit(buffer) {
            Ok(whole) => self.list.push(whole),
            Err((last, buffer)) => self.list.extend([last, buffer]),
        }
    }

    /// Adds all of `other` at the end.
    pub fn append(&mut self, other: Buffers) {
        self.list.extend(other.list);
    }

    /// The bytes in all.
    #[inline]
    pub fn len(&self) -> usize {
        self.list.iter().map(Buffer::len).sum()
    }

    /// Whether there is no byte.
    pub fn is_empty(&self) -> bool {
        self.list.iter().all(Buffer::is_empty)
    }

    /// How many buffers the list has.
    #[inline]
    pub fn count(&self) -> usize {
        self.list.len()
    }

    /// The buffers in order.
    #[inline]
    pub fn iter(&self) -> std::slice::Iter<'_, Buffer> {
        self.list.iter()
    }

    /// The buffers in order, for writing.
    #[inline]
    pub fn iter_mut(&mut self) -> std::slice::IterMut<'_, Buffer> {
        self.list.iter_mut()
    }

    /// Whether every member's address and length is a multiple of `align` (a power of two).
    pub fn is_aligned(&self, align: usize) -> bool {
        self.list.iter().all(|buffer| buffer.is_aligned(align))
    }

    /// Takes the first `n` bytes away as a list of their own, without a copy.
    ///
    /// # Panics
    /// If `n > self.len()`.
    pub fn split_to(&mut self, n: usize) -> Buffers {
        let rest = self.split_off(n);
        std::mem::replace(self, rest)
    }

    /// Takes all but the first `n` bytes away as a list of their own, without a copy.
    ///
    /// # Panics
    /// If `n > self.len()`.
    pub fn split_off(&mut self, n: usize) -> Buffers {
        let mut left = n;
        let mut index = 0;
        while let Some(buffer) = self.list.get(index).filter(|buffer| buffer.len() <= left) {
            left -= buffer.len();
            index += 1;
        }
        let mut rest = SmallVec::new();
        if left > 0 {
            let cut = self.list.get_mut(index);
            let cut =
                cut.unwrap_or_else(|| panic!("a list of buffers is {left} bytes too short to split at {n}"));
            rest.push(cut.split_off(left));
            index += 1;
        }
        rest.extend(self.list.drain(index..));
        Buffers { list: rest }
    }

    /// Shortens the list to its first `len` bytes; does nothing if it is not longer.
    pub fn truncate(&mut self, len: usize) {
        if len < self.len() {
            drop(self.split_off(len));
        }
    }

    /// The parts of members that bytes `range` of the list lie in, clipped to the list's end.
    fn parts_mut(&mut self, range: Range<usize>) -> impl Iterator<Item = &mut [u8]> {
        let mut start = 0;
        self.list.iter_mut().filter_map(move |buffer| {
            let from = range.start.saturating_sub(start).min(buffer.len());
            let to = range.end.saturating_sub(start).min(buffer.len());
            start += buffer.len();
            (from < to).then(|| &mut buffer[from..to])
        })
    }

    /// Zeroes the bytes of `range`, as far as the list reaches.
    pub fn fill_zero(&mut self, range: Range<usize>) {
        self.parts_mut(range).for_each(|part| part.fill(0));
    }

    /// Copies `bytes` to offset `offset` of the list, as far as it reaches; returns how many were copied.
    pub fn copy_from_slice(&mut self, offset: usize, bytes: &[u8]) -> usize {
        let mut done = 0;
        for part in self.parts_mut(offset..offset.saturating_add(bytes.len())) {
            let next = done + part.len();
            part.copy_from_slice(&bytes[done..next]);
            done = next;
        }
        done
    }

    /// Fills `bytes` from offset `offset` of the list, as far as it reaches; returns how many were copied.
    pub fn copy_to_slice(&self, offset: usize, bytes: &mut [u8]) -> usize {
        let mut skip = offset;
        let mut done = 0;
        for buffer in &self.list {
            let from = skip.min(buffer.len());
            skip -= from;
            let part = &buffer[from..];
            let n = part.len().min(bytes.len() - done);
            bytes[done..done + n].copy_from_slice(&part[..n]);
            done += n;
        }
        done
    }

    /// A copy of all bytes.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut all = Vec::with_capacity(self.len());
        self.list.iter().for_each(|buffer| all.extend_from_slice(buffer));
        all
    }

    /// The list as one buffer: the very one if there is just one, else a copy.
    pub fn into_single(mut self) -> Buffer {
        if self.list.len() <= 1 {
            return self.list.pop().unwrap_or_default();
        }
        let mut single = Buffer::alloc(self.len());
        self.copy_to_slice(0, &mut single);
        single
    }

    /// Whether every byte is zero.
    pub fn is_zero(&self) -> bool {
        self.list.iter().all(|buffer| is_zero(buffer))
    }
}

impl From<Buffer> for Buffers {
    #[inline]
    fn from(buffer: Buffer) -> Self {
        Buffers {
            list: smallvec![buffer],
        }
    }
}

impl From<Vec<u8>> for Buffers {
    fn from(bytes: Vec<u8>) -> Self {
        Buffer::from(bytes).into()
    }
}

impl FromIterator<Buffer> for Buffers {
    fn from_iter<I: IntoIterator<Item = Buffer>>(buffers: I) -> Self {
        Buffers {
            list: buffers.into_iter().collect(),
        }
    }
}

impl IntoIterator for Buffers {
    type Item = Buffer;
    type IntoIter = IntoIter<[Buffer; 1]>;

    fn into_iter(self) -> Self::IntoIter {
        self.list.into_iter()
    }
}

impl<'a> IntoIterator for &'a Buffers {
    type Item = &'a Buffer;
    type IntoIter = std::slice::Iter<'a, Buffer>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}
