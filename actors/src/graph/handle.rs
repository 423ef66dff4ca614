//! The graph for any program: async functions whose futures run on the caller's executor.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_channel::{mpsc, oneshot};
use millpond_messages::graph::{
    DrainScope, GraphFacts, GraphReply, GraphRequest, Immediate, IothreadOptions, IothreadReport, Mutation,
    NodeFacts, OpenImage, Options, Query, RootRequest, RootUser,
};
use millpond_messages::handshake::PendingDrain;
use millpond_messages::{
    BlockSizes, DebugOrder, Error, ErrorKind, Geometry, LatencyHistograms, NodeReport, OpBlocker,
    Permissions, Result, RootId, Token,
};
use serde_json::Value;

use super::inbox::{Incoming, closed};
use super::mailbox::Sender;
use super::names::Names;
use millpond_engine::node::Client;
use millpond_graph::{Announcement, RequestId};

/// Announcements that a listener may be behind before it loses more.
const UNHEARD: usize = 1024;

/// A handle on the graph actor, for any thread. Cheap to clone.
#[derive(Clone)]
pub struct GraphHandle {
    /// Unbounded: a request waits in the actor's queue or in this one, and whoever asks waits for its reply.
    sender: Sender<Incoming>,
    last: Arc<AtomicU64>,
    names: Names,
}

impl GraphHandle {
    pub(super) fn new(sender: Sender<Incoming>, names: Names) -> Self {
        Self {
            sender,
            last: Arc::default(),
            names,
        }
    }

    /// The names of nodes.
    pub(super) const fn names(&self) -> &Names {
        &self.names
    }

    pub(super) fn next_id(&self) -> RequestId {
        RequestId(self.last.fetch_add(1, Ordering::Relaxed))
    }

    /// Sends a request whose reply nobody wants. It is on its way when this returns.
    pub fn send(&self, request: impl Into<GraphRequest>) {
        // Where the actor has ended, so has everything that could be asked of it.
        self.sender
            .send(Incoming::Request(self.next_id(), request.into(), None));
    }

    /// Puts a message into the actor's queue. Where the actor has ended, the message is dropped, and with it the sender of
    /// any answer.
    pub(super) fn post(&self, message: Incoming) {
        self.sender.send(message);
    }

    /// Sends any request. It is on its way when this returns; the future is the reply. A future dropped early does not
    /// take the request back, but what it would have given (a hold, a drained section) is given up again.
    pub fn ask(&self, request: impl Into<GraphRequest>) -> Asked {
        let id = self.next_id();
        let (sender, reply) = oneshot::channel();
        let sent = self
            .sender
            .send(Incoming::Request(id, request.into(), Some(sender)));
        Asked {
            id,
            reply: sent.then_some(reply),
            handle: self.clone(),
        }
    }

    /// What is announced from now on: QMP's events, and what ends a program. A listener that does not read loses some.
    #[must_use]
    pub fn listen(&self) -> mpsc::Receiver<Announcement> {
        let (sender, receiver) = mpsc::channel(UNHEARD);
        // Where the actor has ended, nothing is announced any more.
        self.sender.send(Incoming::Listen(sender));
        receiver
    }

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

    pub(super) async fn done(&self, request: impl Into<GraphRequest>) -> Result<()> {
        match self.ask(request).await? {
            GraphReply::Done => Ok(()),
            _ => Err(unexpected()),
        }
    }

    /// Opens an image by name, options or both; answers the node's name. The node stays until it is deleted.
    ///
    /// # Errors
    /// Whatever an open met; nothing is left behind.
    pub async fn open(&self, image: OpenImage) -> Result<String> {
        let image = OpenImage {
            holder: None,
            ..image
        };
        match self.ask(Mutation::Open(Box::new(image))).await? {
            GraphReply::Name(name) => Ok(name),
            _ => Err(unexpected()),
        }
    }

    /// Opens an image and takes hold of it, with the permissions that its flags stand for. It is closed when `holder` lets
    /// go.
    ///
    /// # Errors
    /// Whatever an open met, or others do not share those permissions; nothing is left behind.
    pub async fn open_held(&self, image: OpenImage, holder: RootUser) -> Result<Client> {
        let image = OpenImage {
            holder: Some(holder),
            ..image
        };
        match self.ask(Mutation::Open(Box::new(image))).await? {
            GraphReply::Root(client) => Ok(client),
            _ => Err(unexpected()),
        }
    }

    /// Opens a node, with what it needs below it.
    ///
    /// # Errors
    /// Whatever an open met; nothing is left behind.
    pub async fn blockdev_add(&self, options: Options) -> Result<()> {
        self.done(Mutation::BlockdevAdd(options)).await
    }

    /// Closes a node.
    ///
    /// # Errors
    /// There is none, or it is in use.
    pub async fn blockdev_del(&self, node_name: impl Into<String>) -> Result<()> {
        self.done(Mutation::BlockdevDel {
            node_name: node_name.into(),
        })
        .await
    }

    /// Changes options and children of nodes, all or none.
    ///
    /// # Errors
    /// One of them cannot be; nothing has changed.
    pub async fn blockdev_reopen(&self, nodes: Vec<Options>) -> Result<()> {
        self.done(Mutation::BlockdevReopen(nodes)).await
    }

    /// Changes some options of nodes, all or none; what is not named stays as it is.
    ///
    /// # Errors
    /// One of them cannot be; nothing has changed.
    pub async fn reopen_keeping(&self, nodes: Vec<Options>) -> Result<()> {
        self.done(Mutation::ReopenKeeping(nodes)).await
    }

    /// Makes a node, and what takes its options from it, read-only or writable.
    ///
    /// # Errors
    /// Somebody writes to it, or it was opened to stay read-only.
    pub async fn set_read_only(&self, node_name: impl Into<String>, read_only: bool) -> Result<()> {
        self.done(Mutation::SetReadOnly {
            node_name: node_name.into(),
            read_only,
        })
        .await
    }

    /// Activates a node and those below it, or inactivates it; all nodes without a name.
    ///
    /// # Errors
    /// Somebody writes to it, an active node stands on it, or another process holds a lock.
    pub async fn set_active(&self, node_name: Option<String>, active: bool) -> Result<()> {
        self.done(Mutation::SetActive { node_name, active }).await
    }

    /// Activates all nodes.
    ///
    /// # Errors
    /// Another process holds a lock, or an image cannot be read any more.
    pub async fn activate_all(&self) -> Result<()> {
        self.set_active(None, true).await
    }

    /// Inactivates all nodes, for another process to use their images.
    ///
    /// # Errors
    /// Somebody writes to one.
    pub async fn inactivate_all(&self) -> Result<()> {
        self.set_active(None, false).await
    }

    /// Drops what a node caches of its image's metadata, and reads it again.
    ///
    /// # Errors
    /// There is no such node, or its image cannot be read.
    pub async fn invalidate_cache(&self, node_name: impl Into<String>) -> Result<()> {
        self.done(Mutation::InvalidateCache {
            node_name: node_name.into(),
        })
        .await
    }

    /// Takes hold of a node as [`GraphHandle::attach`] does, and lets go of its permissions while the node is inactive.
    ///
    /// # Errors
    /// There is none, or others do not share what is asked for.
    pub async fn attach_inactive(&self, request: RootRequest) -> Result<Client> {
        match self.ask(Mutation::AttachRootInactive(request)).await? {
            GraphReply::Root(client) => Ok(client),
            _ => Err(unexpected()),
        }
    }

    /// Puts an overlay on top of a node.
    ///
    /// # Errors
    /// One of them cannot be part of that; nothing has changed.
    pub async fn blockdev_snapshot(&self, node: impl Into<String>, overlay: impl Into<String>) -> Result<()> {
        self.done(Mutation::BlockdevSnapshot {
            node: node.into(),
            overlay: overlay.into(),
        })
        .await
    }

    /// Makes an open node, which has no parent yet, the last of a parent's numbered children.
    ///
    /// # Errors
    /// The parent takes no more children, or not this one; nothing has changed.
    pub async fn add_child(&self, parent: impl Into<String>, node: impl Into<String>) -> Result<()> {
        self.done(Mutation::AddChild {
            parent: parent.into(),
            node: node.into(),
        })
        .await
    }

    /// Takes the numbered child that `parent` calls `child` away.
    ///
    /// # Errors
    /// The parent has no such child, or needs it; nothing has changed.
    pub async fn del_child(&self, parent: impl Into<String>, child: impl Into<String>) -> Result<()> {
        self.done(Mutation::DelChild {
            parent: parent.into(),
            child: child.into(),
        })
        .await
    }

    /// Makes an image.
    ///
    /// # Errors
    /// The driver's, or the node to format is in use.
    pub async fn blockdev_create(&self, options: Options) -> Result<()> {
        self.done(Mutation::BlockdevCreate(options)).await
    }

    /// Changes format options of an open image in place, as `qemu-img amend` does and by its names: `compat`,
    /// `lazy_refcounts`, `size`.
    ///
    /// # Errors
    /// The format cannot, an option is not for it, somebody relies on what would change, or the driver's.
    pub async fn amend(&self, node_name: impl Into<String>, options: Options) -> Result<()> {
        self.done(Mutation::Amend {
            node_name: node_name.into(),
            options,
        })
        .await
    }

    /// Changes a node's length, in bytes.
    ///
    /// # Errors
    /// Somebody relies on it, or the driver's.
    pub async fn resize(&self, node_name: impl Into<String>, size: u64) -> Result<()> {
        self.done(Mutation::Resize {
            node_name: node_name.into(),
            size,
        })
        .await
    }

    /// Moves a node and all that is joined to it; `None` is the main iothread.
    ///
    /// # Errors
    /// There is no such node or iothread, or a user holds it where it is.
    pub async fn set_iothread(
        &self,
        node_name: impl Into<String>,
        iothread: Option<String>,
        force: bool,
    ) -> Result<()> {
        self.done(Mutation::SetIothread {
            node_name: node_name.into(),
            iothread,
            force,
        })
        .await
    }

    /// Moves one node, without those that it is joined to; `None` is the main iothread.
    ///
    /// # Errors
    /// There is no such node or iothread, or a user holds it where it is.
    pub async fn move_node(&self, node_name: impl Into<String>, iothread: Option<String>) -> Result<()> {
        let node_name = node_name.into();
        self.done(Mutation::MoveNode { node_name, iothread }).await
    }

    /// Whether a node may move to an iothread, alone or with all that it is `joined` to. Nothing moves.
    ///
    /// # Errors
    /// Those that the move would end with.
    pub async fn may_move(
        &self,
        node_name: impl Into<String>,
        iothread: Option<String>,
        joined: bool,
    ) -> Result<()> {
        let query = Query::MayMove {
            node_name: node_name.into(),
            iothread,
            joined,
        };
        self.done(GraphRequest::Query(query)).await
    }

    /// Takes hold of a node.
    ///
    /// # Errors
    /// There is none, or others do not share what is asked for.
    pub async fn attach(&self, request: RootRequest) -> Result<Client> {
        match self.ask(Mutation::AttachRoot(request)).await? {
            GraphReply::Root(client) => Ok(client),
            _ => Err(unexpected()),
        }
    }

    /// Changes what a user of a node takes and shares.
    ///
    /// # Errors
    /// Others do not share that.
    pub async fn set_permissions(
        &self,
        root: RootId,
        permissions: Permissions,
        shared: Permissions,
    ) -> Result<()> {
        self.done(Mutation::SetRootPermissions {
            root,
            permissions,
            shared,
        })
        .await
    }

    /// Lets go of a node.
    ///
    /// # Errors
    /// There is no such hold.
    pub async fn detach(&self, root: RootId) -> Result<()> {
        self.done(Mutation::DetachRoot(root)).await
    }

    /// Begins a drained section, and waits until it is still. The section ends when the guard is dropped.
    ///
    /// # Errors
    /// There is no such node.
    pub async fn drain(&self, scope: DrainScope, user: impl Into<String>) -> Result<DrainGuard> {
        match self
            .ask(Immediate::DrainBegin {
                scope,
                user: user.into(),
            })
            .await?
        {
            GraphReply::Still(token) => Ok(DrainGuard {
                token,
                handle: self.clone(),
            }),
            _ => Err(unexpected()),
        }
    }

    /// Ends early what a node has in flight and its driver can end. Done at once, whatever else goes on.
    ///
    /// # Errors
    /// There is no such node.
    pub async fn cancel_in_flight(&self, node_name: impl Into<String>) -> Result<()> {
        let node_name = node_name.into();
        self.done(Immediate::CancelInFlight { node_name }).await
    }

    /// Flushes every node.
    ///
    /// # Errors
    /// A flush's.
    pub async fn flush_all(&self) -> Result<()> {
        self.done(Mutation::FlushAll).await
    }

    /// Drains, flushes and closes everything.
    ///
    /// # Errors
    /// A flush's; all is closed nevertheless.
    pub async fn close_all(&self) -> Result<()> {
        self.done(Immediate::CloseAll { grace: None }).await
    }

    /// The same, for at most `grace`: storage that never answers must not hold up the end of a program.
    ///
    /// # Errors
    /// A flush's, or what is waited for when the time is over.
    pub async fn close_all_within(&self, grace: Duration) -> Result<()> {
        let grace = Some(grace);
        self.done(Immediate::CloseAll { grace }).await
    }

    /// Starts an iothread.
    ///
    /// # Errors
    /// The id is taken, or a property is out of range.
    pub async fn add_iothread(&self, options: IothreadOptions) -> Result<()> {
        self.done(Mutation::AddIothread(options)).await
    }

    /// Stops an iothread.
    ///
    /// # Errors
    /// There is none, or a node lives there.
    pub async fn del_iothread(&self, id: impl Into<String>) -> Result<()> {
        self.done(Mutation::DelIothread { id: id.into() }).await
    }

    /// One node's facts.
    ///
    /// # Errors
    /// There is none.
    pub async fn node(&self, node_name: impl Into<String>) -> Result<NodeFacts> {
        match self
            .ask(GraphRequest::Query(Query::Node {
                node_name: node_name.into(),
            }))
            .await?
        {
            GraphReply::Node(facts) => Ok(facts),
            _ => Err(unexpected()),
        }
    }

    /// The sizes of the sectors of the device behind a node.
    ///
    /// # Errors
    /// There is no such node, or no device behind it that tells.
    pub async fn block_sizes(&self, node_name: impl Into<String>) -> Result<BlockSizes> {
        let node_name = node_name.into();
        match self
            .ask(GraphRequest::Query(Query::BlockSizes { node_name }))
            .await?
        {
            GraphReply::BlockSizes(sizes) => Ok(sizes),
            _ => Err(unexpected()),
        }
    }

    /// The geometry of the disk behind a node.
    ///
    /// # Errors
    /// There is no such node, or no disk behind it that has one.
    pub async fn geometry(&self, node_name: impl Into<String>) -> Result<Geometry> {
        let node_name = node_name.into();
        match self
            .ask(GraphRequest::Query(Query::Geometry { node_name }))
            .await?
        {
            GraphReply::Geometry(geometry) => Ok(geometry),
            _ => Err(unexpected()),
        }
    }

    /// The directory that relative names in a node's image start from, with a slash at its end.
    ///
    /// # Errors
    /// There is no such node, or its file has no name.
    pub async fn directory(&self, node_name: impl Into<String>) -> Result<String> {
        let node_name = node_name.into();
        match self
            .ask(GraphRequest::Query(Query::Directory { node_name }))
            .await?
        {
            GraphReply::Name(name) => Ok(name),
            _ => Err(unexpected()),
        }
    }

    /// The whole graph.
    ///
    /// # Errors
    /// The actor has ended.
    pub async fn facts(&self) -> Result<GraphFacts> {
        match self.ask(GraphRequest::Query(Query::Graph)).await? {
            GraphReply::Graph(facts) => Ok(facts),
            _ => Err(unexpected()),
        }
    }

    /// Has every read of a node copied up into it from below. Each call is taken back by one of
    /// [`GraphHandle::disable_copy_on_read`].
    ///
    /// # Errors
    /// There is no such node, or it cannot be written.
    pub async fn enable_copy_on_read(&self, node_name: impl Into<String>) -> Result<()> {
        let (node_name, on) = (node_name.into(), true);
        self.done(Mutation::CopyOnRead { node_name, on }).await
    }

    /// Takes one call of [`GraphHandle::enable_copy_on_read`] back.
    ///
    /// # Errors
    /// There is no such node, or no such call.
    pub async fn disable_copy_on_read(&self, node_name: impl Into<String>) -> Result<()> {
        let (node_name, on) = (node_name.into(), false);
        self.done(Mutation::CopyOnRead { node_name, on }).await
    }

    /// Holds the next request that reaches an event, at a node that listens or the next one below that does, under a tag.
    ///
    /// # Errors
    /// There is no such node or event, or nobody listens ([`ErrorKind::Unsupported`]).
    pub async fn debug_breakpoint(
        &self,
        node_name: impl Into<String>,
        event: impl Into<String>,
        tag: impl Into<String>,
    ) -> Result<()> {
        let (event, tag) = (event.into(), tag.into());
        self.debug(node_name, DebugOrder::Breakpoint { event, tag }).await
    }

    /// Forgets the breakpoints of a tag, and lets go of all that they hold.
    ///
    /// # Errors
    /// There is none, no such node, or nobody listens.
    pub async fn debug_remove_breakpoint(
        &self,
        node_name: impl Into<String>,
        tag: impl Into<String>,
    ) -> Result<()> {
        self.debug(node_name, DebugOrder::RemoveBreakpoint { tag: tag.into() })
            .await
    }

    /// Lets go of a request that is held under a tag.
    ///
    /// # Errors
    /// There is none, no such node, or nobody listens.
    pub async fn debug_resume(&self, node_name: impl Into<String>, tag: impl Into<String>) -> Result<()> {
        self.debug(node_name, DebugOrder::Resume { tag: tag.into() })
            .await
    }

    /// Whether a request is held under a tag; not where nobody listens.
    ///
    /// # Errors
    /// There is no such node.
    pub async fn debug_is_suspended(
        &self,
        node_name: impl Into<String>,
        tag: impl Into<String>,
    ) -> Result<bool> {
        let (node_name, order) = (node_name.into(), DebugOrder::IsSuspended { tag: tag.into() });
        match self.ask(Immediate::Debug { node_name, order }).await? {
            GraphReply::Suspended(held) => Ok(held),
            _ => Err(unexpected()),
        }
    }

    /// The whole graph in the DOT language.
    ///
    /// # Errors
    /// The actor has ended.
    pub async fn dot(&self) -> Result<String> {
        match self.ask(GraphRequest::Query(Query::Dot)).await? {
            GraphReply::Json(Value::String(text)) => Ok(text),
            _ => Err(unexpected()),
        }
    }

    async fn debug(&self, node_name: impl Into<String>, order: DebugOrder) -> Result<()> {
        let node_name = node_name.into();
        self.done(Immediate::Debug { node_name, order }).await
    }

    /// Drains that are not still, with what they wait for.
    ///
    /// # Errors
    /// The actor has ended.
    pub async fn pending_drains(&self) -> Result<Vec<PendingDrain>> {
        match self.ask(GraphRequest::Query(Query::PendingDrains)).await? {
            GraphReply::Drains(drains) => Ok(drains),
            _ => Err(unexpected()),
        }
    }

    /// What iothreads have done, the main one first.
    ///
    /// # Errors
    /// The actor has ended.
    pub async fn iothread_statistics(&self) -> Result<Vec<IothreadReport>> {
        match self.ask(GraphRequest::Query(Query::IothreadStatistics)).await? {
            GraphReply::IothreadStatistics(reports) => Ok(reports),
            _ => Err(unexpected()),
        }
    }

    /// What has passed each node, the oldest first.
    ///
    /// # Errors
    /// The actor has ended.
    pub async fn node_statistics(&self) -> Result<Vec<NodeReport>> {
        match self.ask(GraphRequest::Query(Query::NodeStatistics)).await? {
            GraphReply::NodeStatistics(reports) => Ok(reports),
            _ => Err(unexpected()),
        }
    }

    /// Counts a node's latencies from now on in new histograms, in place of those of the same kinds; none at all ends those
    /// that there are.
    ///
    /// # Errors
    /// There is no such node.
    pub async fn set_histograms(
        &self,
        node_name: impl Into<String>,
        histograms: LatencyHistograms,
    ) -> Result<()> {
        let node_name = node_name.into();
        self.done(Mutation::SetHistograms {
            node_name,
            histograms,
        })
        .await
    }

    /// `query-named-block-nodes`.
    ///
    /// # Errors
    /// The actor has ended.
    pub async fn named_nodes(&self, flat: bool) -> Result<Value> {
        match self.ask(GraphRequest::Query(Query::NamedNodes { flat })).await? {
            GraphReply::Json(json) => Ok(json),
            _ => Err(unexpected()),
        }
    }
}

pub(super) fn unexpected() -> Error {
    Error::new(
        ErrorKind::InvalidArgument,
        "The graph gave a reply to another question",
    )
}

/// A request's reply, once it is there.
#[must_use = "the request is on its way, but whether it fails is told here"]
pub struct Asked {
    id: RequestId,
    reply: Option<oneshot::Receiver<Result<GraphReply<Client>>>>,
    handle: GraphHandle,
}

impl Future for Asked {
    type Output = Result<GraphReply<Client>>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(reply) = &mut self.reply else {
            return Poll::Ready(Err(closed()));
        };
        let Poll::Ready(result) = Pin::new(reply).poll(context) else {
            return Poll::Pending;
        };
        self.reply = None;
        Poll::Ready(result.unwrap_or_else(|_| Err(closed())))
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        if let Some(mut reply) = self.reply.take() {
            // Closed before the actor hears of it, so that it either sees the reply refused or was told in time.
            reply.close();
            self.handle.sender.send(Incoming::Abandoned(self.id));
            // A reply that had come already is given back here.
            if let Ok(Some(Ok(reply))) = reply.try_recv() {
                self.give_back(&reply);
            }
        }
    }
}

impl Asked {
    fn give_back(&self, reply: &GraphReply<Client>) {
        match reply {
            GraphReply::Still(token) => self.handle.send(Immediate::DrainEnd(*token)),
            GraphReply::Root(client) => self.handle.send(Mutation::DetachRoot(client.root())),
            GraphReply::Blocked(token) => self.handle.send(unblock_all(*token)),
            GraphReply::Frozen(token) => self.handle.send(Mutation::UnfreezeChain(*token)),
            _ => {}
        }
    }
}

/// Ends an op blocker.
pub(super) fn unblock_all(token: Token) -> Mutation {
    Mutation::OpUnblock {
        token,
        node_name: None,
        operations: OpBlocker::ALL.to_vec(),
    }
}

/// A drained section that is still. It ends when this is dropped.
#[must_use = "the section ends when the guard is dropped"]
pub struct DrainGuard {
    token: Token,
    handle: GraphHandle,
}

impl DrainGuard {
    /// The number of the section, which queries show.
    #[must_use]
    pub const fn token(&self) -> Token {
        self.token
    }
}

impl Drop for DrainGuard {
    fn drop(&mut self) {
        self.handle.send(Immediate::DrainEnd(self.token));
    }
}
