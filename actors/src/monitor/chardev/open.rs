//! Opens character devices, and gives one connection after the other.

use super::{Address, Backend, ChardevOptions, Socket};
use crate::ffi::inherited;
use messages::IoError;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net as unix;
use std::path::PathBuf;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

/// The longest path that a unix socket's address takes, in bytes, without the zero at its end.
const LONGEST_PATH: usize = 107;
/// How long to wait before accepting again when the system is short of something.
const BREATH: Duration = Duration::from_millis(100);
/// Clients that may wait while another is being served.
const BACKLOG: i32 = 128;

/// A connection: what comes in, and where answers go.
pub struct Connection {
    /// What comes in.
    pub reader: Box<dyn AsyncRead + Unpin>,
    /// Where answers go.
    pub writer: Box<dyn AsyncWrite + Unpin>,
}

/// An open character device.
pub struct Chardev {
    label: String,
    state: State,
}

enum State {
    Stdio {
        used: bool,
    },
    Null,
    Server {
        listener: Listener,
        first: Option<Connection>,
    },
    Client {
        socket: Socket,
        connection: Option<Connection>,
    },
}

enum Listener {
    Unix {
        listener: UnixListener,
        path: Option<PathBuf>,
    },
    Tcp(TcpListener),
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Self::Unix { path: Some(path), .. } = self {
            // Whoever removed it already did what we wanted.
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Chardev {
    /// Opens a device; `waiting` is told where if it waits for its first client.
    ///
    /// # Errors
    /// QEMU's text for what went wrong.
    pub async fn open(options: &ChardevOptions, waiting: impl FnOnce(String)) -> Result<Self, String> {
        let state = match &options.backend {
            Backend::Stdio => State::Stdio { used: false },
            Backend::Null => State::Null,
            Backend::Socket(socket) if socket.server => {
                let listener = Listener::bind(&socket.address).await?;
                let mut first = None;
                if socket.wait {
                    waiting(format!("disconnected:{}", options.backend));
                    first = Some(listener.accept().await);
                }
                State::Server { listener, first }
            }
            Backend::Socket(socket) => {
                let connection = match connect(&socket.address).await {
                    Ok(connection) => Some(connection),
                    Err(text) if socket.reconnect.is_none() => return Err(text),
                    Err(text) => {
                        tracing::warn!(chardev = options.id, "Unable to connect character device: {text}");
                        None
                    }
                };
                State::Client {
                    socket: socket.clone(),
                    connection,
                }
            }
        };
        Ok(Self {
            label: options.id.clone(),
            state,
        })
    }

    /// Its id.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Waits for the next connection; `None` when there will be no more.
    pub async fn next(&mut self) -> Option<Connection> {
        match &mut self.state {
            State::Null | State::Stdio { used: true } => None,
            State::Stdio { used } => {
                *used = true;
                Some(Connection {
                    reader: Box::new(tokio::io::stdin()),
                    writer: Box::new(tokio::io::stdout()),
                })
            }
            State::Server { listener, first } => match first.take() {
                Some(connection) => Some(connection),
                None => Some(listener.accept().await),
            },
            State::Client { socket, connection } => {
                if let Some(connection) = connection.take() {
                    return Some(connection);
                }
                loop {
                    tokio::time::sleep(socket.reconnect?).await;
                    if let Ok(connection) = connect(&socket.address).await {
                        return Some(connection);
                    }
                }
            }
        }
    }
}

/// The text for a failed system call.
fn reason(error: io::Error) -> String {
    IoError::from(error).to_string()
}

impl Listener {
    async fn bind(address: &Address) -> Result<Self, String> {
        match address {
            Address::Unix {
                path,
                is_abstract,
                tight,
            } => {
                let bound = unix_address(path, *is_abstract, *tight)?;
                if !is_abstract {
                    // One left behind by a process that was killed; if it cannot be removed, binding says why.
                    let _ = std::fs::remove_file(path);
                }
                let listener = unix::UnixListener::bind_addr(&bound)
                    .and_then(non_blocking_unix)
                    .map_err(|error| format!("Failed to bind socket to {path}: {}", reason(error)))?;
                Ok(Self::Unix {
                    listener,
                    path: (!is_abstract).then(|| path.into()),
                })
            }
            Address::Inet { to, .. } => {
                let mut last = None;
                for address in resolve(address).await? {
                    for port in address.port()..=to.unwrap_or(address.port()) {
                        match tcp_listener(SocketAddr::new(address.ip(), port)) {
                            Ok(listener) => return Ok(Self::Tcp(listener)),
                            Err(error) => last = Some(error),
                        }
                    }
                }
                let why = last.map_or_else(|| "Address not available".into(), reason);
                Err(format!("Failed to bind socket: {why}"))
            }
            Address::Fd(name) => Self::adopt(name, descriptor(name)?),
        }
    }

    fn adopt(name: &str, descriptor: OwnedFd) -> Result<Self, String> {
        let failed = |error| format!("Unable to listen on file descriptor '{name}': {}", reason(error));
        if is_unix(name, &descriptor)? {
            let listener = non_blocking_unix(unix::UnixListener::from(descriptor)).map_err(failed)?;
            return Ok(Self::Unix { listener, path: None });
        }
        let listener = std::net::TcpListener::from(descriptor);
        listener.set_nonblocking(true).map_err(failed)?;
        TcpListener::from_std(listener).map(Self::Tcp).map_err(failed)
    }

    /// The next client; one that is gone before it is accepted is passed over.
    async fn accept(&self) -> Connection {
        loop {
            let accepted = match self {
                Self::Unix { listener, .. } => {
                    listener.accept().await.map(|(stream, _)| unix_connection(stream))
                }
                Self::Tcp(listener) => listener.accept().await.map(|(stream, _)| tcp_connection(stream)),
            };
            match accepted {
                Ok(connection) => return connection,
                Err(error) => {
                    tracing::warn!(%error, "a monitor's client cannot be accepted");
                    tokio::time::sleep(BREATH).await;
                }
            }
        }
    }
}

fn non_blocking_unix(listener: unix::UnixListener) -> io::Result<UnixListener> {
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

fn tcp_listener(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        tokio::net::TcpSocket::new_v4()
    } else {
        tokio::net::TcpSocket::new_v6()
    }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG.cast_unsigned())
}

fn unix_connection(stream: UnixStream) -> Connection {
    let (reader, writer) = stream.into_split();
    Connection {
        reader: Box::new(reader),
        writer: Box::new(writer),
    }
}

fn tcp_connection(stream: TcpStream) -> Connection {
    // Answers are small and waited for; without this they could be held back. If it fails they still arrive.
    let _ = stream.set_nodelay(true);
    let (reader, writer) = stream.into_split();
    Connection {
        reader: Box::new(reader),
        writer: Box::new(writer),
    }
}

async fn connect(address: &Address) -> Result<Connection, String> {
    match address {
        Address::Unix {
            path,
            is_abstract,
            tight,
        } => {
            let address = unix_address(path, *is_abstract, *tight)?;
            let failed = |error| format!("Failed to connect to '{path}': {}", reason(error));
            let stream = unix::UnixStream::connect_addr(&address).map_err(failed)?;
            stream.set_nonblocking(true).map_err(failed)?;
            UnixStream::from_std(stream).map(unix_connection).map_err(failed)
        }
        Address::Inet { host, port, .. } => {
            let mut last = None;
            for address in resolve(address).await? {
                match TcpStream::connect(address).await {
                    Ok(stream) => return Ok(tcp_connection(stream)),
                    Err(error) => last = Some(error),
                }
            }
            let why = last.map_or_else(|| "Address not available".into(), reason);
            Err(format!("Failed to connect to '{host}:{port}': {why}"))
        }
        Address::Fd(name) => {
            let descriptor = descriptor(name)?;
            let failed = |error| format!("Unable to use file descriptor '{name}': {}", reason(error));
            if is_unix(name, &descriptor)? {
                let stream = unix::UnixStream::from(descriptor);
                stream.set_nonblocking(true).map_err(failed)?;
                return UnixStream::from_std(stream).map(unix_connection).map_err(failed);
            }
            let stream = std::net::TcpStream::from(descriptor);
            stream.set_nonblocking(true).map_err(failed)?;
            TcpStream::from_std(stream).map(tcp_connection).map_err(failed)
        }
    }
}

fn unix_address(path: &str, is_abstract: bool, tight: bool) -> Result<unix::SocketAddr, String> {
    if path.len() > LONGEST_PATH {
        return Err(format!(
            "UNIX socket path '{path}' is too long\nPath must be less than 108 bytes"
        ));
    }
    let address = match (is_abstract, tight) {
        (false, _) => unix::SocketAddr::from_pathname(path),
        (true, true) => unix::SocketAddr::from_abstract_name(path),
        (true, false) => {
            let mut name = path.as_bytes().to_vec();
            name.resize(LONGEST_PATH, 0);
            unix::SocketAddr::from_abstract_name(name)
        }
    };
    address.map_err(|error| format!("UNIX socket path '{path}' cannot be used: {error}"))
}

async fn resolve(address: &Address) -> Result<Vec<SocketAddr>, String> {
    let Address::Inet {
        host,
        port,
        ipv4,
        ipv6,
        ..
    } = address
    else {
        return Ok(Vec::new());
    };
    let failed = |why: &str| format!("address resolution failed for {host}:{port}: {why}");
    let number: u16 = port
        .parse()
        .map_err(|_| failed("Servname not supported for ai_socktype"))?;
    let any = if *ipv6 == Some(true) { "::" } else { "0.0.0.0" };
    let host = if host.is_empty() { any } else { host.as_str() };
    let found = tokio::net::lookup_host((host, number)).await.map_err(|error| {
        let text = error.to_string();
        failed(text.rsplit_once(": ").map_or(text.as_str(), |(_, why)| why))
    })?;
    let no_ipv4 = *ipv4 == Some(false) || (*ipv6 == Some(true) && *ipv4 != Some(true));
    let no_ipv6 = *ipv6 == Some(false) || (*ipv4 == Some(true) && *ipv6 != Some(true));
    Ok(found
        .filter(|address| if address.is_ipv4() { !no_ipv4 } else { !no_ipv6 })
        .collect())
}

fn descriptor(name: &str) -> Result<OwnedFd, String> {
    let number = name
        .parse()
        .map_err(|_| format!("Unable to parse FD number {name}"))?;
    inherited(number).map_err(|_| format!("File descriptor '{name}' is not a socket"))
}

/// Whether the descriptor is a unix socket, rather than a TCP one.
fn is_unix(name: &str, descriptor: &OwnedFd) -> Result<bool, String> {
    let address = rustix::net::getsockname(descriptor);
    let family = address.map_err(|_| format!("File descriptor '{name}' is not a socket"))?;
    Ok(family.address_family() == rustix::net::AddressFamily::UNIX)
}
