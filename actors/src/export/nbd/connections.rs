//! The clients that are connected to the NBD server.

use std::collections::HashMap;

use millpond_engine::iothread::IoThread;
use millpond_engine::node::Mail;
use millpond_messages::nbd::Mode;
use millpond_ring::Fd;
use rustix::net::{Shutdown, shutdown};

use super::handshake::Contexts;
use super::peer::peer;
use super::transmission::connection::Closing;

/// Names a connection. Never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(pub u64);

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

/// What the server is told of a connection from where it is.
pub enum Report {
    /// It is served on this iothread from now on.
    Arrived(IoThread<Mail>),
    /// The connection has ended.
    Ended(Ending),
}

/// The sockets of clients that are connected, to end them.
pub struct Connections<K> {
    open: HashMap<ConnectionId, Connected<K>>,
}

/// What a client has chosen.
pub struct Choice<K> {
    /// The key of the export.
    pub export: K,
    /// How replies are framed.
    pub mode: Mode,
    /// The contexts that BLOCK_STATUS answers for.
    pub contexts: Contexts,
}

/// A client that is connected.
pub struct Connected<K> {
    /// What it is connected by.
    pub socket: Fd,
    /// It is served inside TLS.
    pub inside_tls: bool,
    /// Who it is, for people.
    pub peer: String,
    /// What it has chosen.
    pub chosen: Option<Choice<K>>,
    /// The iothread that serves it, as far as known.
    pub home: Option<IoThread<Mail>>,
    /// The server has ended the connection.
    pub cut: bool,
}

impl<K: Copy> Connected<K> {
    /// The export that it has chosen.
    pub fn export(&self) -> Option<K> {
        self.chosen.as_ref().map(|chosen| chosen.export)
    }
}

impl<K> Default for Connections<K> {
    fn default() -> Self {
        Self { open: HashMap::new() }
    }
}

impl<K: Copy + PartialEq> Connections<K> {
    /// A client has come, to be served inside TLS or in the clear.
    pub fn insert(&mut self, id: ConnectionId, socket: Fd, inside_tls: bool) {
        let peer = peer(&socket);
        tracing::info!(connection = id.0, peer, "an NBD client is connected");
        let connected = Connected {
            socket,
            inside_tls,
            peer,
            chosen: None,
            home: None,
            cut: false,
        };
        self.open.insert(id, connected);
    }

    /// It has chosen an export.
    pub fn assign(&mut self, id: ConnectionId, chosen: Choice<K>) {
        if let Some(connected) = self.open.get_mut(&id) {
            connected.chosen = Some(chosen);
        }
    }

    /// It is served on the iothread `home` from now on.
    pub fn arrived(&mut self, id: ConnectionId, home: IoThread<Mail>) {
        if let Some(connected) = self.open.get_mut(&id) {
            connected.home = Some(home);
        }
    }

    /// Those that have chosen `export`, with what they have chosen, in the order in which they came.
    pub fn of(&self, export: K) -> Vec<(ConnectionId, &Connected<K>, &Choice<K>)> {
        let chosen = self.open.iter().filter_map(|(id, connected)| {
            let chosen = connected.chosen.as_ref()?;
            (chosen.export == export).then_some((*id, connected, chosen))
        });
        let mut all: Vec<_> = chosen.collect();
        all.sort_unstable_by_key(|(id, ..)| *id);
        all
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
            .any(|connected| connected.export() == Some(export))
    }

    /// Ends the connections that have chosen `export`, or all. They are gone when their requests in flight have ended.
    pub fn shut_down(&mut self, export: Option<K>) {
        for connected in self.open.values_mut() {
            if export.is_none() || connected.export() == export {
                connected.cut = true;
                // A client that has gone already makes this fail, which changes nothing.
                let _ = shutdown(&connected.socket, Shutdown::Both);
            }
        }
    }
}
