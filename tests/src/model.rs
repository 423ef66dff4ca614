//! What a disk should contain, kept in plain memory.

use crate::nbd::Request;
use crate::nbd::wire::*;

/// The expected content of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Model {
    bytes: Vec<u8>,
}

impl Model {
    /// A disk of zeroes.
    pub fn new(size: u64) -> Model {
        Model {
            bytes: vec![0; usize::try_from(size).expect("a test's disk fits in memory")],
        }
    }

    /// A disk that contains this.
    pub fn of(bytes: Vec<u8>) -> Model {
        Model { bytes }
    }

    /// The disk's size.
    pub fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// The whole content.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The content of a range.
    pub fn range(&self, offset: u64, length: u64) -> &[u8] {
        &self.bytes[offset as usize..(offset + length) as usize]
    }

    /// Takes in a request that succeeded. A trim leaves the content open until it is read: see [`Model::settle`].
    pub fn apply(&mut self, request: &Request) {
        let range = request.offset as usize..(request.offset + request.length) as usize;
        match request.command {
            CMD_WRITE => self.bytes[range].copy_from_slice(&request.payload),
            CMD_WRITE_ZEROES => self.bytes[range].fill(0),
            _ => {}
        }
    }

    /// Requires that `data` is what the disk contains at `offset`.
    #[track_caller]
    pub fn check(&self, offset: u64, data: &[u8]) {
        let expected = self.range(offset, data.len() as u64);
        if let Some(at) = first_difference(expected, data) {
            let at_most = at + 16.min(data.len() - at);
            panic!(
                "the disk differs at {}: expected {:02x?}..., found {:02x?}...",
                offset + at as u64,
                &expected[at..at_most],
                &data[at..at_most]
            );
        }
    }

    /// Takes in what a trimmed range contains now: each byte what it was, or zero.
    #[track_caller]
    pub fn settle(&mut self, offset: u64, data: &[u8]) {
        for (index, (old, new)) in self.bytes[offset as usize..].iter_mut().zip(data).enumerate() {
            assert!(
                *new == 0 || new == old,
                "after a trim, byte {} is neither old nor zero",
                offset + index as u64
            );
            *old = *new;
        }
    }
}

/// Where two equally long pieces differ first.
fn first_difference(one: &[u8], other: &[u8]) -> Option<usize> {
    if one == other {
        return None;
    }
    one.iter().zip(other).position(|(left, right)| left != right)
}
