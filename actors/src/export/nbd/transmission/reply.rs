//! Replies of the transmission phase: small headers, written to be sent in one gather with the data they announce.

use super::request::WireError;
use millpond_messages::nbd::{
    MAGIC_EXTENDED_REPLY, MAGIC_SIMPLE_REPLY, MAGIC_STRUCTURED_REPLY, MAX_STRING, Mode, chunk,
};

/// The longest header that comes before data, with the offset that OFFSET_DATA begins with.
pub const MAX_DATA_HEADER: usize = 40;

/// Bytes of the header that comes before data.
#[must_use]
pub const fn data_header(mode: Mode) -> usize {
    match mode {
        Mode::Simple => 16,
        Mode::Structured => 28,
        Mode::Extended => MAX_DATA_HEADER,
    }
}

/// Whom a reply answers, and how it is framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct To {
    /// How replies are framed.
    pub mode: Mode,
    /// The cookie of the request that is answered.
    pub cookie: u64,
    /// The offset of the request that is answered.
    pub offset: u64,
}

/// What an extent is told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// How many bytes of payload follow.
    pub len: u64,
    /// By context: state flags, a depth, or whether it is dirty.
    pub flags: u64,
}

impl To {
    /// A simple reply's header; the data of a read follows.
    fn simple(&self, out: &mut Vec<u8>, error: u32) {
        out.extend_from_slice(&MAGIC_SIMPLE_REPLY.to_be_bytes());
        out.extend_from_slice(&error.to_be_bytes());
        out.extend_from_slice(&self.cookie.to_be_bytes());
    }

    /// A chunk's header; `payload` bytes (of which those of one chunk are fewer than 4 GiB) follow.
    fn chunk(&self, out: &mut Vec<u8>, kind: u16, done: bool, payload: usize) {
        let extended = self.mode == Mode::Extended;
        let magic = if extended {
            MAGIC_EXTENDED_REPLY
        } else {
            MAGIC_STRUCTURED_REPLY
        };
        let flags = if done { chunk::FLAG_DONE } else { 0 };
        out.extend_from_slice(&magic.to_be_bytes());
        out.extend_from_slice(&flags.to_be_bytes());
        out.extend_from_slice(&kind.to_be_bytes());
        out.extend_from_slice(&self.cookie.to_be_bytes());
        if extended {
            out.extend_from_slice(&self.offset.to_be_bytes());
            out.extend_from_slice(&(payload as u64).to_be_bytes());
        } else {
            out.extend_from_slice(&(payload as u32).to_be_bytes());
        }
    }

    /// The whole reply to what succeeded and has no data.
    #[inline]
    pub fn success(&self, out: &mut Vec<u8>) {
        match self.mode {
            Mode::Extended => self.chunk(out, chunk::NONE, true, 0),
            Mode::Simple | Mode::Structured => self.simple(out, 0),
        }
    }

    /// The whole reply, or the last chunk, of what failed.
    pub fn failure(&self, out: &mut Vec<u8>, error: WireError, text: &str) {
        if self.mode == Mode::Simple {
            return self.simple(out, error.code());
        }
        let text = text.as_bytes().get(..MAX_STRING).unwrap_or(text.as_bytes());
        self.chunk(out, chunk::ERROR, true, 6 + text.len());
        out.extend_from_slice(&error.code().to_be_bytes());
        // At most MAX_STRING.
        out.extend_from_slice(&(text.len() as u16).to_be_bytes());
        out.extend_from_slice(text);
    }

    /// What comes before `len` bytes of data read at `at`.
    #[inline]
    pub fn data(&self, out: &mut Vec<u8>, at: u64, len: usize, done: bool) {
        match self.mode {
            Mode::Simple => self.simple(out, 0),
            _ if len == 0 => self.chunk(out, chunk::NONE, done, 0),
            _ => {
                self.chunk(out, chunk::OFFSET_DATA, done, 8 + len);
                out.extend_from_slice(&at.to_be_bytes());
            }
        }
    }

    /// A chunk that stands for `len` zero bytes at `at`. Not in simple mode.
    pub fn hole(&self, out: &mut Vec<u8>, at: u64, len: u32, done: bool) {
        self.chunk(out, chunk::OFFSET_HOLE, done, 12);
        out.extend_from_slice(&at.to_be_bytes());
        out.extend_from_slice(&len.to_be_bytes());
    }

    /// The extents of one context. Not in simple mode. Compact replies cut lengths and flags at 32 bits, which those of
    /// compact requests fit.
    pub fn extents(&self, out: &mut Vec<u8>, id: u32, extents: &[Extent], done: bool) {
        if self.mode == Mode::Extended {
            self.chunk(out, chunk::BLOCK_STATUS_EXT, done, 8 + 16 * extents.len());
            out.extend_from_slice(&id.to_be_bytes());
            out.extend_from_slice(&(extents.len() as u32).to_be_bytes());
            for extent in extents {
                out.extend_from_slice(&extent.len.to_be_bytes());
                out.extend_from_slice(&extent.flags.to_be_bytes());
            }
        } else {
            self.chunk(out, chunk::BLOCK_STATUS, done, 4 + 8 * extents.len());
            out.extend_from_slice(&id.to_be_bytes());
            for extent in extents {
                out.extend_from_slice(&(extent.len as u32).to_be_bytes());
                out.extend_from_slice(&(extent.flags as u32).to_be_bytes());
            }
        }
    }
}
