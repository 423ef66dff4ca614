//! The graph for any program: requests, whose answers are futures that run on the caller's executor.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_channel::{mpsc, oneshot};
use millpond_messages::graph::{
    AddIothread, AddNode, AttachRoot, CloseAll, DeleteFile, DeleteNode, DetachRoot, FindNode, FlushAll,
    GraphFacts, GraphRequest, IothreadOptions, NodeFacts, Open, OpenHeld, OpenImage, Options, Request,
    RootRequest, RootUser, Snapshot, WholeGraph,
};
use millpond_messages::{ErrorKind, Result, RootId};

use super::asked::Asked;
use super::inbox::Incoming;
use super::mailbox::Sender;
use super::names::Names;
use millpond_engine::node::Client;
use millpond_graph::{Announcement, RequestId};

/// Announcements that a listener may be behind before it loses more.
const UNHEARD: usize = 1024;

/// A handle on the graph actor, for any thread. Cheap to clone.
///
/// Whatever the graph can be asked is a struct of [`millpond_messages::graph`]: [`GraphHandle::ask`] takes any of them, and its
/// answer is of the type that goes with the request. The other functions are for what every program needs.
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

    /// Puts a message into the actor's queue. Where the actor has ended, the message is dropped, and with it the sender of
    /// any answer.
    pub(super) fn post(&self, message: Incoming) {
        self.sender.send(message);
    }

    /// Sends any request. It is on its way when this returns; the future is the answer. A future dropped early does not
    /// take the request back, but what it would have given (a hold, a drained section) is given up again.
    ///
    /// ```
    /// # use millpond::embed::{BlockLayer, BlockLayerConfig};
    /// use millpond_messages::graph::Resize;
    ///
    /// # futures_executor::block_on(async {
    /// # let layer = BlockLayer::start(BlockLayerConfig::default()).await?;
    /// # let options = serde_json::json!({"driver": "null-co", "node-name": "disk", "size": 512});
    /// # layer.graph().add_node(options.as_object().cloned().unwrap_or_default()).await?;
    /// let node_name = "disk".to_owned();
    /// let resized = layer.graph().ask(Resize { node_name, size: 1 << 20 }).await;
    /// assert!(resized.is_err(), "a null device has the length that it was opened with");
    /// # layer.shut_down().await?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    pub fn ask<R: Request>(&self, request: R) -> Asked<R> {
        let id = self.next_id();
        let (sender, reply) = oneshot::channel();
        let sent = self
            .sender
            .send(Incoming::Request(id, request.into(), Some(sender)));
        Asked::new(id, sent.then_some(reply), self.clone())
    }

    /// Sends a request whose answer nobody wants. It is on its way when this returns.
    pub fn send(&self, request: impl Into<GraphRequest>) {
        // Where the actor has ended, so has everything that could be asked of it.
        self.sender
            .send(Incoming::Request(self.next_id(), request.into(), None));
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
        self.ask(Open(Box::new(image))).await
    }

    /// Opens an image and takes hold of it, with the permissions that its flags stand for. It is closed when `holder` lets
    /// go.
    ///
    /// # Errors
    /// Whatever an open met, or others do not share those permissions; nothing is left behind.
    pub async fn open_held(&self, image: OpenImage, holder: RootUser) -> Result<Client> {
        let image = Box::new(image);
        self.ask(OpenHeld { image, holder }).await
    }

    /// Opens a node, with what it needs below it: `blockdev-add`.
    ///
    /// # Errors
    /// Whatever an open met; nothing is left behind.
    pub async fn add_node(&self, options: Options) -> Result<()> {
        self.ask(AddNode(options)).await
    }

    /// Closes a node that was added: `blockdev-del`.
    ///
    /// # Errors
    /// There is none, or it is in use.
    pub async fn delete_node(&self, node_name: impl Into<String>) -> Result<()> {
        let node_name = node_name.into();
        self.ask(DeleteNode { node_name }).await
    }

    /// Puts an open overlay on top of a node: `blockdev-snapshot`.
    ///
    /// # Errors
    /// One of them cannot be part of that; nothing has changed.
    pub async fn snapshot(&self, node: impl Into<String>, overlay: impl Into<String>) -> Result<()> {
        let (node, overlay) = (node.into(), overlay.into());
        self.ask(Snapshot { node, overlay }).await
    }

    /// Deletes the file of a node, for who is cleaning up and can do no more: a driver that has no file is fine, and any other
    /// error is a line in the log.
    pub async fn delete_file_noerr(&self, node_name: impl Into<String>) {
        let node_name = node_name.into();
        match self.ask(DeleteFile { node_name }).await {
            Err(error) if error.kind() != ErrorKind::Unsupported => {
                tracing::warn!(%error, "the file of a node is not deleted");
            }
            Ok(()) | Err(_) => {}
        }
    }

    /// Takes hold of a node.
    ///
    /// # Errors
    /// There is none, or others do not share what is asked for.
    pub async fn attach(&self, request: RootRequest) -> Result<Client> {
        self.ask(AttachRoot(request)).await
    }

    /// Lets go of a node.
    ///
    /// # Errors
    /// There is no such hold.
    pub async fn detach(&self, root: RootId) -> Result<()> {
        self.ask(DetachRoot(root)).await
    }

    /// One node's facts.
    ///
    /// # Errors
    /// There is none.
    pub async fn node(&self, node_name: impl Into<String>) -> Result<NodeFacts> {
        let node_name = node_name.into();
        self.ask(FindNode { node_name }).await
    }

    /// The whole graph.
    ///
    /// # Errors
    /// The actor has ended.
    pub async fn facts(&self) -> Result<GraphFacts> {
        self.ask(WholeGraph).await
    }

    /// Starts an iothread.
    ///
    /// # Errors
    /// The id is taken, or a property is out of range.
    pub async fn add_iothread(&self, options: IothreadOptions) -> Result<()> {
        self.ask(AddIothread(options)).await
    }

    /// Flushes every node.
    ///
    /// # Errors
    /// A flush's.
    pub async fn flush_all(&self) -> Result<()> {
        self.ask(FlushAll).await
    }

    /// Drains, flushes and closes everything. [`CloseAll`] can be told how long that may take.
    ///
    /// # Errors
    /// A flush's; all is closed nevertheless.
    pub async fn close_all(&self) -> Result<()> {
        self.ask(CloseAll { grace: None }).await
    }
}
