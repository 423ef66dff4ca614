//! Where a data half runs, and what it goes by.

use std::task::{Poll, Waker};

use futures_channel::oneshot;
use millpond_messages::qapi::schema::{BlockErrorAction, BlockdevOnError, IoOperationType};
use millpond_messages::{Error, ErrorKind, IoError, Result};

use crate::iothread::Local;
use crate::job::pace::{Cancelled, Gates, Pace};
use crate::node::{Client, HomeClient};

/// Bytes that a job looks at in one go: a pause point comes at least as often as that.
pub(super) const CHUNK: u64 = 512 << 10;

/// The gates of all nodes that a job has to do with.
pub(super) struct NodeGates(Vec<HomeClient>);

impl NodeGates {
    pub fn new(clients: &[Client]) -> Self {
        Self(clients.iter().map(Client::here).collect())
    }
}

impl Gates for NodeGates {
    fn watch(&self, waker: &Waker) -> bool {
        let mut are_open = true;
        for client in &self.0 {
            are_open &= client.watch_open(waker);
        }
        are_open
    }
}

/// Runs a data half on the iothread where a client's node lives, and waits for its end.
///
/// # Errors
/// The data half's, or the iothread has ended.
pub(super) async fn at_home<F>(client: Client, work: impl FnOnce() -> F + Send + 'static) -> Result<()>
where
    F: Future<Output = Result<()>> + 'static,
{
    let (done, ended) = oneshot::channel();
    client.run_at_home(move || {
        if let Some(local) = Local::current() {
            let work = work();
            // Nobody waits any more where the daemon has given its jobs up.
            local.spawn(async move { drop(done.send(work.await)) });
        }
    });
    let gone = || Error::new(ErrorKind::Closed, IoError::NoMedium.to_string());
    ended.await.unwrap_or_else(|_| Err(gone()))
}

/// A data half's way to deal with errors of its own requests.
pub(super) struct Errors {
    pub pace: Pace,
    pub policy: BlockdevOnError,
}

impl Errors {
    /// Waits for a request.
    ///
    /// # Errors
    /// The job is to end, and the request has not.
    pub async fn unless_stuck<T>(&self, request: impl Future<Output = T>) -> Result<T> {
        self.pace.unless_stuck(request).await.map_err(cancelled)
    }

    /// What is done about a failed request.
    pub fn action(&self, operation: IoOperationType, error: IoError) -> BlockErrorAction {
        self.pace.failed(self.policy, operation, error)
    }
}

/// A job that was cancelled has failed.
pub(super) fn cancelled(cancelled: Cancelled) -> Error {
    Error::new(ErrorKind::Io(IoError::Cancelled), cancelled.to_string())
}

/// A job that failed because of a request.
pub(super) fn failed(error: IoError) -> Error {
    Error::new(ErrorKind::Io(error), error.to_string())
}

/// Lets the other tasks of the thread run: requests that are answered at once leave them no room otherwise.
pub(super) async fn yield_now() {
    let mut yielded = false;
    std::future::poll_fn(|context| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
