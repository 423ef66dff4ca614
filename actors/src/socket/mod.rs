//! Sockets for the addresses that QEMU's options describe: those that the NBD server and the monitors listen on, and
//! those that a monitor connects to.

pub mod activation;
mod error;
mod inet;
mod own_file;
mod unix;
mod vsock;

use error::BACKLOG;
pub use error::SocketError;
pub use inet::{keep_alive, resolve};
pub use own_file::OwnFile;
use own_file::clear_for_socket;
pub use unix::unix_address;

use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use millpond_messages::qapi::{InetSocketAddress, SocketAddress, UnixSocketAddress};
use rustix::net::{SocketAddrUnix, getsockname, listen as listen_on};

/// What a server listens on.
#[derive(Debug, Default)]
pub struct Listeners {
    /// One for each address.
    pub sockets: Vec<OwnedFd>,
    /// The socket's file, to be removed before the socket is closed.
    pub file: Option<OwnFile>,
}

/// Opens listening sockets, without `O_NONBLOCK`.
///
/// # Errors
/// The address cannot be resolved or bound, or its kind is not supported.
pub async fn listen(address: &SocketAddress) -> Result<Listeners, SocketError> {
    match address {
        SocketAddress::Unix(address) => unix::listen(address),
        SocketAddress::Inet(address) => Ok(Listeners {
            sockets: inet::listen(address).await?,
            file: None,
        }),
        SocketAddress::Fd(descriptor) => adopt(&descriptor.name),
        SocketAddress::Vsock(address) => Ok(Listeners {
            sockets: vec![vsock::listen(address)?],
            file: None,
        }),
    }
}

/// Listens on the sockets that were passed under a number or a name.
fn adopt(name: &str) -> Result<Listeners, SocketError> {
    let sockets = activation::passed(name)?;
    for socket in &sockets {
        listen_on(socket, BACKLOG).map_err(SocketError::system("Failed to listen on fd socket"))?;
    }
    Ok(Listeners { sockets, file: None })
}

/// The address that a socket really has; none if it is of another kind.
pub fn local_address(socket: &OwnedFd) -> Option<SocketAddress> {
    let address = getsockname(socket).ok()?;
    if let Ok(address) = SocketAddr::try_from(address.clone()) {
        return Some(SocketAddress::Inet(InetSocketAddress {
            host: address.ip().to_string(),
            port: address.port().to_string(),
            ..InetSocketAddress::default()
        }));
    }
    if let Some(address) = vsock::address_of(socket) {
        return Some(SocketAddress::Vsock(address));
    }
    let address = SocketAddrUnix::try_from(address).ok()?;
    let is_abstract = address.abstract_name().is_some();
    let name = address.abstract_name().or(address.path_bytes())?;
    Some(SocketAddress::Unix(UnixSocketAddress {
        path: String::from_utf8_lossy(name).into_owned(),
        is_abstract: is_abstract.then_some(true),
        tight: None,
    }))
}
