//! A connection of a character device: two directions of bytes.

use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A connection: what comes in, and where answers go.
pub struct Connection {
    /// What the client sends comes from here.
    pub reader: Box<dyn AsyncRead + Unpin>,
    /// What the client is answered goes here.
    pub writer: Box<dyn AsyncWrite + Unpin>,
}

impl Connection {
    /// A connection of two directions.
    pub fn new(reader: impl AsyncRead + Unpin + 'static, writer: impl AsyncWrite + Unpin + 'static) -> Self {
        Self {
            reader: Box::new(reader),
            writer: Box::new(writer),
        }
    }
}

/// Input that never comes, and never ends.
pub struct Silence;

impl AsyncRead for Silence {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        _: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Poll::Pending
    }
}
