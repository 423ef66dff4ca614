//! A client's connection to the NBD server: the handshake, requests on their way out, replies on their way in.

use std::io;
use std::path::Path;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use crate::nbd::wire::*;
use crate::nbd::{go_data, meta_context_data};

/// A request as it goes over the wire.
#[derive(Debug, Clone, Copy)]
pub struct Header {
    /// `NBD_CMD_*`.
    pub command: u16,
    /// `NBD_CMD_FLAG_*`.
    pub flags: u16,
    /// Comes back with the reply.
    pub cookie: u64,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u32,
}

/// A part of an answer.
#[derive(Debug)]
pub struct Reply {
    /// Whose.
    pub cookie: u64,
    /// An error number, or 0.
    pub error: u32,
    /// Bytes of a read and where they belong, in simple replies from the request's first byte on (None).
    pub data: Option<(Option<u64>, Vec<u8>)>,
    /// What a range is made of, from the request's first byte on: the length of each piece and its `STATE_*`.
    pub extents: Vec<(u64, u64)>,
    /// Nothing more comes for this request.
    pub is_last: bool,
}

/// The sending side.
pub struct Outgoing(OwnedWriteHalf);

/// The receiving side.
pub struct Incoming {
    stream: OwnedReadHalf,
    structured: bool,
}

fn wrong(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// Connects to an export, with structured replies or without.
///
/// # Errors
/// The server is not there, refuses, or does not keep to the protocol.
pub async fn connect(path: &Path, export: &str, structured: bool) -> io::Result<(Outgoing, Incoming)> {
    let mut stream = UnixStream::connect(path).await?;
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting).await?;
    let flags = u32::from(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES);
    stream.write_all(&flags.to_be_bytes()).await?;
    if structured {
        option(&mut stream, OPT_STRUCTURED_REPLY, &[]).await?;
        let contexts = meta_context_data(export, &["base:allocation"]);
        option(&mut stream, OPT_SET_META_CONTEXT, &contexts).await?;
    }
    option(&mut stream, OPT_GO, &go_data(export, &[])).await?;
    let (read, write) = stream.into_split();
    Ok((
        Outgoing(write),
        Incoming {
            stream: read,
            structured,
        },
    ))
}

async fn option(stream: &mut UnixStream, number: u32, data: &[u8]) -> io::Result<()> {
    let mut bytes = OPTION_MAGIC.to_be_bytes().to_vec();
    bytes.extend(number.to_be_bytes());
    bytes.extend(u32::try_from(data.len()).map_err(io::Error::other)?.to_be_bytes());
    bytes.extend(data);
    stream.write_all(&bytes).await?;
    loop {
        let magic = stream.read_u64().await?;
        let (of, kind, len) = (
            stream.read_u32().await?,
            stream.read_u32().await?,
            stream.read_u32().await?,
        );
        if magic != OPTION_REPLY_MAGIC || of != number {
            return Err(wrong(format!("an option reply of {magic:#x} for {of}")));
        }
        let text = bytes_of(stream, len).await?;
        match kind {
            REP_ACK => return Ok(()),
            REP_INFO | REP_META_CONTEXT => {}
            _ => return Err(wrong(String::from_utf8_lossy(&text).into_owned())),
        }
    }
}

async fn bytes_of(stream: &mut (impl AsyncRead + Unpin), len: u32) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; len as usize];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}

impl Outgoing {
    /// Sends a request.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn send(&mut self, header: Header, payload: &[u8]) -> io::Result<()> {
        let mut bytes = REQUEST_MAGIC.to_be_bytes().to_vec();
        bytes.extend(header.flags.to_be_bytes());
        bytes.extend(header.command.to_be_bytes());
        bytes.extend(header.cookie.to_be_bytes());
        bytes.extend(header.offset.to_be_bytes());
        bytes.extend(header.len.to_be_bytes());
        bytes.extend(payload);
        self.0.write_all(&bytes).await
    }
}

impl Incoming {
    /// Receives the next part of an answer; `expected` tells how many bytes a simple reply to a request carries.
    ///
    /// # Errors
    /// The connection is gone, or the server does not keep to the protocol.
    pub async fn receive(&mut self, expected: impl Fn(u64) -> usize) -> io::Result<Reply> {
        match self.stream.read_u32().await? {
            SIMPLE_REPLY_MAGIC => {
                let error = self.stream.read_u32().await?;
                let cookie = self.stream.read_u64().await?;
                let len = if error == 0 { expected(cookie) } else { 0 };
                let data = bytes_of(&mut self.stream, u32::try_from(len).map_err(io::Error::other)?).await?;
                Ok(Reply {
                    cookie,
                    error,
                    data: (len > 0).then_some((None, data)),
                    extents: Vec::new(),
                    is_last: true,
                })
            }
            STRUCTURED_REPLY_MAGIC if self.structured => self.chunk().await,
            magic => Err(wrong(format!("a reply that begins with {magic:#x}"))),
        }
    }

    async fn chunk(&mut self) -> io::Result<Reply> {
        let (flags, kind) = (self.stream.read_u16().await?, self.stream.read_u16().await?);
        let (cookie, len) = (self.stream.read_u64().await?, self.stream.read_u32().await?);
        let bytes = bytes_of(&mut self.stream, len).await?;
        let word = |at: usize, len: usize| -> io::Result<u64> {
            let part = bytes
                .get(at..at + len)
                .ok_or_else(|| wrong("a short chunk".to_owned()))?;
            Ok(part.iter().fold(0, |value, byte| value << 8 | u64::from(*byte)))
        };
        let (mut error, mut data, mut extents) = (0, None, Vec::new());
        match kind {
            REPLY_NONE => {}
            REPLY_OFFSET_DATA => {
                data = Some((Some(word(0, 8)?), bytes.get(8..).unwrap_or_default().to_vec()))
            }
            REPLY_OFFSET_HOLE => data = Some((Some(word(0, 8)?), vec![0; word(8, 4)? as usize])),
            REPLY_BLOCK_STATUS => {
                for at in (4..bytes.len()).step_by(8) {
                    extents.push((word(at, 4)?, word(at + 4, 4)?));
                }
            }
            REPLY_ERROR | REPLY_ERROR_OFFSET => error = word(0, 4)? as u32,
            _ => return Err(wrong(format!("a chunk of type {kind}"))),
        }
        Ok(Reply {
            cookie,
            error,
            data,
            extents,
            is_last: flags & REPLY_FLAG_DONE != 0,
        })
    }
}
