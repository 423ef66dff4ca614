//! The jobs there are. An actor on the control thread owns them.

use actix::{Actor, Addr, AsyncContext, Context, Handler, Message, MessageResult};
use futures_channel::oneshot;
use futures_util::future::LocalBoxFuture;
use millpond_messages::Result;
use millpond_messages::qapi::{
    BlockDeviceIoStatus, BlockErrorAction, BlockJobInfo, JobInfo, JobStatus, QmpError, QmpEvent,
    is_identifier,
};

use super::entry::{Entry, Fate, Group, Key, Step};
use super::order::{Family, JobOptions, JobOrder, check_speed};
use super::pace::{Pace, Report};
use super::policy;
use super::rate::Rate;
use super::retry::Retry;
use super::state::may_follow;
use super::work::Job;
use crate::monitor::EventBus;

/// The actor that owns all jobs.
pub(super) struct Registry {
    events: EventBus,
    /// In the order in which they were made.
    pub(super) jobs: Vec<Entry>,
    last_key: u64,
    /// Ids that are kept for jobs which are about to start.
    pub(super) reserved: Vec<String>,
    /// Who waits for all of them.
    pub(super) finishing: Vec<oneshot::Sender<()>>,
}

/// Makes a job where it lives: on the control thread.
pub(super) type MakeJob = Box<dyn FnOnce() -> Box<dyn Job> + Send>;

/// Starts a job; answered with what tells that it runs.
pub(super) struct Start {
    pub id: String,
    pub options: JobOptions,
    pub make: MakeJob,
}

impl Message for Start {
    type Result = oneshot::Receiver<Result<(), QmpError>>;
}

/// Asks whether a job that starts now may have an id.
pub(super) struct CheckId(pub String);

impl Message for CheckId {
    type Result = Result<(), QmpError>;
}

/// Asks something of a job.
pub(super) struct Apply {
    pub family: Family,
    pub id: String,
    pub order: JobOrder,
}

impl Message for Apply {
    type Result = Result<(), QmpError>;
}

/// Asks for all jobs.
pub(super) struct List;

impl Message for List {
    type Result = Vec<JobInfo>;
}

/// Asks for all block jobs.
pub(super) struct ListBlockJobs;

impl Message for ListBlockJobs {
    type Result = Vec<BlockJobInfo>;
}

/// Ends all jobs; answered with what tells that they have ended.
pub(super) struct FinishAll;

impl Message for FinishAll {
    type Result = oneshot::Receiver<()>;
}

/// What a job's data half, or a step of its control half, has to say.
struct Reported {
    key: Key,
    what: What,
}

pub(super) enum What {
    Pace(Report),
    /// It has what it needs before it is announced.
    Claimed(Result<(), QmpError>),
    /// It has all that it needs.
    Begun(Result<(), QmpError>),
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

/// Jobs that start.
impl Registry {
    /// No jobs, on the current actix arbiter.
    pub fn launch(events: EventBus) -> Addr<Self> {
        let registry = Self {
            events,
            jobs: Vec::new(),
            last_key: 0,
            reserved: Vec::new(),
            finishing: Vec::new(),
        };
        registry.start()
    }

    fn start_job(
        &mut self,
        start: Start,
        starting: oneshot::Sender<Result<(), QmpError>>,
        context: &mut Context<Self>,
    ) {
        let Start { id, options, make } = start;
        if let Err(refused) = self.check_id(&id) {
            // Who has given up waiting need not be told.
            let _ = starting.send(Err(refused));
            return;
        }
        let key = self.new_key();
        let mut entry = Self::new_entry(key, id, options, make(), context);
        entry.starting = Some(starting);
        let claim = entry.job.claim();
        self.jobs.push(entry);
        match claim {
            Some(claim) => report(context, key, claim, What::Claimed),
            None => self.claimed(key, Ok(()), context),
        }
    }

    pub(super) fn new_key(&mut self) -> Key {
        self.last_key += 1;
        Key(self.last_key)
    }

    /// A job of which nobody has heard, in a group of its own.
    pub(super) fn new_entry(
        key: Key,
        id: String,
        options: JobOptions,
        job: Box<dyn Job>,
        context: &mut Context<Self>,
    ) -> Entry {
        let address = context.address();
        let pace = Pace::new(move |report| {
            let what = What::Pace(report);
            address.do_send(Reported { key, what });
        });
        Entry {
            key,
            id,
            kind: job.kind(),
            status: JobStatus::Undefined,
            error: None,
            options,
            job,
            pace,
            rate: Rate::default(),
            user_paused: false,
            io_status: BlockDeviceIoStatus::Ok,
            retry: None,
            group: Group(key.0),
            step: Step::AtWork,
            fate: Fate::Open,
            starting: None,
            refused: None,
            rest: None,
        }
    }

    pub(super) fn check_id(&self, id: &str) -> Result<(), QmpError> {
        if !is_identifier(id) {
            return Err(QmpError::generic(format!("Invalid job ID '{id}'")));
        }
        let is_reserved = self.reserved.iter().any(|reserved| reserved == id);
        if is_reserved || self.jobs.iter().any(|entry| entry.id == id) {
            return Err(QmpError::generic(format!("Job ID '{id}' already in use")));
        }
        Ok(())
    }

    fn claimed(&mut self, key: Key, claimed: Result<(), QmpError>, context: &mut Context<Self>) {
        if let Err(refused) = claimed {
            return self.refuse(key, refused, context);
        }
        self.enter(key, JobStatus::Created);
        let Some(entry) = self.entry(key) else { return };
        match check_speed(entry.options.speed) {
            Ok(speed) => entry.pace.set_speed(speed),
            Err(refused) => return self.refuse(key, refused, context),
        }
        match entry.job.begin() {
            Some(begin) => report(context, key, begin, What::Begun),
            None => self.begun(key, Ok(()), context),
        }
    }

    fn begun(&mut self, key: Key, begun: Result<(), QmpError>, context: &mut Context<Self>) {
        if let Err(refused) = begun {
            return self.refuse(key, refused, context);
        }
        if let Some(starting) = self.entry(key).and_then(|entry| entry.starting.take()) {
            self.begin_work(key, context);
            // Who has given up waiting need not be told.
            let _ = starting.send(Ok(()));
        }
    }

    /// A job has all that it needs: its data half begins.
    pub(super) fn begin_work(&mut self, key: Key, context: &mut Context<Self>) {
        self.enter(key, JobStatus::Running);
        let Some(entry) = self.entry(key) else { return };
        let run = entry.job.run(entry.pace.clone());
        report(context, key, run, What::Ran);
        if !self.finishing.is_empty() {
            self.cancel(key, context);
        }
    }

    /// A job never runs: what it has taken is given back.
    fn refuse(&mut self, key: Key, refused: QmpError, context: &mut Context<Self>) {
        let Some(entry) = self.entry(key) else { return };
        entry.refused = Some(refused);
        match entry.job.settle(false) {
            Some(settle) => report(context, key, settle, |()| What::Settled),
            None => self.settled(key, context),
        }
    }
}

/// Jobs that run.
impl Registry {
    /// The job `id`, if it has started and a family of commands sees it.
    fn find(&mut self, family: Family, id: &str) -> Result<&mut Entry, QmpError> {
        let found = self.jobs.iter_mut().find(|entry| entry.id == id);
        found
            .filter(|entry| entry.starting.is_none() && family.sees(entry.kind))
            .ok_or_else(|| family.not_found(id))
    }

    pub(super) fn entry(&mut self, key: Key) -> Option<&mut Entry> {
        self.jobs.iter_mut().find(|entry| entry.key == key)
    }

    /// Changes a job's state, and says so.
    pub(super) fn enter(&mut self, key: Key, status: JobStatus) {
        let Some(entry) = self.entry(key) else { return };
        let before = std::mem::replace(&mut entry.status, status);
        debug_assert!(
            may_follow(before, status),
            "a job goes from {before:?} to {status:?}"
        );
        let id = entry.id.clone();
        if before != status {
            self.events.emit(QmpEvent::JobStatusChange { id, status });
        }
    }

    fn apply(&mut self, apply: Apply, context: &mut Context<Self>) -> Result<(), QmpError> {
        let Apply { family, id, order } = apply;
        let entry = self.find(family, &id)?;
        // QEMU looks at these before it looks at the state.
        match order {
            JobOrder::Resume if !entry.user_paused => {
                return Err(QmpError::generic("Can't resume a job that was not paused"));
            }
            JobOrder::Cancel { force: false } if entry.user_paused => {
                let text = format!("The block job for device '{id}' is currently paused");
                return Err(QmpError::generic(text));
            }
            _ => {}
        }
        order.verb().check(&id, entry.status)?;
        let key = entry.key;
        match order {
            JobOrder::Pause if entry.user_paused => {
                return Err(QmpError::generic("Job is already paused"));
            }
            JobOrder::Pause => {
                entry.user_paused = true;
                entry.pace.pause();
            }
            JobOrder::Resume => entry.resume(),
            JobOrder::SetSpeed(speed) => entry.pace.set_speed(check_speed(speed)?),
            JobOrder::Complete
                if entry.pace.is_cancelled() || entry.pace.is_stopped() || !entry.job.completes() =>
            {
                let text = format!("The active block job '{id}' cannot be completed");
                return Err(QmpError::generic(text));
            }
            JobOrder::Complete => entry.pace.complete(),
            JobOrder::Cancel { force: false } if entry.can_stop() => entry.pace.stop(),
            JobOrder::Cancel { .. } => self.cancel(key, context),
            JobOrder::Change(None) => {}
            JobOrder::Change(Some(copy_mode)) => entry.job.change(copy_mode)?,
            JobOrder::RetryWhenFull(seconds) => self.set_retry(key, Retry::asked(seconds)?, context),
            JobOrder::Finalize => self.finalize(key, context),
            JobOrder::Dismiss => self.dismiss(key),
        }
        Ok(())
    }

    fn cancel(&mut self, key: Key, context: &mut Context<Self>) {
        let Some(entry) = self.entry(key) else { return };
        // There is no way back from a result that is final.
        if matches!(entry.step, Step::Prepared | Step::Settling) {
            return;
        }
        entry.resume();
        entry.pace.cancel();
        // One that waits for others or for a user has no data half that could see the wish.
        if entry.step == Step::Ran && entry.fate == Fate::Open {
            self.abort(key, context);
        }
    }

    fn reported(&mut self, key: Key, report: Report, context: &mut Context<Self>) {
        let Some(entry) = self.entry(key) else { return };
        match (report, entry.status) {
            (Report::Paused, JobStatus::Ready) => self.enter(key, JobStatus::Standby),
            (Report::Paused, JobStatus::Running) => self.enter(key, JobStatus::Paused),
            (Report::Resumed, JobStatus::Standby) => self.enter(key, JobStatus::Ready),
            (Report::Resumed, JobStatus::Paused) => self.enter(key, JobStatus::Running),
            // What a job does while its result is made final is no change of its state.
            (Report::Paused | Report::Resumed, _) => {}
            (Report::Ready, _) => {
                let event = entry.is_block_job().then(|| entry.ready_event());
                self.enter(key, JobStatus::Ready);
                self.emit(event);
            }
            (Report::Rests(delay), _) => {
                let pace = entry.pace.clone();
                let rest = context.run_later(delay, move |_, _| pace.wake());
                if let Some(before) = entry.rest.replace(rest) {
                    context.cancel_future(before);
                }
            }
            (
                Report::Failed {
                    operation,
                    action,
                    error,
                },
                _,
            ) => {
                if action == BlockErrorAction::Stop {
                    entry.user_paused = true;
                    if entry.io_status == BlockDeviceIoStatus::Ok {
                        entry.io_status = policy::status(error);
                    }
                }
                let device = entry.id.clone();
                self.emit(Some(QmpEvent::BlockJobError {
                    device,
                    operation,
                    action,
                }));
                if action == BlockErrorAction::Stop && policy::status(error) == BlockDeviceIoStatus::Nospace {
                    self.try_later(key, context);
                }
            }
        }
    }

    pub(super) fn emit(&self, event: Option<QmpEvent>) {
        if let Some(event) = event {
            self.events.emit(event);
        }
    }
}

/// Has the registry hear how `work` ended.
pub(super) fn report<T: 'static>(
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
    type Result = MessageResult<Start>;

    fn handle(&mut self, start: Start, context: &mut Self::Context) -> Self::Result {
        let (starting, started) = oneshot::channel();
        self.start_job(start, starting, context);
        MessageResult(started)
    }
}

impl Handler<CheckId> for Registry {
    type Result = Result<(), QmpError>;

    fn handle(&mut self, CheckId(id): CheckId, _: &mut Self::Context) -> Self::Result {
        self.check_id(&id)
    }
}

impl Handler<Apply> for Registry {
    type Result = Result<(), QmpError>;

    fn handle(&mut self, apply: Apply, context: &mut Self::Context) -> Self::Result {
        self.apply(apply, context)
    }
}

impl Handler<List> for Registry {
    type Result = Vec<JobInfo>;

    fn handle(&mut self, _: List, _: &mut Self::Context) -> Self::Result {
        let jobs = self.jobs.iter_mut().rev();
        let started = jobs.filter(|entry| entry.starting.is_none());
        started.map(Entry::info).collect()
    }
}

impl Handler<ListBlockJobs> for Registry {
    type Result = Vec<BlockJobInfo>;

    fn handle(&mut self, _: ListBlockJobs, _: &mut Self::Context) -> Self::Result {
        let started = self.jobs.iter().rev().filter(|entry| entry.starting.is_none());
        started.filter_map(Entry::block_info).collect()
    }
}

impl Handler<FinishAll> for Registry {
    type Result = MessageResult<FinishAll>;

    fn handle(&mut self, _: FinishAll, context: &mut Self::Context) -> Self::Result {
        let (done, finished) = oneshot::channel();
        self.finishing.push(done);
        // Left alone, these would wait for a user for ever, or go on for hours.
        let waits = |entry: &&Entry| {
            let is_started = entry.starting.is_none() && !entry.is_ending();
            let for_user = matches!(
                entry.status,
                JobStatus::Ready | JobStatus::Waiting | JobStatus::Pending
            );
            let ends = entry.status == JobStatus::Concluded;
            is_started && !ends && (entry.user_paused || for_user || entry.is_block_job())
        };
        let keys: Vec<_> = self.jobs.iter().filter(waits).map(|entry| entry.key).collect();
        keys.into_iter().for_each(|key| self.cancel(key, context));
        self.finish_if_over();
        MessageResult(finished)
    }
}

impl Handler<Reported> for Registry {
    type Result = ();

    fn handle(&mut self, Reported { key, what }: Reported, context: &mut Self::Context) {
        match what {
            What::Pace(report) => self.reported(key, report, context),
            What::Claimed(result) => self.claimed(key, result, context),
            What::Begun(result) => self.begun(key, result, context),
            What::Ran(result) => self.ran(key, result, context),
            What::Prepared(result) => self.prepared(key, result, context),
            What::Settled => self.settled(key, context),
        }
    }
}
