//! Why a socket cannot be had, and what all that listen have in common.

use millpond_messages::{Error, ErrorKind, IoError};
use rustix::io::Errno;

use super::activation;

/// Connections that wait to be accepted; the kernel has its own bound.
pub(super) const BACKLOG: i32 = 128;

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
    pub(super) fn system(what: &'static str) -> impl Fn(Errno) -> Self {
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
