//! The messages of the kernel, as bytes: FUSE's protocol 7.31 and later, for a file system of one file.

use millpond_ring::buffer::Buffer;

use super::reply::Answer;

/// The version of the protocol that is spoken.
const MAJOR: u32 = 7;
/// The newest minor version that is understood: what came later changes nothing that is used here.
const MINOR: u32 = 45;

/// Bytes of the head of every message.
const IN_HEADER: usize = 40;
/// Bytes before the data of a write.
pub(super) const WRITE_HEAD: usize = IN_HEADER + 40;
/// The most bytes that any message has but for the data of a write.
pub(super) const MOST_HEAD: usize = 168;

/// Bytes of a page, as far as the protocol is concerned.
const PAGE: u32 = 4096;
/// The most bytes of one read or write: 256 pages, the most that kernels allow unless told otherwise.
pub(super) const MAX_TRANSFER: u32 = 256 * PAGE;
/// Requests that nobody waits for (of asynchronous I/O, and reading ahead) that the kernel has outstanding at once. Unless
/// told, it has 12.
const MAX_BACKGROUND: u16 = 64;
/// How many of them make the file system count as congested.
const CONGESTED: u16 = 48;

/// The operations, by FUSE's numbers.
mod opcode {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const FLUSH: u32 = 25;
    pub const INIT: u32 = 26;
    pub const INTERRUPT: u32 = 36;
    pub const DESTROY: u32 = 38;
    pub const BATCH_FORGET: u32 = 42;
    pub const FALLOCATE: u32 = 43;
    pub const LSEEK: u32 = 46;
}

bitflags::bitflags! {
    /// What kernel and server can do. The upper half is in a field of its own.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Abilities: u64 {
        const ASYNC_READ = 1 << 0;
        /// An open that empties the file says so, rather than change its length: a disk has the length that it has.
        const ATOMIC_O_TRUNC = 1 << 3;
        const BIG_WRITES = 1 << 5;
        /// What is mapped is read anew once the file has changed.
        const AUTO_INVAL_DATA = 1 << 12;
        const ASYNC_DIO = 1 << 15;
        const MAX_PAGES = 1 << 22;
        /// There is an upper half.
        const INIT_EXT = 1 << 30;
        /// Also a file that passes the kernel's cache by can be mapped and shared.
        const DIRECT_IO_ALLOW_MMAP = 1 << 36;
        /// Requests can come over io_uring.
        const OVER_IO_URING = 1 << 41;
    }

    /// Which attributes a SETATTR sets.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(super) struct Changed: u32 {
        const MODE = 1 << 0;
        const UID = 1 << 1;
        const GID = 1 << 2;
        const SIZE = 1 << 3;
        /// By an open file; it changes nothing.
        const BY_HANDLE = 1 << 6;
        /// For the owner of a lock; it changes nothing.
        const BY_OWNER = 1 << 9;
        const _ = !0;
    }
}

/// What the kernel can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Offered {
    minor: u32,
    max_readahead: u32,
    abilities: Abilities,
}

/// What the answer to an [`Offered`] asks for, besides what is always wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Terms {
    /// The most bytes of one read or write, in whole pages.
    pub(super) max_transfer: u32,
    /// Requests are to come over io_uring.
    pub(super) over_io_uring: bool,
}

/// The attributes that a SETATTR asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SetAttributes {
    pub(super) changed: Changed,
    pub(super) size: u64,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// A change of the space that a range has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fallocate {
    pub(super) offset: u64,
    pub(super) len: u64,
    /// The bits of `FALLOC_FL_*` that are set.
    pub(super) mode: u32,
}

/// What a message asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    Init(Offered),
    GetAttributes,
    SetAttributes(SetAttributes),
    Open,
    Read {
        offset: u64,
        len: u32,
    },
    Write {
        offset: u64,
        len: u32,
    },
    Fallocate(Fallocate),
    Seek {
        offset: u64,
        whence: u32,
    },
    Flush,
    Statistics,
    /// A file is closed, or the file system ends.
    End,
    /// A name: there is none in a file.
    LookUp,
    /// What takes no answer, and changes nothing.
    Note,
    /// An operation that there is not.
    Unknown(u32),
}

/// A message of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Message {
    /// The kernel's number for it.
    pub(super) unique: u64,
    pub(super) asked: Asked,
}

/// A message that cannot be understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a message of {0} bytes that is not what it says")]
pub(super) struct Malformed(pub(super) usize);

/// The fields of a message, from its front.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn skip(&mut self, bytes: usize) -> Option<()> {
        self.0 = self.0.get(bytes..)?;
        Some(())
    }

    fn u32(&mut self) -> Option<u32> {
        let (number, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u32::from_ne_bytes(*number))
    }

    fn u64(&mut self) -> Option<u64> {
        let (number, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_ne_bytes(*number))
    }
}

impl Message {
    /// What the first bytes of a message say that has `len` bytes in all.
    ///
    /// # Errors
    /// It is shorter than it says, or than its operation needs.
    pub(super) fn parse(head: &[u8], len: usize) -> Result<Self, Malformed> {
        let parsed = Self::parse_fields(&mut Fields(head), len);
        parsed.ok_or(Malformed(len))
    }

    fn parse_fields(fields: &mut Fields<'_>, len: usize) -> Option<Self> {
        let told = fields.u32()?;
        let opcode = fields.u32()?;
        let unique = fields.u64()?;
        // The number of the file, who asks, and what extensions there are.
        fields.skip(24)?;
        if usize::try_from(told) != Ok(len) {
            return None;
        }
        let asked = Asked::parse(opcode, fields)?;
        let fits = match asked {
            Asked::Write { len: data, .. } => WRITE_HEAD.checked_add(data as usize) == Some(len),
            _ => true,
        };
        fits.then_some(Self { unique, asked })
    }
}

impl Asked {
    /// Whether the node has a part in the answer. The end of an open file is told late, when its user has gone on already.
    pub(super) const fn asks_node(&self) -> bool {
        match self {
            Self::GetAttributes | Self::SetAttributes(_) | Self::Read { .. } | Self::Write { .. } => true,
            Self::Fallocate(_) | Self::Seek { .. } | Self::Flush => true,
            Self::Init(_) | Self::Open | Self::Statistics | Self::End => false,
            Self::LookUp | Self::Note | Self::Unknown(_) => false,
        }
    }

    /// Bytes of data that came with it, or go with its answer at most.
    pub(super) fn data_len(&self) -> usize {
        match self {
            Self::Read { len, .. } | Self::Write { len, .. } => MAX_TRANSFER.min(*len) as usize,
            _ => 0,
        }
    }

    fn parse(opcode: u32, fields: &mut Fields<'_>) -> Option<Self> {
        Some(match opcode {
            opcode::INIT => Self::Init(Offered::parse(fields)?),
            opcode::GETATTR => Self::GetAttributes,
            opcode::SETATTR => Self::SetAttributes(SetAttributes::parse(fields)?),
            opcode::OPEN => Self::Open,
            opcode::READ => {
                let (offset, len) = transfer(fields)?;
                Self::Read { offset, len }
            }
            opcode::WRITE => {
                let (offset, len) = transfer(fields)?;
                // The rest of the head comes before the data.
                fields.skip(20)?;
                Self::Write { offset, len }
            }
            opcode::FALLOCATE => {
                fields.skip(8)?;
                Self::Fallocate(Fallocate {
                    offset: fields.u64()?,
                    len: fields.u64()?,
                    mode: fields.u32()?,
                })
            }
            opcode::LSEEK => {
                fields.skip(8)?;
                Self::Seek {
                    offset: fields.u64()?,
                    whence: fields.u32()?,
                }
            }
            opcode::FLUSH | opcode::FSYNC => Self::Flush,
            opcode::STATFS => Self::Statistics,
            opcode::RELEASE | opcode::DESTROY => Self::End,
            opcode::LOOKUP => Self::LookUp,
            opcode::FORGET | opcode::BATCH_FORGET | opcode::INTERRUPT => Self::Note,
            unknown => Self::Unknown(unknown),
        })
    }
}

/// Where a read or write begins, and how long it is; the handle of the file before that says nothing.
fn transfer(fields: &mut Fields<'_>) -> Option<(u64, u32)> {
    fields.skip(8)?;
    Some((fields.u64()?, fields.u32()?))
}

impl SetAttributes {
    fn parse(fields: &mut Fields<'_>) -> Option<Self> {
        let changed = Changed::from_bits_retain(fields.u32()?);
        // Padding, and the handle of the file.
        fields.skip(12)?;
        let size = fields.u64()?;
        // The owner of a lock, and times.
        fields.skip(44)?;
        let mode = fields.u32()?;
        fields.skip(4)?;
        Some(Self {
            changed,
            size,
            mode,
            uid: fields.u32()?,
            gid: fields.u32()?,
        })
    }
}

impl Offered {
    fn parse(fields: &mut Fields<'_>) -> Option<Self> {
        let (major, minor) = (fields.u32()?, fields.u32()?);
        if major != MAJOR {
            return None;
        }
        let (max_readahead, lower) = (fields.u32()?, fields.u32()?);
        let lower = Abilities::from_bits_retain(u64::from(lower));
        let upper = match lower.contains(Abilities::INIT_EXT) {
            true => fields.u32()?,
            false => 0,
        };
        let abilities = lower | Abilities::from_bits_retain(u64::from(upper) << 32);
        Some(Self {
            minor,
            max_readahead,
            abilities,
        })
    }

    /// Whether reads and writes can pass the kernel's cache by, and the file be mapped all the same.
    pub(super) const fn allows_direct(&self) -> bool {
        self.abilities.contains(Abilities::DIRECT_IO_ALLOW_MMAP)
    }

    /// Whether requests can come over io_uring.
    pub(super) const fn allows_io_uring(&self) -> bool {
        self.abilities.contains(Abilities::OVER_IO_URING)
    }

    /// The answer: what is agreed on.
    pub(super) fn agree(&self, unique: u64, terms: Terms) -> Buffer {
        let mut wanted = Abilities::all() & self.abilities;
        if !terms.over_io_uring {
            wanted.remove(Abilities::OVER_IO_URING);
        }
        let max_transfer = terms.max_transfer.min(MAX_TRANSFER);
        let mut out = Answer::begin(unique, 64);
        out.u32(MAJOR).u32(self.minor.min(MINOR)).u32(self.max_readahead);
        // The halves of a number of 64 bits.
        out.u32(wanted.bits() as u32);
        out.u16(MAX_BACKGROUND).u16(CONGESTED).u32(max_transfer);
        // Times are told in nanoseconds. There are no more pages than a `u16` holds.
        out.u32(1).u16((max_transfer / PAGE) as u16).u16(0);
        out.u32((wanted.bits() >> 32) as u32);
        out.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(opcode: u32, fields: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; IN_HEADER];
        bytes.extend_from_slice(fields);
        let len = bytes.len() as u32;
        bytes[..4].copy_from_slice(&len.to_ne_bytes());
        bytes[4..8].copy_from_slice(&opcode.to_ne_bytes());
        bytes[8..16].copy_from_slice(&7_u64.to_ne_bytes());
        bytes
    }

    fn parsed(bytes: &[u8]) -> Result<Asked, Malformed> {
        Message::parse(&bytes[..bytes.len().min(MOST_HEAD)], bytes.len()).map(|message| {
            assert_eq!(message.unique, 7);
            message.asked
        })
    }

    #[test]
    fn a_write_has_the_data_that_it_says() {
        let mut fields = vec![0; 40];
        fields[8..16].copy_from_slice(&4096_u64.to_ne_bytes());
        fields[16..20].copy_from_slice(&3_u32.to_ne_bytes());
        fields.extend_from_slice(b"abc");
        let whole = message(opcode::WRITE, &fields);
        assert_eq!(parsed(&whole), Ok(Asked::Write { offset: 4096, len: 3 }));
        fields.pop();
        let short = message(opcode::WRITE, &fields);
        assert_eq!(parsed(&short), Err(Malformed(short.len())));
    }

    #[test]
    fn no_message_that_is_cut_off_is_understood() {
        for opcode in [opcode::READ, opcode::SETATTR, opcode::LSEEK, opcode::INIT] {
            let mut fields = vec![0; 88];
            fields[0] = 7;
            let whole = message(opcode, &fields);
            assert!(parsed(&whole).is_ok());
            for len in 0..IN_HEADER + 8 {
                assert!(parsed(&whole[..len]).is_err(), "{opcode}: {len} bytes");
            }
        }
        let mut longer = message(opcode::GETATTR, &[0; 16]);
        longer[0] += 1;
        assert!(parsed(&longer).is_err(), "it says that it is longer");
    }
}
