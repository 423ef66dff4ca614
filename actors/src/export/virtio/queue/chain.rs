//! What a descriptor leads to: the pieces of a request in the guest's memory (Virtio 1.2, section 2.7).

use smallvec::SmallVec;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

/// The most pieces of a request.
const MAX_PIECES: usize = 1024;
/// Bytes of a descriptor.
const DESCRIPTOR: u64 = size_of::<Descriptor>() as u64;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// The other side breaks the rules: the connection cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(in crate::export::virtio) enum Broken {
    #[error("the available ring has more requests than the queue has descriptors")]
    Available,
    #[error("descriptor {0} is not in its table")]
    Head(u16),
    #[error("a request of more than {MAX_PIECES} pieces, or one that leads to itself")]
    Loop,
    #[error("an empty descriptor")]
    Empty,
    #[error("a descriptor to be read behind one to be written")]
    Order,
    #[error("an indirect table of {0} bytes, or in another one")]
    Indirect(u32),
    #[error("address 0x{0:x} is not in the guest's memory")]
    Memory(u64),
    #[error("a request without a header")]
    NoHeader,
    #[error("a request without room for its status")]
    NoStatus,
    #[error("the guest's memory was cut short")]
    Cut,
}

/// A descriptor as it lies in the guest's memory.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
struct Descriptor {
    address: u64,
    len: u32,
    flags: u16,
    next: u16,
}

/// A contiguous part of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) address: GuestAddress,
    pub(super) len: u32,
}

/// The pieces of a request in their order.
#[derive(Debug, Default)]
pub(super) struct Chain {
    /// What the guest wrote for the device.
    pub(super) readable: Pieces,
    /// Where the device is to write.
    pub(super) writable: Pieces,
}

/// Pieces in their order.
pub(super) type Pieces = SmallVec<[Piece; 4]>;

/// A table of descriptors.
#[derive(Clone, Copy)]
pub(super) struct Table {
    pub(super) at: u64,
    pub(super) len: u16,
}

impl Descriptor {
    fn read(memory: &GuestMemoryMmap, table: Table, index: u16) -> Result<Self, Broken> {
        if index >= table.len {
            return Err(Broken::Head(index));
        }
        let at = table.at.checked_add(DESCRIPTOR * u64::from(index));
        let at = at.ok_or(Broken::Memory(table.at))?;
        let mut bytes = [0; DESCRIPTOR as usize];
        let read = memory.read_slice(&mut bytes, GuestAddress(at));
        read.map_err(|_| Broken::Memory(at))?;
        let [a0, a1, a2, a3, a4, a5, a6, a7, l0, l1, l2, l3, f0, f1, n0, n1] = bytes;
        Ok(Self {
            address: u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]),
            len: u32::from_le_bytes([l0, l1, l2, l3]),
            flags: u16::from_le_bytes([f0, f1]),
            next: u16::from_le_bytes([n0, n1]),
        })
    }

    const fn is(self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

impl Chain {
    /// The request that begins with descriptor `head`.
    ///
    /// # Errors
    /// It breaks the rules.
    pub(super) fn read(memory: &GuestMemoryMmap, mut table: Table, head: u16) -> Result<Self, Broken> {
        let mut chain = Self::default();
        let (mut next, mut is_indirect) = (head, false);
        for _ in 0..MAX_PIECES {
            let mut descriptor = Descriptor::read(memory, table, next)?;
            // Behind any number of direct ones there may be one that leads to a table with the rest.
            if descriptor.is(INDIRECT) && !is_indirect {
                (table, is_indirect) = (indirect(descriptor)?, true);
                descriptor = Descriptor::read(memory, table, 0)?;
            }
            if descriptor.is(INDIRECT) {
                return Err(Broken::Indirect(descriptor.len));
            }
            chain.add(descriptor)?;
            if !descriptor.is(NEXT) {
                return Ok(chain);
            }
            next = descriptor.next;
        }
        Err(Broken::Loop)
    }

    /// Whether all of its pieces are in the guest's memory.
    ///
    /// # Errors
    /// One is not: the first address that is missing.
    pub(super) fn check(&self, memory: &GuestMemoryMmap) -> Result<(), Broken> {
        for piece in self.readable.iter().chain(&self.writable) {
            if let Some(missing) = first_missing(memory, piece.address.0, piece.len.into()) {
                return Err(Broken::Memory(missing));
            }
        }
        Ok(())
    }

    fn add(&mut self, descriptor: Descriptor) -> Result<(), Broken> {
        let piece = Piece {
            address: GuestAddress(descriptor.address),
            len: descriptor.len,
        };
        if piece.len == 0 {
            return Err(Broken::Empty);
        }
        if descriptor.address.checked_add(piece.len.into()).is_none() {
            return Err(Broken::Memory(descriptor.address));
        }
        if descriptor.is(WRITE) {
            self.writable.push(piece);
        } else if self.writable.is_empty() {
            self.readable.push(piece);
        } else {
            return Err(Broken::Order);
        }
        Ok(())
    }
}

/// The first of `len` addresses that is not in the guest's memory.
fn first_missing(memory: &GuestMemoryMmap, mut at: u64, len: u64) -> Option<u64> {
    let end = at.checked_add(len)?;
    while at < end {
        let Some(region) = memory.find_region(GuestAddress(at)) else {
            return Some(at);
        };
        at = region.last_addr().0.checked_add(1)?;
    }
    None
}

/// The address that is not in the guest's memory, so that nothing as large as a descriptor could be read from `at` on.
pub(super) fn first_unknown(memory: &GuestMemoryMmap, at: u64) -> Option<u64> {
    first_missing(memory, at, DESCRIPTOR)
}

/// The table that an indirect descriptor leads to. It holds all of the request.
fn indirect(descriptor: Descriptor) -> Result<Table, Broken> {
    let whole = u64::from(descriptor.len).is_multiple_of(DESCRIPTOR) && !descriptor.is(NEXT);
    let len = u16::try_from(u64::from(descriptor.len) / DESCRIPTOR).ok();
    match len.filter(|len| whole && *len > 0) {
        Some(len) => Ok(Table {
            at: descriptor.address,
            len,
        }),
        None => Err(Broken::Indirect(descriptor.len)),
    }
}
