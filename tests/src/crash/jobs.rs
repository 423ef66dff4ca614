//! Jobs of workloads: where they are, and how they are seen through.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::thread::JoinHandle;

use actix_rt::{ArbiterHandle, System};
use futures_channel::{mpsc, oneshot};
use futures_util::StreamExt;
use futures_util::future::select;
use millpond::graph::GraphHandle;
use millpond::job::{
    BackupPlan, Committing, Family, Job, JobOptions, JobOrder, Jobs, MirrorPlan, StreamPlan, TransactionPart,
    commit_plan,
};
use millpond::monitor::EventBus;
use millpond_messages::qapi::schema::{BlockErrorAction, BlockdevBackup};
use millpond_messages::qapi::{JobStatus, QmpError, QmpEvent};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::disk::Disk;
use super::link::{Format, Link, chain_options};
use super::site::{Run, Stretch, options};
use super::workload::Work;

/// The id of the one job that there is at a time.
const ID: &str = "job";

/// How often a job that has stopped is told to go on.
const TRIES: u32 = 3;

/// The jobs of a block layer, on a thread of their own.
pub struct JobSite {
    jobs: Jobs,
    arbiter: ArbiterHandle,
    events: RefCell<mpsc::UnboundedReceiver<QmpEvent>>,
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl JobSite {
    /// No jobs.
    pub async fn start() -> Self {
        let (tell, told) = oneshot::channel();
        let (stop, stopped) = oneshot::channel();
        let (pass_on, events) = mpsc::unbounded();
        let thread = std::thread::spawn(move || {
            System::new().block_on(async move {
                let bus = EventBus::default();
                let mut heard = bus.subscribe();
                drop(tell.send((Jobs::new(bus), System::current().arbiter().clone())));
                let hear = async {
                    loop {
                        let told = heard.next().await;
                        // Nobody listens any more only where the thread is about to end.
                        let _ = pass_on.unbounded_send(told.event.event);
                    }
                };
                select(pin!(hear), stopped).await;
            });
        });
        let (jobs, arbiter) = told.await.expect("the thread of the jobs runs");
        Self {
            jobs,
            arbiter,
            events: RefCell::new(events),
            stop,
            thread,
        }
    }

    /// Ends their thread.
    pub fn end(self) {
        drop(self.stop);
        self.thread.join().expect("no job has panicked");
    }

    async fn heard(&self) -> QmpEvent {
        let heard = poll_fn(|context| self.events.borrow_mut().poll_next_unpin(context)).await;
        heard.expect("the thread of the jobs runs")
    }

    async fn apply(&self, order: JobOrder) -> Result<(), QmpError> {
        self.jobs.apply(Family::Job, ID, order).await
    }

    async fn start_job<J: Job>(&self, make: impl FnOnce() -> J + Send + 'static) -> Result<(), QmpError> {
        let by_hand = JobOptions {
            auto_finalize: false,
            auto_dismiss: false,
            speed: 0,
        };
        self.jobs.start(ID, by_hand, make).await
    }

    async fn start_backup(&self, graph: GraphHandle, asked: BlockdevBackup) -> Result<(), QmpError> {
        let (jobs, (tell, told)) = (self.jobs.clone(), oneshot::channel());
        let sent = self.arbiter.spawn(async move {
            let parts = vec![TransactionPart::Backup(Box::new(BackupPlan::new(&asked)))];
            let outcome = jobs.transact(&graph, parts, false).await;
            drop(tell.send(outcome.done));
        });
        assert!(sent, "the thread of the jobs runs");
        told.await.expect("the thread of the jobs runs")
    }

    /// Forgets the job that has concluded; answers its error.
    async fn dismiss(&self) -> Option<String> {
        let found = self.jobs.list().await.into_iter().find(|job| job.id == ID);
        self.apply(JobOrder::Dismiss).await.expect("it has concluded");
        found.and_then(|job| job.error)
    }
}

/// What a job comes to.
struct Aim {
    /// The chain afterwards, its last node, and which of the nodes below it are left.
    next: Option<(Vec<Link>, String, usize)>,
    /// What it copies to.
    target: Option<(Link, String)>,
    /// A user says when it is to end.
    completes: bool,
}

/// Arguments of a command.
fn asked<T: DeserializeOwned>(arguments: Value) -> T {
    serde_json::from_value(arguments).expect("arguments of the command")
}

impl Run<'_> {
    /// Starts a job and sees it through.
    pub(super) async fn job(&mut self, work: Work) {
        let Some(aim) = self.aim(work).await else { return };
        if let Err(error) = self.start(work, &aim).await {
            self.fail("a job's start", error.desc);
            return self.leave(&aim, false).await;
        }
        let error = self.follow(&aim).await;
        let is_done = error.is_none();
        if let Some(error) = error {
            self.fail("a job", error);
        }
        self.leave(&aim, is_done).await;
    }

    /// What is to come of a job; its target is made.
    async fn aim(&mut self, work: Work) -> Option<Aim> {
        let links = self.links().to_vec();
        let (last, lower) = (links.len() - 1, self.lower.len());
        let mut aim = Aim {
            next: None,
            target: None,
            completes: false,
        };
        match work {
            Work::Stream => aim.next = Some((links[last..].to_vec(), self.node.clone(), 0)),
            Work::Commit => {
                // One that failed may have left no image to be merged.
                let below = lower.checked_sub(2)?;
                let left = links[..last - 1].iter().chain(&links[last..]).cloned();
                aim.next = Some((left.collect(), self.node.clone(), below + 1));
            }
            Work::CommitActive => {
                let below = self.lower.last()?.clone();
                aim.next = Some((links[..last].to_vec(), below, lower - 1));
                aim.completes = true;
            }
            Work::Backup | Work::Mirror { .. } => {
                let (link, node) = self.make_target().await?;
                if work != Work::Backup {
                    aim.next = Some((vec![link.clone()], node.clone(), 0));
                    aim.completes = true;
                }
                aim.target = Some((link, node));
            }
        }
        Some(aim)
    }

    /// An empty image as long as the disk, and its node.
    async fn make_target(&mut self) -> Option<(Link, String)> {
        let disk = Disk::new(
            Vec::new(),
            &self.clock,
            self.workload.alignment,
            self.rng.u64(..),
            3,
        );
        let name = self.site.put("target", &disk);
        disk.record();
        let link = Link::new(name, Arc::clone(&disk), Format::Qcow2);
        let created = self.site.create(&link, &self.workload.create, self.size).await;
        self.note("create", created)?;
        self.may_fail(&disk, 1);
        let node = self.site.name("copy");
        let mut target = chain_options(std::slice::from_ref(&link), None);
        target["node-name"] = json!(node);
        let added = self.site.graph().add_node(options(target)).await;
        self.note("open", added)?;
        let stretch = Stretch {
            besides: vec![link.clone()],
            ..Stretch::of(self.clock.tick(), self.links().to_vec())
        };
        self.chains.push(stretch);
        Some((link, node))
    }

    async fn start(&self, work: Work, aim: &Aim) -> Result<(), QmpError> {
        let (graph, jobs, device) = (self.site.graph().clone(), &self.site.jobs, &self.node);
        let target = aim.target.as_ref().map(|(_, node)| node);
        let below = |steps: usize| self.lower.len().checked_sub(steps).map(|at| &self.lower[at]);
        let on_error = self.on_error;
        match work {
            Work::Backup => {
                let asked = asked(json!({
                    "job-id": ID, "device": device, "target": target, "sync": "full",
                    "on-source-error": on_error, "on-target-error": on_error,
                    "auto-finalize": false, "auto-dismiss": false,
                }));
                jobs.start_backup(graph, asked).await
            }
            Work::Stream => {
                let asked = asked(json!({"job-id": ID, "device": device, "on-error": on_error}));
                let plan = StreamPlan::new(graph, &asked).await?;
                jobs.start_job(|| plan.job()).await
            }
            Work::Commit | Work::CommitActive => {
                let (top, base) = match work {
                    Work::Commit => (below(1), below(2)),
                    _ => (Some(device), below(1)),
                };
                let asked = asked(json!({
                    "job-id": ID, "device": device, "top-node": top, "base-node": base, "on-error": on_error,
                }));
                match commit_plan(graph, &asked).await? {
                    Committing::Intermediate(plan) => jobs.start_job(|| plan.job()).await,
                    Committing::Active(plan) => jobs.start_job(|| plan.job()).await,
                }
            }
            Work::Mirror { is_blocking } => {
                let copy_mode = if is_blocking {
                    "write-blocking"
                } else {
                    "background"
                };
                let asked = asked(json!({
                    "job-id": ID, "device": device, "target": target, "sync": "full", "copy-mode": copy_mode,
                    "on-source-error": on_error, "on-target-error": on_error,
                }));
                let plan = MirrorPlan::new(graph, &asked).await?;
                jobs.start_job(|| plan.job()).await
            }
        }
    }

    /// Has a job do what it is for; answers its error. One that stops at an error is told to go on some times.
    async fn follow(&mut self, aim: &Aim) -> Option<String> {
        let jobs = &self.site.jobs;
        let (mut stops, mut stands) = (0, false);
        loop {
            match jobs.heard().await {
                QmpEvent::JobStatusChange { status, .. } => match status {
                    JobStatus::Ready if aim.completes => {
                        // It says so again if it stands still in this moment.
                        let _ = jobs.apply(JobOrder::Complete).await;
                    }
                    JobStatus::Pending => {
                        if let Some((links, ..)) = &aim.next {
                            let stretch = Stretch {
                                instead: Some(links.clone()),
                                ..Stretch::of(self.clock.tick(), self.links().to_vec())
                            };
                            self.chains.push(stretch);
                        }
                        jobs.apply(JobOrder::Finalize).await.expect("it is pending");
                    }
                    JobStatus::Concluded => break,
                    _ => {}
                },
                QmpEvent::BlockJobError {
                    action: BlockErrorAction::Stop,
                    ..
                } => {
                    self.tell("a request of a job", "it stopped".to_owned());
                    stops += 1;
                    stands = true;
                }
                _ => {}
            }
            if stands && stops > TRIES {
                stands = false;
                let _ = jobs.apply(JobOrder::Cancel { force: true }).await;
            } else if stands && jobs.apply(JobOrder::Resume).await.is_ok() {
                stands = false;
            }
        }
        jobs.dismiss().await
    }

    /// The job has ended: what is of no more use is closed.
    async fn leave(&mut self, aim: &Aim, is_done: bool) {
        let graph = self.site.graph().clone();
        let mut left = Vec::new();
        match &aim.next {
            Some((links, node, lower)) if is_done => {
                let besides = self.links().iter();
                let besides = besides.filter(|old| links.iter().all(|link| link.name != old.name));
                let besides = besides.cloned().collect();
                let links = links.clone();
                let stretch = Stretch {
                    besides,
                    ..Stretch::of(self.clock.tick(), links)
                };
                self.chains.push(stretch);
                if *node != self.node {
                    left.push(std::mem::replace(&mut self.node, node.clone()));
                }
                // The node that is the last one now was below that one.
                left.extend(self.lower.drain(*lower..).rev().filter(|below| below != node));
            }
            _ => {
                let links = self.links().to_vec();
                self.chains.push(Stretch::of(self.clock.tick(), links));
                left.extend(aim.target.as_ref().map(|(_, node)| node.clone()));
            }
        }
        self.suspend_fault(true);
        for node in left {
            let deleted = graph.delete_node(node).await;
            self.note("delete", deleted);
        }
        self.suspend_fault(false);
    }
}
