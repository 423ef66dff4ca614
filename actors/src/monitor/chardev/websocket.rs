//! WebSocket's server: bytes go in binary messages, of which the borders mean nothing.

use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{Sink, Stream, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite, Join, ReadBuf, join};
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::http::{HeaderValue, StatusCode};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Bytes, Error, Message};
use tokio_tungstenite::{WebSocketStream, accept_hdr_async_with_config};

use super::connection::Connection;

/// The most bytes of one message, either way.
const MESSAGE: usize = 64 << 10;

/// The header that names what is spoken in messages, and the name that clients give bytes.
const PROTOCOL: &str = "Sec-WebSocket-Protocol";
const BINARY: &str = "binary";

type Both = Join<Box<dyn AsyncRead + Unpin>, Box<dyn AsyncWrite + Unpin>>;

/// Has a client upgrade its connection.
///
/// # Errors
/// It is gone, or asks for something else.
pub async fn upgrade(connection: Connection) -> io::Result<Connection> {
    let config = WebSocketConfig::default()
        .max_message_size(Some(MESSAGE))
        .max_frame_size(Some(MESSAGE))
        .write_buffer_size(0)
        .max_write_buffer_size(4 * MESSAGE);
    let both = join(connection.reader, connection.writer);
    let upgraded = accept_hdr_async_with_config(both, agree, Some(config)).await;
    let (sender, receiver) = upgraded.map_err(lost)?.split();
    let reader = Received {
        receiver,
        rest: Bytes::new(),
    };
    Ok(Connection::new(reader, Sent(sender)))
}

/// There is one resource. A client that names what it speaks is told that it is bytes.
#[expect(clippy::result_large_err, reason = "the library's signature")]
fn agree(request: &Request, mut response: Response) -> Result<Response, ErrorResponse> {
    if request.uri().path() != "/" {
        let mut refusal = ErrorResponse::new(None);
        *refusal.status_mut() = StatusCode::NOT_FOUND;
        return Err(refusal);
    }
    let named = request.headers().get_all(PROTOCOL).iter();
    let mut named = named.filter_map(|names| names.to_str().ok());
    if named.any(|names| names.split(',').any(|name| name.trim() == BINARY)) {
        response
            .headers_mut()
            .insert(PROTOCOL, HeaderValue::from_static(BINARY));
    }
    Ok(response)
}

fn lost(error: Error) -> io::Error {
    match error {
        Error::Io(error) => error,
        error => io::Error::new(ErrorKind::InvalidData, error),
    }
}

/// What a client sends.
struct Received {
    receiver: SplitStream<WebSocketStream<Both>>,
    /// The part of the last message that was not read yet.
    rest: Bytes,
}

impl AsyncRead for Received {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.rest.is_empty() {
            match ready!(Pin::new(&mut self.receiver).poll_next(context)) {
                Some(Ok(Message::Binary(bytes))) => self.rest = bytes,
                Some(Ok(Message::Text(text))) => self.rest = text.into(),
                // The library answers pings, and a close.
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Ok(Message::Close(_))) | None => return Poll::Ready(Ok(())),
                Some(Err(Error::ConnectionClosed | Error::AlreadyClosed)) => return Poll::Ready(Ok(())),
                Some(Err(error)) => return Poll::Ready(Err(lost(error))),
            }
        }
        let count = self.rest.len().min(buffer.remaining());
        let bytes = self.rest.split_to(count);
        buffer.put_slice(&bytes);
        Poll::Ready(Ok(()))
    }
}

/// What a client is sent.
struct Sent(SplitSink<WebSocketStream<Both>, Message>);

impl AsyncWrite for Sent {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(Pin::new(&mut self.0).poll_ready(context)).map_err(lost)?;
        let bytes = bytes.get(..MESSAGE).unwrap_or(bytes);
        let message = Message::Binary(Bytes::copy_from_slice(bytes));
        Pin::new(&mut self.0).start_send(message).map_err(lost)?;
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context).map_err(lost)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_close(context).map_err(lost)
    }
}
