//! What a character device is made from, however it was asked for.

use millpond_messages::qapi::{
    FdSocketAddress, InetSocketAddress, SocketAddress, UnixSocketAddress, VsockSocketAddress,
};
use std::fmt;
use std::time::Duration;

/// A character device as its user describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChardevOptions {
    /// The device's id, which its user chose.
    pub id: String,
    /// What is behind it.
    pub backend: Backend,
    /// The file that gets all output as well.
    pub log: Option<LogFile>,
    /// Several users share it: the device is called `ID-base`, and a mux over it has the id.
    pub is_shared: bool,
}

impl ChardevOptions {
    /// A device with nothing besides what is behind it.
    #[must_use]
    pub fn new(id: impl Into<String>, backend: Backend) -> Self {
        Self {
            id: id.into(),
            backend,
            log: None,
            is_shared: false,
        }
    }
}

/// A file that gets all output of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFile {
    /// The path of the file.
    pub path: String,
    /// Add to what is in it.
    pub append: bool,
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
    /// Files: one for output, and perhaps one for input.
    File {
        /// The file that input comes from.
        input: Option<String>,
        /// The file that output goes to.
        output: String,
        /// Add to what is in the output's file.
        append: bool,
    },
    /// Pipes with names: `PATH.in` and `PATH.out`, or one for both.
    Pipe(String),
    /// A pseudoterminal, and where to make a link to it.
    Pty(Option<String>),
    /// Datagrams to and from one address.
    Udp {
        /// Where output is sent.
        remote: Address,
        /// Where input is received.
        local: Option<Address>,
    },
    /// Memory that keeps what was written last.
    Ring {
        /// How many bytes it keeps.
        size: i64,
        /// It was asked for by its older name.
        is_memory: bool,
    },
    /// The device of this id, shared by several users.
    Mux(String),
}

/// What is spoken over a socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Protocol {
    /// Telnet's: options are negotiated, and left out of the input.
    pub telnet: bool,
    /// Telnet's with the options of a mainframe's terminal.
    pub tn3270: bool,
    /// WebSocket's, with messages of bytes.
    pub websocket: bool,
}

impl Protocol {
    /// What stands before an Internet address.
    fn scheme(self) -> &'static str {
        match self {
            Self { telnet: true, .. } => "telnet",
            Self { websocket: true, .. } => "websocket",
            _ => "tcp",
        }
    }
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
    /// What is spoken over it.
    pub protocol: Protocol,
    /// The credentials by which it was to be inside TLS, which no device can be yet.
    pub tls_creds: Option<String>,
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
    Inet(InetSocketAddress),
    /// A file descriptor that was passed to the process, by number or by name.
    Fd(String),
    /// A socket of a virtual machine.
    Vsock {
        /// Which machine is meant.
        cid: String,
        /// The port at that machine.
        port: String,
    },
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
            Address::Inet(address) => Self::Inet(address),
            Address::Fd(name) => Self::Fd(FdSocketAddress { name }),
            Address::Vsock { cid, port } => Self::Vsock(VsockSocketAddress { cid, port }),
        }
    }
}

impl From<SocketAddress> for Address {
    fn from(address: SocketAddress) -> Self {
        match address {
            SocketAddress::Unix(address) => Self::Unix {
                path: address.path,
                is_abstract: address.is_abstract.unwrap_or(false),
                tight: address.tight.unwrap_or(true),
            },
            SocketAddress::Inet(address) => Self::Inet(address),
            SocketAddress::Fd(address) => Self::Fd(address.name),
            SocketAddress::Vsock(address) => Self::Vsock {
                cid: address.cid,
                port: address.port,
            },
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdio => f.write_str("stdio"),
            Self::Null => f.write_str("null"),
            Self::File { .. } => f.write_str("file"),
            Self::Pipe(_) => f.write_str("pipe"),
            Self::Pty(_) => f.write_str("pty"),
            Self::Udp { .. } => f.write_str("udp"),
            Self::Ring { is_memory: true, .. } => f.write_str("memory"),
            Self::Ring { .. } => f.write_str("ringbuf"),
            Self::Mux(_) => f.write_str("mux"),
            Self::Socket(socket) => write!(f, "{socket}"),
        }
    }
}

impl Socket {
    /// A socket that is listened on, without waiting for anybody.
    #[must_use]
    pub fn server(address: Address) -> Self {
        Self {
            address,
            server: true,
            wait: false,
            reconnect: None,
            protocol: Protocol::default(),
            tls_creds: None,
        }
    }

    /// What a listening socket is marked by.
    pub(super) fn server_mark(&self) -> &'static str {
        if self.server { ",server=on" } else { "" }
    }

    /// What stands before its address, if it is one of the Internet's.
    pub(super) fn scheme(&self) -> &'static str {
        self.protocol.scheme()
    }
}

impl fmt::Display for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.address {
            Address::Unix {
                path,
                is_abstract: false,
                ..
            } => write!(f, "unix:{path}"),
            Address::Unix { path, .. } => write!(f, "unix:{path},abstract=on"),
            Address::Inet(InetSocketAddress { host, port, .. }) => {
                write!(f, "{}:{host}:{port}", self.scheme())
            }
            Address::Fd(name) => write!(f, "fd:{name}"),
            Address::Vsock { cid, port } => write!(f, "vsock:{cid}:{port}"),
        }?;
        f.write_str(self.server_mark())
    }
}
