//! Clients: handles on a root edge. Whoever holds one may do I/O on the node.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::{Rc, Weak as RcWeak};
use std::task::{Context, Poll, Waker};

use futures_channel::oneshot;
use futures_util::future::LocalBoxFuture;
use millpond_drivers::replica::offload::Asked;
use millpond_messages::handshake::WaitingNode;
use millpond_messages::io::{Operation, Outcome};
use millpond_messages::{IoError, IoThreadId, Permissions, RootId};
use millpond_ring::buffer::Buffers;

use super::pending::{Begun, Pending};
use super::root::RootCell;
use crate::iothread::{IoThread, Local};
use crate::node::order::mail::{Entry, Mail, RemoteRequest};
use crate::node::order::root_handle::RootHandle;
use crate::node::table::NodeTable;

/// A user's handle on a node, from any thread. Requests go through the mailbox of the node's iothread, and their futures
/// run on any executor. On the iothread itself, [`Client::here`] spares the mailbox.
#[derive(Clone)]
pub struct Client(RootHandle);

impl Client {
    /// A client of `root`.
    #[must_use]
    pub fn new(root: &RootHandle) -> Self {
        Self(root.clone())
    }

    /// The number of the client's root edge.
    #[must_use]
    pub fn root(&self) -> RootId {
        self.0.id()
    }

    /// The permissions that the client has.
    #[must_use]
    pub fn permissions(&self) -> Permissions {
        self.0.permissions()
    }

    /// The iothread where the node lives at present.
    #[must_use]
    pub fn iothread(&self) -> IoThreadId {
        self.0.home_id()
    }

    /// A mailbox handle of that iothread.
    #[must_use]
    pub fn home(&self) -> IoThread<Mail> {
        IoThread::clone(&self.0.home())
    }

    /// Has code run where the node lives, or lived a moment ago: false if that has stopped.
    pub fn run_at_home(&self, code: impl FnOnce() + Send + 'static) -> bool {
        self.0.send(Mail::Run(Box::new(code)))
    }

    /// What the node behind it has in flight, whoever asked for it; nothing where its iothread has ended.
    pub async fn in_flight(&self) -> Option<WaitingNode> {
        let (reply, answer) = oneshot::channel();
        let root = self.0.id();
        self.run_at_home(move || {
            let look = || {
                let table = NodeTable::current()?;
                let node = table.root(root)?.node();
                let requests = node
                    .gate()
                    .pending(table.local().look_at_time(), |id| table.name_of(id));
                let node_name = node.name().to_owned();
                Some(WaitingNode { node_name, requests })
            };
            // Who asked may have lost patience.
            drop(reply.send(look()));
        });
        answer.await.ok().flatten()
    }

    /// The same client for use on one thread: inline where that is the node's iothread.
    #[must_use]
    pub fn here(&self) -> HomeClient {
        HomeClient {
            client: self.clone(),
            found: RefCell::default(),
        }
    }

    /// Sends a request of any kind, and waits for its end.
    pub async fn request(&self, operation: Operation<Buffers>) -> Outcome<Buffers> {
        let (reply, answer) = oneshot::channel();
        let mail = Mail::Request(RemoteRequest {
            entry: Entry::Root(self.0.id()),
            operation,
            reply,
        });
        if !self.0.send(mail) {
            return Outcome::plain(Err(IoError::NoMedium));
        }
        answer.await.unwrap_or(Outcome::plain(Err(IoError::NoMedium)))
    }
}

/// A client used on one thread only.
#[derive(Clone)]
pub struct HomeClient {
    client: Client,
    /// The root edge as it was found last, so that a request needs no look-up.
    found: RefCell<RcWeak<RootCell>>,
}

impl Asked for HomeClient {
    fn ask(&self, operation: Operation<Buffers>) -> impl Future<Output = Outcome<Buffers>> {
        self.request(operation)
    }

    /// On another iothread it cannot be known.
    fn takes_now(&self) -> bool {
        self.root_here().is_some_and(|root| root.node().gate().is_open())
    }
}

impl HomeClient {
    /// The client behind it, to send to other threads.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Sends any request: a direct call on the node's own iothread, through its mailbox from elsewhere. Dropped before
    /// its end, the request goes on by itself.
    pub async fn request(&self, operation: Operation<Buffers>) -> Outcome<Buffers> {
        // Most requests have ended by now. The future that waits for the others is large, and must not be moved for those.
        let mut pending = match self.begin(operation) {
            Begun::Ended(outcome) => return outcome,
            Begun::Pending(pending) => pending,
        };
        (&mut pending).await
    }

    /// Begins any request. It is taken in this very step, and so before any that is begun later; many have ended by then.
    pub fn begin(&self, operation: Operation<Buffers>) -> Begun {
        match self.root_here() {
            Some(root) => root.begin(operation),
            None => {
                let client = self.client.clone();
                Begun::Pending(Pending::alone(async move { client.request(operation).await }))
            }
        }
    }

    /// Begins a request that can be asked to end early. It does nothing before it is polled.
    pub fn start(&self, operation: Operation<Buffers>) -> CancellableRequest {
        let begun = Rc::new(Cell::new(false));
        let (client, noted) = (self.clone(), Rc::clone(&begun));
        let future = async move {
            match client.root_here() {
                Some(root) => root.enter_noting(operation, &noted).await,
                None => {
                    noted.set(true);
                    client.client.request(operation).await
                }
            }
        };
        CancellableRequest {
            future: Box::pin(future),
            begun,
            unwanted: false,
        }
    }

    /// Whether buffers of any alignment go to the node's storage as they are. False where it cannot be known: on another
    /// iothread.
    #[must_use]
    pub fn takes_any_memory(&self) -> bool {
        self.root_here()
            .is_some_and(|root| root.node().limits().mem_alignment <= 1)
    }

    /// Whether a request sent now would not be parked. True also where it cannot be known: on another iothread.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.root_here().is_none_or(|root| root.node().gate().is_open())
    }

    /// The node's name; empty where it is not known, on another iothread.
    #[must_use]
    pub fn node_name(&self) -> String {
        self.root_here()
            .map_or_else(String::new, |root| root.node().name().to_owned())
    }

    /// Waits until the gate is open, or the node has gone elsewhere.
    pub async fn wait_open(&self) {
        std::future::poll_fn(|context| match self.root_here() {
            Some(root) if !root.node().gate().is_open() => {
                root.node().gate().wait(context.waker());
                Poll::Pending
            }
            _ => Poll::Ready(()),
        })
        .await;
    }

    /// Whether a request sent now would not be parked; `waker` is called when that changes. True also where it cannot be
    /// known: on another iothread.
    pub fn watch_open(&self, waker: &Waker) -> bool {
        self.root_here().is_none_or(|root| {
            let node = root.node();
            node.gate().wait(waker);
            node.gate().is_open()
        })
    }

    /// The node's length in bytes; `waker` is called when it may have changed, or the node has gone elsewhere. Nothing on
    /// another iothread.
    #[must_use]
    pub fn watch_length(&self, waker: &Waker) -> Option<u64> {
        let node = self.root_here()?.node();
        node.gate().wait(waker);
        Some(node.size())
    }

    fn root_here(&self) -> Option<Rc<RootCell>> {
        if Local::current_id() != Some(self.client.iothread()) {
            return None;
        }
        let found = self.found.borrow().upgrade();
        if let Some(root) = found.filter(|root| root.is_here()) {
            return Some(root);
        }
        let root = NodeTable::current()?.root(self.client.root())?;
        self.found.replace(Rc::downgrade(&root));
        Some(root)
    }
}

/// A request that can be asked to end early. It ends exactly once, whatever it is asked.
#[must_use = "a request does nothing unless it is polled"]
pub struct CancellableRequest {
    future: LocalBoxFuture<'static, Outcome<Buffers>>,
    /// Whether the request has left the gate.
    begun: Rc<Cell<bool>>,
    unwanted: bool,
}

impl CancellableRequest {
    /// Asks it to end early. One that is parked at a gate is cancelled, and gives back no buffers; one that a driver works
    /// on ends as it would have, since no driver is left half-way.
    pub fn cancel_async(&mut self) {
        self.unwanted = true;
    }

    /// Asks it to end early, and waits until it has ended.
    pub async fn cancel(mut self) -> Outcome<Buffers> {
        self.cancel_async();
        self.await
    }
}

impl Future for CancellableRequest {
    type Output = Outcome<Buffers>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if self.unwanted && !self.begun.get() {
            // A parked request leaves the gate when its future is dropped.
            self.future = Box::pin(std::future::pending());
            return Poll::Ready(Outcome::plain(Err(IoError::Cancelled)));
        }
        self.future.as_mut().poll(context)
    }
}
