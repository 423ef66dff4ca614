//! What an iothread's mailbox carries: requests from other threads, and the graph actor's orders to nodes.

use std::sync::Arc;

use futures_channel::oneshot;
use millpond_messages::io::{Operation, Outcome};
use millpond_messages::{NodeId, RootId};
use millpond_ring::buffer::Buffers;

use super::moved::{MovedNode, MovedRoot};
use super::orders::{Address, Handles, Naming, Order};
use super::outcome::OrderId;
use super::root_handle::RootHandle;
use super::unwanted::Unwanted;
use crate::delay::Chaos;
use crate::flight::Open;
use crate::iothread::IoThread;

/// A message to an iothread.
pub enum Mail {
    /// Code to run on the iothread: how exports place their tasks there.
    Run(Box<dyn FnOnce() + Send>),
    /// A request from another thread.
    Request(RemoteRequest),
    /// A question of another thread, answered when the node behind a root edge takes requests, or has nothing to do with the
    /// edge any more.
    WhenOpen(RootId, oneshot::Sender<()>),
    /// An order of the graph actor. The outcome comes back under `order_id`.
    Control {
        /// Names the order in the [`Event`](super::outcome::Event) that answers it.
        order_id: OrderId,
        /// The order, with handles in it.
        order: Order,
    },
    /// A node that moves in.
    Arrive(Box<MovedNode>),
    /// A root edge that moves in, with the requests that are parked at it.
    ArriveRoot(Box<MovedRoot>),
    /// Delay rules to put in force, or none. The sender is dropped when they are, and what was held has gone out.
    Chaos(Option<Chaos>, oneshot::Sender<()>),
    /// A question what is open on the iothread, for a flight record.
    Flight(oneshot::Sender<Open>),
}

/// A request on its way to another iothread, with the place for its answer.
pub struct RemoteRequest {
    /// Where the request enters the graph.
    pub entry: Entry,
    /// What is asked of the node.
    pub operation: Operation<Buffers>,
    /// The sender of the answer. If it is dropped unused, the asker learns that the request was lost.
    pub reply: oneshot::Sender<Outcome<Buffers>>,
    /// Where its asker says that it is not wanted any more, if it may come to that.
    pub unwanted: Option<Arc<Unwanted>>,
}

/// Where a request enters the graph, or goes on in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// Over a root edge: it is admitted, counted, and waits at the gate if that is closed.
    Root(RootId),
    /// Over an edge from a node of another iothread: it belongs to a request admitted there.
    Node(NodeId),
}

/// A node and the iothread that it lives in.
pub type NodeAddress = Address<IoThread<Mail>>;

impl Naming for Handles {
    type Iothread = IoThread<Mail>;
    type Root = RootHandle;
}
