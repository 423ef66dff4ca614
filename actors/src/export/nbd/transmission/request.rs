//! Requests of the transmission phase: their headers, and which of them are served, refused or fatal.
//!
//! The order of the checks and the texts are QEMU's. The error codes are those that the protocol asks for: ENOSPC for
//! writing past the end, EPERM for writing to a read-only export, EINVAL for the rest.

use millpond_messages::nbd::{
    CommandFlags, Cursor, MAGIC_EXTENDED_REQUEST, MAGIC_REQUEST, MAX_PAYLOAD, Mode, TransmissionFlags,
    command as number, context,
};
use millpond_messages::{Range, RequestFlags};

use crate::export::nbd::handshake::Contexts;

/// Bytes of a compact header.
pub const COMPACT_HEADER: usize = 28;
/// Bytes of an extended header.
pub const EXTENDED_HEADER: usize = 32;
/// Bytes of the longest payload of BLOCK_STATUS that can be valid: a length and one id for each context.
pub const MAX_STATUS_PAYLOAD: usize = 16;

/// Errors as the wire has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum WireError {
    /// EPERM: the operation is not permitted.
    Perm = 1,
    /// EIO: the storage failed.
    Io = 5,
    /// ENOMEM: no memory could be had.
    NoMem = 12,
    /// EINVAL: the request makes no sense.
    Inval = 22,
    /// No space left on device.
    NoSpc = 28,
    /// EOVERFLOW: the answer is too large.
    Overflow = 75,
    /// ENOTSUP: the operation is not supported.
    NotSup = 95,
    /// The server is shutting down.
    Shutdown = 108,
}

impl WireError {
    /// What stands for an errno on the wire.
    #[must_use]
    pub const fn from_errno(errno: i32) -> Self {
        use millpond_messages::error::errno as e;
        match errno {
            e::EPERM | e::EROFS => Self::Perm,
            e::EIO => Self::Io,
            e::ENOMEM => Self::NoMem,
            e::ENOSPC | e::EFBIG | e::EDQUOT => Self::NoSpc,
            e::EOVERFLOW => Self::Overflow,
            e::ENOTSUP => Self::NotSup,
            e::ESHUTDOWN => Self::Shutdown,
            _ => Self::Inval,
        }
    }

    /// The number on the wire.
    #[must_use]
    pub const fn code(self) -> u32 {
        self as u32
    }
}

/// A request's header as it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// [`CommandFlags`] and unknown ones.
    pub flags: u16,
    /// The number of the command, as NBD has it.
    pub command: u16,
    /// The client's name for the request.
    pub cookie: u64,
    /// The first byte of the range.
    pub offset: u64,
    /// Bytes: of the range, or of the payload.
    pub len: u64,
}

/// A header with another magic number: what follows cannot be understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("invalid magic (got 0x{0:x})")]
pub struct BadMagic(pub u32);

impl Header {
    /// How many bytes a header has.
    #[inline]
    #[must_use]
    pub const fn length(mode: Mode) -> usize {
        match mode {
            Mode::Simple | Mode::Structured => COMPACT_HEADER,
            Mode::Extended => EXTENDED_HEADER,
        }
    }

    /// Reads a header from the front of `bytes`; `None` if not all of it is there.
    ///
    /// # Errors
    /// The magic number is not that of a request in this mode.
    #[inline]
    pub fn parse(mode: Mode, bytes: &[u8]) -> Result<Option<Self>, BadMagic> {
        let mut fields = Cursor(bytes);
        let Some(fields) = fields.bytes(Self::length(mode)) else {
            return Ok(None);
        };
        let mut fields = Cursor(fields);
        let expected = match mode {
            Mode::Simple | Mode::Structured => MAGIC_REQUEST,
            Mode::Extended => MAGIC_EXTENDED_REQUEST,
        };
        let magic = fields.u32().unwrap_or_default();
        if magic != expected {
            return Err(BadMagic(magic));
        }
        let mut parse = || {
            Some(Self {
                flags: fields.u16()?,
                command: fields.u16()?,
                cookie: fields.u64()?,
                offset: fields.u64()?,
                len: match mode {
                    Mode::Simple | Mode::Structured => u64::from(fields.u32()?),
                    Mode::Extended => fields.u64()?,
                },
            })
        };
        Ok(parse())
    }
}

/// What is to be done for a request that was accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// The range is to be sent to the client.
    Read {
        /// What was written there is to be durable first.
        fua: bool,
        /// The data is to come in one chunk.
        whole: bool,
    },
    /// The payload is to be stored.
    Write {
        /// FUA, or no flag at all.
        flags: RequestFlags,
    },
    /// Make everything acknowledged durable.
    Flush,
    /// The range's content is of no use any more.
    Trim {
        /// It is to be durable when answered.
        fua: bool,
    },
    /// Read the range ahead.
    Cache,
    /// Make the range read as zeroes.
    WriteZeroes {
        /// Any of MAY_UNMAP, NO_FALLBACK and FUA.
        flags: RequestFlags,
    },
    /// Tell what the range is made of.
    BlockStatus {
        /// One extent is enough.
        one: bool,
        /// The contexts to describe the range by.
        contexts: Contexts,
    },
}

/// A request that was accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// The client's name for it.
    pub cookie: u64,
    /// A range that lies in the export.
    pub range: Range,
    /// What is to be done with the range.
    pub command: Command,
}

/// A request that was refused, or failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The client's name for it.
    pub cookie: u64,
    /// Its offset, which extended replies repeat.
    pub offset: u64,
    /// The error that the client is told.
    pub error: WireError,
    /// A text for people.
    pub text: String,
}

/// What a header leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The request is to be carried out.
    Serve(Request),
    /// Receive the payload, of `len` bytes, and serve it: a write.
    ServePayload(Request),
    /// Receive a payload of so many bytes (at most [`MAX_STATUS_PAYLOAD`]), and call [`Limits::status_payload`].
    StatusPayload(usize),
    /// Throw so many bytes of payload away, then refuse it.
    Refuse(u32, Refusal),
    /// Refuse it, then close: the payload will not be read.
    RefuseAndClose(Refusal),
    /// The client is done.
    Disconnect,
}

/// What requests are held against.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// How requests are framed.
    pub mode: Mode,
    /// The export's length in bytes.
    pub size: u64,
    /// The flags that the client was told of the export.
    pub flags: TransmissionFlags,
    /// The contexts that BLOCK_STATUS answers by default.
    pub contexts: Contexts,
}

/// A command's name as error texts give it.
fn name(command: u16) -> &'static str {
    match command {
        number::READ => "read",
        number::WRITE => "write",
        number::DISC => "disconnect",
        number::FLUSH => "flush",
        number::TRIM => "trim",
        number::CACHE => "cache",
        number::WRITE_ZEROES => "write zeroes",
        number::BLOCK_STATUS => "block status",
        _ => "<unknown>",
    }
}

impl Limits {
    /// Decides on a request by its header.
    #[must_use]
    pub fn judge(&self, header: &Header) -> Verdict {
        let Header { command, len, .. } = *header;
        if command == number::DISC {
            return Verdict::Disconnect;
        }
        let flagged = self.mode >= Mode::Extended && header.flags & CommandFlags::PAYLOAD_LEN.bits() != 0;
        let payload = if command == number::WRITE || flagged {
            len
        } else {
            0
        };
        let limited = payload > 0 || matches!(command, number::READ | number::CACHE);
        if limited && len > u64::from(MAX_PAYLOAD) {
            let text = format!("len ({len}) is larger than max len ({MAX_PAYLOAD})");
            let refusal = header.refuse(WireError::Inval, text);
            return if payload > 0 {
                Verdict::RefuseAndClose(refusal)
            } else {
                Verdict::Refuse(0, refusal)
            };
        }
        // `payload <= MAX_PAYLOAD` from here on.
        let skip = payload as u32;
        if flagged && command == number::BLOCK_STATUS {
            return match payload as usize {
                n if n > MAX_STATUS_PAYLOAD => Verdict::Refuse(skip, header.invalid_payload()),
                n => Verdict::StatusPayload(n),
            };
        }
        // A payload that its command has no use for says nothing about the range.
        let len = if flagged && command != number::WRITE {
            0
        } else {
            len
        };
        match self.check(header, len, self.contexts) {
            Ok(request) if command == number::WRITE => Verdict::ServePayload(request),
            Ok(request) => Verdict::Serve(request),
            Err(refusal) => Verdict::Refuse(skip, refusal),
        }
    }

    /// Decides on a BLOCK_STATUS whose payload is `payload`: the range's length and the ids of contexts.
    ///
    /// # Errors
    /// What to answer if it is refused.
    pub fn status_payload(&self, header: &Header, payload: &[u8]) -> Result<Request, Refusal> {
        let (len, contexts) = self
            .parse_status_payload(payload)
            .ok_or_else(|| header.invalid_payload())?;
        self.check(header, len, contexts)
    }

    /// The fields of such a payload; `None` unless each id is one that was negotiated, and comes once.
    fn parse_status_payload(&self, payload: &[u8]) -> Option<(u64, Contexts)> {
        let mut fields = Cursor(payload);
        let len = fields.u64()?;
        let mut contexts = Contexts::default();
        while !fields.0.is_empty() {
            let (chosen, available) = match fields.u32()? {
                context::BASE_ALLOCATION => (&mut contexts.base_allocation, self.contexts.base_allocation),
                context::ALLOCATION_DEPTH => (&mut contexts.allocation_depth, self.contexts.allocation_depth),
                id => {
                    let bitmap = self
                        .bitmap_of(id)
                        .filter(|bitmap| contexts.bitmaps & bitmap == 0)?;
                    contexts.bitmaps |= bitmap;
                    continue;
                }
            };
            if *chosen || !available {
                return None;
            }
            *chosen = true;
        }
        (contexts.count() > 0).then_some((len, contexts))
    }

    /// The bitmap whose context has this id, as a set of bitmaps, if it was negotiated.
    fn bitmap_of(&self, id: u32) -> Option<u64> {
        let bitmap = 1_u64.checked_shl(id.checked_sub(context::DIRTY_BITMAPS)?)?;
        Some(bitmap).filter(|bitmap| self.contexts.bitmaps & bitmap != 0)
    }

    /// The checks that hold for every command, and the command.
    fn check(&self, header: &Header, len: u64, contexts: Contexts) -> Result<Request, Refusal> {
        let Header {
            cookie,
            offset,
            command,
            ..
        } = *header;
        let writes = matches!(command, number::WRITE | number::TRIM | number::WRITE_ZEROES);
        if writes && self.flags.contains(TransmissionFlags::READ_ONLY) {
            return Err(header.refuse(WireError::Perm, "Export is read-only"));
        }
        let range = Range::new(offset, len)
            .ok()
            .filter(|range| range.end() <= self.size);
        let Some(range) = range else {
            let error = match command {
                number::WRITE | number::WRITE_ZEROES => WireError::NoSpc,
                _ => WireError::Inval,
            };
            let text = format!(
                "operation past EOF; From: {offset}, Len: {len}, Size: {}",
                self.size
            );
            return Err(header.refuse(error, text));
        };
        let flags = self.command_flags(header)?;
        let command = self.command(header, flags, len, contexts)?;
        Ok(Request {
            cookie,
            range,
            command,
        })
    }

    fn command_flags(&self, header: &Header) -> Result<CommandFlags, Refusal> {
        use CommandFlags as F;
        let mut valid = F::FUA;
        match header.command {
            number::READ if self.mode >= Mode::Structured => valid |= F::DF,
            number::WRITE if self.mode >= Mode::Extended => valid |= F::PAYLOAD_LEN,
            number::WRITE_ZEROES => valid |= F::NO_HOLE | F::FAST_ZERO,
            number::BLOCK_STATUS if self.mode >= Mode::Extended => valid |= F::REQ_ONE | F::PAYLOAD_LEN,
            number::BLOCK_STATUS => valid |= F::REQ_ONE,
            _ => {}
        }
        F::from_bits(header.flags)
            .filter(|flags| valid.contains(*flags))
            .ok_or_else(|| {
                let text = format!(
                    "unsupported flags for command {} (got 0x{:x})",
                    name(header.command),
                    header.flags
                );
                header.refuse(WireError::Inval, text)
            })
    }

    fn command(
        &self,
        header: &Header,
        flags: CommandFlags,
        len: u64,
        contexts: Contexts,
    ) -> Result<Command, Refusal> {
        let fua = flags.contains(CommandFlags::FUA);
        let mut request_flags = RequestFlags::empty();
        request_flags.set(RequestFlags::FUA, fua);
        Ok(match header.command {
            number::READ => Command::Read {
                fua,
                whole: flags.contains(CommandFlags::DF),
            },
            number::WRITE => Command::Write { flags: request_flags },
            number::FLUSH => Command::Flush,
            number::TRIM => Command::Trim { fua },
            number::CACHE => Command::Cache,
            number::WRITE_ZEROES => {
                request_flags.set(RequestFlags::MAY_UNMAP, !flags.contains(CommandFlags::NO_HOLE));
                request_flags.set(RequestFlags::NO_FALLBACK, flags.contains(CommandFlags::FAST_ZERO));
                Command::WriteZeroes { flags: request_flags }
            }
            number::BLOCK_STATUS if len == 0 => {
                return Err(header.refuse(WireError::Inval, "need non-zero length"));
            }
            number::BLOCK_STATUS if contexts.count() == 0 => {
                return Err(header.refuse(WireError::Inval, "CMD_BLOCK_STATUS not negotiated"));
            }
            number::BLOCK_STATUS => Command::BlockStatus {
                one: flags.contains(CommandFlags::REQ_ONE),
                contexts,
            },
            other => {
                let text = format!("invalid request type ({other}) received");
                return Err(header.refuse(WireError::Inval, text));
            }
        })
    }
}

impl Header {
    fn refuse(&self, error: WireError, text: impl Into<String>) -> Refusal {
        Refusal {
            cookie: self.cookie,
            offset: self.offset,
            error,
            text: text.into(),
        }
    }

    fn invalid_payload(&self) -> Refusal {
        self.refuse(WireError::Inval, "CMD_BLOCK_STATUS payload not valid")
    }
}
