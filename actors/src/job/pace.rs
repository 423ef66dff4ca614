//! What a job's user wishes, and what its data half reports.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::Poll;

use futures_util::task::AtomicWaker;

/// The job is to stand still at its next pause point.
const PAUSE: u8 = 1;
/// It is to end without a result.
const CANCEL: u8 = 2;
/// It is ready, and is to end now.
const COMPLETE: u8 = 4;

/// The job was cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Operation canceled")]
pub struct Cancelled;

/// What a data half reports to the registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Report {
    /// It stands still at a pause point.
    Paused,
    /// It goes on from there.
    Resumed,
    /// Source and target are alike, and are kept so.
    Ready,
    /// So much is done, of so much.
    Progress { done: i64, total: i64 },
}

type Reports = Arc<dyn Fn(Report) + Send + Sync>;

#[derive(Default)]
struct Wishes {
    bits: AtomicU8,
    /// The data half, when it waits for a wish.
    waiting: AtomicWaker,
}

/// The line between a job's two halves. Clones are the same line; the data half may use it on any thread.
#[derive(Clone)]
pub struct Pace {
    wishes: Arc<Wishes>,
    reports: Reports,
}

impl Pace {
    pub(super) fn new(reports: impl Fn(Report) + Send + Sync + 'static) -> Self {
        Self {
            wishes: Arc::default(),
            reports: Arc::new(reports),
        }
    }

    fn has(&self, wish: u8) -> bool {
        self.wishes.bits.load(Ordering::Acquire) & wish != 0
    }

    fn set(&self, wish: u8) {
        self.wishes.bits.fetch_or(wish, Ordering::AcqRel);
        self.wishes.waiting.wake();
    }

    pub(super) fn pause(&self) {
        self.set(PAUSE);
    }

    pub(super) fn resume(&self) {
        self.wishes.bits.fetch_and(!PAUSE, Ordering::AcqRel);
        self.wishes.waiting.wake();
    }

    pub(super) fn cancel(&self) {
        self.set(CANCEL);
    }

    pub(super) fn complete(&self) {
        self.set(COMPLETE);
    }

    /// Whether the job is to end without a result.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.has(CANCEL)
    }

    /// A pause point: while nothing of the job is in flight. Waits while the job is to stand still.
    ///
    /// # Errors
    /// The job is to end.
    pub async fn point(&self) -> Result<(), Cancelled> {
        if self.has(PAUSE) && !self.is_cancelled() {
            (self.reports)(Report::Paused);
            self.until(|pace| !pace.has(PAUSE) || pace.is_cancelled()).await;
            (self.reports)(Report::Resumed);
        }
        match self.is_cancelled() {
            true => Err(Cancelled),
            false => Ok(()),
        }
    }

    /// Source and target are alike: waits until a user completes the job, or wishes anything else.
    ///
    /// # Errors
    /// The job is to end without that.
    pub async fn ready(&self) -> Result<(), Cancelled> {
        (self.reports)(Report::Ready);
        loop {
            self.until(|pace| pace.has(PAUSE | CANCEL | COMPLETE)).await;
            self.point().await?;
            if self.has(COMPLETE) {
                return Ok(());
            }
        }
    }

    /// So much is done, of so much.
    pub fn progress(&self, done: i64, total: i64) {
        (self.reports)(Report::Progress { done, total });
    }

    async fn until(&self, condition: impl Fn(&Self) -> bool) {
        poll_fn(|context| {
            // Before the look, so that a wish that comes in between wakes.
            self.wishes.waiting.register(context.waker());
            match condition(self) {
                true => Poll::Ready(()),
                false => Poll::Pending,
            }
        })
        .await;
    }
}
