//! Reads: a range is resolved down the chain in a loop, then read from where it is.

use std::rc::Rc;

use drivers::buffer::{Buffer, Buffers};
use drivers::driver::{At, Purpose, Transfer};
use messages::io::Operation;
use messages::{IoError, IoResult, RequestFlags};
use smallvec::SmallVec;

use super::super::cell::NodeCell;
use super::super::edge::{Behind, send_there};
use super::super::mail::NodeAddress;
use super::super::overlap::Tracking;
use super::copy_on_read::copying_read;
use super::{By, aligned, bytes_in, check_within, in_memory};

/// Where the start of a range is, at the bottom of the chain.
enum Found {
    /// A driver reads it itself.
    Here { node: Rc<NodeCell>, offset: u64 },
    /// A node copies it up as it is read.
    Copied { node: Rc<NodeCell>, offset: u64 },
    /// A node of another iothread goes on from here.
    There { address: NodeAddress, offset: u64 },
    /// It is zeroes.
    Zero,
}

/// What a read holds until it ends, so that what it found stays where it is.
type Held = SmallVec<[Tracking; 1]>;

/// Fills `buffers` from `offset`.
pub async fn read(
    cell: &Rc<NodeCell>,
    offset: u64,
    buffers: Buffers,
    flags: RequestFlags,
    by: By<'_>,
) -> Transfer {
    if let Err(error) = check_within(cell, offset, bytes_in(&buffers), true, by) {
        return (Err(error), buffers);
    }
    transfer(cell, offset, buffers, flags, by, true).await
}

/// Reads what a write to the same node copies along: the write is tracked already, and its pieces must not be.
pub async fn read_whole(cell: &Rc<NodeCell>, offset: u64, len: u64) -> IoResult<Buffers> {
    let Some(buffer) = Buffer::try_alloc(in_memory(len)) else {
        return Err(IoError::Os(messages::error::errno::ENOMEM));
    };
    let (result, buffers) = transfer(
        cell,
        offset,
        Buffers::from(buffer),
        RequestFlags::empty(),
        By::PARENT,
        false,
    )
    .await;
    result.map(|()| buffers)
}

async fn transfer(
    cell: &Rc<NodeCell>,
    mut offset: u64,
    mut rest: Buffers,
    flags: RequestFlags,
    by: By<'_>,
    track_first: bool,
) -> Transfer {
    let mut filled = Buffers::new();
    while !rest.is_empty() {
        let mut held = Held::new();
        let (len, found) = match resolve(cell, offset, bytes_in(&rest), flags, track_first, &mut held).await {
            Ok(resolved) => resolved,
            Err(error) => return (Err(error), joined(filled, rest)),
        };
        let whole = len >= bytes_in(&rest);
        let piece = if whole {
            std::mem::take(&mut rest)
        } else {
            rest.split_to(in_memory(len))
        };
        let (result, piece) = fetch(found, piece, flags, by).await;
        if filled.is_empty() && whole {
            return (result, piece);
        }
        filled.append(piece);
        if result.is_err() {
            return (result, joined(filled, rest));
        }
        offset = offset.saturating_add(len);
    }
    (Ok(()), filled)
}

fn joined(mut filled: Buffers, rest: Buffers) -> Buffers {
    filled.append(rest);
    filled
}

async fn fetch(found: Found, mut piece: Buffers, flags: RequestFlags, by: By<'_>) -> Transfer {
    match found {
        Found::Zero => {
            let len = piece.len();
            piece.fill_zero(0..len);
            (Ok(()), piece)
        }
        Found::Here { node, offset } => {
            by.stands_at(&node);
            aligned::read(&node, offset, piece, flags).await
        }
        Found::Copied { node, offset } => {
            by.stands_at(&node);
            Box::pin(copying_read(&node, offset, piece, flags)).await
        }
        Found::There { address, offset } => {
            let operation = Operation::Read {
                offset,
                buffers: piece,
                flags,
            };
            drivers::driver::transfer(send_there(&address, operation).await)
        }
    }
}

/// Follows a range down the chain: how many bytes of it are in one place, and which.
async fn resolve(
    cell: &Rc<NodeCell>,
    offset: u64,
    len: u64,
    flags: RequestFlags,
    track_first: bool,
    held: &mut Held,
) -> IoResult<(u64, Found)> {
    let (mut node, mut at, mut len) = (Rc::clone(cell), offset, len);
    let mut track = track_first;
    loop {
        // A node's bytes past its end are zeroes to whoever stands above it.
        let left = node.size().saturating_sub(at);
        if left == 0 {
            return Ok((len, Found::Zero));
        }
        len = len.min(left);
        if track && node.copies_up(flags) {
            return Ok((len, Found::Copied { node, offset: at }));
        }
        if track && node.tracks() {
            let end = at.saturating_add(len);
            held.push(node.tracker().begin(at, end, false, false).await?);
        }
        track = true;
        let driver = node.driver()?;
        let extent = driver.locate(Purpose::Read, at, len).await?;
        if extent.len == 0 {
            return Err(IoError::Corrupt);
        }
        len = len.min(extent.len);
        let (edge, next) = match extent.at {
            At::Own | At::Special => return Ok((len, Found::Here { node, offset: at })),
            At::Zero { .. } => return Ok((len, Found::Zero)),
            At::Child { slot, offset } => (node.edge(slot).map(|edge| edge.behind()), offset),
            At::Unallocated => match node.backing_edge().map(|edge| edge.behind()) {
                None | Some(Behind::None) => return Ok((len, Found::Zero)),
                behind => (behind, at),
            },
        };
        match edge.unwrap_or_default() {
            Behind::Here(child) => node = child,
            Behind::There(address) => {
                return Ok((
                    len,
                    Found::There {
                        address,
                        offset: next,
                    },
                ));
            }
            Behind::None => return Err(IoError::NoMedium),
        }
        at = next;
    }
}
