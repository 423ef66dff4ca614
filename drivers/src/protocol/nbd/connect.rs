//! Connections to servers: made, negotiated, and made again.

use std::net::{SocketAddr, ToSocketAddrs};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{Either, select};
use millpond_messages::{Error, ErrorKind, IoError, Result};
use millpond_ring::{Fd, Ring};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with, sockopt};

use super::handshake::Negotiation;
use super::inbox::Inbox;
use super::link::Link;
use super::options::{NbdOptions, Place};
use super::socket::ServerSocket;

/// Connects to the server and agrees with it on the export, within `patience`.
///
/// # Errors
/// It cannot be reached, refuses, or says nothing for long.
pub(super) async fn connect(ring: &Ring, options: &NbdOptions, patience: Duration) -> Result<Link> {
    let connecting = pin!(negotiated(ring, options));
    match select(connecting, ring.sleep(patience)).await {
        Either::Left((connected, _)) => connected,
        Either::Right(_) => {
            let place = options.server.shown();
            Err(Error::io(
                &format!("Failed to connect to '{place}'"),
                IoError::Os(libc::ETIMEDOUT),
            ))
        }
    }
}

async fn negotiated(ring: &Ring, options: &NbdOptions) -> Result<Link> {
    let fd = reach(ring, &options.server).await?;
    let mut negotiation = Negotiation {
        socket: ServerSocket::plain(ring.clone(), fd),
        inbox: Inbox::new(),
    };
    match negotiation.run(options).await {
        Ok(agreed) => Ok(Link::new(negotiation.socket, agreed, negotiation.inbox)),
        Err(error) => {
            negotiation.give_up().await;
            Err(error)
        }
    }
}

impl Place {
    /// The address, as texts have it.
    pub(super) fn shown(&self) -> String {
        match self {
            Self::Unix(path) => path.clone(),
            Self::Inet { host, port, .. } => format!("{host}:{port}"),
        }
    }
}

async fn reach(ring: &Ring, place: &Place) -> Result<Fd> {
    let failed = |error: IoError| Error::io(&format!("Failed to connect to '{}'", place.shown()), error);
    match place {
        Place::Unix(path) => {
            let fd = socket(AddressFamily::UNIX).map_err(failed)?;
            let address = SocketAddrUnix::new(path.as_str()).map_err(|error| failed(of(error)))?;
            let connected = ring.connect(&fd, address).await;
            connected.map_err(|error| failed(error.into()))?;
            Ok(fd)
        }
        Place::Inet { keep_alive, .. } => {
            let mut last = IoError::Os(libc::EADDRNOTAVAIL);
            for address in resolve(ring, place).await? {
                match reach_inet(ring, address, *keep_alive).await {
                    Ok(fd) => return Ok(fd),
                    Err(error) => last = error,
                }
            }
            Err(failed(last))
        }
    }
}

fn of(error: Errno) -> IoError {
    IoError::from_errno(error.raw_os_error())
}

fn socket(family: AddressFamily) -> std::result::Result<Fd, IoError> {
    let made = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None);
    made.map(Arc::new).map_err(of)
}

async fn reach_inet(ring: &Ring, address: SocketAddr, keep_alive: bool) -> std::result::Result<Fd, IoError> {
    let fd = socket(match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    })?;
    // Requests are short, and each waits for its reply.
    sockopt::set_tcp_nodelay(&*fd, true).map_err(of)?;
    if keep_alive {
        sockopt::set_socket_keepalive(&*fd, true).map_err(of)?;
    }
    ring.connect(&fd, address).await.map_err(IoError::from)?;
    Ok(fd)
}

/// The addresses of a host, looked up where that may take long.
async fn resolve(ring: &Ring, place: &Place) -> Result<Vec<SocketAddr>> {
    let Place::Inet {
        host,
        port,
        ipv4,
        ipv6,
        ..
    } = place
    else {
        return Ok(Vec::new());
    };
    let (name, service) = (host.clone(), port.clone());
    let found = ring
        .blocking(move || {
            let port = service.parse::<u16>().ok()?;
            (name.as_str(), port).to_socket_addrs().ok().map(Vec::from_iter)
        })
        .await;
    let wanted = |address: &SocketAddr| match address {
        SocketAddr::V4(_) => ipv4.unwrap_or(*ipv6 != Some(true)),
        SocketAddr::V6(_) => ipv6.unwrap_or(*ipv4 != Some(true)),
    };
    found
        .map(|found| found.into_iter().filter(wanted).collect())
        .ok_or_else(|| {
            let text = format!("address resolution failed for {host}:{port}: Name or service not known");
            Error::new(ErrorKind::Io(IoError::Os(libc::EINVAL)), text)
        })
}
