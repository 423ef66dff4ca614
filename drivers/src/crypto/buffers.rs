//! Sectors in the buffers of requests: decrypted where they are, and encrypted into buffers of their own.

use std::ops::Range;

use millpond_messages::error::errno::ENOMEM;
use millpond_messages::{IoError, IoResult};
use millpond_ring::buffer::{Buffer, Buffers};

use super::{SECTOR, SectorCipher};

/// Bytes of a request that are encrypted together: what it needs besides its own buffers.
const PIECE: usize = 1 << 20;

fn buffer(len: usize) -> IoResult<Buffer> {
    Buffer::try_alloc(len).ok_or(IoError::Os(ENOMEM))
}

/// The parts of `len` bytes that are encrypted one after the other.
pub(crate) fn pieces(len: usize) -> impl Iterator<Item = Range<usize>> {
    let starts = (0..len).step_by(PIECE);
    starts.map(move |start| start..len.min(start + PIECE))
}

/// A part of a write, encrypted; the write begins with the sector number `first`. The buffers of a write belong to who sent
/// it, and may be a guest's memory: what is stored is made elsewhere.
pub(crate) fn encrypted(
    cipher: &dyn SectorCipher,
    first: u64,
    buffers: &Buffers,
    part: Range<usize>,
) -> IoResult<Buffer> {
    let mut piece = buffer(part.len())?;
    buffers.copy_to_slice(part.start, &mut piece);
    cipher.encrypt(first.wrapping_add((part.start / SECTOR) as u64), &mut piece);
    Ok(piece)
}

/// Decrypts sectors where they are, or by way of a copy where a sector lies in two buffers.
pub(crate) fn decrypt(cipher: &dyn SectorCipher, first: u64, buffers: &mut Buffers) -> IoResult<()> {
    if buffers.iter().all(|buffer| buffer.len().is_multiple_of(SECTOR)) {
        let mut number = first;
        for buffer in buffers.iter_mut() {
            cipher.decrypt(number, buffer);
            number = number.wrapping_add((buffer.len() / SECTOR) as u64);
        }
        return Ok(());
    }
    for part in pieces(buffers.len()) {
        let mut piece = buffer(part.len())?;
        buffers.copy_to_slice(part.start, &mut piece);
        cipher.decrypt(first.wrapping_add((part.start / SECTOR) as u64), &mut piece);
        buffers.copy_from_slice(part.start, &piece);
    }
    Ok(())
}
