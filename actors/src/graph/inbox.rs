//! What the graph actor is sent, by handles and by itself: one queue, so that its order is kept.

use std::sync::Arc;

use futures_channel::{mpsc, oneshot};
use millpond_engine::delay::Chaos;
use millpond_engine::node::{self, Client, OrderId};
use millpond_graph::{Announcement, RequestId};
use millpond_messages::graph::{GraphReply, GraphRequest};
use millpond_messages::{Error, ErrorKind, Result};
use millpond_ring::buffer::Region;

use super::iothreads::Started;

/// Where a reply goes.
pub(super) type ReplySender = oneshot::Sender<Result<GraphReply<Client>>>;

/// A message to the graph actor.
pub(super) enum Incoming {
    /// A request. Its id is unique.
    Request(RequestId, GraphRequest, Option<ReplySender>),
    /// Nobody waits for this request's reply any more.
    Abandoned(RequestId),
    /// Somebody wants to hear what is announced.
    Listen(mpsc::Sender<Announcement>),
    /// Something happened in an iothread.
    Event(node::Event),
    /// Memory is registered with the rings, or no longer.
    Memory(MemoryChange),
    /// Delay rules to put in force, or none. The sender is dropped once they are, everywhere.
    Chaos(Option<Chaos>, oneshot::Sender<()>),
    /// The flight record is asked for, for this reason.
    Flight(String, oneshot::Sender<Vec<u8>>),
    /// An iothread was started, or was not.
    Started(OrderId, Result<Fresh>),
    /// An alarm's time is over.
    Alarm,
    /// A name that could not be written because of a reader is tried again.
    Names,
}

/// What is asked of the rings about memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    Register,
    Unregister,
}

/// A change of the registered memory, and where its outcome goes.
pub(super) struct MemoryChange {
    pub(super) wish: Wish,
    pub(super) region: Arc<Region>,
    pub(super) done: oneshot::Sender<Result<()>>,
}

/// A new iothread that the graph actor has not taken on yet: if it never does, the iothread ends.
pub(super) struct Fresh(pub(super) Option<Started>);

impl Drop for Fresh {
    fn drop(&mut self) {
        if let Some((iothread, _)) = &self.0 {
            iothread.stop();
        }
    }
}

/// The error of requests that come too late: everything is being closed, or the actor has ended.
pub(super) fn closed() -> Error {
    Error::new(ErrorKind::Closed, "The block layer is shutting down")
}
