//! What has come of the reply to a request.

use std::io;

use millpond_messages::nbd::{Cursor, Mode, chunk};
use millpond_messages::{IoError, IoResult, Range};
use millpond_ring::buffer::{Buffer, Buffers};

use super::inbox::Inbox;
use super::link::Link;
use super::wire::{ReplyHead, ReplyKind};

/// The most chunks that lie apart in what has come of a read.
const MAX_PIECES: usize = 1024;
/// The most extents of a status that are looked at, and bytes of a chunk with them.
const MAX_STATUS: u64 = 16 << 10;
/// The most bytes of a chunk with an error.
const MAX_ERROR: u64 = 8 << 10;

/// What a request waits for.
#[derive(Debug)]
pub(super) enum Expected {
    /// Only whether it was done.
    Nothing,
    /// The data of a range.
    Data { range: Range, buffers: Buffers },
    /// The status at the beginning of a range, in the context of this number.
    Status { context: u32, range: Range },
}

/// The reply to a request, as far as it has come.
#[derive(Debug)]
pub(super) struct Reply {
    expected: Expected,
    error: Option<IoError>,
    is_ended: bool,
    /// The parts of a read that have come, in order.
    pieces: Vec<(u64, u64)>,
    /// Length and flags of the first extent.
    status: Option<(u64, u64)>,
}

fn wrong(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text.to_owned())
}

impl Reply {
    pub(super) const fn new(expected: Expected) -> Self {
        Self {
            expected,
            error: None,
            is_ended: false,
            pieces: Vec::new(),
            status: None,
        }
    }

    /// Whether all of it has come.
    pub(super) const fn is_whole(&self) -> bool {
        self.is_ended
    }

    /// The request has failed; what it failed by first counts.
    pub(super) fn fail(&mut self, error: IoError) {
        self.error.get_or_insert(error);
    }

    /// Nothing more comes: what is missing has failed.
    pub(super) fn end(&mut self) {
        self.is_ended = true;
        if self.error.is_some() {
            return;
        }
        let is_missing = match &self.expected {
            Expected::Nothing => false,
            Expected::Data { range, .. } => {
                !range.is_empty() && self.pieces != [(range.offset(), range.end())]
            }
            Expected::Status { .. } => self.status.is_none(),
        };
        if is_missing {
            self.error = Some(IoError::Os(libc::EIO));
        }
    }

    /// Whether it was done.
    pub(super) fn into_result(self) -> IoResult<()> {
        self.error.map_or(Ok(()), Err)
    }

    /// Whether it was read, and the buffers.
    pub(super) fn into_data(self) -> (IoResult<()>, Buffers) {
        let buffers = match self.expected {
            Expected::Data { buffers, .. } => buffers,
            _ => Buffers::new(),
        };
        (self.error.map_or(Ok(()), Err), buffers)
    }

    /// Length and flags of the first extent.
    pub(super) fn into_status(self) -> IoResult<(u64, u64)> {
        match (self.error, self.status) {
            (Some(error), _) => Err(error),
            (None, status) => status.ok_or(IoError::Os(libc::EIO)),
        }
    }

    /// Takes what follows the head of a reply or of a chunk. An error means that the connection is of no use any more.
    pub(super) async fn take(
        mut self,
        head: ReplyHead,
        inbox: &mut Inbox,
        link: &Link,
    ) -> (io::Result<()>, Self) {
        let taken = self.take_rest(head, inbox, link).await;
        (taken, self)
    }

    async fn take_rest(&mut self, head: ReplyHead, inbox: &mut Inbox, link: &Link) -> io::Result<()> {
        let socket = link.socket();
        match head.kind {
            ReplyKind::Simple(0) => match &self.expected {
                Expected::Nothing => Ok(()),
                Expected::Data { .. } if link.agreed().mode != Mode::Simple => {
                    Err(wrong("a read without chunks"))
                }
                Expected::Data { range, .. } => {
                    let range = *range;
                    self.read(range, inbox, link).await
                }
                Expected::Status { .. } => Err(wrong("a status without chunks")),
            },
            ReplyKind::Simple(error) => {
                self.fail(told(error));
                Ok(())
            }
            ReplyKind::Nothing if head.len == 0 && head.is_last => Ok(()),
            ReplyKind::Data if head.len > 8 => {
                let offset = Cursor(inbox.take(socket, 8).await?).u64().unwrap_or(0);
                let range = self.part(offset, head.len - 8)?;
                self.read(range, inbox, link).await
            }
            ReplyKind::Hole if head.len == 12 => {
                let mut cursor = Cursor(inbox.take(socket, 12).await?);
                let (offset, len) = (cursor.u64().unwrap_or(0), cursor.u32().unwrap_or(0));
                let range = self.part(offset, len.into())?;
                if let Expected::Data { range: all, buffers } = &mut self.expected {
                    let start = (range.offset() - all.offset()) as usize;
                    buffers.fill_zero(start..start + range.len() as usize);
                }
                self.note(range)
            }
            ReplyKind::Status => self.take_status(head.len, false, inbox, link).await,
            ReplyKind::ExtendedStatus => self.take_status(head.len, true, inbox, link).await,
            ReplyKind::Error => {
                if head.len < 6 || head.len > MAX_ERROR {
                    return Err(wrong("an error of a wrong length"));
                }
                let mut cursor = Cursor(inbox.take(socket, head.len as usize).await?);
                let (error, message) = (cursor.u32().unwrap_or(0), cursor.u16().unwrap_or(0));
                if u64::from(message) + 6 > head.len || error == 0 {
                    return Err(wrong("an error that cannot be read"));
                }
                self.fail(told(error));
                Ok(())
            }
            // What is an error, of whatever kind, says so by its number.
            ReplyKind::Unknown(kind) if kind & chunk::ERRORS != 0 => {
                self.fail(IoError::Os(libc::EIO));
                inbox.skip(socket, head.len.min(MAX_ERROR)).await?;
                match head.len <= MAX_ERROR {
                    true => Ok(()),
                    false => Err(wrong("an error of a wrong length")),
                }
            }
            _ => Err(wrong("a chunk that cannot be")),
        }
    }

    /// A part of the range that is read.
    fn part(&self, offset: u64, len: u64) -> io::Result<Range> {
        let Expected::Data { range, .. } = &self.expected else {
            return Err(wrong("data that was not asked for"));
        };
        let part = Range::new(offset, len).map_err(|_| wrong("data at an impossible offset"))?;
        let is_within = offset >= range.offset() && part.end() <= range.end() && len > 0;
        is_within
            .then_some(part)
            .ok_or_else(|| wrong("data beyond what was asked for"))
    }

    /// Notes that a part has come, which may come once.
    fn note(&mut self, part: Range) -> io::Result<()> {
        let at = self.pieces.partition_point(|(_, end)| *end < part.offset());
        let (mut start, mut end) = (part.offset(), part.end());
        while let Some((old_start, old_end)) = self.pieces.get(at).copied() {
            if old_start > end {
                break;
            }
            if old_start < part.end() && part.offset() < old_end {
                return Err(wrong("the same data twice"));
            }
            (start, end) = (start.min(old_start), end.max(old_end));
            self.pieces.remove(at);
        }
        self.pieces.insert(at, (start, end));
        match self.pieces.len() <= MAX_PIECES {
            true => Ok(()),
            false => Err(wrong("data in too many pieces")),
        }
    }

    /// Reads a part into the buffers.
    async fn read(&mut self, part: Range, inbox: &mut Inbox, link: &Link) -> io::Result<()> {
        self.note(part)?;
        let Expected::Data { range, buffers } = &mut self.expected else {
            return Err(wrong("data that was not asked for"));
        };
        let start = (part.offset() - range.offset()) as usize;
        let mut whole = std::mem::take(buffers);
        let mut middle = whole.split_off(start);
        let rest = middle.split_off(part.len() as usize);
        let mut result = Ok(());
        for buffer in middle {
            let len = buffer.len();
            match result {
                Ok(()) => match inbox.read_into(link.socket(), buffer).await {
                    Ok(filled) => whole.push_joined(filled),
                    Err(error) => {
                        result = Err(error);
                        whole.push(Buffer::zeroed(len));
                    }
                },
                Err(_) => whole.push(buffer),
            }
        }
        for buffer in rest {
            whole.push_joined(buffer);
        }
        *buffers = whole;
        result
    }

    /// Takes the extents of one context, of which the first counts. Extended ones have lengths and flags of 64 bits, and are
    /// preceded by their number.
    async fn take_status(
        &mut self,
        len: u64,
        extended: bool,
        inbox: &mut Inbox,
        link: &Link,
    ) -> io::Result<()> {
        let Expected::Status { context, range } = &self.expected else {
            return Err(wrong("a status that was not asked for"));
        };
        let (head, extent): (u64, u64) = if extended { (8, 16) } else { (4, 8) };
        if len < head + extent || !(len - head).is_multiple_of(extent) || self.status.is_some() {
            return Err(wrong("a status of a wrong length"));
        }
        let mut cursor = Cursor(inbox.take(link.socket(), (head + extent) as usize).await?);
        if cursor.u32() != Some(*context) {
            return Err(wrong("a status of another context"));
        }
        let (length, flags) = if extended {
            cursor.u32();
            (cursor.u64(), cursor.u64())
        } else {
            (cursor.u32().map(u64::from), cursor.u32().map(u64::from))
        };
        let (length, flags) = (length.unwrap_or(0), flags.unwrap_or(0));
        if length == 0 {
            return Err(wrong("an extent without a length"));
        }
        self.status = Some((length.min(range.len()), flags));
        let left = len - head - extent;
        if left > MAX_STATUS {
            return Err(wrong("a status of too many extents"));
        }
        inbox.skip(link.socket(), left).await
    }
}

/// What an error's number stands for.
fn told(number: u32) -> IoError {
    IoError::from_errno(match number {
        // The numbers that the protocol has are Linux's.
        1 | 5 | 12 | 22 | 28 | 75 | 95 | 108 => number as i32,
        _ => libc::EINVAL,
    })
}
