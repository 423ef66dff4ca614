//! Receiving: many requests from one system call, and payloads into buffers of their own.

use std::io;

use millpond_ring::buffer::Buffer;

use crate::export::nbd::transport::Transport;

/// Bytes that one receive asks for. It bounds how many requests a system call can bring (some 2000 reads, or 15 writes of
/// 4 KiB), and what an idle client holds.
const RECEIVE: usize = 64 * 1024;

/// Bytes asked for after a large payload: the next one is likely as large, and what is received along with its header
/// has to be copied into its buffer.
const RECEIVE_HEADERS: usize = 4096;

/// Payloads of at least so many bytes are large.
const LARGE: usize = 32 * 1024;

/// The receiving side of a connection.
#[derive(Debug)]
pub(super) struct Receiver<T> {
    transport: T,
    /// Received bytes that were not taken are at `start..end`.
    buffer: Buffer,
    start: usize,
    end: usize,
    next: usize,
}

/// The connection ended, maybe in the middle of something.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ended {
    /// The peer closed its side between two requests.
    #[error("the client went away")]
    Closed,
    /// It closed inside of one.
    #[error("unexpected end-of-file in a request")]
    Inside,
    /// The socket failed while receiving.
    #[error("receiving failed: {0}")]
    Failed(#[from] io::Error),
}

impl<T: Transport> Receiver<T> {
    /// A receiver that begins with bytes received already.
    pub(super) fn new(transport: T, received: &[u8]) -> Self {
        let mut buffer = Buffer::alloc(RECEIVE.max(received.len()));
        buffer[..received.len()].copy_from_slice(received);
        Self {
            transport,
            buffer,
            start: 0,
            end: received.len(),
            next: RECEIVE,
        }
    }

    /// What was received and not taken.
    #[inline]
    pub(super) fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// Takes `n` bytes, which [`Receiver::bytes`] has.
    #[inline]
    pub(super) fn take(&mut self, n: usize) {
        self.start = (self.start + n).min(self.end);
    }

    /// Receives more.
    ///
    /// # Errors
    /// The connection ended.
    pub(super) async fn more(&mut self) -> Result<(), Ended> {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        let mut head = std::mem::take(&mut self.buffer);
        let mut room = head.split_off(self.end);
        let rest = room.split_off(room.len().min(self.next));
        self.next = RECEIVE;
        let (result, room) = self.transport.receive(room).await;
        self.buffer = rejoin(rejoin(head, room), rest);
        match result? {
            0 if self.end == 0 => Err(Ended::Closed),
            0 => Err(Ended::Inside),
            n => {
                self.end = (self.end + n).min(self.buffer.len());
                Ok(())
            }
        }
    }

    /// Receives until there are `n` bytes, a small number.
    ///
    /// # Errors
    /// The connection ended.
    pub(super) async fn at_least(&mut self, n: usize) -> Result<(), Ended> {
        while self.bytes().len() < n {
            self.more().await?;
        }
        Ok(())
    }

    /// Receives a payload that fills `payload`: what has come is copied, the rest is received in place.
    ///
    /// # Errors
    /// The connection ended.
    pub(super) async fn fill(&mut self, mut payload: Buffer) -> Result<Buffer, Ended> {
        let here = self.bytes().len().min(payload.len());
        payload[..here].copy_from_slice(&self.bytes()[..here]);
        self.take(here);
        if payload.len() >= LARGE {
            self.next = RECEIVE_HEADERS;
        }
        if here < payload.len() {
            let room = payload.split_off(here);
            let wanted = room.len();
            let (result, room) = self.transport.receive_exact(room).await;
            payload = rejoin(payload, room);
            if result? < wanted {
                return Err(Ended::Inside);
            }
        }
        Ok(payload)
    }

    /// Throws `n` bytes away.
    ///
    /// # Errors
    /// The connection ended.
    pub(super) async fn skip(&mut self, mut n: usize) -> Result<(), Ended> {
        loop {
            let here = self.bytes().len().min(n);
            self.take(here);
            n -= here;
            if n == 0 {
                return Ok(());
            }
            self.more().await?;
        }
    }
}

/// Puts two neighbours that were one buffer together again.
fn rejoin(head: Buffer, tail: Buffer) -> Buffer {
    head.try_unsplit(tail).unwrap_or_else(|(head, tail)| {
        // The ring gives back the very buffer it was given; one that does not costs a copy.
        let mut whole = Buffer::alloc(head.len() + tail.len());
        whole[..head.len()].copy_from_slice(&head);
        whole[head.len()..].copy_from_slice(&tail);
        whole
    })
}
