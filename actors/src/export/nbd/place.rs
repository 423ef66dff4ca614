//! A connection on an iothread, and on its way to one.

use std::rc::Rc;

use tracing::Instrument;

use super::connections::ConnectionId;
use super::handshake::Negotiated;
use super::roll::enroll;
use super::transmission::connection::{Account, Arrival, End, serve};
use super::transport::Link;
use crate::export::seat::Seat;
use crate::export::worker::Worker;
use millpond_engine::iothread::{IoThread, Local};
use millpond_engine::node::Mail;

/// What the server keeps of a client that comes to an iothread.
pub(super) trait Member: Account + Send + 'static {
    /// The number of the connection.
    fn id(&self) -> ConnectionId;
    /// The connection is served on this iothread from now on.
    fn arrived(&self, home: IoThread<Mail>);
}

/// A connection whose handshake is over. While this value exists nothing of it is in flight.
pub(super) struct Placed<L, G> {
    pub(super) link: L,
    pub(super) negotiated: Negotiated,
    /// Where it is served, with the hold on the node behind the export.
    pub(super) seat: Seat,
    /// What was received and not looked at.
    pub(super) received: Vec<u8>,
    pub(super) span: tracing::Span,
    /// What the server keeps of the client. Dropped, it reports that the connection has ended.
    pub(super) guard: G,
}

impl<L: Link, G: Member> Worker for Placed<L, G> {
    fn seat(&self) -> &Seat {
        &self.seat
    }

    async fn serve(self, local: Rc<Local>) -> Option<Self> {
        let Some(home) = self.seat.here(&local) else {
            // The node has moved while the connection was on its way.
            return Some(self);
        };
        let Self {
            link,
            negotiated,
            seat,
            received,
            span,
            mut guard,
        } = self;
        let (standing, _enrolled) = enroll(&local, guard.id());
        guard.arrived(home);
        let arrival = Arrival {
            link,
            negotiated: &negotiated,
            received: &received,
            standing,
        };
        let served = serve(local, arrival, seat.node(), &mut guard);
        match served.instrument(span.clone()).await {
            End::Moved(link, received) => Some(Self {
                link,
                negotiated,
                seat,
                received,
                span,
                guard,
            }),
            End::Closed(closing) => {
                // Whoever sees the end may connect at once, and is to find the seat free.
                drop(seat);
                guard.ended(closing);
                None
            }
        }
    }
}
