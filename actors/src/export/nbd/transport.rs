//! The bytes between the server and one client: all that handshake and transmission know of a connection.
//!
//! ```text
//!   control thread                on its way                 iothread
//!   Channel ------- leave ------> Link -------- here ------> Transport
//!   (handshake)                   Link <------- leave ------ (transmission, until the node moves)
//! ```
//! A kind of connection is these three types. There are plain sockets, here, and those inside TLS, in `secure`, which have
//! their session in all three and begin it in `Channel::start_tls`. They are type parameters rather than objects, so that a
//! request costs no indirection.
//!
//! Whatever the kind, shutting the socket down ends the connection, from any thread: the server keeps its descriptor for
//! that.

use std::future::Future;
use std::io;

use millpond_ring::buffer::{Buffer, Buffers};
use millpond_ring::os::process::watched;
use millpond_ring::{Fd, Pending, Polled, Ring};
use rustix::event::PollFlags;
use rustix::io::ioctl_fionbio;
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};
use tokio::io::unix::AsyncFd;

use super::handshake::Tls;

/// A connection during the handshake, on the control thread.
pub(super) trait Channel {
    /// What the connection becomes when the handshake is over.
    type Link: Link;

    /// What the server makes of a client that wants TLS.
    fn tls(&self) -> Tls;

    /// Goes on inside TLS, once the client was told that it may. Nothing that was received before is looked at again.
    ///
    /// # Errors
    /// The two sides do not come to an agreement, or the socket failed.
    async fn start_tls(&mut self) -> io::Result<()>;

    /// Receives some bytes into `buffer`: none if the client has left.
    ///
    /// # Errors
    /// The socket failed.
    async fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Sends all of `bytes`.
    ///
    /// # Errors
    /// The socket failed.
    async fn send(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Ends its life on the control thread.
    ///
    /// # Errors
    /// The socket failed.
    fn leave(self) -> io::Result<Self::Link>;
}

/// A connection on its way to an iothread. Nothing of it is in flight.
pub trait Link: Send + 'static {
    /// What the connection is there.
    type Transport: Transport<Link = Self>;

    /// Ends its way on the iothread of `ring`.
    fn here(self, ring: &Ring) -> Self::Transport;
}

/// A connection during transmission, on an iothread. Clones are the same connection.
pub trait Transport: Clone + 'static {
    /// What it becomes to go elsewhere.
    type Link: Link<Transport = Self>;
    /// Ends when the client has left, or the connection was shut down.
    type HangUp: Future + Unpin;

    /// Receives some bytes to the front of `room`, and gives it back: none if the client has left.
    fn receive(&self, room: Buffer) -> impl Future<Output = (io::Result<usize>, Buffer)>;

    /// Receives until `room` is full or the client has left, and gives it back.
    fn receive_exact(&self, room: Buffer) -> impl Future<Output = (io::Result<usize>, Buffer)>;

    /// Sends all of `bytes`, and gives them back.
    fn send(&self, bytes: Buffers) -> impl Future<Output = (io::Result<usize>, Buffers)>;

    /// Watches whether the client is there, while nothing is received.
    fn hang_up(&self) -> Self::HangUp;

    /// Ends the connection: what waits to be received or sent ends with an error.
    fn shut_down(&self);

    /// Tells the client that nothing more comes, if that is not clear by the connection's end. Nothing is in flight.
    fn farewell(&self);

    /// Goes away. There are no other clones, and nothing is in flight.
    fn leave(self) -> Self::Link;
}

/// A plain socket, without TLS, on the control thread.
pub(super) struct PlainChannel(AsyncFd<Fd>);

impl PlainChannel {
    /// A connection over a socket that does not block.
    ///
    /// # Errors
    /// The control thread's reactor cannot wait for it.
    pub(super) fn new(socket: Fd) -> io::Result<Self> {
        watched(socket).map(Self)
    }
}

impl Channel for PlainChannel {
    type Link = Fd;

    fn tls(&self) -> Tls {
        Tls::Unavailable
    }

    async fn start_tls(&mut self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    async fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut ready = self.0.readable().await?;
            let received = ready.try_io(|socket| Ok(recv(socket, &mut *buffer, RecvFlags::DONTWAIT)?.0));
            match received {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(received) => return received,
                Err(_would_block) => {}
            }
        }
    }

    async fn send(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut ready = self.0.writable().await?;
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match ready.try_io(|socket| Ok(send(socket, bytes, flags)?)) {
                Ok(Ok(n)) => bytes = bytes.get(n..).unwrap_or_default(),
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Err(error),
                Err(_would_block) => {}
            }
        }
        Ok(())
    }

    fn leave(self) -> io::Result<Fd> {
        let socket = self.0.into_inner();
        // The iothread's ring waits for sockets by itself.
        ioctl_fionbio(&socket, false)?;
        Ok(socket)
    }
}

impl Link for Fd {
    type Transport = PlainTransport;

    fn here(self, ring: &Ring) -> PlainTransport {
        PlainTransport {
            ring: ring.clone(),
            socket: self,
        }
    }
}

/// A plain socket, without TLS, on an iothread.
#[derive(Debug, Clone)]
pub struct PlainTransport {
    ring: Ring,
    socket: Fd,
}

impl Transport for PlainTransport {
    type Link = Fd;
    type HangUp = Pending<Polled>;

    #[inline]
    fn receive(&self, room: Buffer) -> impl Future<Output = (io::Result<usize>, Buffer)> {
        self.ring.recv(&self.socket, room)
    }

    #[inline]
    fn receive_exact(&self, room: Buffer) -> impl Future<Output = (io::Result<usize>, Buffer)> {
        self.ring.recv_exact(&self.socket, room)
    }

    #[inline]
    fn send(&self, bytes: Buffers) -> impl Future<Output = (io::Result<usize>, Buffers)> {
        self.ring.send(&self.socket, bytes)
    }

    fn hang_up(&self) -> Self::HangUp {
        self.ring.poll(&self.socket, u32::from(PollFlags::RDHUP.bits()))
    }

    fn shut_down(&self) {
        // A client that has gone already makes this fail, which changes nothing.
        let _ = shutdown(&self.socket, Shutdown::Both);
    }

    fn farewell(&self) {}

    fn leave(self) -> Fd {
        self.socket
    }
}
