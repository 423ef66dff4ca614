//! A connection on an iothread, and on its way to one.

use std::rc::Rc;

use millpond_ring::Fd;
use tracing::Instrument;

use super::handshake::Negotiated;
use super::transmission::connection::{Account, Arrival, End, serve};
use crate::export::worker::Worker;
use millpond_engine::iothread::Local;
use millpond_engine::node::Client;

/// A connection whose handshake is over. While this value exists nothing of it is in flight.
pub(super) struct Placed<G> {
    pub(super) fd: Fd,
    pub(super) negotiated: Negotiated,
    /// The hold on the node behind the export.
    pub(super) client: Client,
    /// What was received and not looked at.
    pub(super) received: Vec<u8>,
    pub(super) span: tracing::Span,
    /// What the server keeps of the client. Dropped, it reports that the connection has ended.
    pub(super) guard: G,
}

impl<G: Account + Send + 'static> Worker for Placed<G> {
    fn client(&self) -> &Client {
        &self.client
    }

    async fn serve(mut self, local: Rc<Local>) -> Option<Self> {
        let span = self.span.clone();
        let served = async {
            let backend = self.client.here();
            let received = std::mem::take(&mut self.received);
            let arrival = Arrival {
                socket: self.fd.clone(),
                negotiated: &self.negotiated,
                received: &received,
            };
            serve(local, arrival, backend, &mut self.guard).await
        };
        match served.instrument(span).await {
            End::Moved(received) => Some(Self { received, ..self }),
            End::Closed(closing) => {
                self.guard.ended(closing);
                None
            }
        }
    }
}
