//! What the log says of clients that are gone.

use super::connections::{Connected, ConnectionId, Ending};
use crate::log::limits::{self, Flood};

/// A client is gone that was connected. `export` is the name of the export that it had chosen; empty if none.
pub(super) fn disconnected<K>(id: ConnectionId, client: &Connected<K>, export: &str, ending: &Ending) {
    let (connection, peer) = (id.0, client.peer.as_str());
    match ending {
        Ending::Refused(why) => {
            if let Some(kept_back) = limits::admit(Flood::Refused, "") {
                tracing::warn!(connection, peer, kept_back, "an NBD client was refused: {why}");
            }
        }
        Ending::Served(closing) if closing.broken && !client.cut => {
            if let Some(kept_back) = limits::admit(Flood::Broken, export) {
                tracing::warn!(
                    connection,
                    peer,
                    export,
                    kept_back,
                    "an NBD client's connection broke: {}",
                    closing.why
                );
            }
        }
        Ending::Lost if !client.cut => {
            tracing::warn!(
                connection,
                peer,
                export,
                "an NBD client's connection broke: its iothread has ended"
            );
        }
        Ending::Served(_) | Ending::Lost if client.cut => {
            tracing::info!(
                connection,
                peer,
                export,
                "an NBD client is gone: the server ended the connection"
            );
        }
        Ending::Served(closing) => {
            tracing::info!(connection, peer, export, "an NBD client is gone: {}", closing.why);
        }
        Ending::Left | Ending::Lost => {
            tracing::info!(connection, peer, "an NBD client is gone: it chose no export");
        }
    }
}
