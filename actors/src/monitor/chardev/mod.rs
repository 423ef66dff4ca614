//! Character devices: where a monitor's bytes come from and go to.

mod open;
mod options;

pub use open::{Chardev, Connection};
pub use options::{BACKENDS, Parsed, parameter_help, parse};

use millpond_messages::qapi::{FdSocketAddress, InetSocketAddress, SocketAddress, UnixSocketAddress};
use std::fmt;
use std::time::Duration;

/// A character device as `--chardev` describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChardevOptions {
    /// The device's id, which its user chose.
    pub id: String,
    /// What is behind it.
    pub backend: Backend,
}

/// What is behind a character device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backend {
    /// Standard input and output.
    Stdio,
    /// A socket that clients connect to, or that connects.
    Socket(Socket),
    /// Nothing: no input, and output is dropped.
    Null,
}

/// What is known of a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Socket {
    /// The address that it listens at or connects to.
    pub address: Address,
    /// Listen there, rather than connect.
    pub server: bool,
    /// Hold up the start until the first client is there.
    pub wait: bool,
    /// Connect again after this time when the connection is lost.
    pub reconnect: Option<Duration>,
}

/// Where a socket is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A path, or a name in the abstract name space.
    Unix {
        /// The path or name.
        path: String,
        /// It is a name.
        is_abstract: bool,
        /// The name is not padded with zeroes.
        tight: bool,
    },
    /// A TCP address, and how to use it.
    Inet {
        /// Name or number; empty for any.
        host: String,
        /// Number or name of a service.
        port: String,
        /// Try the ports up to this one.
        to: Option<u16>,
        /// Use (or do not use) IPv4.
        ipv4: Option<bool>,
        /// Use (or do not use) IPv6.
        ipv6: Option<bool>,
    },
    /// A file descriptor that was passed to the process, by number or by name.
    Fd(String),
}

impl From<&Address> for SocketAddress {
    fn from(address: &Address) -> Self {
        match address.clone() {
            Address::Unix {
                path,
                is_abstract,
                tight,
            } => Self::Unix(UnixSocketAddress {
                path,
                is_abstract: Some(is_abstract),
                tight: Some(tight),
            }),
            Address::Inet {
                host,
                port,
                to,
                ipv4,
                ipv6,
            } => Self::Inet(InetSocketAddress {
                host,
                port,
                to,
                ipv4,
                ipv6,
                ..InetSocketAddress::default()
            }),
            Address::Fd(name) => Self::Fd(FdSocketAddress { name }),
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdio => f.write_str("stdio"),
            Self::Null => f.write_str("null"),
            Self::Socket(socket) => {
                let server = if socket.server { ",server=on" } else { "" };
                write!(f, "{}{server}", socket.address)
            }
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix {
                path,
                is_abstract: false,
                ..
            } => write!(f, "unix:{path}"),
            Self::Unix { path, .. } => write!(f, "unix:{path},abstract=on"),
            Self::Inet { host, port, .. } => write!(f, "tcp:{host}:{port}"),
            Self::Fd(name) => write!(f, "fd:{name}"),
        }
    }
}
