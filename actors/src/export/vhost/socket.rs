//! The socket of a front end: whole messages, and the descriptors that come with them.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use millpond_ring::os::process::watched;
use rustix::io::retry_on_intr;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use zerocopy::{FromBytes, IntoBytes};

use super::message::{Header, MAX_FILES, MAX_PAYLOAD, Message};

/// Bytes of a message's header.
const HEADER: usize = size_of::<Header>();

/// Why nothing more comes over a socket.
#[derive(Debug, thiserror::Error)]
pub(super) enum SocketEnded {
    /// The front end has closed it between two messages.
    #[error("the front end went away")]
    Closed,
    /// The socket ended in a message.
    #[error("unexpected end-of-file in a message")]
    Inside,
    /// The socket failed while receiving.
    #[error("the socket failed: {0}")]
    Failed(#[from] io::Error),
    /// A message says that it is longer than any.
    #[error("message {0} has {1} bytes")]
    TooLong(u32, u32),
    /// A message is of another version of the protocol, or an answer to nothing.
    #[error("message {0} is not of this protocol")]
    NotUnderstood(u32),
    /// Descriptors came with something else than the start of a message, or too many.
    #[error("descriptors came that belong to no message")]
    StrayFiles,
}

/// A socket on the control thread.
#[derive(Debug)]
pub(super) struct Socket(AsyncFd<Arc<OwnedFd>>);

impl Socket {
    /// One over a descriptor that does not block.
    ///
    /// # Errors
    /// The control thread's reactor cannot wait for it.
    pub(super) fn new(socket: OwnedFd) -> io::Result<Self> {
        watched(Arc::new(socket)).map(Self)
    }

    /// The next message. Dropped before it has come, what has come of it is lost.
    ///
    /// # Errors
    /// There is none, or it is too long to be one.
    pub(super) async fn receive(&self) -> Result<Message, SocketEnded> {
        let mut header = [0; HEADER];
        let (first, files) = self.receive_some(&mut header).await?;
        if first == 0 {
            return Err(SocketEnded::Closed);
        }
        self.fill(header.get_mut(first..).unwrap_or_default()).await?;
        // A header is as long as its bytes.
        let header = Header::read_from_bytes(&header).map_err(|_| SocketEnded::Inside)?;
        if !header.is_understood() {
            return Err(SocketEnded::NotUnderstood(header.request));
        }
        let len = header.len as usize;
        if len > MAX_PAYLOAD {
            return Err(SocketEnded::TooLong(header.request, header.len));
        }
        let mut payload = vec![0; len];
        self.fill(&mut payload).await?;
        Ok(Message {
            header,
            payload,
            files,
        })
    }

    /// Receives until `room` is full.
    async fn fill(&self, mut room: &mut [u8]) -> Result<(), SocketEnded> {
        while !room.is_empty() {
            let (received, files) = self.receive_some(room).await?;
            if !files.is_empty() {
                return Err(SocketEnded::StrayFiles);
            }
            if received == 0 {
                return Err(SocketEnded::Inside);
            }
            room = room.get_mut(received..).unwrap_or_default();
        }
        Ok(())
    }

    /// Receives some bytes, and the descriptors that come with the first of them.
    async fn receive_some(&self, room: &mut [u8]) -> Result<(usize, Vec<OwnedFd>), SocketEnded> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let receive = |socket: &Arc<OwnedFd>| {
            let mut room = [IoSliceMut::new(room)];
            Ok(retry_on_intr(|| recvmsg(socket, &mut room, &mut control, flags))?)
        };
        let received = self.0.async_io(Interest::READABLE, receive).await?;
        let mut files = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                files.extend(descriptors);
            }
        }
        if received.flags.contains(ReturnFlags::CTRUNC) {
            return Err(SocketEnded::StrayFiles);
        }
        Ok((received.bytes, files))
    }

    /// Sends a message with at most one descriptor.
    ///
    /// # Errors
    /// The socket failed.
    pub(super) async fn send(
        &self,
        header: &Header,
        payload: &[u8],
        file: Option<BorrowedFd<'_>>,
    ) -> io::Result<()> {
        let bytes = [header.as_bytes(), payload].concat();
        let mut sent = 0;
        while let Some(rest) = bytes.get(sent..).filter(|rest| !rest.is_empty()) {
            let file = file.filter(|_| sent == 0);
            let send = |socket: &Arc<OwnedFd>| send_now(socket.as_fd(), rest, file);
            sent += self.0.async_io(Interest::WRITABLE, send).await?;
        }
        Ok(())
    }
}

/// Sends what a socket takes without waiting.
///
/// # Errors
/// It takes nothing now, or failed.
pub(super) fn send_now(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    file: Option<BorrowedFd<'_>>,
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let files: Vec<_> = file.into_iter().collect();
    if !files.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&files));
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    Ok(retry_on_intr(|| {
        sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags)
    })?)
}
