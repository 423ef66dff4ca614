//! The daemon's one NBD server: whether it listens, which exports it offers, and who is connected.

use std::rc::Rc;
use std::sync::Arc;

use millpond_messages::qapi::{NbdServerOptions, SocketAddress};
use millpond_messages::saved::{SavedExportKind, SavedNbdServer};
use millpond_messages::{Error, ErrorKind, Result};
use millpond_ring::Fd;
use tokio::sync::{mpsc, watch};

use super::connections::{Choice, ConnectionId, Connections, Ending, Report};
use super::handshake::Negotiated;
use super::listen::{Exporter, Listener};
use super::offer::{Catalogue, Offer};
use super::secure::TlsServer;
use super::{report, saved};
use crate::export::saved::Descriptors;
use crate::export::seat::{Seat, Seats};
use crate::export::watched::Watched;
use crate::tls::TlsRegistry;

/// The NBD server. Clones are the same server.
#[derive(Clone)]
pub(crate) struct NbdServer(Rc<Inner>);

struct Inner {
    state: Watched<State>,
    /// Where connections report what becomes of them.
    reports: mpsc::UnboundedSender<(ConnectionId, Report)>,
    /// Whether clients that connect wait.
    held: watch::Sender<bool>,
    /// Where credentials are found.
    tls: TlsRegistry,
}

#[derive(Default)]
struct State {
    listening: Listening,
    /// In the order in which they were added.
    offered: Vec<Offered>,
    /// Names of exports that are being made.
    reserved: Vec<String>,
    connections: Connections<OfferId>,
    /// A client that had chosen an export was the last to leave.
    was_left: bool,
    last_id: u64,
}

#[derive(Default)]
enum Listening {
    #[default]
    No,
    /// Its address is being looked up.
    Starting,
    Yes(Box<Listener>),
}

/// Names an offered export, also among those that once had the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct OfferId(u64);

struct Offered {
    id: OfferId,
    offer: Arc<Offer>,
    /// Where its clients are served.
    seats: Seats,
    /// It is being removed: new clients do not find it.
    shutting_down: bool,
}

impl State {
    fn listener(&self) -> Result<&Listener> {
        match &self.listening {
            Listening::Yes(listener) => Ok(listener),
            Listening::No | Listening::Starting => {
                Err(Error::new(ErrorKind::NotFound, "NBD server not running"))
            }
        }
    }

    /// The exports that new clients find.
    fn open(&self) -> impl Iterator<Item = &Offered> {
        self.offered.iter().filter(|offered| !offered.shutting_down)
    }
}

impl NbdServer {
    /// A server that does not listen, on the current actix arbiter. It finds credentials in `tls`.
    pub(crate) fn new(tls: TlsRegistry) -> Self {
        let (reports, mut reported) = mpsc::unbounded_channel();
        let server = Self(Rc::new(Inner {
            state: Watched::default(),
            reports,
            held: watch::channel(false).0,
            tls,
        }));
        let weak = Rc::downgrade(&server.0);
        actix_rt::spawn(async move {
            while let Some((id, report)) = reported.recv().await {
                let Some(inner) = weak.upgrade() else { return };
                match report {
                    Report::Arrived(home) => {
                        inner.state.with(|state| state.connections.arrived(id, home));
                    }
                    Report::Ended(ending) => Self(inner).disconnected(id, &ending),
                }
            }
        });
        server
    }

    /// Begins to listen.
    ///
    /// # Errors
    /// It listens already, or cannot listen there.
    pub(crate) async fn start(&self, options: &NbdServerOptions) -> Result<()> {
        self.0.state.with(|state| match state.listening {
            Listening::No => {
                state.listening = Listening::Starting;
                Ok(())
            }
            _ => Err(Error::new(ErrorKind::Exists, "NBD server already running")),
        })?;
        let started = self.listen(options).await;
        let (listening, result) = match started {
            Ok(listener) => (Listening::Yes(Box::new(listener)), Ok(())),
            Err(error) => (Listening::No, Err(error)),
        };
        self.0.state.with(|state| state.listening = listening);
        result
    }

    async fn listen(&self, options: &NbdServerOptions) -> Result<Listener> {
        let tls = TlsServer::find(options, &self.0.tls)?;
        let (reports, held) = (self.0.reports.clone(), self.0.held.subscribe());
        Listener::start(options, self.clone(), reports, held, tls).await
    }

    /// Stops listening, and disconnects all clients.
    ///
    /// # Errors
    /// It does not listen.
    pub(crate) fn stop(&self) -> Result<()> {
        self.0.state.with(|state| {
            state.listener()?;
            state.listening = Listening::No;
            state.connections.shut_down(None);
            Ok(())
        })
    }

    /// Waits until nobody is connected.
    pub(crate) async fn left_by_all(&self) {
        self.0.state.until(|state| state.connections.is_empty()).await;
    }

    /// Waits until a client that had chosen an export has left as the last one that was connected.
    pub(crate) async fn left_by_served(&self) {
        self.0.state.until(|state| state.was_left).await;
    }

    /// Where it listens, if it does.
    pub(crate) fn addresses(&self) -> Option<Vec<SocketAddress>> {
        let addresses = |state: &mut State| Some(state.listener().ok()?.addresses().to_vec());
        self.0.state.with(addresses)
    }

    /// Lets clients that connect wait, or no more.
    pub(crate) fn hold_clients(&self, hold: bool) {
        self.0.held.send_replace(hold);
    }

    /// Checks that it listens.
    pub(super) fn check_listens(&self) -> Result<()> {
        self.0.state.with(|state| state.listener().map(drop))
    }

    /// Keeps `name` for an export that is being made.
    ///
    /// # Errors
    /// An export has that name.
    pub(super) fn reserve(&self, name: &str) -> Result<()> {
        self.0.state.with(|state| {
            let taken = state.open().any(|offered| offered.offer.name == name);
            if taken || state.reserved.iter().any(|reserved| reserved == name) {
                let text = format!("NBD server already has export named '{name}'");
                return Err(Error::new(ErrorKind::Exists, text));
            }
            state.reserved.push(name.to_owned());
            Ok(())
        })
    }

    /// The export that is called `name` was made, or was not.
    pub(super) fn release(&self, name: &str) {
        self.0
            .state
            .with(|state| state.reserved.retain(|reserved| reserved != name));
    }

    /// Offers an export to clients; `offer` makes the offer, given whether several clients may be connected at once.
    ///
    /// # Errors
    /// The server has stopped.
    pub(super) fn offer(
        &self,
        seats: Seats,
        offer: impl FnOnce(bool) -> Offer,
    ) -> Result<(OfferId, Arc<Offer>)> {
        self.0.state.with(|state| {
            let multi_conn = state.listener()?.multi_conn();
            state.last_id += 1;
            let id = OfferId(state.last_id);
            let offer = Arc::new(offer(multi_conn));
            state.offered.push(Offered {
                id,
                offer: Arc::clone(&offer),
                seats,
                shutting_down: false,
            });
            Ok((id, offer))
        })
    }

    /// Whether clients have chosen an export.
    pub(super) fn is_used(&self, id: OfferId) -> bool {
        self.0.state.with(|state| state.connections.uses(id))
    }

    /// Lets no more clients choose an export, and disconnects those that have.
    pub(super) fn withdraw(&self, id: OfferId) {
        self.0.state.with(|state| {
            for offered in state.offered.iter_mut().filter(|offered| offered.id == id) {
                offered.shutting_down = true;
            }
            state.connections.shut_down(Some(id));
        });
    }

    /// Waits until the clients of an export that was withdrawn are gone, and forgets it.
    pub(super) async fn forget(&self, id: OfferId) {
        self.0.state.until(|state| !state.connections.uses(id)).await;
        self.0
            .state
            .with(|state| state.offered.retain(|offered| offered.id != id));
    }

    /// The server written down, if it listens.
    ///
    /// # Errors
    /// Its options cannot be.
    pub(crate) fn save(&self, descriptors: &Descriptors) -> Result<Option<SavedNbdServer>> {
        self.0.state.with(|state| {
            let listener = state.listener().ok();
            listener
                .map(|listener| saved::server(listener, descriptors))
                .transpose()
        })
    }

    /// An export written down, with its clients.
    pub(super) fn save_export(
        &self,
        id: OfferId,
        offer: Arc<Offer>,
        descriptors: &Descriptors,
    ) -> impl Future<Output = SavedExportKind> + use<> {
        let clients: Vec<_> = self.0.state.with(|state| {
            let clients = state.connections.of(id).into_iter();
            clients
                .map(|client| saved::Client::new(client, descriptors))
                .collect()
        });
        async move { saved::export(&offer, clients).await }
    }

    fn disconnected(&self, id: ConnectionId, ending: &Ending) {
        let gone = self.0.state.with(|state| {
            let connected = state.connections.remove(id)?;
            state.was_left |= connected.export().is_some() && state.connections.is_empty();
            let offered = state
                .offered
                .iter()
                .find(|offered| Some(offered.id) == connected.export());
            let name = offered.map(|offered| offered.offer.name.clone());
            Some((connected, name.unwrap_or_default()))
        });
        if let Some((connected, name)) = gone {
            report::disconnected(id, &connected, &name, ending);
        }
        self.0.state.has_changed();
    }
}

impl Catalogue for NbdServer {
    fn find(&self, name: &[u8]) -> Option<Arc<Offer>> {
        self.0.state.with(|state| {
            let found = state.open().find(|offered| offered.offer.name.as_bytes() == name);
            found.map(|offered| Arc::clone(&offered.offer))
        })
    }

    fn offers(&self) -> Vec<Arc<Offer>> {
        let offers = |state: &mut State| state.open().map(|offered| Arc::clone(&offered.offer)).collect();
        self.0.state.with(offers)
    }
}

impl Exporter for NbdServer {
    fn connected(&self, id: ConnectionId, socket: Fd, inside_tls: bool) {
        self.0
            .state
            .with(|state| state.connections.insert(id, socket, inside_tls));
    }

    fn chose(&self, id: ConnectionId, negotiated: &Negotiated) -> Option<Seat> {
        self.0.state.with(|state| {
            let chosen = state
                .open()
                .find(|offered| Arc::ptr_eq(&offered.offer, &negotiated.export))
                .map(|offered| (offered.id, offered.seats.fewest()));
            let (export, seat) = chosen?;
            let (mode, contexts) = (negotiated.mode, negotiated.contexts);
            state.connections.assign(
                id,
                Choice {
                    export,
                    mode,
                    contexts,
                },
            );
            Some(seat)
        })
    }
}
