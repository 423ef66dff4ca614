//! Sockets for the addresses that QEMU's options describe: those that the NBD server and the monitors listen on, and
//! those that a monitor connects to.

pub mod activation;
mod inet;
mod own_file;
mod unix;
mod vsock;

pub use inet::{keep_alive, resolve};
pub use own_file::OwnFile;
use own_file::clear_for_socket;
pub use unix::unix_address;

use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use millpond_messages::qapi::{InetSocketAddress, SocketAddress, UnixSocketAddress};
use millpond_messages::{Error, ErrorKind, IoError};
use rustix::io::Errno;
use rustix::net::{SocketAddrUnix, getsockname, listen as listen_on};

/// Connections that wait to be accepted; the kernel has its own bound.
const BACKLOG: i32 = 128;

/// What a server listens on.
#[derive(Debug, Default)]
pub struct Listeners {
    /// One for each address.
    pub sockets: Vec<OwnedFd>,
    /// The socket's file, to be removed before the socket is closed.
    pub file: Option<OwnFile>,
}

/// Why a socket cannot be had. The texts are QEMU's where it has one.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The path does not fit an address.
    #[error("UNIX socket path '{0}' is too long")]
    PathTooLong(String),
    /// A socket cannot be made at the path.
    #[error("Failed to bind socket to {path}: {why}")]
    Path {
        /// The path that was given.
        path: String,
        /// What is in the way.
        why: String,
    },
    /// A host or service has no address.
    #[error("address resolution failed for {host}:{port}: {why}")]
    Unresolved {
        /// The name of the host.
        host: String,
        /// The number or name of the port.
        port: String,
        /// What the resolver says about it.
        why: String,
    },
    /// A descriptor is neither a number nor the name of one that was passed.
    #[error("Unable to parse FD number {name}{}", activation::known())]
    UnknownDescriptor {
        /// The descriptor as it was given.
        name: String,
    },
    /// A descriptor is not open, or no socket.
    #[error("File descriptor '{0}' is not a socket")]
    NotASocket(String),
    /// Several descriptors have the name, where one can be used.
    #[error("{count} file descriptors are named '{name}', where one is expected")]
    Several {
        /// The name that several descriptors have.
        name: String,
        /// How many descriptors have it.
        count: usize,
    },
    /// No virtual machine has this number.
    #[error("Failed to parse cid '{0}'")]
    Machine(String),
    /// No port of virtual machines has this number.
    #[error("Failed to parse port '{0}'")]
    MachinePort(String),
    /// The system refuses what was asked of it.
    #[error("{what}: {}", IoError::from_errno(errno.raw_os_error()))]
    System {
        /// What was asked of the system.
        what: &'static str,
        /// What the system has answered.
        errno: Errno,
    },
}

impl SocketError {
    fn system(what: &'static str) -> impl Fn(Errno) -> Self {
        move |errno| Self::System { what, errno }
    }

    /// What helps a person who sees the text.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::PathTooLong(_) => Some("Path must be less than 108 bytes"),
            _ => None,
        }
    }
}

impl From<SocketError> for Error {
    fn from(error: SocketError) -> Self {
        let kind = match &error {
            SocketError::PathTooLong(_)
            | SocketError::UnknownDescriptor { .. }
            | SocketError::NotASocket(_)
            | SocketError::Several { .. }
            | SocketError::Machine(_)
            | SocketError::MachinePort(_) => ErrorKind::InvalidArgument,
            SocketError::Path { .. } => ErrorKind::InUse,
            SocketError::Unresolved { .. } => ErrorKind::NotFound,
            SocketError::System { errno, .. } => ErrorKind::Io(IoError::from_errno(errno.raw_os_error())),
        };
        Self::caused_by(kind, error.to_string(), error)
    }
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
