//! Jobs that a transaction starts, and those that it would have started.

use actix::{Addr, Context, Handler, Message, MessageResult};
use millpond_messages::graph::{Action, BackupStarted, JobAction, TransactForJobs, Transacted};
use millpond_messages::qapi::{JobStatus, QmpError, QmpEvent};

use super::block::BackupPlan;
use super::entry::Group;
use super::handle::{Jobs, ended};
use super::order::JobOptions;
use super::registry::{MakeJob, Registry};
use crate::graph::GraphHandle;

/// A change of a transaction.
pub enum TransactionPart {
    /// One that starts no job.
    Change(Action),
    /// The start of a backup.
    Backup(Box<BackupPlan>),
}

/// What has come of a transaction.
pub struct TransactionOutcome {
    /// What is told of images that were made, a line each.
    pub told: Vec<String>,
    /// Whether all was done, or nothing.
    pub done: Result<(), QmpError>,
}

impl Jobs {
    /// Carries out several changes, all or none, in one drained section, and starts the jobs that are the rest of them. Jobs
    /// that are `grouped` end alike: if one fails or is cancelled, so are all. It goes on if nobody waits for it any more.
    pub async fn transact(
        &self,
        graph: &GraphHandle,
        parts: Vec<TransactionPart>,
        grouped: bool,
    ) -> TransactionOutcome {
        let work = transact(self.clone(), graph.clone(), parts, grouped);
        let refused = |_| TransactionOutcome {
            told: Vec::new(),
            done: Err(ended()),
        };
        actix_rt::spawn(work).await.unwrap_or_else(refused)
    }
}

async fn transact(
    jobs: Jobs,
    graph: GraphHandle,
    parts: Vec<TransactionPart>,
    grouped: bool,
) -> TransactionOutcome {
    let ids = parts.iter().filter_map(|part| match part {
        TransactionPart::Change(_) => None,
        TransactionPart::Backup(plan) => Some(plan.id().to_owned()),
    });
    let ids: Vec<String> = ids.collect();
    let reserved = Reserved::of(&jobs, ids.clone()).await;
    let mut refusals = reserved.refusals.iter().cloned();
    let (mut actions, mut plans) = (Vec::new(), Vec::new());
    for part in parts {
        actions.push(match part {
            TransactionPart::Change(action) => JobAction::Change(action),
            TransactionPart::Backup(mut plan) => {
                let action = plan.start(refusals.next().flatten());
                plans.push(*plan);
                JobAction::Backup(Box::new(action))
            }
        });
    }
    let mut transacted = match graph.ask(TransactForJobs(actions)).await {
        Ok(transacted) => *transacted,
        Err(error) => Transacted {
            failure: Some(error),
            ..Transacted::default()
        },
    };
    let told = std::mem::take(&mut transacted.told);
    let done = match transacted.failure.take() {
        Some(failure) => {
            let made = transacted.backups.len() + usize::from(transacted.failed_started);
            let ids = ids.into_iter().take(made).collect();
            let last_refused = transacted.failed_started;
            jobs.undone(Undone { ids, last_refused }).await;
            Err(failure.into())
        }
        None => jobs.start_all(&graph, plans, transacted.backups, grouped).await,
    };
    drop(reserved);
    TransactionOutcome { told, done }
}

/// Ids that no other job can get meanwhile.
struct Reserved {
    registry: Addr<Registry>,
    ids: Vec<String>,
    /// For each id, why it cannot be had.
    refusals: Vec<Option<QmpError>>,
}

impl Reserved {
    async fn of(jobs: &Jobs, ids: Vec<String>) -> Self {
        let registry = jobs.0.clone();
        let asked = registry.send(Reserve(ids.clone())).await;
        let refusals = asked.unwrap_or_else(|_| ids.iter().map(|_| Some(ended())).collect());
        let had = ids.into_iter().zip(&refusals);
        let ids = had.filter(|(_, refused)| refused.is_none()).map(|(id, _)| id);
        Self {
            ids: ids.collect(),
            registry,
            refusals,
        }
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.registry.do_send(Release(std::mem::take(&mut self.ids)));
    }
}

impl Jobs {
    async fn start_all(
        &self,
        graph: &GraphHandle,
        plans: Vec<BackupPlan>,
        started: Vec<BackupStarted>,
        grouped: bool,
    ) -> Result<(), QmpError> {
        let mut all = Vec::new();
        let mut failed = None;
        for (plan, started) in plans.into_iter().zip(started) {
            let (id, options) = (plan.id().to_owned(), plan.job_options());
            let ready = plan.take_over(graph.clone(), started).await;
            failed = failed.or(ready.failed());
            all.push((id, options, ready));
        }
        if let Some(error) = failed {
            // The nodes are gone, or the graph is.
            for (_, _, ready) in all.iter().rev() {
                ready.give_up().await;
            }
            return Err(error);
        }
        let jobs = all.into_iter().map(|(id, options, ready)| NewJob {
            id,
            options,
            make: Box::new(move || Box::new(ready.job())),
        });
        let jobs = jobs.collect();
        self.0.send(StartAll { jobs, grouped }).await.map_err(|_| ended())
    }

    async fn undone(&self, undone: Undone) {
        // Where the registry has ended nobody hears of it either.
        let _ = self.0.send(undone).await;
    }
}

/// Keeps ids for jobs that are about to start; answers for each why it cannot be had.
struct Reserve(Vec<String>);

impl Message for Reserve {
    type Result = Vec<Option<QmpError>>;
}

/// Gives up what was kept.
struct Release(Vec<String>);

impl Message for Release {
    type Result = ();
}

/// A job that has all that it needs.
struct NewJob {
    id: String,
    options: JobOptions,
    make: MakeJob,
}

/// Starts jobs that have all that they need, under ids that are kept for them.
struct StartAll {
    jobs: Vec<NewJob>,
    grouped: bool,
}

impl Message for StartAll {
    type Result = ();
}

/// Tells of jobs that were made, and are gone with the transaction that made them.
struct Undone {
    ids: Vec<String>,
    /// The last of them could not be started.
    last_refused: bool,
}

impl Message for Undone {
    type Result = ();
}

impl Handler<Reserve> for Registry {
    type Result = MessageResult<Reserve>;

    fn handle(&mut self, Reserve(ids): Reserve, _: &mut Context<Self>) -> Self::Result {
        let mut refusals = Vec::with_capacity(ids.len());
        for id in ids {
            let checked = self.check_id(&id);
            if checked.is_ok() {
                self.reserved.push(id);
            }
            refusals.push(checked.err());
        }
        MessageResult(refusals)
    }
}

impl Handler<Release> for Registry {
    type Result = ();

    fn handle(&mut self, Release(ids): Release, _: &mut Context<Self>) {
        self.reserved.retain(|id| !ids.contains(id));
    }
}

impl Handler<StartAll> for Registry {
    type Result = ();

    /// All are made before the first one runs; the newest runs first.
    fn handle(&mut self, StartAll { jobs, grouped }: StartAll, context: &mut Context<Self>) {
        let mut group = None;
        let mut keys = Vec::new();
        for NewJob { id, options, make } in jobs {
            let key = self.new_key();
            let own = Group(key.0);
            let group = match grouped {
                true => *group.get_or_insert(own),
                false => own,
            };
            let mut entry = Self::new_entry(key, id, options, make(), context);
            entry.group = group;
            if let Ok(speed) = super::order::check_speed(options.speed) {
                entry.pace.set_speed(speed);
            }
            self.jobs.push(entry);
            self.enter(key, JobStatus::Created);
            keys.push(key);
        }
        keys.into_iter()
            .rev()
            .for_each(|key| self.begin_work(key, context));
    }
}

impl Handler<Undone> for Registry {
    type Result = ();

    fn handle(&mut self, Undone { ids, last_refused }: Undone, _: &mut Context<Self>) {
        let tell = |id: &String, status| {
            let id = id.clone();
            self.emit(Some(QmpEvent::JobStatusChange { id, status }));
        };
        ids.iter().for_each(|id| tell(id, JobStatus::Created));
        for (at, id) in ids.iter().enumerate().rev() {
            let is_refused = last_refused && at + 1 == ids.len();
            if !is_refused {
                tell(id, JobStatus::Aborting);
                tell(id, JobStatus::Concluded);
            }
            tell(id, JobStatus::Null);
        }
    }
}
