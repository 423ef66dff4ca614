//! A connection's socket, unix or TCP.

use std::io::{self, IoSlice, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, recv, sendmsg, sockopt};

use super::super::target::Endpoint;
use crate::Outcome;

/// A connected socket. It blocks, unless a call says otherwise.
#[derive(Debug)]
pub(in crate::load) enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    /// Connects.
    ///
    /// # Errors
    /// Nobody listens there.
    pub fn connect(endpoint: &Endpoint) -> Outcome<Stream> {
        match endpoint {
            Endpoint::Unix(path) => {
                let stream =
                    UnixStream::connect(path).map_err(|error| format!("{}: {error}", path.display()))?;
                Ok(Stream::Unix(stream))
            }
            Endpoint::Tcp(address) => {
                let stream = TcpStream::connect(address).map_err(|error| format!("{address}: {error}"))?;
                stream.set_nodelay(true)?;
                Ok(Stream::Tcp(stream))
            }
        }
    }

    /// Asks for so many bytes of room for what was sent and not yet taken. The kernel gives less to those who may not have
    /// more than the system's bound.
    pub fn set_send_room(&self, bytes: usize) -> io::Result<()> {
        match sockopt::set_socket_send_buffer_size_force(self, bytes) {
            Ok(()) => Ok(()),
            Err(_) => Ok(sockopt::set_socket_send_buffer_size(self, bytes)?),
        }
    }

    /// How long a receive that blocks waits.
    pub fn set_patience(&self, patience: Duration) -> io::Result<()> {
        Ok(sockopt::set_socket_timeout(
            self,
            sockopt::Timeout::Recv,
            Some(patience),
        )?)
    }

    /// Sends what there is room for; none if there is no room at all.
    #[inline]
    pub fn send_now(&self, pieces: &[IoSlice<'_>]) -> io::Result<Option<usize>> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let mut nothing = SendAncillaryBuffer::default();
        unless_blocked(sendmsg(self, pieces, &mut nothing, flags))
    }

    /// Waits for bytes; none if none came in the time that was set.
    #[inline]
    pub fn receive(&self, bytes: &mut [u8]) -> io::Result<Option<usize>> {
        unless_blocked(recv(self, bytes, RecvFlags::empty()).map(|(count, _)| count))
    }

    /// Takes bytes that are there; none if there are none.
    #[inline]
    pub fn receive_now(&self, bytes: &mut [u8]) -> io::Result<Option<usize>> {
        unless_blocked(recv(self, bytes, RecvFlags::DONTWAIT).map(|(count, _)| count))
    }

    /// Waits until there are bytes to receive, or room to send if that is wanted, or the time is over.
    pub fn wait(&self, sending: bool, time: Duration) -> io::Result<()> {
        let mut events = PollFlags::IN;
        if sending {
            events |= PollFlags::OUT;
        }
        let time = Timespec::try_from(time).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(self, events)], Some(&time)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

#[inline]
fn unless_blocked(result: rustix::io::Result<usize>) -> io::Result<Option<usize>> {
    match result {
        Ok(count) => Ok(Some(count)),
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Stream::Unix(stream) => stream.as_fd(),
            Stream::Tcp(stream) => stream.as_fd(),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Unix(stream) => stream.read(bytes),
            Stream::Tcp(stream) => stream.read(bytes),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Unix(stream) => stream.write(bytes),
            Stream::Tcp(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
