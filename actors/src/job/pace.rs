//! What a job's user wishes, and what its data half reports.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU64, Ordering};
use std::task::{Poll, Waker};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use millpond_messages::IoError;
use millpond_messages::qapi::schema::{BlockErrorAction, BlockdevOnError, IoOperationType};
// The clock of the registry's timers, which a simulation moves.
use tokio::time::Instant;

use super::limit::Limit;
use super::policy;

/// The job is to stand still at its next pause point.
const PAUSE: u8 = 1;
/// It is to end without a result.
const CANCEL: u8 = 2;
/// It is ready, and is to end now with its result.
const COMPLETE: u8 = 4;
/// It is ready, and is to end now: what it has copied is its result.
const STOP: u8 = 8;

/// How long the data half of a cancelled job waits for a request of its own. Storage that is dead never answers.
const GRACE: Duration = Duration::from_millis(500);

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
    /// It waits for this long at most, and is to be woken then.
    Rests(Duration),
    /// A request of its own failed, and this is done about it.
    Failed {
        operation: IoOperationType,
        action: BlockErrorAction,
        error: IoError,
    },
}

type Reports = Arc<dyn Fn(Report) + Send + Sync>;

/// The gates that a data half's requests come through: a drained section that closes one of them pauses the job.
pub trait Gates {
    /// Whether all are open. `waker` is called when that changes.
    fn watch(&self, waker: &Waker) -> bool;

    /// Whether the work can have no result any more, so that its speed need not be kept. The same `waker` is called.
    fn is_in_vain(&self) -> bool {
        false
    }
}

/// Work without requests to nodes.
impl Gates for () {
    fn watch(&self, _: &Waker) -> bool {
        true
    }
}

#[derive(Default)]
struct Wishes {
    bits: AtomicU8,
    limit: Limit,
    done: AtomicI64,
    total: AtomicI64,
    /// Waits for its speed to allow more, or is paused: nothing of it is in flight.
    rests: AtomicBool,
    /// Until when, in nanoseconds of the job's age, a cancelled job waits for requests of its own; 0 before it has seen that.
    patience: AtomicU64,
    /// The data half, when it waits for a wish.
    waiting: AtomicWaker,
}

/// The line between a job's two halves. Clones are the same line; the data half may use it on any thread.
#[derive(Clone)]
pub struct Pace {
    wishes: Arc<Wishes>,
    reports: Reports,
    begun: Instant,
}

/// What the registry wishes.
impl Pace {
    pub(super) fn new(reports: impl Fn(Report) + Send + Sync + 'static) -> Self {
        Self {
            wishes: Arc::default(),
            reports: Arc::new(reports),
            begun: Instant::now(),
        }
    }

    fn has(&self, wish: u8) -> bool {
        self.wishes.bits.load(Ordering::Acquire) & wish != 0
    }

    fn set(&self, wish: u8) {
        self.wishes.bits.fetch_or(wish, Ordering::AcqRel);
        self.wake();
    }

    pub(super) fn wake(&self) {
        self.wishes.waiting.wake();
    }

    pub(super) fn pause(&self) {
        self.set(PAUSE);
    }

    pub(super) fn resume(&self) {
        self.wishes.bits.fetch_and(!PAUSE, Ordering::AcqRel);
        self.wake();
    }

    pub(super) fn cancel(&self) {
        self.set(CANCEL);
    }

    /// What was to be cancelled has become final before that.
    pub(super) fn cancelled_too_late(&self) {
        self.wishes.bits.fetch_and(!CANCEL, Ordering::AcqRel);
    }

    pub(super) fn complete(&self) {
        self.set(COMPLETE);
    }

    pub(super) fn stop(&self) {
        self.set(STOP);
    }

    pub(super) fn set_speed(&self, speed: u64) {
        self.wishes.limit.set_speed(speed);
        self.wake();
    }

    /// So much is done, of so much.
    pub(super) fn progress_made(&self) -> (i64, i64) {
        let (done, total) = (&self.wishes.done, &self.wishes.total);
        (done.load(Ordering::Acquire), total.load(Ordering::Acquire))
    }

    /// How long ago the job was made.
    pub(super) fn age(&self) -> Duration {
        self.begun.elapsed()
    }

    pub(super) fn is_resting(&self) -> bool {
        self.wishes.rests.load(Ordering::Acquire)
    }
}

/// What the data half says and asks.
impl Pace {
    /// Whether the job is to end without a result.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.has(CANCEL)
    }

    /// Whether the job is to stand still at its next pause point, by a user's wish or for an error.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.has(PAUSE)
    }

    /// Bytes a second that the job may move, 0 for no limit.
    #[must_use]
    pub fn speed(&self) -> u64 {
        self.wishes.limit.speed()
    }

    /// A pause point of work that has no gates.
    ///
    /// # Errors
    /// The job is to end.
    pub async fn point(&self) -> Result<(), Cancelled> {
        self.point_at(&()).await
    }

    /// A pause point: while nothing of the job is in flight. Waits while the job is to stand still, while a gate is closed,
    /// and while the job has moved more than its speed allows.
    ///
    /// # Errors
    /// The job is to end.
    pub async fn point_at(&self, gates: &impl Gates) -> Result<(), Cancelled> {
        loop {
            if self.is_cancelled() {
                return Err(Cancelled);
            }
            let delay = self.wishes.limit.delay(self.begun.elapsed());
            if self.has(PAUSE) || !gates.watch(Waker::noop()) {
                self.stand_still(gates).await;
            } else if delay.is_zero() || gates.is_in_vain() {
                return Ok(());
            } else {
                self.rest(delay, gates).await;
            }
        }
    }

    /// Whether a pause point would wait, or end the job: what is in flight is to end first.
    #[must_use]
    pub fn would_wait(&self, gates: &impl Gates) -> bool {
        self.has(PAUSE | CANCEL)
            || !gates.watch(Waker::noop())
            || !(gates.is_in_vain() || self.wishes.limit.delay(self.begun.elapsed()).is_zero())
    }

    /// Waits for a job that has nothing to do itself to be in vain; it can be paused meanwhile.
    ///
    /// # Errors
    /// It is cancelled first.
    pub async fn idle(&self, gates: &impl Gates) -> Result<(), Cancelled> {
        while !gates.is_in_vain() {
            self.until(gates, |pace, are_open| {
                pace.has(PAUSE | CANCEL) || !are_open || gates.is_in_vain()
            })
            .await;
            self.point_at(gates).await?;
        }
        Ok(())
    }

    /// Counts bytes that the job has moved: the next pause point waits for as long as its speed asks for.
    pub fn moved(&self, bytes: u64) {
        self.wishes.limit.count(bytes, self.begun.elapsed());
    }

    /// Source and target are alike, and are kept so until a user ends the job.
    pub fn is_ready(&self) {
        (self.reports)(Report::Ready);
    }

    /// Whether a job that is ready is to end, with or without its result.
    #[must_use]
    pub fn is_to_end(&self) -> bool {
        self.has(COMPLETE | STOP)
    }

    /// Whether a job that is ready is to end and leave all as it is.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.has(STOP)
    }

    /// Waits for a wish, for a gate that closes, or for `condition`; `watch` has that looked at again.
    pub async fn rest_until(&self, gates: &impl Gates, watch: impl Fn(&Waker), condition: impl Fn() -> bool) {
        self.wishes.rests.store(true, Ordering::Release);
        poll_fn(|context| {
            // Before the look, so that what comes in between wakes.
            self.wishes.waiting.register(context.waker());
            watch(context.waker());
            let are_open = gates.watch(context.waker());
            let wished = self.has(PAUSE | CANCEL | COMPLETE | STOP);
            match wished || !are_open || condition() {
                true => Poll::Ready(()),
                false => Poll::Pending,
            }
        })
        .await;
        self.wishes.rests.store(false, Ordering::Release);
    }

    /// So much is done, of so much.
    pub fn progress(&self, done: i64, total: i64) {
        self.wishes.total.store(total, Ordering::Release);
        self.wishes.done.store(done, Ordering::Release);
    }

    /// So many bytes less are to be done than was thought.
    pub fn skip(&self, bytes: u64) {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.wishes.total.fetch_sub(bytes, Ordering::AcqRel);
    }

    /// So many bytes more are done.
    pub fn advance(&self, bytes: u64) {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.wishes.done.fetch_add(bytes, Ordering::AcqRel);
    }

    /// What has failed is tried again, but not before the next pause point has let some time pass.
    pub fn tries_again(&self) {
        self.wishes.limit.again(self.begun.elapsed());
    }

    /// A request of the job's own failed; answers what is done about it. The job stands still at its next pause point if
    /// that is to stop.
    #[must_use]
    pub fn failed(
        &self,
        on_error: BlockdevOnError,
        operation: IoOperationType,
        error: IoError,
    ) -> BlockErrorAction {
        let action = policy::action(on_error, error);
        if action == BlockErrorAction::Stop {
            self.set(PAUSE);
        }
        (self.reports)(Report::Failed {
            operation,
            action,
            error,
        });
        action
    }

    /// Waits for a request of the job's own. Once the job is cancelled it is not waited for any longer than a moment, which is
    /// one for all that the job waits for: it goes on by itself where its storage is dead.
    ///
    /// # Errors
    /// The job is to end, and the request has not.
    pub async fn unless_stuck<T>(&self, request: impl Future<Output = T>) -> Result<T, Cancelled> {
        let mut request = pin!(request);
        let mut patience = None;
        poll_fn(|context| {
            if let Poll::Ready(ended) = request.as_mut().poll(context) {
                return Poll::Ready(Ok(ended));
            }
            self.wishes.waiting.register(context.waker());
            if !self.is_cancelled() {
                return Poll::Pending;
            }
            let until = *patience.get_or_insert_with(|| {
                // Before the report: this thread may be held up after it, and is woken once.
                let until = self.patience();
                (self.reports)(Report::Rests(until.saturating_sub(self.begun.elapsed())));
                until
            });
            match self.begun.elapsed() >= until {
                true => Poll::Ready(Err(Cancelled)),
                false => Poll::Pending,
            }
        })
        .await
    }

    /// Until when a job that is to end waits for requests of its own: the first that asks begins the time.
    fn patience(&self) -> Duration {
        let until = u64::try_from((self.begun.elapsed() + GRACE).as_nanos()).unwrap_or(u64::MAX);
        let patience = &self.wishes.patience;
        let begun = patience.compare_exchange(0, until, Ordering::AcqRel, Ordering::Acquire);
        Duration::from_nanos(begun.err().unwrap_or(until))
    }

    /// How long a job that has failed waits for what it holds up: as long as one that is cancelled waits for its requests, and in
    /// the same time if it was.
    pub fn patience_left(&self) -> Duration {
        self.patience().saturating_sub(self.begun.elapsed())
    }

    async fn stand_still(&self, gates: &impl Gates) {
        self.wishes.rests.store(true, Ordering::Release);
        (self.reports)(Report::Paused);
        self.until(gates, |pace, are_open| {
            pace.is_cancelled() || (are_open && !pace.has(PAUSE))
        })
        .await;
        self.wishes.rests.store(false, Ordering::Release);
        (self.reports)(Report::Resumed);
    }

    async fn rest(&self, delay: Duration, gates: &impl Gates) {
        let (until, speed) = (self.begun.elapsed() + delay, self.speed());
        self.wishes.rests.store(true, Ordering::Release);
        (self.reports)(Report::Rests(delay));
        self.until(gates, |pace, are_open| {
            let wished = pace.has(PAUSE | CANCEL) || pace.speed() != speed;
            wished || !are_open || gates.is_in_vain() || pace.begun.elapsed() >= until
        })
        .await;
        self.wishes.rests.store(false, Ordering::Release);
    }

    async fn until(&self, gates: &impl Gates, condition: impl Fn(&Self, bool) -> bool) {
        poll_fn(|context| {
            // Before the look, so that a wish that comes in between wakes.
            self.wishes.waiting.register(context.waker());
            let are_open = gates.watch(context.waker());
            match condition(self, are_open) {
                true => Poll::Ready(()),
                false => Poll::Pending,
            }
        })
        .await;
    }
}
