//! Drives a handshake over a socket, on the control thread.

use std::io;

use millpond_ring::Fd;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use tokio::io::unix::AsyncFd;

use super::{Handshake, Negotiated, Progress};
use crate::export::nbd::offer::Catalogue;

/// Bytes received at a time. Options are short, and what follows the last one is carried to the iothread.
const RECEIVE: usize = 4096;

/// How a handshake failed.
#[derive(Debug, thiserror::Error)]
pub(in crate::export::nbd) enum Failed {
    /// The client broke the rules, or ended it.
    #[error("{0}")]
    Client(String),
    /// The client left before the handshake was over.
    #[error("the client went away")]
    Gone,
    /// The socket failed during the handshake.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// A handshake that chose an export.
pub(in crate::export::nbd) struct Chosen {
    /// What was agreed on.
    pub(in crate::export::nbd) negotiated: Negotiated,
    /// What to send before the first reply.
    pub(in crate::export::nbd) output: Vec<u8>,
    /// What the client sent already.
    pub(in crate::export::nbd) received: Vec<u8>,
}

/// Negotiates until the client has chosen an export. The last output is left to the caller, who first makes the choice
/// known.
pub(in crate::export::nbd) async fn negotiate(
    socket: &AsyncFd<Fd>,
    exports: &(impl Catalogue + ?Sized),
) -> Result<Chosen, Failed> {
    let mut output = Vec::new();
    let mut handshake = Handshake::begin(&mut output);
    let mut input = vec![0; RECEIVE];
    loop {
        send_all(socket, &output).await?;
        output.clear();
        let n = receive(socket, &mut input)
            .await
            .map_err(|failed| left(&handshake, failed))?;
        let mut rest = input.get(..n).unwrap_or_default();
        while !rest.is_empty() {
            let (used, progress) = handshake.feed(rest, exports, &mut output);
            rest = rest.get(used..).unwrap_or_default();
            match progress {
                Progress::Continue => {}
                Progress::Chosen(negotiated) => {
                    return Ok(Chosen {
                        negotiated,
                        output,
                        received: rest.to_vec(),
                    });
                }
                Progress::Close(why) => {
                    send_all(socket, &output).await?;
                    return Err(if handshake.was_aborted() {
                        left(&handshake, Failed::Gone)
                    } else {
                        Failed::Client(why)
                    });
                }
            }
            if !rest.is_empty() {
                send_all(socket, &output).await?;
                output.clear();
            }
        }
    }
}

/// Why a client that has gone went, if that can be known.
fn left(handshake: &Handshake, failed: Failed) -> Failed {
    match (failed, handshake.missing()) {
        (Failed::Gone, Some(missing)) => Failed::Client(missing.to_owned()),
        (failed, _) => failed,
    }
}

async fn receive(socket: &AsyncFd<Fd>, buffer: &mut [u8]) -> Result<usize, Failed> {
    loop {
        let mut ready = socket.readable().await?;
        let received = ready.try_io(|socket| Ok(recv(socket, &mut *buffer, RecvFlags::DONTWAIT)?.0));
        match received {
            Ok(Ok(0)) => return Err(Failed::Gone),
            Ok(Ok(n)) => return Ok(n),
            Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(Err(error)) => return Err(error.into()),
            Err(_would_block) => {}
        }
    }
}

/// Sends all of `bytes`.
pub(in crate::export::nbd) async fn send_all(socket: &AsyncFd<Fd>, mut bytes: &[u8]) -> Result<(), Failed> {
    while !bytes.is_empty() {
        let mut ready = socket.writable().await?;
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match ready.try_io(|socket| Ok(send(socket, bytes, flags)?)) {
            Ok(Ok(n)) => bytes = bytes.get(n..).unwrap_or_default(),
            Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(Err(error)) => return Err(error.into()),
            Err(_would_block) => {}
        }
    }
    Ok(())
}
