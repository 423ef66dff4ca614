//! What the NBD protocol's messages look like: <https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>.

use bitflags::bitflags;

/// What a server says first.
pub(super) const MAGIC: u64 = 0x4e42_444d_4147_4943;
/// What follows in the newstyle negotiation, and what every option begins with.
pub(super) const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// What follows in the oldstyle negotiation.
pub(super) const OLD_MAGIC: u64 = 0x0000_4202_8186_1253;
/// What the answer to an option begins with.
pub(super) const ANSWER_MAGIC: u64 = 0x0003_e889_0455_65a9;

/// Bytes of the head of an answer to an option.
pub(super) const ANSWER_HEADER: usize = 20;
/// The longest name that a server must take, in bytes.
pub(super) const MAX_NAME: usize = 4096;
/// The most data of a request or a reply, in bytes, unless the server says less.
pub(super) const MAX_DATA: u32 = 32 << 20;

const REQUEST_MAGIC: u32 = 0x2560_9513;
const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
const SIMPLE_MAGIC: u32 = 0x6744_6698;
const CHUNK_MAGIC: u32 = 0x668e_33ef;
const EXTENDED_CHUNK_MAGIC: u32 = 0x6e8a_278c;

bitflags! {
    /// What a server can do with an export.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub(super) struct ExportFlags: u16 {
        const READ_ONLY = 1 << 1;
        const FLUSH = 1 << 2;
        const FUA = 1 << 3;
        const TRIM = 1 << 5;
        const WRITE_ZEROES = 1 << 6;
        const FAST_ZERO = 1 << 11;
    }
}

bitflags! {
    /// How a request is to be done.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub(super) struct CommandFlags: u16 {
        const FUA = 1 << 0;
        const NO_HOLE = 1 << 1;
        const REQ_ONE = 1 << 3;
        const FAST_ZERO = 1 << 4;
        const PAYLOAD_LEN = 1 << 5;
    }
}

/// What is asked during the negotiation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum HandshakeOption {
    ExportName = 1,
    Abort = 2,
    Go = 7,
    StructuredReply = 8,
    SetMetaContext = 10,
    ExtendedHeaders = 11,
}

/// What the answer to an option is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AnswerKind {
    Ack,
    Info,
    MetaContext,
    Refused(Refusal),
    Other,
}

/// Why an option is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    Unsupported,
    Policy,
    Invalid,
    Platform,
    TlsRequired,
    Unknown,
    ShuttingDown,
    BlockSizeRequired,
    TooBig,
    Other,
}

impl AnswerKind {
    /// Reads the number that stands for it.
    pub(super) fn new(number: u32) -> Self {
        const REFUSED: u32 = 1 << 31;
        match number {
            1 => Self::Ack,
            3 => Self::Info,
            4 => Self::MetaContext,
            _ if number & REFUSED == 0 => Self::Other,
            _ => Self::Refused(match number & !REFUSED {
                1 => Refusal::Unsupported,
                2 => Refusal::Policy,
                3 => Refusal::Invalid,
                4 => Refusal::Platform,
                5 => Refusal::TlsRequired,
                6 => Refusal::Unknown,
                7 => Refusal::ShuttingDown,
                8 => Refusal::BlockSizeRequired,
                9 => Refusal::TooBig,
                _ => Refusal::Other,
            }),
        }
    }
}

/// What a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Command {
    Read = 0,
    Write = 1,
    Disconnect = 2,
    Flush = 3,
    Trim = 4,
    WriteZeroes = 6,
    BlockStatus = 7,
}

/// How replies, and with that requests, are told from each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Framing {
    /// One reply to a request, whose data has no frame.
    Simple,
    /// Chunks, with 32 bits of length.
    Structured,
    /// Chunks and requests, with 64 bits of length.
    Extended,
}

/// A request, without its data.
#[derive(Debug, Clone, Copy)]
pub(super) struct Request {
    pub(super) command: Command,
    pub(super) flags: CommandFlags,
    pub(super) cookie: u64,
    pub(super) offset: u64,
    pub(super) len: u64,
}

impl Request {
    /// Appends its bytes to `out`. The length must fit the framing.
    pub(super) fn write(&self, framing: Framing, out: &mut Vec<u8>) {
        let extended = framing == Framing::Extended;
        let mut flags = self.flags;
        // With this framing the flag says that the length is that of data that follows.
        flags.set(
            CommandFlags::PAYLOAD_LEN,
            extended && self.command == Command::Write,
        );
        let magic = if extended {
            EXTENDED_REQUEST_MAGIC
        } else {
            REQUEST_MAGIC
        };
        out.extend(magic.to_be_bytes());
        out.extend(flags.bits().to_be_bytes());
        out.extend((self.command as u16).to_be_bytes());
        out.extend(self.cookie.to_be_bytes());
        out.extend(self.offset.to_be_bytes());
        if extended {
            out.extend(self.len.to_be_bytes());
        } else {
            out.extend((self.len as u32).to_be_bytes());
        }
    }
}

/// The head of a reply, or of one chunk of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ReplyHead {
    pub(super) cookie: u64,
    pub(super) kind: ReplyKind,
    /// Bytes that follow, where chunks tell.
    pub(super) len: u64,
    /// Nothing more comes for this request.
    pub(super) is_last: bool,
}

/// What a reply is, or one chunk of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReplyKind {
    /// A simple reply with this error, 0 for none.
    Simple(u32),
    Nothing,
    Data,
    Hole,
    Status,
    ExtendedStatus,
    Error,
    ErrorAt,
    /// A kind that this client does not know.
    Unknown(u16),
}

/// How many bytes the head of a reply that begins with `magic` has, with this framing. None where it must not come.
pub(super) fn reply_head_len(magic: u32, framing: Framing) -> Option<usize> {
    match (magic, framing) {
        (SIMPLE_MAGIC, Framing::Simple | Framing::Structured) => Some(16),
        (CHUNK_MAGIC, Framing::Structured) => Some(20),
        (EXTENDED_CHUNK_MAGIC, Framing::Extended) => Some(32),
        _ => None,
    }
}

/// Reads the head of a reply, which is as long as [`reply_head_len`] says.
pub(super) fn read_reply_head(bytes: &[u8]) -> Option<ReplyHead> {
    const DONE: u16 = 1;
    let magic = u32_at(bytes, 0)?;
    if magic == SIMPLE_MAGIC {
        return Some(ReplyHead {
            cookie: u64_at(bytes, 8)?,
            kind: ReplyKind::Simple(u32_at(bytes, 4)?),
            len: 0,
            is_last: true,
        });
    }
    let len = match magic {
        EXTENDED_CHUNK_MAGIC => u64_at(bytes, 24)?,
        _ => u32_at(bytes, 16)?.into(),
    };
    let kind = match u16_at(bytes, 6)? {
        0 => ReplyKind::Nothing,
        1 => ReplyKind::Data,
        2 => ReplyKind::Hole,
        5 => ReplyKind::Status,
        6 => ReplyKind::ExtendedStatus,
        0x8001 => ReplyKind::Error,
        0x8002 => ReplyKind::ErrorAt,
        other => ReplyKind::Unknown(other),
    };
    Some(ReplyHead {
        cookie: u64_at(bytes, 8)?,
        kind,
        len,
        is_last: u16_at(bytes, 4)? & DONE != 0,
    })
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..)?.first_chunk().copied()?))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..)?.first_chunk().copied()?))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.get(at..)?.first_chunk().copied()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_the_bytes_of_the_protocol() {
        let request = Request {
            command: Command::Write,
            flags: CommandFlags::FUA,
            cookie: 0x0102_0304_0506_0708,
            offset: 4096,
            len: 512,
        };
        let mut bytes = Vec::new();
        request.write(Framing::Structured, &mut bytes);
        assert_eq!(
            bytes,
            [
                0x25, 0x60, 0x95, 0x13, 0, 1, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 2,
                0
            ]
        );
        bytes.clear();
        request.write(Framing::Extended, &mut bytes);
        assert_eq!(bytes.len(), 32);
        assert_eq!(bytes[4..8], [0, 0b10_0001, 0, 1]);
        assert_eq!(bytes[24..], 512_u64.to_be_bytes());
    }

    #[test]
    fn replies_are_taken_only_in_the_framing_that_was_agreed_on() {
        assert_eq!(reply_head_len(SIMPLE_MAGIC, Framing::Structured), Some(16));
        assert_eq!(reply_head_len(SIMPLE_MAGIC, Framing::Extended), None);
        assert_eq!(reply_head_len(CHUNK_MAGIC, Framing::Simple), None);
        assert_eq!(reply_head_len(CHUNK_MAGIC, Framing::Extended), None);
        let mut chunk = CHUNK_MAGIC.to_be_bytes().to_vec();
        chunk.extend([0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 2, 8]);
        let expected = ReplyHead {
            cookie: 9,
            kind: ReplyKind::Data,
            len: 520,
            is_last: true,
        };
        assert_eq!(read_reply_head(&chunk), Some(expected));
        assert_eq!(read_reply_head(&chunk[..19]), None);
    }
}
