//! Numbers and flags of the NBD protocol (doc/proto.md of the NBD project), which servers and clients share, and a cursor for
//! its big-endian fields.

use bitflags::bitflags;

/// First eight bytes a server sends: "NBDMAGIC".
pub const MAGIC_SERVER: u64 = 0x4e42_444d_4147_4943;
/// What makes the handshake a newstyle one, and begins each option: "IHAVEOPT".
pub const MAGIC_OPTION: u64 = 0x4948_4156_454f_5054;
/// What makes the handshake an oldstyle one, which has no options.
pub const MAGIC_OLD: u64 = 0x0000_4202_8186_1253;
/// Zeroes behind what a server tells of an export, where [`HandshakeFlags::NO_ZEROES`] is not agreed on.
pub const PADDING: usize = 124;
/// Begins each reply to an option.
pub const MAGIC_OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
/// Begins a compact request.
pub const MAGIC_REQUEST: u32 = 0x2560_9513;
/// Begins an extended request.
pub const MAGIC_EXTENDED_REQUEST: u32 = 0x21e4_1c71;
/// Begins a simple reply.
pub const MAGIC_SIMPLE_REPLY: u32 = 0x6744_6698;
/// Begins a structured reply chunk.
pub const MAGIC_STRUCTURED_REPLY: u32 = 0x668e_33ef;
/// Begins an extended reply chunk.
pub const MAGIC_EXTENDED_REPLY: u32 = 0x6e8a_278c;

/// The most payload, in bytes, of one request or of one option.
pub const MAX_PAYLOAD: u32 = 32 << 20;
/// The longest string, in bytes: names, descriptions, queries and error texts.
pub const MAX_STRING: usize = 4096;

bitflags! {
    /// Handshake flags: the server's (16 bits on the wire) and the client's (32 bits).
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct HandshakeFlags: u32 {
        /// The server speaks fixed newstyle negotiation.
        const FIXED_NEWSTYLE = 1 << 0;
        /// No 124 zero bytes after the reply to EXPORT_NAME.
        const NO_ZEROES = 1 << 1;
    }
}

bitflags! {
    /// What an export can do and is, told when it is chosen.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct TransmissionFlags: u16 {
        /// The other flags have a meaning; always set.
        const HAS_FLAGS = 1 << 0;
        /// The server refuses to write.
        const READ_ONLY = 1 << 1;
        /// The server understands FLUSH.
        const SEND_FLUSH = 1 << 2;
        /// The server understands FUA.
        const SEND_FUA = 1 << 3;
        /// The server understands TRIM.
        const SEND_TRIM = 1 << 5;
        /// The server understands WRITE_ZEROES.
        const SEND_WRITE_ZEROES = 1 << 6;
        /// Reads may ask not to be split.
        const SEND_DF = 1 << 7;
        /// What one connection wrote and flushed, all others see.
        const CAN_MULTI_CONN = 1 << 8;
        /// The server understands CACHE.
        const SEND_CACHE = 1 << 10;
        /// WRITE_ZEROES may be asked to be fast or fail.
        const SEND_FAST_ZERO = 1 << 11;
        /// BLOCK_STATUS may carry a payload that chooses contexts.
        const BLOCK_STAT_PAYLOAD = 1 << 12;
    }
}

bitflags! {
    /// Flags of a request.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct CommandFlags: u16 {
        /// Durable before it is answered.
        const FUA = 1 << 0;
        /// WRITE_ZEROES: keep the range allocated.
        const NO_HOLE = 1 << 1;
        /// READ: answer in one chunk.
        const DF = 1 << 2;
        /// BLOCK_STATUS: one extent is enough.
        const REQ_ONE = 1 << 3;
        /// WRITE_ZEROES: fail rather than be slow.
        const FAST_ZERO = 1 << 4;
        /// Extended headers: the length field is that of a payload that follows.
        const PAYLOAD_LEN = 1 << 5;
    }
}

/// How replies are framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// Simple replies only, as the oldest clients want.
    Simple,
    /// Structured replies to reads and block status, and to what fails.
    Structured,
    /// 64-bit requests and replies.
    Extended,
}

/// What requests ask for.
pub mod command {
    /// Data is wanted of the export.
    pub const READ: u16 = 0;
    /// Data follows that is to be stored.
    pub const WRITE: u16 = 1;
    /// The client is done.
    pub const DISC: u16 = 2;
    /// What was written is to be durable.
    pub const FLUSH: u16 = 3;
    /// A range is of no use any more.
    pub const TRIM: u16 = 4;
    /// A range will be read soon.
    pub const CACHE: u16 = 5;
    /// A range is to read as zeroes.
    pub const WRITE_ZEROES: u16 = 6;
    /// What a range is made of is wanted.
    pub const BLOCK_STATUS: u16 = 7;
}

/// Options of the handshake.
pub mod option {
    /// Choose an export, without a way to say no but to close.
    pub const EXPORT_NAME: u32 = 1;
    /// The client ends the handshake politely.
    pub const ABORT: u32 = 2;
    /// The client wants the exports' names.
    pub const LIST: u32 = 3;
    /// The client wants to go on inside TLS.
    pub const STARTTLS: u32 = 5;
    /// Ask about an export.
    pub const INFO: u32 = 6;
    /// The client has chosen an export.
    pub const GO: u32 = 7;
    /// Turn structured replies on.
    pub const STRUCTURED_REPLY: u32 = 8;
    /// The client wants to know the metadata contexts.
    pub const LIST_META_CONTEXT: u32 = 9;
    /// The client has chosen metadata contexts.
    pub const SET_META_CONTEXT: u32 = 10;
    /// Turn 64-bit headers on.
    pub const EXTENDED_HEADERS: u32 = 11;

    /// An option's name as error texts give it.
    #[must_use]
    pub const fn name(option: u32) -> &'static str {
        match option {
            EXPORT_NAME => "export name",
            ABORT => "abort",
            LIST => "list",
            STARTTLS => "starttls",
            INFO => "info",
            GO => "go",
            STRUCTURED_REPLY => "structured reply",
            LIST_META_CONTEXT => "list meta context",
            SET_META_CONTEXT => "set meta context",
            EXTENDED_HEADERS => "extended headers",
            _ => "<unknown>",
        }
    }
}

/// Types of replies to options.
pub mod reply {
    /// Done; the last reply to an option.
    pub const ACK: u32 = 1;
    /// The reply names an export.
    pub const SERVER: u32 = 2;
    /// A piece of information on an export.
    pub const INFO: u32 = 3;
    /// The reply names a metadata context.
    pub const META_CONTEXT: u32 = 4;

    /// What a client tells of a refusal of this kind, in QEMU's words; and below it what the user may do, and what the server
    /// says of it in the payload.
    #[must_use]
    pub fn refusal(kind: u32, option: u32, payload: &[u8]) -> (String, Option<String>) {
        let name = super::option::name(option);
        let text = match kind {
            ERR_UNSUP => format!("Unsupported option type {option} ({name})"),
            ERR_POLICY => format!("Denied by server for option {option} ({name})"),
            ERR_INVALID => format!("Invalid parameters for option {option} ({name})"),
            ERR_PLATFORM => format!("Server lacks support for option {option} ({name})"),
            ERR_TLS_REQD => format!("TLS negotiation required before option {option} ({name})"),
            ERR_UNKNOWN => "Requested export not available".to_owned(),
            ERR_SHUTDOWN => format!("Server shutting down before option {option} ({name})"),
            ERR_BLOCK_SIZE_REQD => format!("Server requires INFO_BLOCK_SIZE for option {option} ({name})"),
            _ => format!("Unknown error code when asking for option {option} ({name})"),
        };
        let advice = (kind == ERR_TLS_REQD).then(|| "Did you forget a valid tls-creds?".to_owned());
        let reported =
            (!payload.is_empty()).then(|| format!("server reported: {}", String::from_utf8_lossy(payload)));
        let hints: Vec<String> = advice.into_iter().chain(reported).collect();
        (text, (!hints.is_empty()).then(|| hints.join("\n")))
    }

    /// Set in the types of refusals.
    pub const ERROR: u32 = 1 << 31;
    /// The option is not known.
    pub const ERR_UNSUP: u32 = ERROR | 1;
    /// The server's configuration forbids it.
    pub const ERR_POLICY: u32 = ERROR | 2;
    /// The option is malformed or comes at a wrong time.
    pub const ERR_INVALID: u32 = ERROR | 3;
    /// The server was built without it.
    pub const ERR_PLATFORM: u32 = ERROR | 4;
    /// TLS must be started before the option.
    pub const ERR_TLS_REQD: u32 = ERROR | 5;
    /// There is no such export.
    pub const ERR_UNKNOWN: u32 = ERROR | 6;
    /// The server is shutting down.
    pub const ERR_SHUTDOWN: u32 = ERROR | 7;
    /// The client must ask for block sizes.
    pub const ERR_BLOCK_SIZE_REQD: u32 = ERROR | 8;
    /// Extended headers exclude the option.
    pub const ERR_EXT_HEADER_REQD: u32 = ERROR | 10;
}

/// Kinds of information on an export.
pub mod info {
    /// Size and transmission flags.
    pub const EXPORT: u16 = 0;
    /// The information is the export's name.
    pub const NAME: u16 = 1;
    /// The information is a text for people.
    pub const DESCRIPTION: u16 = 2;
    /// Smallest, preferred and largest request.
    pub const BLOCK_SIZE: u16 = 3;
}

/// Types of reply chunks.
pub mod chunk {
    /// Set in the flags of a request's last chunk.
    pub const FLAG_DONE: u16 = 1 << 0;

    /// Nothing but the end.
    pub const NONE: u16 = 0;
    /// Data of a read.
    pub const OFFSET_DATA: u16 = 1;
    /// Zeroes of a read.
    pub const OFFSET_HOLE: u16 = 2;
    /// The chunk has the extents of one context.
    pub const BLOCK_STATUS: u16 = 5;
    /// Extents with 64-bit lengths.
    pub const BLOCK_STATUS_EXT: u16 = 6;
    /// Set in the types of chunks that tell of an error.
    pub const ERRORS: u16 = 1 << 15;
    /// The chunk tells of an error.
    pub const ERROR: u16 = ERRORS | 1;
    /// The chunk tells of an error, and where it was.
    pub const ERROR_OFFSET: u16 = ERRORS | 2;
}

/// Flags of extents of `base:allocation`.
pub mod state {
    /// The extent has no space of its own.
    pub const HOLE: u64 = 1 << 0;
    /// The extent reads as zeroes.
    pub const ZERO: u64 = 1 << 1;
    /// Of a dirty bitmap: the extent has changed.
    pub const DIRTY: u64 = 1 << 0;
}

/// Metadata contexts: their ids on the wire, and names.
pub mod context {
    /// The id by which we send [`BASE_ALLOCATION_NAME`].
    pub const BASE_ALLOCATION: u32 = 0;
    /// The id by which we send [`ALLOCATION_DEPTH_NAME`].
    pub const ALLOCATION_DEPTH: u32 = 1;
    /// The id by which we send the first bitmap of [`DIRTY_BITMAPS_NAME`]; those of others follow.
    pub const DIRTY_BITMAPS: u32 = 2;
    /// What is a hole and what reads as zeroes.
    pub const BASE_ALLOCATION_NAME: &str = "base:allocation";
    /// How far down the backing chain data is found.
    pub const ALLOCATION_DEPTH_NAME: &str = "qemu:allocation-depth";
    /// What has changed, by a dirty bitmap whose name follows.
    pub const DIRTY_BITMAPS_NAME: &str = "qemu:dirty-bitmap:";
}

/// Takes big-endian fields from the front of a byte string.
#[derive(Debug)]
pub struct Cursor<'a>(pub &'a [u8]);

impl<'a> Cursor<'a> {
    /// The next `n` bytes, if there are as many.
    #[inline]
    pub fn bytes(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(n)?;
        self.0 = tail;
        Some(head)
    }

    #[inline]
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, tail) = self.0.split_first_chunk()?;
        self.0 = tail;
        Some(*head)
    }

    /// The next 16-bit number.
    #[inline]
    pub fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    /// The next 32-bit number.
    #[inline]
    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    /// The next 64-bit number.
    #[inline]
    pub fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }
}
