//! The graph for any program: async functions whose futures run on the caller's executor.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_channel::{mpsc, oneshot};
use millpond_messages::graph::{
    DrainScope, GraphReply, GraphRequest, Immediate, IothreadOptions, Mutation, OpenImage, Options, Query,
    RootRequest, RootUser,
};
use millpond_messages::{OpBlocker, Permissions, Result, RootId, Token};

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

    /// Opens an image by name, options or both; answers the node's name. The node stays until it is deleted.
    ///
    /// # Errors
    /// Whatever an open met; nothing is left behind.
    pub async fn open(&self, image: OpenImage) -> Result<String> {
        let image = OpenImage {
            holder: None,
            ..image
        };
        self.get(Mutation::Open(Box::new(image))).await
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
        self.get(Mutation::Open(Box::new(image))).await
    }

    /// Opens a node, with what it needs below it.
    ///
    /// # Errors
    /// Whatever an open met; nothing is left behind.
    pub async fn blockdev_add(&self, options: Options) -> Result<()> {
        self.get(Mutation::BlockdevAdd(options)).await
    }

    /// Closes a node.
    ///
    /// # Errors
    /// There is none, or it is in use.
    pub async fn blockdev_del(&self, node_name: impl Into<String>) -> Result<()> {
        self.get(Mutation::BlockdevDel {
            node_name: node_name.into(),
        })
        .await
    }

    /// Changes options and children of nodes, all or none.
    ///
    /// # Errors
    /// One of them cannot be; nothing has changed.
    pub async fn blockdev_reopen(&self, nodes: Vec<Options>) -> Result<()> {
        self.get(Mutation::BlockdevReopen(nodes)).await
    }

    /// Changes some options of nodes, all or none; what is not named stays as it is.
    ///
    /// # Errors
    /// One of them cannot be; nothing has changed.
    pub async fn reopen_keeping(&self, nodes: Vec<Options>) -> Result<()> {
        self.get(Mutation::ReopenKeeping(nodes)).await
    }

    /// Makes a node, and what takes its options from it, read-only or writable.
    ///
    /// # Errors
    /// Somebody writes to it, or it was opened to stay read-only.
    pub async fn set_read_only(&self, node_name: impl Into<String>, read_only: bool) -> Result<()> {
        self.get(Mutation::SetReadOnly {
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
        self.get(Mutation::SetActive { node_name, active }).await
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
        self.get(Mutation::InvalidateCache {
            node_name: node_name.into(),
        })
        .await
    }

    /// Takes hold of a node as [`GraphHandle::attach`] does, and lets go of its permissions while the node is inactive.
    ///
    /// # Errors
    /// There is none, or others do not share what is asked for.
    pub async fn attach_inactive(&self, request: RootRequest) -> Result<Client> {
        self.get(Mutation::AttachRootInactive(request)).await
    }

    /// Puts an overlay on top of a node.
    ///
    /// # Errors
    /// One of them cannot be part of that; nothing has changed.
    pub async fn blockdev_snapshot(&self, node: impl Into<String>, overlay: impl Into<String>) -> Result<()> {
        self.get(Mutation::BlockdevSnapshot {
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
        self.get(Mutation::AddChild {
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
        self.get(Mutation::DelChild {
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
        self.get(Mutation::BlockdevCreate(options)).await
    }

    /// Changes format options of an open image in place, as `qemu-img amend` does and by its names: `compat`,
    /// `lazy_refcounts`, `size`.
    ///
    /// # Errors
    /// The format cannot, an option is not for it, somebody relies on what would change, or the driver's.
    pub async fn amend(&self, node_name: impl Into<String>, options: Options) -> Result<()> {
        self.get(Mutation::Amend {
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
        self.get(Mutation::Resize {
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
        self.get(Mutation::SetIothread {
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
        self.get(Mutation::MoveNode { node_name, iothread }).await
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
        self.get(GraphRequest::Query(query)).await
    }

    /// Takes hold of a node.
    ///
    /// # Errors
    /// There is none, or others do not share what is asked for.
    pub async fn attach(&self, request: RootRequest) -> Result<Client> {
        self.get(Mutation::AttachRoot(request)).await
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
        self.get(Mutation::SetRootPermissions {
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
        self.get(Mutation::DetachRoot(root)).await
    }

    /// Begins a drained section, and waits until it is still. The section ends when the guard is dropped.
    ///
    /// # Errors
    /// There is no such node.
    pub async fn drain(&self, scope: DrainScope, user: impl Into<String>) -> Result<DrainGuard> {
        let user = user.into();
        let token = self.get(Immediate::DrainBegin { scope, user }).await?;
        let handle = self.clone();
        Ok(DrainGuard { token, handle })
    }

    /// Ends early what a node has in flight and its driver can end. Done at once, whatever else goes on.
    ///
    /// # Errors
    /// There is no such node.
    pub async fn cancel_in_flight(&self, node_name: impl Into<String>) -> Result<()> {
        let node_name = node_name.into();
        self.get(Immediate::CancelInFlight { node_name }).await
    }

    /// Flushes every node.
    ///
    /// # Errors
    /// A flush's.
    pub async fn flush_all(&self) -> Result<()> {
        self.get(Mutation::FlushAll).await
    }

    /// Drains, flushes and closes everything.
    ///
    /// # Errors
    /// A flush's; all is closed nevertheless.
    pub async fn close_all(&self) -> Result<()> {
        self.get(Immediate::CloseAll { grace: None }).await
    }

    /// The same, for at most `grace`: storage that never answers must not hold up the end of a program.
    ///
    /// # Errors
    /// A flush's, or what is waited for when the time is over.
    pub async fn close_all_within(&self, grace: Duration) -> Result<()> {
        let grace = Some(grace);
        self.get(Immediate::CloseAll { grace }).await
    }

    /// Starts an iothread.
    ///
    /// # Errors
    /// The id is taken, or a property is out of range.
    pub async fn add_iothread(&self, options: IothreadOptions) -> Result<()> {
        self.get(Mutation::AddIothread(options)).await
    }

    /// Stops an iothread.
    ///
    /// # Errors
    /// There is none, or a node lives there.
    pub async fn del_iothread(&self, id: impl Into<String>) -> Result<()> {
        self.get(Mutation::DelIothread { id: id.into() }).await
    }
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
