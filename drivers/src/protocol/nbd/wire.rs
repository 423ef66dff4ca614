//! How a client writes the NBD protocol's requests and reads its replies; the numbers are [`millpond_messages::nbd`]'s.

use millpond_messages::nbd::{
    CommandFlags, Cursor, MAGIC_EXTENDED_REPLY, MAGIC_EXTENDED_REQUEST, MAGIC_REQUEST, MAGIC_SIMPLE_REPLY,
    MAGIC_STRUCTURED_REPLY, Mode, chunk, command,
};

/// A request, without its data.
#[derive(Debug, Clone, Copy)]
pub(super) struct Request {
    /// What it is for: one of [`command`].
    pub(super) command: u16,
    pub(super) flags: CommandFlags,
    pub(super) cookie: u64,
    pub(super) offset: u64,
    pub(super) len: u64,
}

impl Request {
    /// Appends its bytes to `out`. The length must fit the mode.
    pub(super) fn write(&self, mode: Mode, out: &mut Vec<u8>) {
        let extended = mode == Mode::Extended;
        let mut flags = self.flags;
        // With this framing the flag says that the length is that of data that follows.
        flags.set(
            CommandFlags::PAYLOAD_LEN,
            extended && self.command == command::WRITE,
        );
        let magic = if extended {
            MAGIC_EXTENDED_REQUEST
        } else {
            MAGIC_REQUEST
        };
        out.extend(magic.to_be_bytes());
        out.extend(flags.bits().to_be_bytes());
        out.extend(self.command.to_be_bytes());
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
    /// A kind that this client does not know.
    Unknown(u16),
}

/// How many bytes the head of a reply that begins with `magic` has, in this mode. None where it must not come.
pub(super) fn reply_head_len(magic: u32, mode: Mode) -> Option<usize> {
    match (magic, mode) {
        (MAGIC_SIMPLE_REPLY, Mode::Simple | Mode::Structured) => Some(16),
        (MAGIC_STRUCTURED_REPLY, Mode::Structured) => Some(20),
        (MAGIC_EXTENDED_REPLY, Mode::Extended) => Some(32),
        _ => None,
    }
}

/// Reads the head of a reply, which is as long as [`reply_head_len`] says.
pub(super) fn read_reply_head(bytes: &[u8]) -> Option<ReplyHead> {
    let mut cursor = Cursor(bytes);
    let magic = cursor.u32()?;
    if magic == MAGIC_SIMPLE_REPLY {
        let error = cursor.u32()?;
        return Some(ReplyHead {
            cookie: cursor.u64()?,
            kind: ReplyKind::Simple(error),
            len: 0,
            is_last: true,
        });
    }
    let (flags, kind, cookie) = (cursor.u16()?, cursor.u16()?, cursor.u64()?);
    let len = match magic {
        // The offset of the request stands between.
        MAGIC_EXTENDED_REPLY => {
            cursor.u64()?;
            cursor.u64()?
        }
        _ => cursor.u32()?.into(),
    };
    Some(ReplyHead {
        cookie,
        kind: match kind {
            chunk::NONE => ReplyKind::Nothing,
            chunk::OFFSET_DATA => ReplyKind::Data,
            chunk::OFFSET_HOLE => ReplyKind::Hole,
            chunk::BLOCK_STATUS => ReplyKind::Status,
            chunk::BLOCK_STATUS_EXT => ReplyKind::ExtendedStatus,
            chunk::ERROR | chunk::ERROR_OFFSET => ReplyKind::Error,
            other => ReplyKind::Unknown(other),
        },
        len,
        is_last: flags & chunk::FLAG_DONE != 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_the_bytes_of_the_protocol() {
        let request = Request {
            command: command::WRITE,
            flags: CommandFlags::FUA,
            cookie: 0x0102_0304_0506_0708,
            offset: 4096,
            len: 512,
        };
        let mut bytes = Vec::new();
        request.write(Mode::Structured, &mut bytes);
        assert_eq!(
            bytes,
            [
                0x25, 0x60, 0x95, 0x13, 0, 1, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 2,
                0
            ]
        );
        bytes.clear();
        request.write(Mode::Extended, &mut bytes);
        assert_eq!(bytes.len(), 32);
        assert_eq!(bytes[4..8], [0, 0b10_0001, 0, 1]);
        assert_eq!(bytes[24..], 512_u64.to_be_bytes());
    }

    #[test]
    fn replies_are_taken_only_in_the_mode_that_was_agreed_on() {
        assert_eq!(reply_head_len(MAGIC_SIMPLE_REPLY, Mode::Structured), Some(16));
        assert_eq!(reply_head_len(MAGIC_SIMPLE_REPLY, Mode::Extended), None);
        assert_eq!(reply_head_len(MAGIC_STRUCTURED_REPLY, Mode::Simple), None);
        assert_eq!(reply_head_len(MAGIC_STRUCTURED_REPLY, Mode::Extended), None);
        let mut chunk = MAGIC_STRUCTURED_REPLY.to_be_bytes().to_vec();
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
