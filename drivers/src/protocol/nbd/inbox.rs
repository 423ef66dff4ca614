//! What has come from a server and was not looked at yet.

use std::io;

use millpond_ring::buffer::Buffer;

use super::socket::ServerSocket;

/// Bytes that are received at once, if there are so many.
const ROOM: usize = 16 << 10;

/// The receiving side of a connection: what is short is received together with what is behind it.
#[derive(Debug)]
pub(super) struct Inbox {
    buffer: Buffer,
    /// Where what was not looked at begins and ends.
    start: usize,
    end: usize,
}

impl Inbox {
    pub(super) fn new() -> Self {
        Self {
            buffer: Buffer::zeroed(ROOM),
            start: 0,
            end: 0,
        }
    }

    /// Whether nothing has come that was not looked at.
    pub(super) const fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// The next `len` bytes, at most [`ROOM`], which stay where they are.
    pub(super) async fn peek(&mut self, socket: &ServerSocket, len: usize) -> io::Result<&[u8]> {
        while self.end - self.start < len {
            self.fill(socket).await?;
        }
        let bytes = self.buffer.get(self.start..self.start + len);
        bytes.ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// The next `len` bytes, at most [`ROOM`], which are taken with that.
    pub(super) async fn take(&mut self, socket: &ServerSocket, len: usize) -> io::Result<&[u8]> {
        self.peek(socket, len).await?;
        let start = self.start;
        self.start += len;
        let bytes = self.buffer.get(start..start + len);
        bytes.ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Throws away the next `len` bytes.
    pub(super) async fn skip(&mut self, socket: &ServerSocket, mut len: u64) -> io::Result<()> {
        while len > 0 {
            let step = len.min(ROOM as u64);
            self.take(socket, step as usize).await?;
            len -= step;
        }
        Ok(())
    }

    /// Fills `room`: with what is here already, and directly with what is still to come.
    pub(super) async fn read_into(&mut self, socket: &ServerSocket, mut room: Buffer) -> io::Result<Buffer> {
        let here = room.len().min(self.end - self.start);
        if let (Some(to), Some(from)) = (
            room.get_mut(..here),
            self.buffer.get(self.start..self.start + here),
        ) {
            to.copy_from_slice(from);
        }
        self.start += here;
        if here == room.len() {
            return Ok(room);
        }
        let rest = room.split_off(here);
        let wanted = rest.len();
        let (received, rest) = socket.recv_exact(rest).await;
        if received? < wanted {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        room.try_unsplit(rest)
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
    }

    async fn fill(&mut self, socket: &ServerSocket) -> io::Result<()> {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        let free = buffer.split_off(self.end);
        let (received, free) = socket.recv(free).await;
        // Both are parts of one buffer, so they join again.
        self.buffer = buffer.try_unsplit(free).unwrap_or_default();
        match received? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            received => {
                self.end += received;
                Ok(())
            }
        }
    }
}
