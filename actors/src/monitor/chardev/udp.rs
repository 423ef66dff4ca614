//! Datagrams: what is written at once is sent as one, and what is received is read in order.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use millpond_messages::IoError;
use millpond_messages::qapi::{InetSocketAddress, SocketAddress};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with, sockopt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UdpSocket;

use super::backend::Address;
use super::connection::Connection;
use crate::socket::resolve;

/// The longest datagram that IPv4 can send, in bytes.
const LONGEST: usize = 65_507;

/// The connection that a socket for datagrams is.
///
/// # Errors
/// QEMU's text.
pub async fn datagrams(remote: &Address, local: Option<&Address>) -> Result<Connection, String> {
    let remote = first_of(remote, "localhost", false).await?;
    let local = match local {
        Some(local) => first_of(local, "", true).await?,
        None if remote.is_ipv4() => SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0),
        None => SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0),
    };
    let failed = |what: &str, error: io::Error| format!("{what}: {}", IoError::from(error));
    let socket = bound(local).map_err(|error| failed("Failed to bind socket", error))?;
    let connected = socket.connect(remote).await;
    connected.map_err(|error| failed("Failed to connect socket", error))?;
    let socket = Rc::new(socket);
    let reader = Received {
        socket: Rc::clone(&socket),
        datagram: vec![0; LONGEST],
        rest: 0..0,
    };
    Ok(Connection::new(reader, Sent(socket)))
}

/// A socket that is bound to an address, which it may have before others have left it for good.
fn bound(local: SocketAddr) -> io::Result<UdpSocket> {
    let family = match local {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::DGRAM, flags, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    bind(&socket, &local)?;
    UdpSocket::from_std(socket.into())
}

async fn first_of(address: &Address, any: &str, to_listen: bool) -> Result<SocketAddr, String> {
    let SocketAddress::Inet(mut address) = SocketAddress::from(address) else {
        return Err("socket type unsupported for datagram".into());
    };
    if address.host.is_empty() {
        any.clone_into(&mut address.host);
    }
    let found = resolve(&address, to_listen).await;
    let found = found.map_err(|error| error.to_string())?;
    let nothing =
        |InetSocketAddress { host, port, .. }| format!("address resolution failed for {host}:{port}");
    found.first().copied().ok_or_else(|| nothing(address))
}

/// The input: what was received.
struct Received {
    socket: Rc<UdpSocket>,
    datagram: Vec<u8>,
    /// The part of the datagram that was not read yet.
    rest: std::ops::Range<usize>,
}

impl AsyncRead for Received {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while this.rest.is_empty() {
            let mut into = ReadBuf::new(&mut this.datagram);
            match ready!(this.socket.poll_recv(context, &mut into)) {
                Ok(()) => this.rest = 0..into.filled().len(),
                // Nobody was there for something that was sent.
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        let count = this.rest.len().min(buffer.remaining());
        let taken = this.rest.start..this.rest.start + count;
        buffer.put_slice(this.datagram.get(taken).unwrap_or_default());
        this.rest.start += count;
        Poll::Ready(Ok(()))
    }
}

/// The output: where it is sent.
struct Sent(Rc<UdpSocket>);

impl AsyncWrite for Sent {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let datagram = bytes.get(..LONGEST).unwrap_or(bytes);
        match ready!(self.0.poll_send(context, datagram)) {
            // Nobody is there: the datagram is lost, as any may be.
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => Poll::Ready(Ok(datagram.len())),
            sent => Poll::Ready(sent),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
