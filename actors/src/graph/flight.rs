//! The graph actor's part of the flight recorder.

use std::sync::Arc;

use futures_channel::oneshot;
use millpond_messages::Result;
use millpond_messages::record::MessageEvent;
use tokio::time::Instant;

use super::handle::GraphHandle;
use super::inbox::{Incoming, closed};
use millpond_engine::delay::kind;
use millpond_engine::flight::{Note, Recorder};
use millpond_engine::node::{self, recorded};

/// The ring of the graph actor's thread.
pub(super) struct GraphFlight(Arc<Recorder>);

impl Default for GraphFlight {
    fn default() -> Self {
        Self(Recorder::register("graph"))
    }
}

impl Drop for GraphFlight {
    fn drop(&mut self) {
        self.0.unregister();
    }
}

impl GraphFlight {
    fn note(&self, note: Note) {
        self.0.note(self.0.since_begin(Instant::now().into_std()), note);
    }

    fn command(&self, event: MessageEvent, number: u64) {
        self.note(Note {
            event,
            kind: kind::COMMAND,
            node: 0,
            offset: 0,
            len: 0,
            number,
            from: 0,
        });
    }

    /// The graph actor was asked.
    pub(super) fn asked(&self, request: u64) {
        self.command(MessageEvent::Asked, request);
    }

    /// Notes that a request was answered.
    pub(super) fn replied(&self, request: u64) {
        self.command(MessageEvent::Replied, request);
    }

    /// It has sent an order.
    pub(super) fn sent(&self, order_id: node::OrderId, order: &node::Order) {
        self.note(recorded::order(MessageEvent::Sent, order_id, order));
    }

    /// It has heard of an event.
    pub(super) fn heard(&self, event: &node::Event) {
        self.note(recorded::event(MessageEvent::Heard, event));
    }
}

impl GraphHandle {
    /// The last messages of all threads and what is unanswered, as `millpond flight` reads it. An iothread that is stuck
    /// holds it up for two seconds at most.
    ///
    /// # Errors
    /// The graph has ended.
    pub async fn flight_record(&self, reason: impl Into<String>) -> Result<Vec<u8>> {
        let (done, written) = oneshot::channel();
        self.post(Incoming::Flight(reason.into(), done));
        written.await.map_err(|_| closed())
    }
}
