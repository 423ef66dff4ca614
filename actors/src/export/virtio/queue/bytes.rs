//! A request's data in the guest's memory as one row of bytes.

use millpond_ring::buffer::Buffers;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::chain::{Broken, Pieces};

/// How many bytes pieces are together.
pub(super) fn total(pieces: &Pieces) -> u64 {
    pieces.iter().map(|piece| u64::from(piece.len)).sum()
}

/// Calls `each` for the contiguous parts of `len` bytes from `offset` on: with their address, their first byte's distance
/// from `offset`, and their length.
fn parts(
    pieces: &Pieces,
    offset: u64,
    len: usize,
    mut each: impl FnMut(GuestAddress, usize, usize) -> Result<(), Broken>,
) -> Result<(), Broken> {
    let (mut skip, mut done) = (offset, 0);
    for piece in pieces {
        let room = u64::from(piece.len);
        if skip >= room {
            skip -= room;
            continue;
        }
        if done == len {
            break;
        }
        // Both are less than the piece's length, of 32 bits.
        let part = ((room - skip) as usize).min(len - done);
        // The end of each piece was checked.
        each(GuestAddress(piece.address.0 + skip), done, part)?;
        (skip, done) = (0, done + part);
    }
    Ok(())
}

/// Copies bytes of the guest's, from `offset` of the pieces on, until `to` is full.
///
/// # Errors
/// They are not in its memory.
pub(super) fn copy_in(
    memory: &GuestMemoryMmap,
    pieces: &Pieces,
    offset: u64,
    to: &mut [u8],
) -> Result<(), Broken> {
    parts(pieces, offset, to.len(), |at, from, len| {
        let room = to.get_mut(from..from + len).unwrap_or_default();
        memory.read_slice(room, at).map_err(|_| Broken::Memory(at.0))
    })
}

/// Copies all of `bytes` to the guest, from `offset` of the pieces on.
///
/// # Errors
/// They are not in its memory.
pub(super) fn copy_out(
    memory: &GuestMemoryMmap,
    pieces: &Pieces,
    offset: u64,
    bytes: &[u8],
) -> Result<(), Broken> {
    parts(pieces, offset, bytes.len(), |at, from, len| {
        let part = bytes.get(from..from + len).unwrap_or_default();
        memory.write_slice(part, at).map_err(|_| Broken::Memory(at.0))
    })
}

/// Copies all of `buffers` to the guest, from `offset` of the pieces on.
///
/// # Errors
/// They are not in its memory.
pub(super) fn copy_all_out(
    memory: &GuestMemoryMmap,
    pieces: &Pieces,
    mut offset: u64,
    buffers: &Buffers,
) -> Result<(), Broken> {
    for buffer in buffers.iter() {
        copy_out(memory, pieces, offset, buffer)?;
        offset += buffer.len() as u64;
    }
    Ok(())
}
