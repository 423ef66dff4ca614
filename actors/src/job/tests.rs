//! Jobs that stand still wherever a test wants them to.

use std::sync::{Arc, OnceLock, mpsc as channel};
use std::thread;
use std::time::Duration;

use actix_rt::System;
use futures_channel::mpsc;
use futures_util::future::LocalBoxFuture;
use futures_util::{FutureExt, StreamExt};
use millpond_messages::qapi::{
    BlockDeviceIoStatus, BlockErrorAction, BlockJobInfo, BlockdevOnError, IoOperationType, JobInfo,
    JobStatus, JobType, QmpEvent,
};
use millpond_messages::saved::{SavedOptions, SavedWork};
use millpond_messages::{Error, ErrorKind, IoError, Result};

use super::pace::{Cancelled, Report};
use super::state::name;
use super::{Family, Job, JobOptions, JobOrder, Jobs, Pace};
use crate::monitor::{EventBus, Events};

/// What a scripted job does next.
enum Do {
    /// Comes to a pause point.
    Point,
    /// Is ready.
    Ready,
    /// Moves so many bytes, and comes to a pause point.
    Move(u64),
    /// Meets an error, for which it is to be stopped.
    Fail(IoError),
    /// Waits for a request that never ends, and for another one when it has given that up.
    Stick,
    /// Ends, in this way.
    End(Result<()>),
}

/// A job whose data half does what a test says, and which notes how it is ended.
struct Scripted {
    kind: JobType,
    script: Option<mpsc::UnboundedReceiver<Do>>,
    completes: bool,
    settled: mpsc::UnboundedSender<bool>,
}

impl Job for Scripted {
    fn kind(&self) -> JobType {
        self.kind
    }

    fn options(&self) -> SavedOptions {
        SavedOptions::default()
    }

    fn saved_work(&self) -> SavedWork {
        SavedWork::default()
    }

    fn run(&mut self, pace: Pace) -> LocalBoxFuture<'static, Result<()>> {
        let mut script = self.script.take().expect("a job runs once");
        let cancelled = |error: super::Cancelled| Error::new(ErrorKind::Closed, error.to_string());
        async move {
            loop {
                match script.next().await {
                    Some(Do::Point) => pace.point().await.map_err(cancelled)?,
                    Some(Do::Move(bytes)) => {
                        pace.moved(bytes);
                        pace.point().await.map_err(cancelled)?;
                    }
                    Some(Do::Fail(error)) => {
                        let action = pace.failed(BlockdevOnError::Stop, IoOperationType::Write, error);
                        assert_eq!(action, BlockErrorAction::Stop);
                    }
                    Some(Do::Stick) => {
                        let given_up = pace.unless_stuck(std::future::pending::<()>()).await;
                        assert_eq!(given_up, Err(Cancelled));
                        pace.unless_stuck(std::future::pending())
                            .await
                            .map_err(cancelled)?;
                    }
                    Some(Do::Ready) => {
                        pace.is_ready();
                        while !pace.is_to_end() {
                            pace.rest_until(&(), |_| (), || false).await;
                            pace.point().await.map_err(cancelled)?;
                        }
                    }
                    Some(Do::End(result)) => return result,
                    None => return Ok(()),
                }
            }
        }
        .boxed_local()
    }

    fn completes(&self) -> bool {
        self.completes
    }

    fn prepare(&mut self) -> Option<LocalBoxFuture<'static, Result<()>>> {
        Some(async { Ok(()) }.boxed_local())
    }

    fn settle(&mut self, succeeded: bool) -> Option<LocalBoxFuture<'static, ()>> {
        let settled = self.settled.clone();
        Some(async move { drop(settled.unbounded_send(succeeded)) }.boxed_local())
    }
}

/// The jobs, with one that is scripted.
struct Stage {
    jobs: Jobs,
    events: Events,
    script: mpsc::UnboundedSender<Do>,
    settled: mpsc::UnboundedReceiver<bool>,
}

impl Stage {
    async fn new(kind: JobType, options: JobOptions, completes: bool) -> Self {
        let bus = EventBus::default();
        let events = bus.subscribe();
        let jobs = Jobs::new(bus);
        let (script, receiver) = mpsc::unbounded();
        let (sender, settled) = mpsc::unbounded();
        let job = Scripted {
            kind,
            script: Some(receiver),
            completes,
            settled: sender,
        };
        jobs.start("j", options, || job).await.unwrap();
        let mut stage = Self {
            jobs,
            events,
            script,
            settled,
        };
        stage.sees(&["created", "running"]).await;
        stage
    }

    fn does(&self, what: Do) {
        self.script.unbounded_send(what).unwrap();
    }

    /// Waits for the next events: states, and a word with `!` for each event of block jobs.
    async fn sees(&mut self, expected: &[&str]) {
        let events = &mut self.events;
        for expected in expected {
            let seen = match events.next().await.event.event {
                QmpEvent::JobStatusChange { id, status } => {
                    assert_eq!(id, "j");
                    name(status)
                }
                QmpEvent::BlockJobPending { .. } => "pending!",
                QmpEvent::BlockJobReady { .. } => "ready!",
                QmpEvent::BlockJobCompleted { .. } => "completed!",
                QmpEvent::BlockJobCancelled { .. } => "cancelled!",
                QmpEvent::BlockJobError { .. } => "error!",
                other => panic!("{other:?}"),
            };
            assert_eq!(seen, *expected);
        }
        assert!(events.try_next().is_none(), "nothing comes behind {expected:?}");
    }

    async fn ok(&self, order: JobOrder) {
        self.jobs.apply(Family::Job, "j", order).await.unwrap();
    }

    async fn refused(&self, order: JobOrder) -> String {
        self.jobs.apply(Family::Job, "j", order).await.unwrap_err().desc
    }

    async fn info(&self) -> JobInfo {
        self.jobs.list().await.remove(0)
    }

    async fn block_info(&self) -> BlockJobInfo {
        self.jobs.list_block_jobs().await.remove(0)
    }

    async fn settled(&mut self) -> bool {
        self.settled.next().await.unwrap()
    }
}

fn play<F: Future<Output = ()>>(options: JobOptions, completes: bool, act: impl FnOnce(Stage) -> F) {
    play_kind(JobType::Mirror, options, completes, act);
}

fn play_kind<F: Future<Output = ()>>(
    kind: JobType,
    options: JobOptions,
    completes: bool,
    act: impl FnOnce(Stage) -> F,
) {
    System::new().block_on(async { act(Stage::new(kind, options, completes).await).await });
}

const BY_HAND: JobOptions = JobOptions {
    auto_finalize: false,
    auto_dismiss: false,
    speed: 0,
};

const CANCEL: JobOrder = JobOrder::Cancel { force: true };

/// Whoever gives a wait up is woken once for that, counted from the report: also where that takes its time.
#[test]
fn a_wait_is_given_up_though_its_thread_was_held_up() {
    let line: Arc<OnceLock<Pace>> = Arc::default();
    let woken = Arc::clone(&line);
    let pace = Pace::new(move |report| {
        if let Report::Rests(delay) = report {
            let pace = woken.get().cloned();
            thread::spawn(move || {
                thread::sleep(delay);
                pace.expect("the line is there").wake();
            });
            thread::sleep(Duration::from_millis(50));
        }
    });
    assert!(line.set(pace.clone()).is_ok());
    pace.cancel();
    let (done, ended) = channel::channel();
    thread::spawn(move || {
        let waited = futures_executor::block_on(pace.unless_stuck(std::future::pending::<()>()));
        done.send(waited)
    });
    assert_eq!(ended.recv_timeout(Duration::from_secs(20)), Ok(Err(Cancelled)));
}

#[test]
fn a_job_pauses_where_it_can_and_goes_on() {
    play(JobOptions::MANUAL_DISMISS, false, async |mut stage| {
        stage.ok(JobOrder::Pause).await;
        assert_eq!(stage.refused(JobOrder::Pause).await, "Job is already paused");
        assert_eq!(
            stage.info().await.status,
            JobStatus::Running,
            "it is not there yet"
        );
        stage.does(Do::Point);
        stage.sees(&["paused"]).await;
        stage.ok(JobOrder::Resume).await;
        stage.sees(&["running"]).await;
        let text = "Can't resume a job that was not paused";
        assert_eq!(stage.refused(JobOrder::Resume).await, text);
        stage.does(Do::End(Ok(())));
        stage
            .sees(&["waiting", "pending", "completed!", "concluded"])
            .await;
        assert!(stage.settled().await);
    });
}

#[test]
fn a_job_that_is_ready_is_completed_and_finalized_by_hand() {
    play(BY_HAND, true, async |mut stage| {
        let text = "Job 'j' in state 'running' cannot accept command verb 'complete'";
        assert_eq!(stage.refused(JobOrder::Complete).await, text);
        stage.does(Do::Ready);
        stage.sees(&["ready", "ready!"]).await;
        stage.ok(JobOrder::Pause).await;
        stage.sees(&["standby"]).await;
        stage.ok(JobOrder::Resume).await;
        stage.sees(&["ready"]).await;
        stage.ok(JobOrder::Complete).await;
        stage.does(Do::End(Ok(())));
        stage.sees(&["waiting", "pending", "pending!"]).await;
        stage.ok(JobOrder::Finalize).await;
        stage.sees(&["completed!", "concluded"]).await;
        stage.ok(JobOrder::Dismiss).await;
        stage.sees(&["null"]).await;
        assert_eq!(stage.refused(JobOrder::Dismiss).await, "Job not found");
    });
}

#[test]
fn a_job_that_cannot_be_completed_says_so() {
    play(JobOptions::MANUAL_DISMISS, false, async |mut stage| {
        stage.does(Do::Ready);
        stage.sees(&["ready", "ready!"]).await;
        let text = "The active block job 'j' cannot be completed";
        assert_eq!(stage.refused(JobOrder::Complete).await, text);
    });
}

#[test]
fn a_job_is_cancelled_while_it_is_paused_and_while_it_waits_to_be_finalized() {
    play(JobOptions::MANUAL_DISMISS, false, async |mut stage| {
        stage.ok(JobOrder::Pause).await;
        stage.does(Do::Point);
        stage.sees(&["paused"]).await;
        stage.ok(CANCEL).await;
        stage
            .sees(&["running", "aborting", "cancelled!", "concluded"])
            .await;
        assert!(!stage.settled().await);
        assert_eq!(stage.info().await.error.unwrap(), "Operation canceled");
    });
    play(BY_HAND, false, async |mut stage| {
        stage.does(Do::End(Ok(())));
        stage.sees(&["waiting", "pending", "pending!"]).await;
        stage.ok(CANCEL).await;
        stage.sees(&["aborting", "cancelled!", "concluded"]).await;
        assert!(!stage.settled().await);
    });
}

#[test]
fn a_failed_job_is_dismissed_by_itself_where_that_is_wanted() {
    play(JobOptions::default(), false, async |mut stage| {
        stage.does(Do::End(Err(Error::new(ErrorKind::Corrupt, "It broke"))));
        stage.sees(&["aborting", "completed!", "concluded", "null"]).await;
        assert!(stage.jobs.list().await.is_empty());
    });
}

#[test]
fn the_end_cancels_what_would_wait_for_a_user_and_waits_for_the_rest() {
    play(BY_HAND, false, async |mut stage| {
        stage.does(Do::End(Ok(())));
        stage.sees(&["waiting", "pending", "pending!"]).await;
        stage.jobs.finish().await;
        stage.sees(&["aborting", "cancelled!", "concluded", "null"]).await;
    });
    play_kind(
        JobType::Create,
        JobOptions::MANUAL_DISMISS,
        false,
        async |mut stage| {
            let jobs = stage.jobs.clone();
            let finish = jobs.finish();
            let mut finish = std::pin::pin!(finish);
            assert!(futures_util::poll!(finish.as_mut()).is_pending());
            stage.does(Do::End(Ok(())));
            finish.await;
            stage.sees(&["waiting", "pending", "concluded", "null"]).await;
        },
    );
}

#[test]
fn the_end_cancels_a_block_job_that_runs() {
    play(JobOptions::default(), false, async |mut stage| {
        let jobs = stage.jobs.clone();
        let mut finish = std::pin::pin!(jobs.finish());
        assert!(futures_util::poll!(finish.as_mut()).is_pending());
        stage.does(Do::Point);
        finish.await;
        stage.sees(&["aborting", "cancelled!", "concluded", "null"]).await;
    });
}

#[test]
fn an_error_stops_a_job_until_it_is_resumed() {
    play(BY_HAND, false, async |mut stage| {
        stage.does(Do::Fail(IoError::NoSpace));
        stage.sees(&["error!"]).await;
        assert_eq!(stage.block_info().await.io_status, BlockDeviceIoStatus::Nospace);
        assert!(
            stage.block_info().await.paused,
            "it is not there yet, but will be"
        );
        stage.does(Do::Fail(IoError::NotSupported));
        stage.sees(&["error!"]).await;
        stage.does(Do::Point);
        stage.sees(&["paused"]).await;
        let info = stage.block_info().await;
        assert_eq!(
            info.io_status,
            BlockDeviceIoStatus::Nospace,
            "the first error is shown"
        );
        assert!(info.paused && !info.busy);
        let order = JobOrder::Cancel { force: false };
        let text = "The block job for device 'j' is currently paused";
        assert_eq!(stage.refused(order).await, text);
        stage.ok(JobOrder::Resume).await;
        stage.sees(&["running"]).await;
        assert_eq!(stage.block_info().await.io_status, BlockDeviceIoStatus::Ok);
    });
}

/// The clock is the test's own: how long a job waits is exact.
#[test]
fn a_job_whose_target_is_full_goes_on_by_itself_where_that_is_asked_for() {
    play(BY_HAND, false, async |mut stage| {
        tokio::time::pause();
        let text = "Parameter 'seconds' expects a value of at most 3600";
        assert_eq!(stage.refused(JobOrder::RetryWhenFull(3601)).await, text);
        stage.ok(JobOrder::RetryWhenFull(5)).await;
        for seconds in [1, 2, 4, 5, 5] {
            let stopped = tokio::time::Instant::now();
            stage.does(Do::Fail(IoError::NoSpace));
            stage.does(Do::Point);
            stage.sees(&["error!", "paused", "running"]).await;
            let waited = stopped.elapsed().as_millis();
            assert!(
                (seconds * 1000..=seconds * 1000 + 2).contains(&waited),
                "{waited} ms"
            );
        }
        assert_eq!(stage.block_info().await.io_status, BlockDeviceIoStatus::Ok);
        // Another error, a user's pause, and a job that is to wait for a user stay as they are.
        stage.does(Do::Fail(IoError::NotSupported));
        stage.does(Do::Point);
        stage.sees(&["error!", "paused"]).await;
        tokio::time::sleep(Duration::from_secs(60)).await;
        stage.sees(&[]).await;
        stage.ok(JobOrder::Resume).await;
        stage.sees(&["running"]).await;
        stage.does(Do::Fail(IoError::NoSpace));
        stage.does(Do::Point);
        stage.sees(&["error!", "paused"]).await;
        stage.ok(JobOrder::RetryWhenFull(0)).await;
        tokio::time::sleep(Duration::from_secs(60)).await;
        stage.sees(&[]).await;
        stage.ok(JobOrder::RetryWhenFull(3600)).await;
        stage.sees(&["running"]).await;
    });
}

#[test]
fn a_job_rests_as_its_speed_asks_for_and_a_change_wakes_it() {
    play(BY_HAND, false, async |mut stage| {
        let set_speed = JobOrder::SetSpeed;
        stage.ok(set_speed(1)).await;
        stage.does(Do::Move(1 << 40));
        stage.does(Do::End(Ok(())));
        while stage.block_info().await.busy {
            actix_rt::task::yield_now().await;
        }
        assert_eq!(stage.block_info().await.speed, 1);
        stage.ok(JobOrder::Pause).await;
        stage.sees(&["paused"]).await;
        stage.ok(JobOrder::Resume).await;
        stage.sees(&["running"]).await;
        let text = "Parameter 'speed' expects a non-negative value";
        assert_eq!(stage.refused(set_speed(-1)).await, text);
        stage.ok(set_speed(0)).await;
        stage.sees(&["waiting", "pending", "pending!"]).await;
        let text = "Job 'j' in state 'pending' cannot accept command verb 'set-speed'";
        assert_eq!(stage.refused(set_speed(5)).await, text);
    });
}

#[test]
fn a_cancelled_job_gives_up_a_request_that_never_ends() {
    play(BY_HAND, false, async |mut stage| {
        tokio::time::pause();
        stage.does(Do::Stick);
        let asked = tokio::time::Instant::now();
        stage.ok(CANCEL).await;
        stage.sees(&["aborting", "cancelled!", "concluded"]).await;
        // The clock is the test's own, and its timers have steps of a millisecond.
        let took = asked.elapsed().as_millis();
        assert!((500..=501).contains(&took), "{took} ms");
    });
}
