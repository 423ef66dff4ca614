//! Opens character devices, and gives one connection after the other.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinHandle;

use super::backend::{Backend, ChardevOptions, Socket};
use super::connection::{Connection, Silence};
use super::log::Log;
use super::pty::Pty;
use super::ring::Ring;
use super::socket::{Named, Server, connect};
use super::{file, udp};

/// How long to wait before looking again at a terminal that cannot be watched.
const BREATH: Duration = Duration::from_secs(1);

/// An open character device.
pub struct Chardev {
    label: String,
    state: State,
    name: Rc<RefCell<String>>,
    log: Option<Log>,
}

/// A device that was opened, and what is known of it whoever uses it.
pub struct Opened {
    /// The device, which its first user takes.
    pub device: Chardev,
    /// What it is connected to now, as it is shown.
    pub name: Rc<RefCell<String>>,
    /// The memory that it is, if it is one.
    pub ring: Option<Ring>,
    /// The name of the pseudoterminal that it is, if it is one.
    pub pty: Option<String>,
    /// The task that writes its log. It ends after the device.
    pub log: Option<JoinHandle<()>>,
}

enum State {
    Stdio {
        used: bool,
    },
    Null,
    /// There is one connection, which was opened with the device.
    Once(Option<Connection>),
    Ring(Option<Ring>),
    Pty(Pty),
    Server {
        server: Server,
        first: Option<Named>,
    },
    Client {
        socket: Socket,
        connection: Option<Named>,
    },
    /// One of the users' sides of a shared device.
    Side(UnboundedReceiver<Connection>),
}

impl Opened {
    /// Opens a device; `waiting` is told where if it waits for its first client.
    ///
    /// # Errors
    /// QEMU's text for what went wrong.
    pub async fn open(options: &ChardevOptions, waiting: impl FnOnce(String)) -> Result<Self, String> {
        // First, as QEMU does: a device that cannot be logged is not opened.
        let (log, task) = match &options.log {
            Some(log) => Log::open(log).await.map(|(log, task)| (Some(log), Some(task)))?,
            None => (None, None),
        };
        let state = State::open(options, waiting).await?;
        let pty = match &state {
            State::Pty(pty) => Some(pty.name().to_owned()),
            _ => None,
        };
        let ring = match &state {
            State::Ring(ring) => ring.clone(),
            _ => None,
        };
        let name = Rc::new(RefCell::new(state.name(&options.backend)));
        let device = Chardev {
            label: options.id.clone(),
            state,
            name: Rc::clone(&name),
            log,
        };
        Ok(Self {
            device,
            name,
            ring,
            pty,
            log: task,
        })
    }
}

impl State {
    async fn open(options: &ChardevOptions, waiting: impl FnOnce(String)) -> Result<Self, String> {
        Ok(match &options.backend {
            Backend::Stdio => Self::Stdio { used: false },
            // A mux is made by itself; below it is nothing of its own.
            Backend::Null | Backend::Mux(_) => Self::Null,
            Backend::File {
                input,
                output,
                append,
            } => Self::Once(Some(file::files(input.as_deref(), output, *append).await?)),
            Backend::Pipe(path) => Self::Once(Some(file::pipes(path).await?)),
            Backend::Pty(link) => Self::Pty(Pty::open(link.as_deref())?),
            Backend::Udp { remote, local } => Self::Once(Some(udp::datagrams(remote, local.as_ref()).await?)),
            Backend::Ring { size, .. } => Self::Ring(Some(Ring::new(*size)?)),
            Backend::Socket(socket) if socket.server => {
                let server = Server::listen(socket).await?;
                let mut first = None;
                if socket.wait {
                    waiting(server.name());
                    first = Some(server.accept().await);
                }
                Self::Server { server, first }
            }
            Backend::Socket(socket) => {
                let connection = match connect(socket).await {
                    Ok(connection) => Some(connection),
                    Err(text) if socket.reconnect.is_none() => return Err(text),
                    Err(text) => {
                        tracing::warn!(chardev = options.id, "Unable to connect character device: {text}");
                        None
                    }
                };
                Self::Client {
                    socket: socket.clone(),
                    connection,
                }
            }
        })
    }

    /// What a device is shown as that nobody uses yet.
    fn name(&self, backend: &Backend) -> String {
        match self {
            Self::Pty(pty) => format!("pty:{}", pty.name()),
            Self::Server {
                first: Some(named), ..
            } => named.name.clone(),
            Self::Server { server, .. } => server.name(),
            Self::Client {
                connection: Some(named),
                ..
            } => named.name.clone(),
            Self::Client { socket, .. } => format!("disconnected:{socket}"),
            _ => backend.to_string(),
        }
    }
}

impl Chardev {
    /// Opens a device; `waiting` is told where if it waits for its first client.
    ///
    /// # Errors
    /// QEMU's text for what went wrong.
    pub async fn open(options: &ChardevOptions, waiting: impl FnOnce(String)) -> Result<Self, String> {
        Opened::open(options, waiting).await.map(|opened| opened.device)
    }

    /// A side of a shared device, where connections come from.
    pub(super) fn side(label: &str, connections: UnboundedReceiver<Connection>) -> Self {
        Self {
            label: label.to_owned(),
            state: State::Side(connections),
            name: Rc::default(),
            log: None,
        }
    }

    /// The id of the device.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Waits for the next connection; `None` when there will be no more.
    pub async fn next(&mut self) -> Option<Connection> {
        let connection = self.connect().await?;
        Some(match &self.log {
            Some(log) => Connection {
                writer: log.log(connection.writer),
                ..connection
            },
            None => connection,
        })
    }

    async fn connect(&mut self) -> Option<Connection> {
        let named = match &mut self.state {
            State::Null => std::future::pending().await,
            State::Stdio { used: true } => return None,
            State::Stdio { used } => {
                *used = true;
                return Some(Connection::new(tokio::io::stdin(), tokio::io::stdout()));
            }
            State::Once(connection) => return connection.take(),
            State::Ring(ring) => return ring.take().map(|ring| Connection::new(Silence, ring)),
            State::Side(connections) => return connections.recv().await,
            State::Pty(pty) => loop {
                match pty.accept().await {
                    Ok(connection) => return Some(connection),
                    Err(error) => {
                        tracing::warn!(%error, "a pseudoterminal cannot be watched");
                        tokio::time::sleep(BREATH).await;
                    }
                }
            },
            State::Server { server, first } => match first.take() {
                Some(named) => named,
                None => {
                    self.name.replace(server.name());
                    server.accept().await
                }
            },
            State::Client { socket, connection } => match connection.take() {
                Some(named) => named,
                None => {
                    self.name.replace(format!("disconnected:{socket}"));
                    reconnect(socket).await?
                }
            },
        };
        self.name.replace(named.name);
        Some(named.connection)
    }
}

/// Connects again, however often it takes; not at all where that was not asked for.
async fn reconnect(socket: &Socket) -> Option<Named> {
    loop {
        tokio::time::sleep(socket.reconnect?).await;
        if let Ok(named) = connect(socket).await {
            return Some(named);
        }
    }
}
