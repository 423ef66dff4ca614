//! The daemon's one NBD server: who listens, who is connected, and who may still be.

use std::cell::Cell;
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use millpond_messages::qapi::{
    DEFAULT_HANDSHAKE_MAX_SECONDS, DEFAULT_MAX_CONNECTIONS, NbdServerOptions, SocketAddress,
};
use millpond_messages::{Error, ErrorKind, Result};
use millpond_ring::Fd;
use rustix::io::ioctl_fionbio;
use rustix::net::{Shutdown, SocketFlags, accept_with, shutdown, sockopt};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinHandle;

use super::handshake::negotiate::{Chosen, Failed, negotiate, send_all};
use super::offer::{Catalogue, Offer};
use super::peer::peer;
use super::place::Luggage;
use super::transmission::budget::{MAX_SHARED, Pool};
use super::transmission::connection::{Account, Closing};
use crate::socket::{Listeners, OwnFile, listen, local_address};
use millpond_engine::node::Client;
use millpond_ring::os::process::watched;

/// Names a connection. Never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(pub u64);

/// What the server's tasks need of the exports.
pub trait Exporter: Catalogue + Clone + 'static {
    /// A client has begun its handshake on this socket.
    fn connected(&self, id: ConnectionId, socket: Fd);
    /// It has chosen an export: the hold on the node, unless the export is gone by now.
    fn chose(&self, id: ConnectionId, offer: &Arc<Offer>) -> Option<Client>;
}

/// The server, as long as it runs. Dropped, it takes no more clients.
#[derive(Debug)]
pub struct Server {
    max_connections: u32,
    accepting: Vec<JoinHandle<()>>,
    addresses: Vec<SocketAddress>,
    file: Option<OwnFile>,
}

/// How the server treats its clients.
#[derive(Clone)]
struct Policy {
    slots: Arc<Semaphore>,
    /// What all clients share.
    pool: Arc<Pool>,
    /// How long a handshake may take.
    patience: Option<Duration>,
    ended: UnboundedSender<(ConnectionId, Ending)>,
    held: watch::Receiver<bool>,
}

/// How the server was done with a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// It left before it had chosen an export.
    Left,
    /// It was turned away, for this reason.
    Refused(String),
    /// It was served to its end.
    Served(Closing),
    /// The iothread that served it has ended.
    Lost,
}

/// Ends a connection's account when dropped, on whatever thread.
struct Guard {
    id: ConnectionId,
    ending: Ending,
    ended: UnboundedSender<(ConnectionId, Ending)>,
    pool: Arc<Pool>,
    slot: Option<OwnedSemaphorePermit>,
}

impl Guard {
    /// Ends the connection in the given way.
    fn close(mut self, ending: Ending) {
        drop(std::mem::replace(&mut self.ending, ending));
    }
}

impl Account for Guard {
    fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    fn left(&mut self) {
        self.slot = None;
    }

    fn ended(self, how: Closing) {
        self.close(Ending::Served(how));
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // Nobody is left to be told when the daemon has ended.
        let ending = std::mem::replace(&mut self.ending, Ending::Lost);
        let _ = self.ended.send((self.id, ending));
    }
}

thread_local! {
    /// Connections have names of their own on the control thread, the only one that accepts.
    static NEXT: Cell<u64> = const { Cell::new(1) };
}

impl Server {
    /// Listens, and serves `exports` to whoever connects, but not while `held` says true. Each connection's end is told
    /// over `ended`.
    ///
    /// # Errors
    /// QEMU's texts: an option that is not supported, or an address that cannot be listened on.
    pub async fn start(
        options: &NbdServerOptions,
        exports: impl Exporter,
        ended: UnboundedSender<(ConnectionId, Ending)>,
        held: watch::Receiver<bool>,
    ) -> Result<Self> {
        if let Some(id) = &options.tls_creds {
            // There are no objects of that kind.
            return Err(Error::new(
                ErrorKind::NotFound,
                format!("No TLS credentials with id '{id}'"),
            ));
        }
        let max_connections = options.max_connections.unwrap_or(DEFAULT_MAX_CONNECTIONS);
        let slots = match max_connections {
            0 => Semaphore::MAX_PERMITS,
            limit => limit as usize,
        };
        let patience = match options
            .handshake_max_seconds
            .unwrap_or(DEFAULT_HANDSHAKE_MAX_SECONDS)
        {
            0 => None,
            seconds => Some(Duration::from_secs(seconds.into())),
        };
        let policy = Policy {
            slots: Arc::new(Semaphore::new(slots)),
            pool: Pool::new(MAX_SHARED),
            patience,
            ended,
            held,
        };
        let Listeners { sockets, file } = listen(&options.addr).await?;
        let mut server = Self {
            max_connections,
            accepting: Vec::new(),
            addresses: sockets.iter().filter_map(local_address).collect(),
            file,
        };
        for socket in sockets {
            let listener = register(socket)?;
            server
                .accepting
                .push(actix_rt::spawn(accept(listener, exports.clone(), policy.clone())));
        }
        Ok(server)
    }

    /// Whether several clients may be connected at once.
    #[must_use]
    pub fn multi_conn(&self) -> bool {
        self.max_connections != 1
    }

    /// Where it listens: with the ports that the system chose, and the paths of sockets that it was passed.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddress] {
        &self.addresses
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // First, while the tasks below still hold the socket open.
        self.file.iter().for_each(OwnFile::remove);
        self.accepting.iter().for_each(JoinHandle::abort);
    }
}

/// A listening socket for the control thread's reactor.
fn register(socket: OwnedFd) -> Result<AsyncFd<Fd>> {
    let failed = |error: std::io::Error| Error::io("Failed to listen on socket", error.into());
    ioctl_fionbio(&socket, true).map_err(|errno| failed(errno.into()))?;
    watched(Arc::new(socket)).map_err(failed)
}

/// Accepts clients for as long as there is room for them; the others wait in the kernel's queue.
async fn accept(listener: AsyncFd<Fd>, exports: impl Exporter, mut policy: Policy) {
    loop {
        let Ok(mut ready) = listener.readable().await else {
            return;
        };
        if policy.held.wait_for(|held| !held).await.is_err() {
            return;
        }
        let Ok(slot) = Arc::clone(&policy.slots).acquire_owned().await else {
            return;
        };
        let accepted = ready.try_io(|listener| {
            Ok(accept_with(
                listener,
                SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            )?)
        });
        match accepted {
            Ok(Ok(socket)) => begin(socket, slot, &exports, &policy),
            Ok(Err(error)) => {
                tracing::warn!(%error, "an NBD client could not be accepted");
                // Out of descriptors, most likely: trying again at once would only burn the processor.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Err(_would_block) => {}
        }
    }
}

fn begin(socket: OwnedFd, slot: OwnedSemaphorePermit, exports: &impl Exporter, policy: &Policy) {
    let id = ConnectionId(NEXT.replace(NEXT.get() + 1));
    let guard = Guard {
        id,
        ending: Ending::Lost,
        ended: policy.ended.clone(),
        pool: Arc::clone(&policy.pool),
        slot: Some(slot),
    };
    let socket: Fd = Arc::new(socket);
    // A unix socket has no such option.
    let _ = sockopt::set_tcp_nodelay(&socket, true);
    exports.connected(id, Arc::clone(&socket));
    let (exports, patience) = (exports.clone(), policy.patience);
    actix_rt::spawn(async move {
        let welcome = welcome(&socket, &exports, &guard);
        let luggage = match patience {
            Some(patience) => tokio::time::timeout(patience, welcome).await,
            None => Ok(welcome.await),
        };
        match luggage {
            Ok(Ok((luggage, client))) => luggage.into_place(client, socket, guard),
            Ok(Err(Failed::Gone)) => guard.close(Ending::Left),
            Ok(Err(error)) => guard.close(Ending::Refused(error.to_string())),
            Err(_elapsed) => guard.close(Ending::Refused("the handshake took too long".to_owned())),
        }
    });
}

impl Chosen {
    fn into_place(self, client: Client, fd: Fd, guard: Guard) {
        let span = tracing::info_span!("nbd", connection = guard.id.0, export = %self.negotiated.export.name);
        let Chosen {
            negotiated, received, ..
        } = self;
        Luggage {
            fd,
            negotiated,
            client,
            received,
            span,
            guard,
        }
        .place();
    }
}

/// The handshake, from greeting to the choice of an export.
async fn welcome(
    socket: &Fd,
    exports: &impl Exporter,
    guard: &Guard,
) -> std::result::Result<(Chosen, Client), Failed> {
    let socket = watched(Arc::clone(socket))?;
    let chosen = negotiate(&socket, exports).await?;
    let Some(client) = exports.chose(guard.id, &chosen.negotiated.export) else {
        return Err(Failed::Client("the export is gone".to_owned()));
    };
    send_all(&socket, &chosen.output).await?;
    let socket = socket.into_inner();
    // The iothread's ring waits for sockets by itself.
    ioctl_fionbio(&socket, false).map_err(std::io::Error::from)?;
    Ok((chosen, client))
}

/// The sockets of clients that are connected, to end them.
#[derive(Debug)]
pub struct Connections<K> {
    open: HashMap<ConnectionId, Connected<K>>,
}

/// A client that is connected.
#[derive(Debug)]
pub struct Connected<K> {
    socket: Fd,
    /// Who it is, for people.
    pub peer: String,
    /// The export that it has chosen.
    pub export: Option<K>,
    /// The server has ended the connection.
    pub cut: bool,
}

impl<K> Default for Connections<K> {
    fn default() -> Self {
        Self { open: HashMap::new() }
    }
}

impl<K: Copy + PartialEq> Connections<K> {
    /// A client has come.
    pub fn insert(&mut self, id: ConnectionId, socket: Fd) {
        let peer = peer(&socket);
        tracing::info!(connection = id.0, peer, "an NBD client is connected");
        let connected = Connected {
            socket,
            peer,
            export: None,
            cut: false,
        };
        self.open.insert(id, connected);
    }

    /// It has chosen an export.
    pub fn assign(&mut self, id: ConnectionId, export: K) {
        if let Some(connected) = self.open.get_mut(&id) {
            connected.export = Some(export);
        }
    }

    /// It is gone; what was known of it.
    pub fn remove(&mut self, id: ConnectionId) -> Option<Connected<K>> {
        self.open.remove(&id)
    }

    /// Whether nobody is connected.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Whether an export has clients.
    #[must_use]
    pub fn uses(&self, export: K) -> bool {
        self.open
            .values()
            .any(|connected| connected.export == Some(export))
    }

    /// Ends the connections that have chosen `export`, or all. They are gone when their requests in flight have ended.
    pub fn shut_down(&mut self, export: Option<K>) {
        for connected in self.open.values_mut() {
            if export.is_none() || connected.export == export {
                connected.cut = true;
                // A client that has gone already makes this fail, which changes nothing.
                let _ = shutdown(&connected.socket, Shutdown::Both);
            }
        }
    }
}
