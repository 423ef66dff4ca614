//! The NBD server and its exports, written down.

use futures_util::future::join_all;
use millpond_engine::iothread::IoThread;
use millpond_engine::node::Mail;
use millpond_messages::nbd::Mode;
use millpond_messages::saved::{
    SavedConnection, SavedExportKind, SavedNbdExport, SavedNbdServer, SavedReplies, SavedStanding,
};
use millpond_messages::{BitmapId, NodeId, Result};

use super::connections::{Choice, Connected, ConnectionId};
use super::listen::Listener;
use super::offer::{Offer, OfferedBitmap};
use super::roll::look;
use crate::export::saved::{Descriptors, options};

/// A server that listens.
///
/// # Errors
/// Its options cannot be written down.
pub(super) fn server(listener: &Listener, descriptors: &Descriptors) -> Result<SavedNbdServer> {
    let sockets = listener.sockets().iter();
    Ok(SavedNbdServer {
        options: options(listener.options())?,
        descriptors: sockets.map(|socket| descriptors.add(socket.clone())).collect(),
    })
}

/// An export that is offered as `offer`; `clients` are those that have chosen it.
pub(super) async fn export(offer: &Offer, clients: Vec<Client>) -> SavedExportKind {
    let standing = clients.into_iter().map(Client::standing);
    SavedExportKind::Nbd(SavedNbdExport {
        name: offer.name.clone(),
        size: offer.size,
        flags: offer.flags.bits(),
        request_alignment: offer.request_alignment,
        max_transfer: offer.max_transfer,
        bitmaps: offer.bitmaps.iter().map(place).collect(),
        connections: join_all(standing).await,
    })
}

fn place(bitmap: &OfferedBitmap) -> (NodeId, BitmapId) {
    (bitmap.held().node, bitmap.held().bitmap)
}

/// A client as the control thread knows it.
pub(super) struct Client {
    /// The iothread that knows where it stands. Nobody can say that of a client inside TLS, whose keys stay here.
    home: Option<IoThread<Mail>>,
    id: ConnectionId,
    known: SavedConnection,
}

impl Client {
    pub(super) fn new<K>(
        (id, connected, chosen): (ConnectionId, &Connected<K>, &Choice<K>),
        descriptors: &Descriptors,
    ) -> Self {
        let known = SavedConnection {
            id: id.0,
            descriptor: descriptors.add(connected.socket.clone()),
            peer: connected.peer.clone(),
            replies: match chosen.mode {
                Mode::Simple => SavedReplies::Simple,
                Mode::Structured => SavedReplies::Structured,
                Mode::Extended => SavedReplies::Extended,
            },
            base_allocation: chosen.contexts.base_allocation,
            allocation_depth: chosen.contexts.allocation_depth,
            dirty_bitmaps: chosen.contexts.bitmaps,
            standing: SavedStanding::Inside,
            shutting_down: connected.cut,
        };
        let home = connected.home.clone().filter(|_| !connected.inside_tls);
        Self { home, id, known }
    }

    /// With where it stands. One that is on its way to an iothread stands nowhere between its requests.
    async fn standing(self) -> SavedConnection {
        let standing = match &self.home {
            Some(home) => look(home, self.id).await,
            None => None,
        };
        SavedConnection {
            standing: standing.unwrap_or(SavedStanding::Inside),
            ..self.known
        }
    }
}
