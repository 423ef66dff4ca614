//! Requests of a guest: what a chain asks for, and whether it may (Virtio 1.2, section 5.2.6).

use millpond_messages::{Range, RequestFlags};
use vm_memory::GuestMemoryMmap;

use super::bytes::{copy_in, total};
use super::chain::{Broken, Chain, Pieces};
use crate::export::virtio::config::MAX_SECTORS;
use crate::export::virtio::device::Device;

/// Bytes of a request's header.
const HEADER: usize = 16;
/// Bytes of what a request to discard or to zero has behind it.
const SEGMENT: usize = 16;
/// The length of a sector in bytes, whatever the device's blocks are.
const SECTOR: u64 = 512;

mod kind {
    pub const IN: u32 = 0;
    pub const OUT: u32 = 1;
    pub const FLUSH: u32 = 4;
    pub const GET_ID: u32 = 8;
    pub const DISCARD: u32 = 11;
    pub const WRITE_ZEROES: u32 = 13;
}

/// In the flags of a segment: its blocks may be given back.
const UNMAP: u32 = 1;

/// How a request ended, as the guest reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Status {
    Ok = 0,
    Failed = 1,
    Unsupported = 2,
}

/// What a guest asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    Read(Range),
    Write(Range),
    Flush,
    Serial,
    Discard(Range),
    WriteZeroes(Range, RequestFlags),
    /// It cannot be had, and this is the answer.
    Refused(Status),
}

/// A request of a guest.
#[derive(Debug)]
pub(super) struct Request {
    /// The number of its first descriptor, by which it is answered.
    pub(super) head: u16,
    pub(super) wish: Wish,
    /// The data to be written, from [`Request::data`] on.
    pub(super) readable: Pieces,
    /// Where what is read goes, and the status behind it.
    pub(super) writable: Pieces,
}

impl Request {
    /// Where the data to be written begins among the readable bytes.
    pub(super) const fn data() -> u64 {
        HEADER as u64
    }

    /// Where the status belongs among the writable bytes. There is room for it.
    pub(super) fn status_at(&self) -> u64 {
        total(&self.writable) - 1
    }

    /// Bytes of memory that it needs at most, as long as it is served in pieces of `most` bytes.
    pub(super) fn cost(&self, most: u64) -> u64 {
        match self.wish {
            Wish::Read(range) | Wish::Write(range) => range.len().min(most),
            _ => 0,
        }
    }

    /// What a chain asks for.
    ///
    /// # Errors
    /// It is no request at all.
    pub(super) fn parse(
        memory: &GuestMemoryMmap,
        device: &Device,
        head: u16,
        chain: Chain,
    ) -> Result<Self, Broken> {
        let Chain { readable, writable } = chain;
        if writable.is_empty() {
            return Err(Broken::NoStatus);
        }
        let given = total(&readable)
            .checked_sub(HEADER as u64)
            .ok_or(Broken::NoHeader)?;
        let mut header = [0; HEADER];
        copy_in(memory, &readable, 0, &mut header)?;
        let [k0, k1, k2, k3, _, _, _, _, sector @ ..] = header;
        let sector = u64::from_le_bytes(sector);
        let wish = match u32::from_le_bytes([k0, k1, k2, k3]) {
            kind::IN => device.range(sector, total(&writable) - 1).map(Wish::Read),
            kind::OUT if device.is_writable() => device.range(sector, given).map(Wish::Write),
            kind::FLUSH => Ok(Wish::Flush),
            kind::GET_ID => Ok(Wish::Serial),
            asked @ (kind::DISCARD | kind::WRITE_ZEROES) if device.is_writable() => {
                // Exactly one segment: more were not offered.
                if given == SEGMENT as u64 {
                    let mut segment = [0; SEGMENT];
                    copy_in(memory, &readable, HEADER as u64, &mut segment)?;
                    device.segment(asked, segment)
                } else {
                    Err(Status::Failed)
                }
            }
            kind::OUT | kind::DISCARD | kind::WRITE_ZEROES => Err(Status::Failed),
            _ => Err(Status::Unsupported),
        };
        Ok(Self {
            head,
            wish: wish.unwrap_or_else(Wish::Refused),
            readable,
            writable,
        })
    }
}

impl Device {
    /// The bytes that `len` of them from a sector on are, if the device has them.
    fn range(&self, sector: u64, len: u64) -> Result<Range, Status> {
        let blocks = u64::from(self.block_size());
        let offset = sector.checked_mul(SECTOR).ok_or(Status::Failed)?;
        let range = Range::new(offset, len).map_err(|_| Status::Failed)?;
        let aligned = offset.is_multiple_of(blocks) && len.is_multiple_of(SECTOR);
        if aligned && range.end() <= self.size() {
            Ok(range)
        } else {
            Err(Status::Failed)
        }
    }

    /// What a segment asks for.
    fn segment(&self, asked: u32, segment: [u8; SEGMENT]) -> Result<Wish, Status> {
        let [s0, s1, s2, s3, s4, s5, s6, s7, c0, c1, c2, c3, f0, f1, f2, f3] = segment;
        let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        let count = u32::from_le_bytes([c0, c1, c2, c3]);
        let flags = u32::from_le_bytes([f0, f1, f2, f3]);
        if flags & !UNMAP != 0 || (asked == kind::DISCARD && flags != 0) {
            return Err(Status::Unsupported);
        }
        if count > MAX_SECTORS {
            return Err(Status::Failed);
        }
        let range = self.range(sector, u64::from(count) * SECTOR)?;
        if asked == kind::DISCARD {
            return Ok(Wish::Discard(range));
        }
        let mut request = RequestFlags::empty();
        request.set(RequestFlags::MAY_UNMAP, flags & UNMAP != 0);
        Ok(Wish::WriteZeroes(range, request))
    }
}
