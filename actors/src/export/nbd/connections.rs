//! The clients that are connected to the NBD server.

use std::collections::HashMap;

use millpond_ring::Fd;
use rustix::net::{Shutdown, shutdown};

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
