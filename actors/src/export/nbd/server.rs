//! The daemon's one NBD server: who listens, who is connected, and who may still be.

use std::cell::Cell;
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use drivers::ring::Fd;
use messages::qapi::{
    DEFAULT_HANDSHAKE_MAX_SECONDS, DEFAULT_MAX_CONNECTIONS, NbdServerOptions, SocketAddress,
};
use messages::{Error, ErrorKind, Result};
use rustix::io::ioctl_fionbio;
use rustix::net::{Shutdown, SocketFlags, accept_with, shutdown, sockopt};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinHandle;

use super::negotiate::{Chosen, Failed, negotiate, send_all};
use super::offer::{Catalogue, Offer};
use super::place::Luggage;
use crate::ffi::watched;
use crate::node::Client;
use crate::socket::{Listeners, OwnFile, listen, local_address};

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
    /// How long a handshake may take.
    patience: Option<Duration>,
    ended: UnboundedSender<ConnectionId>,
    held: watch::Receiver<bool>,
}

/// Ends a connection's account when dropped, on whatever thread.
struct Guard {
    id: ConnectionId,
    ended: UnboundedSender<ConnectionId>,
    _slot: OwnedSemaphorePermit,
}

impl Drop for Guard {
    fn drop(&mut self) {
        // Nobody is left to be told when the daemon has ended.
        let _ = self.ended.send(self.id);
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
        ended: UnboundedSender<ConnectionId>,
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
        ended: policy.ended.clone(),
        _slot: slot,
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
            Ok(Err(error)) => tracing::debug!(connection = id.0, "handshake failed: {error}"),
            Err(_elapsed) => tracing::debug!(connection = id.0, "the handshake took too long"),
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
    open: HashMap<ConnectionId, (Fd, Option<K>)>,
}

impl<K> Default for Connections<K> {
    fn default() -> Self {
        Self { open: HashMap::new() }
    }
}

impl<K: Copy + PartialEq> Connections<K> {
    /// A client has come.
    pub fn insert(&mut self, id: ConnectionId, socket: Fd) {
        self.open.insert(id, (socket, None));
    }

    /// It has chosen an export.
    pub fn assign(&mut self, id: ConnectionId, export: K) {
        if let Some((_, chosen)) = self.open.get_mut(&id) {
            *chosen = Some(export);
        }
    }

    /// It is gone; the export it had chosen.
    pub fn remove(&mut self, id: ConnectionId) -> Option<K> {
        self.open.remove(&id).and_then(|(_, export)| export)
    }

    /// Whether nobody is connected.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Whether an export has clients.
    #[must_use]
    pub fn uses(&self, export: K) -> bool {
        self.open.values().any(|(_, chosen)| *chosen == Some(export))
    }

    /// Ends the connections that have chosen `export`, or all. They are gone when their requests in flight have ended.
    pub fn shut_down(&self, export: Option<K>) {
        for (socket, chosen) in self.open.values() {
            if export.is_none() || *chosen == export {
                // A client that has gone already makes this fail, which changes nothing.
                let _ = shutdown(socket, Shutdown::Both);
            }
        }
    }
}
