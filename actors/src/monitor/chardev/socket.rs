//! Sockets: clients that are accepted, or a server that is connected to, and what is spoken with them.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net as unix;
use std::task::Poll;
use std::time::Duration;

use millpond_messages::IoError;
use millpond_messages::qapi::SocketAddress;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use super::backend::{Address, Socket};
use super::connection::Connection;
use super::{telnet, websocket};
use crate::socket::activation::passed_one;
use crate::socket::{
    Listeners, OwnFile, SocketError, keep_alive, listen, local_address, resolve, unix_address,
};

/// How long to wait before accepting again when the system is short of something.
const BREATH: Duration = Duration::from_millis(100);
/// How long a client has until it is spoken with: another one waits for as long.
const GREETING: Duration = Duration::from_secs(10);

/// A connection, and the name that it is shown by.
pub struct Named {
    /// The connection, which was greeted.
    pub connection: Connection,
    /// What it connects, as `query-chardev` shows it.
    pub name: String,
}

/// One of the sockets that a device listens on.
enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

/// All that a device listens on.
pub struct Server {
    socket: Socket,
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
    /// Listens as a socket's options say.
    ///
    /// # Errors
    /// QEMU's text.
    pub async fn listen(socket: &Socket) -> Result<Self, String> {
        if let Address::Vsock { .. } = socket.address {
            return Err("Listening on a vsock address is not supported".into());
        }
        let Listeners { sockets, file } = listen(&(&socket.address).into()).await.map_err(refusal)?;
        let mut server = Self {
            socket: socket.clone(),
            listeners: Vec::new(),
            file,
        };
        // The system may have chosen the port.
        if let (Address::Inet(_), Some(address)) = (&socket.address, sockets.first().and_then(local_address))
        {
            server.socket.address = address.into();
        }
        for socket in sockets {
            let listener = Listener::of(socket)
                .map_err(|error| format!("Failed to listen on socket: {}", reason(error)))?;
            server.listeners.push(listener);
        }
        Ok(server)
    }

    /// Its name while nobody is connected.
    pub fn name(&self) -> String {
        format!("disconnected:{}", self.socket)
    }

    /// The next client; one that is gone before it is spoken with is passed over.
    pub async fn accept(&self) -> Named {
        loop {
            let accepted = poll_fn(|context| {
                let mut ready = self
                    .listeners
                    .iter()
                    .map(|listener| listener.poll_accept(&self.socket, context));
                ready.find(Poll::is_ready).unwrap_or(Poll::Pending)
            });
            match accepted.await {
                Ok(Named { connection, name }) => match speak(&self.socket, connection).await {
                    Ok(connection) => return Named { connection, name },
                    Err(error) => tracing::info!(name, %error, "a client could not be spoken with"),
                },
                Err(error) => {
                    tracing::warn!(%error, "a monitor's client cannot be accepted");
                    tokio::time::sleep(BREATH).await;
                }
            }
        }
    }
}

/// Begins what is spoken with a client.
async fn speak(socket: &Socket, connection: Connection) -> io::Result<Connection> {
    let protocol = socket.protocol;
    let spoken = async {
        let connection = match protocol.websocket {
            true => websocket::upgrade(connection).await?,
            false => connection,
        };
        match protocol.telnet || protocol.tn3270 {
            true => telnet::greet(connection, protocol.tn3270).await,
            false => Ok(connection),
        }
    };
    let spoken = tokio::time::timeout(GREETING, spoken).await;
    spoken.map_err(io::Error::from)?
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

    fn poll_accept(&self, socket: &Socket, context: &mut std::task::Context<'_>) -> Poll<io::Result<Named>> {
        match self {
            Self::Unix(listener) => listener
                .poll_accept(context)
                .map_ok(|(stream, _)| unix_connection(socket, stream)),
            Self::Tcp(listener) => listener
                .poll_accept(context)
                .map_ok(|(stream, _)| tcp_connection(socket, stream)),
        }
    }
}

fn unix_connection(socket: &Socket, stream: UnixStream) -> Named {
    let (reader, writer) = stream.into_split();
    Named {
        connection: Connection::new(reader, writer),
        // A client's own end has no name.
        name: if socket.server {
            socket.to_string()
        } else {
            "unix:".to_owned()
        },
    }
}

fn tcp_connection(socket: &Socket, stream: TcpStream) -> Named {
    // Answers are small and waited for; without this they could be held back. If it fails they still arrive.
    let _ = stream.set_nodelay(true);
    let end = |address: io::Result<SocketAddr>| address.map_or_else(|_| String::new(), |it| it.to_string());
    let (local, peer) = (end(stream.local_addr()), end(stream.peer_addr()));
    let (reader, writer) = stream.into_split();
    Named {
        connection: Connection::new(reader, writer),
        name: format!("{}:{local}{} <-> {peer}", socket.scheme(), socket.server_mark()),
    }
}

/// Connects to a server, and begins what is spoken with it.
///
/// # Errors
/// QEMU's text.
pub async fn connect(socket: &Socket) -> Result<Named, String> {
    let Named { connection, name } = connect_to(socket).await?;
    let connection = speak(socket, connection).await.map_err(reason)?;
    Ok(Named { connection, name })
}

async fn connect_to(socket: &Socket) -> Result<Named, String> {
    match SocketAddress::from(&socket.address) {
        SocketAddress::Unix(address) => {
            let failed = |error| format!("Failed to connect to '{}': {}", address.path, reason(error));
            let stream = unix::UnixStream::connect_addr(&unix_address(&address).map_err(refusal)?);
            unix_stream(socket, stream.map_err(failed)?).map_err(failed)
        }
        SocketAddress::Inet(address) => {
            let mut last = None;
            for host in resolve(&address, false).await.map_err(refusal)? {
                match TcpStream::connect(host).await {
                    Ok(stream) => {
                        // The connection is there, and of use without it.
                        let _ = keep_alive(&stream, &address);
                        return Ok(tcp_connection(socket, stream));
                    }
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
            let passed = passed_one(name).map_err(refusal)?;
            let failed = |error| format!("Unable to use file descriptor '{name}': {}", reason(error));
            if is_unix(&passed).map_err(failed)? {
                return unix_stream(socket, unix::UnixStream::from(passed)).map_err(failed);
            }
            let stream = std::net::TcpStream::from(passed);
            stream.set_nonblocking(true).map_err(failed)?;
            let stream = TcpStream::from_std(stream).map_err(failed)?;
            Ok(tcp_connection(socket, stream))
        }
        SocketAddress::Vsock(_) => Err("Connecting to a vsock address is not supported".into()),
    }
}

fn unix_stream(socket: &Socket, stream: unix::UnixStream) -> io::Result<Named> {
    stream.set_nonblocking(true)?;
    Ok(unix_connection(socket, UnixStream::from_std(stream)?))
}

/// Whether the socket is a unix socket, rather than a TCP one.
fn is_unix(socket: &OwnedFd) -> io::Result<bool> {
    Ok(rustix::net::getsockname(socket)?.address_family() == rustix::net::AddressFamily::UNIX)
}
