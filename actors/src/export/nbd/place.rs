//! Where connections run: on the iothread of their export's node, and after it when it moves.

use futures_util::FutureExt;
use millpond_ring::Fd;
use tracing::Instrument;

use super::handshake::Negotiated;
use super::transmission::connection::{Account, Arrival, End, serve};
use millpond_engine::iothread::Local;
use millpond_engine::node::Client;

/// A connection on its way to an iothread: nothing of it is in flight.
pub(super) struct Luggage<G> {
    pub(super) fd: Fd,
    pub(super) negotiated: Negotiated,
    /// The hold on the node behind the export.
    pub(super) client: Client,
    /// What was received and not looked at.
    pub(super) received: Vec<u8>,
    pub(super) span: tracing::Span,
    /// What the server keeps of the client; told when the connection has ended, and dropped.
    pub(super) guard: G,
}

impl<G: Account + Send + 'static> Luggage<G> {
    /// Sends the connection to where its node is. Where that has ended, so has the connection.
    pub(super) fn place(self) {
        let client = self.client.clone();
        client.run_at_home(move || self.unpack());
    }

    /// Goes on serving, on the iothread that this is.
    fn unpack(mut self) {
        let Some(local) = Local::current() else { return };
        let span = self.span.clone();
        let here = local.clone();
        let served = async move {
            let backend = self.client.here();
            let (fd, received) = (self.fd.clone(), std::mem::take(&mut self.received));
            let arrival = Arrival {
                socket: fd,
                negotiated: &self.negotiated,
                received: &received,
            };
            match serve(here, arrival, backend, &mut self.guard).await {
                End::Moved(received) => Self { received, ..self }.place(),
                End::Closed(closing) => self.guard.ended(closing),
            }
        };
        // One allocation for the future and its task, rather than a move of it through every wrapper's frame.
        local.spawn(served.boxed_local().instrument(span));
    }
}
