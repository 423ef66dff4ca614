//! Where a data half runs, and what it goes by.

use std::task::Waker;

use futures_channel::oneshot;
use millpond_messages::qapi::schema::{BlockErrorAction, BlockdevOnError, IoOperationType};
use millpond_messages::{Error, ErrorKind, IoError, Result};

use crate::iothread::Local;
use crate::job::pace::{Cancelled, Gates, Pace};
use crate::node::{Client, HomeClient};

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
/// The iothread has ended.
pub(super) async fn at_home<F, T>(client: Client, work: impl FnOnce() -> F + Send + 'static) -> Result<T>
where
    F: Future<Output = T> + 'static,
    T: Send + 'static,
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
    ended.await.map_err(|_| gone())
}

/// A data half's way to deal with errors of its own requests.
pub(super) struct Errors {
    pub pace: Pace,
    pub policy: BlockdevOnError,
}

impl Errors {
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

/// Has a node flush what a job has copied there, before anything relies on that: what is taken out of a chain may be deleted
/// as soon as its job has ended.
///
/// # Errors
/// It cannot, or the job is cancelled.
pub(super) async fn flush_copied(client: &Client, pace: &Pace) -> Result<()> {
    let flushed = pace.unless_stuck(client.flush()).await;
    flushed.map_err(cancelled)?.map_err(failed)
}
