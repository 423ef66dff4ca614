//! Opens character devices, and gives one connection after the other.

use super::{Address, Backend, ChardevOptions, Socket};
use crate::socket::activation::passed_one;
use crate::socket::{Listeners, OwnFile, SocketError, listen, resolve, unix_address};
use millpond_messages::IoError;
use millpond_messages::qapi::SocketAddress;
use std::future::poll_fn;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net as unix;
use std::task::Poll;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

/// How long to wait before accepting again when the system is short of something.
const BREATH: Duration = Duration::from_millis(100);
/// A connection: what comes in, and where answers go.
pub struct Connection {
    /// What the client sends comes from here.
    pub reader: Box<dyn AsyncRead + Unpin>,
    /// What the client is answered goes here.
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
        server: Server,
        first: Option<Connection>,
    },
    Client {
        socket: Socket,
        connection: Option<Connection>,
    },
}

/// One of the sockets that a device listens on.
enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

/// All that a device listens on.
struct Server {
    listeners: Vec<Listener>,
    /// The socket's file, if it has one.
    file: Option<OwnFile>,
}

impl Drop for Server {
    fn drop(&mut self) {
        // While the socket is still open.
        self.file.iter().for_each(OwnFile::remove);
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
                let server = Server::listen(&socket.address).await?;
                let mut first = None;
                if socket.wait {
                    waiting(format!("disconnected:{}", options.backend));
                    first = Some(server.accept().await);
                }
                State::Server { server, first }
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

    /// The id of the device.
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
            State::Server { server, first } => match first.take() {
                Some(connection) => Some(connection),
                None => Some(server.accept().await),
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

/// The text for what a socket's address is refused with.
fn refusal(error: SocketError) -> String {
    match error.hint() {
        Some(hint) => format!("{error}\n{hint}"),
        None => error.to_string(),
    }
}

impl Server {
    async fn listen(address: &Address) -> Result<Self, String> {
        let Listeners { sockets, file } = listen(&address.into()).await.map_err(refusal)?;
        let mut server = Self {
            listeners: Vec::new(),
            file,
        };
        for socket in sockets {
            let listener = Listener::of(socket)
                .map_err(|error| format!("Failed to listen on socket: {}", reason(error)))?;
            server.listeners.push(listener);
        }
        Ok(server)
    }

    /// The next client; one that is gone before it is accepted is passed over.
    async fn accept(&self) -> Connection {
        loop {
            let accepted = poll_fn(|context| {
                let mut ready = self
                    .listeners
                    .iter()
                    .map(|listener| listener.poll_accept(context));
                ready.find(Poll::is_ready).unwrap_or(Poll::Pending)
            });
            match accepted.await {
                Ok(connection) => return connection,
                Err(error) => {
                    tracing::warn!(%error, "a monitor's client cannot be accepted");
                    tokio::time::sleep(BREATH).await;
                }
            }
        }
    }
}

impl Listener {
    fn of(socket: OwnedFd) -> io::Result<Self> {
        if is_unix(&socket)? {
            let listener = unix::UnixListener::from(socket);
            listener.set_nonblocking(true)?;
            return UnixListener::from_std(listener).map(Self::Unix);
        }
        let listener = std::net::TcpListener::from(socket);
        listener.set_nonblocking(true)?;
        TcpListener::from_std(listener).map(Self::Tcp)
    }

    fn poll_accept(&self, context: &mut std::task::Context<'_>) -> Poll<io::Result<Connection>> {
        match self {
            Self::Unix(listener) => listener
                .poll_accept(context)
                .map_ok(|(stream, _)| unix_connection(stream)),
            Self::Tcp(listener) => listener
                .poll_accept(context)
                .map_ok(|(stream, _)| tcp_connection(stream)),
        }
    }
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
    match SocketAddress::from(address) {
        SocketAddress::Unix(address) => {
            let failed = |error| format!("Failed to connect to '{}': {}", address.path, reason(error));
            let stream = unix::UnixStream::connect_addr(&unix_address(&address).map_err(refusal)?);
            unix_stream(stream.map_err(failed)?).map_err(failed)
        }
        SocketAddress::Inet(address) => {
            let mut last = None;
            for address in resolve(&address, false).await.map_err(refusal)? {
                match TcpStream::connect(address).await {
                    Ok(stream) => return Ok(tcp_connection(stream)),
                    Err(error) => last = Some(error),
                }
            }
            let why = last.map_or_else(|| "Address not available".into(), reason);
            Err(format!(
                "Failed to connect to '{}:{}': {why}",
                address.host, address.port
            ))
        }
        SocketAddress::Fd(descriptor) => {
            let name = &descriptor.name;
            let socket = passed_one(name).map_err(refusal)?;
            let failed = |error| format!("Unable to use file descriptor '{name}': {}", reason(error));
            if is_unix(&socket).map_err(failed)? {
                return unix_stream(unix::UnixStream::from(socket)).map_err(failed);
            }
            let stream = std::net::TcpStream::from(socket);
            stream.set_nonblocking(true).map_err(failed)?;
            TcpStream::from_std(stream).map(tcp_connection).map_err(failed)
        }
        SocketAddress::Vsock(_) => Err("Connecting to a vsock address is not supported".into()),
    }
}

fn unix_stream(stream: unix::UnixStream) -> io::Result<Connection> {
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream).map(unix_connection)
}

/// Whether the socket is a unix socket, rather than a TCP one.
fn is_unix(socket: &OwnedFd) -> io::Result<bool> {
    Ok(rustix::net::getsockname(socket)?.address_family() == rustix::net::AddressFamily::UNIX)
}
