//! What a block job has of the graph while it goes on: nodes that stay what they are, and the clients that it reads and
//! writes with.

use std::cell::RefCell;
use std::time::Duration;

use millpond_messages::graph::{
    CancelInFlight, DrainScope, DropFilter, EditForJob, JobEdit, JoinBitmap, OpBlock, Options, ReopenKeeping,
    RootRequest, RootUser,
};
use millpond_messages::qapi::QmpError;
use millpond_messages::{Error, ErrorKind, OpBlocker, Permissions, Result};

use super::chain::Chains;
use crate::graph::{DrainGuard, FreezeGuard, GraphHandle, OpBlockGuard};
use crate::job::pace::Pace;
use crate::node::Client;

/// What a job has taken. Its job's control half alone uses it, on the control thread.
pub(super) struct Holds {
    pub graph: GraphHandle,
    id: String,
    reason: String,
    clients: RefCell<Vec<Client>>,
    frozen: RefCell<Option<FreezeGuard>>,
    /// No other operation begins at what the job's filter was put over.
    below_filter: RefCell<Option<OpBlockGuard>>,
}

/// What is not forbidden at every node that a job has.
const FREE: [OpBlocker; 2] = [OpBlocker::DriveDel, OpBlocker::Dataplane];

impl Holds {
    /// Nothing is held yet. `kind` is what others are told about what stands in their way.
    pub fn new(graph: GraphHandle, id: &str, kind: &str) -> Self {
        Self {
            graph,
            id: id.to_owned(),
            reason: reason(kind),
            clients: RefCell::default(),
            frozen: RefCell::default(),
            below_filter: RefCell::default(),
        }
    }

    /// Takes hold of a node for I/O.
    ///
    /// # Errors
    /// Others do not share what is taken, or take what is not shared.
    pub async fn open(&self, node: &str, taken: Permissions, shared: Permissions) -> Result<Client> {
        let user = RootUser::Job(self.id.clone());
        let request = RootRequest {
            shared,
            ..RootRequest::new(node, user, taken)
        };
        let client = self.graph.attach(request).await?;
        self.clients.borrow_mut().push(client.clone());
        Ok(client)
    }

    /// Has a node stay what it is: others do with it only what is shared, and no other operation begins there.
    ///
    /// # Errors
    /// Others do what is not shared.
    pub async fn keep(&self, node: &str, shared: Permissions) -> Result<Client> {
        self.keep_but(node, shared, None).await
    }

    /// As [`Holds::keep`], of a node that only its use keeps from being deleted, as in QEMU.
    ///
    /// # Errors
    /// The node is gone.
    pub async fn keep_target(&self, node: &str) -> Result<Client> {
        let free = Some(OpBlocker::DriveDel);
        self.keep_but(node, Permissions::all(), free).await
    }

    /// As [`Holds::keep`], of the node that the job is named after.
    ///
    /// # Errors
    /// The node is gone.
    pub async fn keep_main(&self, node: &str) -> Result<Client> {
        let free = Some(OpBlocker::Dataplane);
        self.keep_but(node, Permissions::all(), free).await
    }

    /// As [`Holds::keep`], where one operation may begin.
    async fn keep_but(&self, node: &str, shared: Permissions, free: Option<OpBlocker>) -> Result<Client> {
        let client = self.open(node, Permissions::empty(), shared).await?;
        self.block(node, &client, &all_but(free.as_slice())).await?;
        Ok(client)
    }

    /// Forbids some operations at a node, for as long as a client is held.
    ///
    /// # Errors
    /// The node is gone.
    pub async fn block(&self, node: &str, client: &Client, kinds: &[OpBlocker]) -> Result<()> {
        let root = client.root();
        let block = OpBlock {
            node_name: node.to_owned(),
            operations: kinds.to_vec(),
            reason: self.reason.clone(),
            root: Some(root),
        };
        self.graph.ask(block).await.map(drop)
    }

    /// Has the links of a chain stay what they are.
    ///
    /// # Errors
    /// One of them is kept already.
    pub async fn freeze(&self, top: &str, base: &str) -> Result<()> {
        let guard = self.graph.freeze_chain(top, Some(base.to_owned())).await?;
        self.frozen.replace(Some(guard));
        Ok(())
    }

    /// Gives the links of the chain free.
    pub fn unfreeze(&self) {
        self.frozen.take();
    }

    /// All clients there are at present: a drained section that covers one of their nodes concerns the job.
    pub fn clients(&self) -> Vec<Client> {
        self.clients.borrow().clone()
    }

    /// Lets go of a node.
    pub async fn release(&self, client: &Client) {
        let root = client.root();
        self.clients.borrow_mut().retain(|held| held.root() != root);
        self.detach(client).await;
    }

    /// Lets go of everything.
    pub async fn release_all(&self) {
        self.unfreeze();
        self.below_filter.take();
        let clients = self.clients.take();
        for client in clients.iter().rev() {
            self.detach(client).await;
        }
    }

    async fn detach(&self, client: &Client) {
        if let Err(error) = self.graph.detach(client.root()).await {
            tracing::debug!(%error, job = self.id, "a node was gone before its job let go of it");
        }
    }

    /// Puts a filter of `driver` over a node, by options that name the node as its child; answers the filter's name. Where
    /// `says_step`, an error says whether the filter could not be made, or not be put there.
    ///
    /// # Errors
    /// Nothing has changed then.
    pub async fn insert_filter(
        &self,
        node: &str,
        driver: &str,
        options: Options,
        says_step: bool,
    ) -> Result<Option<String>> {
        // Before the job has taken hold of both, somebody else's operation could begin there.
        let kinds = all_but(&FREE);
        let blocked = self.graph.op_block(node, &kinds, self.reason.as_str()).await?;
        self.below_filter.replace(Some(blocked));
        let inserted = JobEdit::InsertFilter {
            node: node.to_owned(),
            options,
            says_step,
        };
        self.graph.ask(EditForJob(inserted)).await?;
        let chains = Chains::new(self.graph.facts().await?);
        let filter = chains.filter_over(node, driver);
        Ok(filter.map(|filter| filter.name.clone()))
    }

    /// Lets go of everything at the end of a job that has a target, and takes the job's filter out, if that is there still.
    pub async fn end(&self, filter: Option<String>, succeeded: bool, pace: Option<Pace>) {
        let still = match (succeeded, filter.clone()) {
            (false, Some(filter)) => self.abandon_target(filter, pace).await,
            _ => None,
        };
        self.release_all().await;
        if let Some(filter) = filter {
            self.drop_filter(filter).await;
        }
        drop(still);
    }

    /// Waits until what a filter holds up for the job's target has ended, for as long as the job may wait. Until the guard that
    /// is answered is dropped, nothing comes to the filter that would wait for the target again; it is to stand until the
    /// filter is out. Without a guard, what is left and what comes waits for the target no more, because that may never
    /// answer; nor does any drain.
    async fn abandon_target(&self, filter: String, pace: Option<Pace>) -> Option<DrainGuard> {
        let patience = pace.map_or(Duration::ZERO, |pace| pace.patience_left());
        let drained = self
            .graph
            .drain(DrainScope::Node(filter.clone()), self.id.as_str());
        if let Ok(Ok(still)) = tokio::time::timeout(patience, drained).await {
            return Some(still);
        }
        let cancelled = CancelInFlight {
            node_name: filter,
            alone: true,
        };
        if let Err(error) = self.graph.ask(cancelled).await {
            tracing::debug!(%error, job = self.id, "a job's filter was gone before its end");
        }
        None
    }

    /// Puts a bitmap together again at the job's end.
    pub async fn join_bitmap(&self, join: JoinBitmap) {
        if let Err(error) = self.graph.ask(EditForJob(JobEdit::JoinBitmap(join))).await {
            tracing::debug!(%error, job = self.id, "a bitmap was gone before its job's end");
        }
    }

    /// Takes a filter out at the job's end. One whose last user has let go is gone already.
    pub async fn drop_filter(&self, node_name: String) {
        match self.graph.ask(DropFilter { node_name }).await {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                tracing::warn!(%error, job = self.id, "a job's filter stays");
            }
            _ => {}
        }
    }

    /// Makes a node writable that is not; answers whether it was not.
    ///
    /// # Errors
    /// It cannot be.
    pub async fn make_writable(&self, node: &str, read_only: bool) -> Result<bool> {
        if read_only {
            self.graph.ask(ReopenKeeping(vec![access(node, false)])).await?;
        }
        Ok(read_only)
    }

    /// Makes a node read-only again.
    pub async fn make_read_only(&self, node: &str) {
        if let Err(error) = self.graph.ask(ReopenKeeping(vec![access(node, true)])).await {
            tracing::warn!(%error, node, "a node stays writable");
        }
    }
}

/// All operations but those that may begin.
fn all_but(free: &[OpBlocker]) -> Vec<OpBlocker> {
    let kinds = OpBlocker::ALL.into_iter();
    kinds.filter(|kind| !free.contains(kind)).collect()
}

/// What others are told about a job of this kind that stands in their way.
pub(super) fn reason(kind: &str) -> String {
    format!("block device is in use by block job: {kind}")
}

/// What reopens a node, and what takes its options from it, read-only or writable.
fn access(node: &str, read_only: bool) -> Options {
    let mut options = Options::new();
    options.insert("node-name".to_owned(), node.into());
    options.insert("read-only".to_owned(), read_only.into());
    options
}

/// An error of a job's end as its errno tells it, which is all that users of QEMU are told of it.
pub(super) fn by_errno(error: &Error) -> Error {
    let reason = millpond_messages::IoError::from_errno(error.errno());
    Error::new(error.kind(), reason.to_string())
}

/// A command's arguments as they are written down.
pub(super) fn as_options(asked: &impl serde::Serialize) -> Options {
    match serde_json::to_value(asked) {
        Ok(serde_json::Value::Object(options)) => options,
        // Arguments of commands are objects.
        _ => Options::new(),
    }
}

/// What a user asks for is not possible.
pub(super) fn refused<T>(text: impl Into<String>) -> Result<T, QmpError> {
    Err(QmpError::generic(text))
}
