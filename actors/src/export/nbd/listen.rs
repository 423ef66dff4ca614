//! Listening for NBD clients: who is let in, and their way from the handshake to the iothread of what they chose.

use std::cell::Cell;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use millpond_messages::qapi::{
    DEFAULT_HANDSHAKE_MAX_SECONDS, DEFAULT_MAX_CONNECTIONS, NbdServerOptions, SocketAddress,
};
use millpond_messages::{Error, Result};
use millpond_ring::Fd;
use rustix::io::ioctl_fionbio;
use rustix::net::{SocketFlags, accept_with, sockopt};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinHandle;

use super::connections::{ConnectionId, Ending, Report};
use super::handshake::Negotiated;
use super::handshake::negotiate::{Chosen, Failed, negotiate};
use super::offer::Catalogue;
use super::place::{Member, Placed};
use super::secure::{TlsChannel, TlsServer};
use super::transmission::budget::{MAX_SHARED, Pool};
use super::transmission::connection::{Account, Closing};
use super::transport::{Channel, Link, PlainChannel};
use crate::export::seat::Seat;
use crate::export::worker::place;
use crate::socket::{Listeners, OwnFile, listen, local_address};
use millpond_engine::iothread::IoThread;
use millpond_engine::node::Mail;
use millpond_ring::os::process::watched;

/// Bytes of answers that may wait in a unix socket: TCP finds its own measure, and a unix socket's would not hold one large
/// answer.
const SEND_BUFFER: usize = 2 << 20;

/// What the server's tasks need of the exports.
pub trait Exporter: Catalogue + Clone + 'static {
    /// A client has begun its handshake on this socket. It is served inside TLS or in the clear.
    fn connected(&self, id: ConnectionId, socket: Fd, inside_tls: bool);
    /// It has chosen an export, and agreed on this: where it is served, unless the export is gone by now.
    fn chose(&self, id: ConnectionId, negotiated: &Negotiated) -> Option<Seat>;
}

/// The listening sockets. Dropped, no more clients come.
#[derive(Debug)]
pub struct Listener {
    options: NbdServerOptions,
    sockets: Vec<Fd>,
    accepting: Vec<JoinHandle<()>>,
    addresses: Vec<SocketAddress>,
    file: Option<OwnFile>,
}

/// Which clients are let in, and what they share.
#[derive(Clone)]
struct AcceptRules {
    slots: Arc<Semaphore>,
    /// What all clients share.
    pool: Arc<Pool>,
    /// How long a handshake may take.
    patience: Option<Duration>,
    reports: UnboundedSender<(ConnectionId, Report)>,
    held: watch::Receiver<bool>,
    /// By which clients are served inside TLS, and not otherwise.
    tls: Option<TlsServer>,
}

/// Ends a connection's account when dropped, on whatever thread.
struct Guard {
    id: ConnectionId,
    ending: Ending,
    reports: UnboundedSender<(ConnectionId, Report)>,
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

impl Member for Guard {
    fn id(&self) -> ConnectionId {
        self.id
    }

    fn arrived(&self, home: IoThread<Mail>) {
        // Nobody is left to be told when the daemon has ended.
        let _ = self.reports.send((self.id, Report::Arrived(home)));
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // Nobody is left to be told when the daemon has ended.
        let ending = std::mem::replace(&mut self.ending, Ending::Lost);
        let _ = self.reports.send((self.id, Report::Ended(ending)));
    }
}

thread_local! {
    /// Connections have names of their own on the control thread, the only one that accepts.
    static NEXT: Cell<u64> = const { Cell::new(1) };
}

impl Listener {
    /// Listens, and serves `exports` to whoever connects, inside TLS if there is `tls`, but not while `held` says true. Where
    /// each connection is served and how it ends is reported over `reports`.
    ///
    /// # Errors
    /// QEMU's texts: an address that cannot be listened on.
    pub async fn start(
        options: &NbdServerOptions,
        exports: impl Exporter,
        reports: UnboundedSender<(ConnectionId, Report)>,
        held: watch::Receiver<bool>,
        tls: Option<TlsServer>,
    ) -> Result<Self> {
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
        let rules = AcceptRules {
            slots: Arc::new(Semaphore::new(slots)),
            pool: Pool::new(MAX_SHARED),
            patience,
            reports,
            held,
            tls,
        };
        let Listeners { sockets, file } = listen(&options.addr).await?;
        let mut listener = Self {
            options: options.clone(),
            sockets: Vec::new(),
            accepting: Vec::new(),
            addresses: sockets.iter().filter_map(local_address).collect(),
            file,
        };
        for socket in sockets {
            let socket: Fd = Arc::new(socket);
            listener.sockets.push(Arc::clone(&socket));
            let socket = register(socket)?;
            listener
                .accepting
                .push(actix_rt::spawn(accept(socket, exports.clone(), rules.clone())));
        }
        Ok(listener)
    }

    /// Whether several clients may be connected at once.
    #[must_use]
    pub fn multi_conn(&self) -> bool {
        self.options.max_connections != Some(1)
    }

    /// What it was started with.
    #[must_use]
    pub fn options(&self) -> &NbdServerOptions {
        &self.options
    }

    /// The sockets that it listens on.
    #[must_use]
    pub fn sockets(&self) -> &[Fd] {
        &self.sockets
    }

    /// Where it listens: with the ports that the system chose, and the paths of sockets that it was passed.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddress] {
        &self.addresses
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // First, while the tasks below still hold the socket open.
        self.file.iter().for_each(OwnFile::remove);
        self.accepting.iter().for_each(JoinHandle::abort);
    }
}

/// A listening socket for the control thread's reactor.
fn register(socket: Fd) -> Result<AsyncFd<Fd>> {
    let failed = |error: std::io::Error| Error::io("Failed to listen on socket", error.into());
    ioctl_fionbio(&socket, true).map_err(|errno| failed(errno.into()))?;
    watched(socket).map_err(failed)
}

/// Accepts clients for as long as there is room for them; the others wait in the kernel's queue.
async fn accept(listener: AsyncFd<Fd>, exports: impl Exporter, mut rules: AcceptRules) {
    loop {
        let Ok(mut ready) = listener.readable().await else {
            return;
        };
        if rules.held.wait_for(|held| !held).await.is_err() {
            return;
        }
        let Ok(slot) = Arc::clone(&rules.slots).acquire_owned().await else {
            return;
        };
        let accepted = ready.try_io(|listener| {
            Ok(accept_with(
                listener,
                SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            )?)
        });
        match accepted {
            Ok(Ok(socket)) => begin(socket, slot, &exports, &rules),
            Ok(Err(error)) => {
                tracing::warn!(%error, "an NBD client could not be accepted");
                // Out of descriptors, most likely: trying again at once would only burn the processor.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Err(_would_block) => {}
        }
    }
}

fn begin(socket: OwnedFd, slot: OwnedSemaphorePermit, exports: &impl Exporter, rules: &AcceptRules) {
    let id = ConnectionId(NEXT.replace(NEXT.get() + 1));
    let guard = Guard {
        id,
        ending: Ending::Lost,
        reports: rules.reports.clone(),
        pool: Arc::clone(&rules.pool),
        slot: Some(slot),
    };
    let socket: Fd = Arc::new(socket);
    // A unix socket has no such option.
    if sockopt::set_tcp_nodelay(&socket, true).is_err() {
        // The system grants at most as much as it allows, and the answers go out anyhow.
        let _ = sockopt::set_socket_send_buffer_size(&socket, SEND_BUFFER);
    }
    exports.connected(id, Arc::clone(&socket), rules.tls.is_some());
    let (exports, patience) = (exports.clone(), rules.patience);
    match rules.tls.clone() {
        None => drop(actix_rt::spawn(admit(
            PlainChannel::new(socket),
            exports,
            guard,
            patience,
        ))),
        Some(tls) => drop(actix_rt::spawn(admit(
            TlsChannel::new(socket, tls),
            exports,
            guard,
            patience,
        ))),
    }
}

/// Has a client go through the handshake, for as long as the server has patience, and to its place.
async fn admit(
    channel: std::io::Result<impl Channel>,
    exports: impl Exporter,
    guard: Guard,
    patience: Option<Duration>,
) {
    let welcome = welcome(channel, &exports, &guard);
    let chosen = match patience {
        Some(patience) => tokio::time::timeout(patience, welcome).await,
        None => Ok(welcome.await),
    };
    match chosen {
        Ok(Ok((chosen, seat, link))) => chosen.into_place(seat, link, guard),
        Ok(Err(Failed::Gone)) => guard.close(Ending::Left),
        Ok(Err(error)) => guard.close(Ending::Refused(error.to_string())),
        Err(_elapsed) => guard.close(Ending::Refused("the handshake took too long".to_owned())),
    }
}

impl Chosen {
    fn into_place(self, seat: Seat, link: impl Link, guard: Guard) {
        let span = tracing::info_span!("nbd", connection = guard.id.0, export = %self.negotiated.export.name);
        let Chosen {
            negotiated, received, ..
        } = self;
        place(Placed {
            link,
            negotiated,
            seat,
            received,
            span,
            guard,
        });
    }
}

/// The handshake, from greeting to the choice of an export, and what the connection is then.
async fn welcome<C: Channel>(
    channel: std::io::Result<C>,
    exports: &impl Exporter,
    guard: &Guard,
) -> std::result::Result<(Chosen, Seat, C::Link), Failed> {
    let mut channel = channel?;
    let chosen = negotiate(&mut channel, exports).await?;
    let Some(seat) = exports.chose(guard.id, &chosen.negotiated) else {
        return Err(Failed::Client("the export is gone".to_owned()));
    };
    channel.send(&chosen.output).await?;
    Ok((chosen, seat, channel.leave()?))
}
