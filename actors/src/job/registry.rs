//! The jobs there are. An actor on the control thread owns them.

use actix::{Actor, Addr, AsyncContext, Context, Handler, Message};
use futures_channel::oneshot;
use futures_util::future::LocalBoxFuture;
use millpond_messages::Result;
use millpond_messages::qapi::{JobInfo, JobStatus, JobType, QmpError, QmpEvent, is_identifier};

use super::pace::{Cancelled, Pace, Report};
use super::state::{Verb, may_follow};
use super::work::Job;
use crate::monitor::EventBus;

/// What becomes of a job when its work is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JobOptions {
    /// Its result is final at once, rather than when a user says so.
    pub auto_finalize: bool,
    /// It is forgotten at once, rather than when a user dismisses it.
    pub auto_dismiss: bool,
}

impl JobOptions {
    /// Those of jobs without such options: final at once, and there until they are dismissed.
    pub const MANUAL_DISMISS: Self = Self {
        auto_finalize: true,
        auto_dismiss: false,
    };
}

/// All jobs. Clones are the same jobs.
#[derive(Clone)]
pub struct Jobs(pub(super) Addr<Registry>);

impl Jobs {
    /// No jobs, on the current actix arbiter. What becomes of those to come is told over `events`.
    #[must_use]
    pub fn new(events: EventBus) -> Self {
        Self(
            Registry {
                events,
                jobs: Vec::new(),
                last_key: 0,
                finishing: Vec::new(),
            }
            .start(),
        )
    }

    /// Starts `job` under an id of its user's choice.
    ///
    /// # Errors
    /// The id is malformed or taken.
    pub async fn start(&self, id: &str, options: JobOptions, job: impl Job) -> Result<(), QmpError> {
        let (id, job) = (id.to_owned(), Box::new(job));
        let started = self.0.send(Start { id, options, job }).await;
        started.unwrap_or_else(|_| Err(ended()))
    }

    /// Does something to the job `id`.
    ///
    /// # Errors
    /// There is none, or it does not take this verb now.
    pub async fn apply(&self, id: &str, verb: Verb) -> Result<(), QmpError> {
        let id = id.to_owned();
        let applied = self.0.send(Apply { id, verb }).await;
        applied.unwrap_or_else(|_| Err(ended()))
    }

    /// The jobs, the newest first.
    pub async fn list(&self) -> Vec<JobInfo> {
        self.0.send(List).await.unwrap_or_default()
    }

    /// Waits for all jobs, and forgets them. Those that would wait for a user are cancelled.
    pub async fn finish(&self) {
        if let Ok(finished) = self.0.send(FinishAll).await {
            // Nobody is left to say so if the registry has ended.
            let _ = finished.await;
        }
    }
}

fn ended() -> QmpError {
    QmpError::generic("The daemon is shutting down")
}

/// Names a job, also among those that once had the same id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key(u64);

pub(super) struct Entry {
    key: Key,
    pub(super) info: JobInfo,
    pub(super) options: JobOptions,
    pub(super) job: Box<dyn Job>,
    pace: Pace,
    /// A user has paused it, and nobody has resumed it.
    pub(super) user_paused: bool,
    /// Its result is being made final, or what it left is being taken away.
    is_ending: bool,
}

/// The actor that owns all jobs.
pub(super) struct Registry {
    events: EventBus,
    /// In the order in which they were made.
    pub(super) jobs: Vec<Entry>,
    last_key: u64,
    /// Who waits for all of them.
    finishing: Vec<oneshot::Sender<()>>,
}

struct Start {
    id: String,
    options: JobOptions,
    job: Box<dyn Job>,
}

impl Message for Start {
    type Result = Result<(), QmpError>;
}

struct Apply {
    id: String,
    verb: Verb,
}

impl Message for Apply {
    type Result = Result<(), QmpError>;
}

struct List;

impl Message for List {
    type Result = Vec<JobInfo>;
}

struct FinishAll;

impl Message for FinishAll {
    type Result = oneshot::Receiver<()>;
}

/// What a job's data half, or a step at its end, has to say.
struct Reported {
    key: Key,
    what: What,
}

enum What {
    Pace(Report),
    /// The work has ended.
    Ran(Result<()>),
    /// What made the result final has ended.
    Prepared(Result<()>),
    /// Nothing of the job is left in the graph.
    Settled,
}

impl Message for Reported {
    type Result = ();
}

impl Actor for Registry {
    type Context = Context<Self>;
}

impl Registry {
    fn find(&mut self, id: &str) -> Result<&mut Entry, QmpError> {
        let found = self.jobs.iter_mut().find(|entry| entry.info.id == id);
        found.ok_or_else(|| QmpError::generic("Job not found"))
    }

    fn entry(&mut self, key: Key) -> Option<&mut Entry> {
        self.jobs.iter_mut().find(|entry| entry.key == key)
    }

    /// Changes a job's state, and says so.
    fn enter(&mut self, key: Key, status: JobStatus) {
        let Some(entry) = self.entry(key) else { return };
        let before = std::mem::replace(&mut entry.info.status, status);
        debug_assert!(
            may_follow(before, status),
            "a job goes from {before:?} to {status:?}"
        );
        let id = entry.info.id.clone();
        if before != status {
            self.events.emit(QmpEvent::JobStatusChange { id, status });
        }
    }

    fn start_job(&mut self, start: Start, context: &mut Context<Self>) -> Result<(), QmpError> {
        let Start { id, options, job } = start;
        if !is_identifier(&id) {
            return Err(QmpError::generic(format!("Invalid job ID '{id}'")));
        }
        if self.find(&id).is_ok() {
            return Err(QmpError::generic(format!("Job ID '{id}' already in use")));
        }
        self.last_key += 1;
        let key = Key(self.last_key);
        let address = context.address();
        let pace = Pace::new(move |report| {
            let what = What::Pace(report);
            address.do_send(Reported { key, what });
        });
        self.jobs.push(Entry {
            key,
            info: JobInfo {
                id,
                kind: job.kind(),
                status: JobStatus::Undefined,
                current_progress: 0,
                total_progress: 0,
                error: None,
            },
            options,
            job,
            pace: pace.clone(),
            user_paused: false,
            is_ending: false,
        });
        self.enter(key, JobStatus::Created);
        self.enter(key, JobStatus::Running);
        if let Some(entry) = self.entry(key) {
            let run = entry.job.run(pace);
            report(context, key, run, What::Ran);
        }
        Ok(())
    }

    fn apply(&mut self, id: &str, verb: Verb, context: &mut Context<Self>) -> Result<(), QmpError> {
        let entry = self.find(id)?;
        // QEMU looks at this before it looks at the state.
        if verb == Verb::Resume && !entry.user_paused {
            return Err(QmpError::generic("Can't resume a job that was not paused"));
        }
        verb.check(id, entry.info.status)?;
        let key = entry.key;
        match verb {
            Verb::Pause if entry.user_paused => {
                return Err(QmpError::generic("Job is already paused"));
            }
            Verb::Pause => {
                entry.user_paused = true;
                entry.pace.pause();
            }
            Verb::Resume => {
                entry.user_paused = false;
                entry.pace.resume();
            }
            Verb::Complete if entry.pace.is_cancelled() || !entry.job.completes() => {
                let text = format!("The active block job '{id}' cannot be completed");
                return Err(QmpError::generic(text));
            }
            Verb::Complete => entry.pace.complete(),
            Verb::Cancel => self.cancel(key, context),
            Verb::Finalize => self.finalize(key, context),
            Verb::Dismiss => self.dismiss(key),
            // No job has a speed or options that could change.
            Verb::SetSpeed | Verb::Change => {
                return Err(QmpError::generic(format!("Job '{id}' does not support this")));
            }
        }
        Ok(())
    }

    fn cancel(&mut self, key: Key, context: &mut Context<Self>) {
        let Some(entry) = self.entry(key) else { return };
        entry.user_paused = false;
        entry.pace.resume();
        entry.pace.cancel();
        // One that waits for a user has no data half that could see the wish.
        if entry.info.status == JobStatus::Pending && !entry.is_ending {
            self.conclude(key, Err(Cancelled.to_string()), context);
        }
    }

    /// What a step of a job has come to: of one that was cancelled it has failed, even if it has not.
    fn outcome(&mut self, key: Key, result: Result<()>) -> Result<(), String> {
        let is_cancelled = self.entry(key).is_some_and(|entry| entry.pace.is_cancelled());
        match result {
            Ok(()) if is_cancelled => Err(Cancelled.to_string()),
            result => result.map_err(|error| error.context().to_owned()),
        }
    }

    /// The work has ended.
    fn ran(&mut self, key: Key, result: Result<()>, context: &mut Context<Self>) {
        let result = self.outcome(key, result);
        if result.is_err() {
            return self.conclude(key, result, context);
        }
        let auto_finalize = self.entry(key).is_some_and(|entry| entry.options.auto_finalize);
        self.enter(key, JobStatus::Waiting);
        self.enter(key, JobStatus::Pending);
        if auto_finalize {
            self.finalize(key, context);
        } else {
            self.announce_pending(key);
        }
    }

    /// Block jobs have an event of their own for it.
    fn announce_pending(&mut self, key: Key) {
        let Some(entry) = self.entry(key) else { return };
        let (kind, id) = (entry.info.kind, entry.info.id.clone());
        if is_block_job(kind) {
            self.events.emit(QmpEvent::BlockJobPending { kind, id });
        }
    }

    fn finalize(&mut self, key: Key, context: &mut Context<Self>) {
        let Some(entry) = self.entry(key) else { return };
        if std::mem::replace(&mut entry.is_ending, true) {
            return;
        }
        match entry.job.prepare() {
            Some(prepare) => report(context, key, prepare, What::Prepared),
            None => self.conclude(key, Ok(()), context),
        }
    }

    /// The job has its result: what it left in the graph is taken away, and it is over.
    fn conclude(&mut self, key: Key, result: Result<(), String>, context: &mut Context<Self>) {
        let Some(entry) = self.entry(key) else { return };
        let succeeded = result.is_ok();
        entry.is_ending = true;
        entry.info.error = result.err();
        let settle = entry.job.settle(succeeded);
        if !succeeded {
            self.enter(key, JobStatus::Aborting);
        }
        match settle {
            Some(settle) => report(context, key, settle, |()| What::Settled),
            None => self.settled(key),
        }
    }

    fn settled(&mut self, key: Key) {
        self.enter(key, JobStatus::Concluded);
        let auto_dismiss = self.entry(key).is_some_and(|entry| entry.options.auto_dismiss);
        if auto_dismiss {
            self.dismiss(key);
        }
        self.finish_if_over();
    }

    fn dismiss(&mut self, key: Key) {
        self.enter(key, JobStatus::Null);
        self.jobs.retain(|entry| entry.key != key);
    }

    /// Forgets all jobs if that is waited for, and all have ended.
    fn finish_if_over(&mut self) {
        let over = |entry: &Entry| entry.info.status == JobStatus::Concluded;
        if self.finishing.is_empty() || !self.jobs.iter().all(over) {
            return;
        }
        let keys: Vec<_> = self.jobs.iter().rev().map(|entry| entry.key).collect();
        keys.into_iter().for_each(|key| self.dismiss(key));
        for waiting in self.finishing.drain(..) {
            // Who has given up waiting need not be told.
            let _ = waiting.send(());
        }
    }

    fn reported(&mut self, key: Key, report: Report) {
        let Some(entry) = self.entry(key) else { return };
        let next = match (report, entry.info.status) {
            (Report::Progress { done, total }, _) => {
                entry.info.current_progress = done;
                entry.info.total_progress = total;
                return;
            }
            (Report::Paused, JobStatus::Ready) => JobStatus::Standby,
            (Report::Paused, _) => JobStatus::Paused,
            (Report::Resumed, JobStatus::Standby) => JobStatus::Ready,
            (Report::Resumed, _) => JobStatus::Running,
            (Report::Ready, _) => JobStatus::Ready,
        };
        self.enter(key, next);
    }
}

/// Whether jobs of this kind copy the data of nodes, and have the events of block jobs.
const fn is_block_job(kind: JobType) -> bool {
    matches!(
        kind,
        JobType::Commit | JobType::Stream | JobType::Mirror | JobType::Backup
    )
}

/// Has the registry hear how `work` ended.
fn report<T: 'static>(
    context: &mut Context<Registry>,
    key: Key,
    work: LocalBoxFuture<'static, T>,
    what: impl FnOnce(T) -> What + 'static,
) {
    let address = context.address();
    actix_rt::spawn(async move {
        let what = what(work.await);
        address.do_send(Reported { key, what });
    });
}

impl Handler<Start> for Registry {
    type Result = Result<(), QmpError>;

    fn handle(&mut self, start: Start, context: &mut Self::Context) -> Self::Result {
        self.start_job(start, context)
    }
}

impl Handler<Apply> for Registry {
    type Result = Result<(), QmpError>;

    fn handle(&mut self, Apply { id, verb }: Apply, context: &mut Self::Context) -> Self::Result {
        self.apply(&id, verb, context)
    }
}

impl Handler<List> for Registry {
    type Result = Vec<JobInfo>;

    fn handle(&mut self, _: List, _: &mut Self::Context) -> Self::Result {
        self.jobs.iter().rev().map(|entry| entry.info.clone()).collect()
    }
}

impl Handler<FinishAll> for Registry {
    type Result = actix::MessageResult<FinishAll>;

    fn handle(&mut self, _: FinishAll, context: &mut Self::Context) -> Self::Result {
        let (done, finished) = oneshot::channel();
        self.finishing.push(done);
        // Left alone, these would wait for a user for ever.
        let waits = |entry: &&Entry| {
            entry.user_paused || matches!(entry.info.status, JobStatus::Ready | JobStatus::Pending)
        };
        let keys: Vec<_> = self.jobs.iter().filter(waits).map(|entry| entry.key).collect();
        keys.into_iter().for_each(|key| self.cancel(key, context));
        self.finish_if_over();
        actix::MessageResult(finished)
    }
}

impl Handler<Reported> for Registry {
    type Result = ();

    fn handle(&mut self, Reported { key, what }: Reported, context: &mut Self::Context) {
        match what {
            What::Pace(report) => self.reported(key, report),
            What::Ran(result) => self.ran(key, result, context),
            What::Prepared(result) => {
                let result = self.outcome(key, result);
                self.conclude(key, result, context);
            }
            What::Settled => self.settled(key),
        }
    }
}
