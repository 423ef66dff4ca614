//! Clients: handles on a root edge. Whoever holds one may do I/O on the node.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::{Rc, Weak as RcWeak};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use futures_channel::oneshot;
use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use millpond_drivers::api::unless_withdrawn;
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
use crate::node::order::unwanted::Unwanted;
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

    /// The same client for use on one thread: inline where that is the node's iothread. Whoever uses it goes where the node
    /// goes.
    #[must_use]
    pub fn here(&self) -> HomeClient {
        HomeClient {
            client: self.clone(),
            found: RefCell::default(),
            stays: false,
            asked: RefCell::default(),
        }
    }

    /// The same for whoever stays on its thread, wherever the node goes: from elsewhere it follows the node's drains too.
    #[must_use]
    pub fn staying_here(&self) -> HomeClient {
        HomeClient {
            stays: true,
            ..self.here()
        }
    }

    /// The iothreads that the user serves others on; none where it does so beside the node.
    #[must_use]
    pub fn threads(&self) -> Vec<IoThread<Mail>> {
        self.0.threads()
    }

    /// Sends a request of any kind, and waits for its end.
    pub async fn request(&self, operation: Operation<Buffers>) -> Outcome<Buffers> {
        match self.send(operation, None) {
            Some(answer) => answer.await.unwrap_or(Outcome::plain(Err(IoError::NoMedium))),
            None => Outcome::plain(Err(IoError::NoMedium)),
        }
    }

    /// Sends a request; nothing if the iothread has stopped.
    fn send(
        &self,
        operation: Operation<Buffers>,
        unwanted: Option<Arc<Unwanted>>,
    ) -> Option<oneshot::Receiver<Outcome<Buffers>>> {
        let (reply, answer) = oneshot::channel();
        let mail = Mail::Request(RemoteRequest {
            entry: Entry::Root(self.0.id()),
            operation,
            reply,
            unwanted,
        });
        self.0.send(mail).then_some(answer)
    }

    /// Begins a request to another iothread: it is on its way when this returns, and ends early if it is withdrawn while it
    /// only waits.
    fn begin_elsewhere(&self, operation: Operation<Buffers>) -> Begun {
        let unwanted = Arc::<Unwanted>::default();
        let Some(mut answer) = self.send(operation, Some(Arc::clone(&unwanted))) else {
            return Begun::Ended(Outcome::plain(Err(IoError::NoMedium)));
        };
        Begun::Pending(Pending::alone(async move {
            let answered = match unless_withdrawn(&mut answer).await {
                Ok(answered) => answered,
                Err(_withdrawn) => {
                    unwanted.say();
                    answer.await
                }
            };
            answered.unwrap_or(Outcome::plain(Err(IoError::NoMedium)))
        }))
    }

    /// Asks the node's iothread to say when it takes requests; nothing if that has stopped.
    fn ask_when_open(&self) -> Option<oneshot::Receiver<()>> {
        let (reply, answer) = oneshot::channel();
        self.0.send(Mail::WhenOpen(self.0.id(), reply)).then_some(answer)
    }
}

/// A client used on one thread only.
pub struct HomeClient {
    client: Client,
    /// The root edge as it was found last, so that a request needs no look-up.
    found: RefCell<RcWeak<RootCell>>,
    /// It is used on this thread, wherever the node lives.
    stays: bool,
    /// What another iothread was asked: to say when the node takes requests.
    asked: RefCell<Option<oneshot::Receiver<()>>>,
}

impl Clone for HomeClient {
    fn clone(&self) -> Self {
        Self {
            found: self.found.clone(),
            stays: self.stays,
            ..self.client.here()
        }
    }
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
            None => self.client.begin_elsewhere(operation),
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

    /// Whether buffers of any alignment go to the node's storage as they are. On another iothread: as far as is known there.
    #[must_use]
    pub fn takes_any_memory(&self) -> bool {
        match self.root_here() {
            Some(root) => root.node().limits().mem_alignment <= 1,
            None => self.client.0.takes_any_memory(),
        }
    }

    /// Whether a request sent now would not be parked. On another iothread, for who stays there: as far as is known; and true
    /// for who does not.
    #[must_use]
    pub fn is_open(&self) -> bool {
        match self.root_here() {
            Some(root) => root.node().gate().is_open(),
            None => !self.stays || self.client.0.is_open(),
        }
    }

    /// Whether the node lives on another iothread than this one, where whoever uses this does not stay.
    #[must_use]
    pub fn has_moved(&self) -> bool {
        !self.stays && Local::current_id() != Some(self.client.iothread())
    }

    /// The node's name. On another iothread: as far as is known there.
    #[must_use]
    pub fn node_name(&self) -> String {
        match self.root_here() {
            Some(root) => root.node().name().to_owned(),
            None => self.client.0.node_name(),
        }
    }

    /// Waits until the gate is open; or, for who does not stay, until the node has gone elsewhere.
    pub async fn wait_open(&self) {
        std::future::poll_fn(|context| match self.watch_open(context.waker()) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        })
        .await;
    }

    /// Whether a request sent now would not be parked, as [`HomeClient::is_open`] says it; if it would, `waker` is called when
    /// that changes.
    pub fn watch_open(&self, waker: &Waker) -> bool {
        match self.root_here() {
            Some(root) => {
                let node = root.node();
                node.gate().wait(waker);
                node.gate().is_open()
            }
            None => !self.stays || self.watch_elsewhere(waker),
        }
    }

    /// The same on another iothread. Only its end is told of, not its beginning.
    fn watch_elsewhere(&self, waker: &Waker) -> bool {
        let mut asked = self.asked.borrow_mut();
        let mut context = Context::from_waker(waker);
        while !self.client.0.is_open() {
            if asked.is_none() {
                *asked = self.client.ask_when_open();
            }
            let answered = asked.as_mut().map(|answer| answer.poll_unpin(&mut context));
            match answered {
                Some(Poll::Pending) => return false,
                Some(Poll::Ready(_)) => *asked = None,
                // What is sent there fails.
                None => return true,
            }
        }
        true
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
