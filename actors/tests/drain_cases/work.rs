//! The jobs that users start, on nodes of the tests' drivers.

use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, unbounded};
use futures_channel::{mpsc, oneshot};
use futures_util::StreamExt;
use futures_util::future::LocalBoxFuture;
use millpond::graph::GraphHandle;
use millpond::job::{
    BackupPlan, Committing, Family, JobOptions, JobOrder, Jobs, MirrorPlan, StreamPlan, TransactionPart,
    commit_plan,
};
use millpond::monitor::EventBus;
use millpond_messages::graph::DelIothread;
use millpond_messages::io::OperationKind;
use millpond_messages::qapi::QmpError;
use millpond_messages::{Permissions, RequestFlags};
use millpond_ring::buffer::Buffers;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::driver::{Fails, Step};
use super::world::{DEADLINE, Sent, World, bytes, wait};

/// Bytes of each disk: more pieces than any job has under way.
pub const DISK: usize = 24 << 20;
/// Bytes of a request by which a disk is filled and looked at.
const PART: usize = 1 << 20;

type Command = Box<dyn FnOnce(Jobs) -> LocalBoxFuture<'static, ()> + Send>;

/// The jobs, on a control thread of their own.
pub struct Registry {
    graph: GraphHandle,
    commands: Option<mpsc::UnboundedSender<Command>>,
    events: Receiver<Value>,
    thread: Option<JoinHandle<()>>,
}

impl Registry {
    pub fn new(world: &World) -> Self {
        let (commands, mut asked) = mpsc::unbounded::<Command>();
        let (tell, events) = unbounded();
        let thread = std::thread::spawn(move || {
            actix_rt::System::new().block_on(async move {
                let bus = EventBus::default();
                let mut told = bus.subscribe();
                let jobs = Jobs::new(bus);
                let telling = actix_rt::spawn(async move {
                    loop {
                        let event = Value::Object(told.next().await.event.to_json());
                        if tell.send(event).is_err() {
                            return;
                        }
                    }
                });
                while let Some(command) = asked.next().await {
                    actix_rt::spawn(command(jobs.clone()));
                }
                telling.abort();
            });
        });
        Self {
            graph: world.graph.clone(),
            commands: Some(commands),
            events,
            thread: Some(thread),
        }
    }

    /// Does something with the jobs, on their thread.
    fn ask<T, F>(&self, act: impl FnOnce(Jobs) -> F + Send + 'static) -> Sent<T>
    where
        T: Send + 'static,
        F: Future<Output = T> + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let command: Command = Box::new(move |jobs| {
            let acted = act(jobs);
            // A test that has ended waits for nothing.
            Box::pin(async move { drop(answer.send(acted.await)) })
        });
        let commands = self.commands.as_ref().expect("it is there until it is dropped");
        commands.unbounded_send(command).expect("the thread runs");
        Box::pin(async move { answered.await.expect("the jobs are there") })
    }

    pub fn order(&self, order: JobOrder) {
        let applied = self.ask(move |jobs| async move { jobs.apply(Family::Job, "job", order).await });
        wait(applied).expect("the job takes it");
    }

    /// All that the job has to do, and what of that is done.
    pub fn progress(&self) -> (i64, i64) {
        let jobs = wait(self.ask(|jobs| async move { jobs.list_block_jobs().await }));
        (jobs[0].len, jobs[0].offset)
    }

    /// Waits until the job tells that it is in this state.
    pub fn wait_status(&self, status: &str) {
        self.wait_event(|event| event["event"] == "JOB_STATUS_CHANGE" && event["data"]["status"] == status);
    }

    /// Waits until the job has ended and is forgotten; answers what it failed by.
    pub fn wait_end(&self) -> Option<String> {
        let end = self.wait_event(|event| event["event"] == "BLOCK_JOB_COMPLETED");
        self.wait_status("null");
        end["data"]["error"].as_str().map(ToOwned::to_owned)
    }

    /// Waits until the job has ended as it was cancelled.
    pub fn wait_cancelled(&self) {
        self.wait_event(|event| event["event"] == "BLOCK_JOB_CANCELLED");
        self.wait_status("null");
    }

    fn wait_event(&self, is_it: impl Fn(&Value) -> bool) -> Value {
        loop {
            let event = self.events.recv_timeout(DEADLINE).expect("the job tells it");
            if is_it(&event) {
                return event;
            }
        }
    }

    /// Whether the job has told that it has ended, of all that it has told by now.
    pub fn has_ended(&self) -> bool {
        let mut told = self.events.try_iter();
        told.any(|event| event["event"] == "BLOCK_JOB_COMPLETED")
    }

    pub fn start(&self, kind: Kind, speed: i64) -> Result<(), QmpError> {
        let (graph, device) = (self.graph.clone(), kind.device());
        let started = self.ask(move |jobs| async move {
            let options = JobOptions {
                speed,
                ..JobOptions::default()
            };
            match kind {
                Kind::Backup => {
                    // A speed is there to have one piece under way.
                    let workers = if speed == 0 { 8 } else { 1 };
                    let asked = read(json!({"job-id": "job", "device": device, "target": "target",
                        "sync": "full", "speed": speed, "x-perf": {"max-workers": workers}}));
                    let parts = vec![TransactionPart::Backup(Box::new(BackupPlan::new(&asked)))];
                    jobs.transact(&graph, parts, false).await.done
                }
                Kind::Mirror | Kind::Blocking => {
                    let mode = match kind {
                        Kind::Mirror => "background",
                        _ => "write-blocking",
                    };
                    let asked = read(json!({"job-id": "job", "device": device, "target": "target",
                        "sync": "full", "copy-mode": mode}));
                    let plan = MirrorPlan::new(graph, &asked).await?;
                    jobs.start("job", options, || plan.job()).await
                }
                Kind::Stream => {
                    let plan = StreamPlan::new(graph, &read(json!({"device": device}))).await?;
                    jobs.start("job", options, || plan.job()).await
                }
                Kind::Commit | Kind::ActiveCommit => {
                    let asked = read(json!({"device": device, "top-node": "source", "base-node": "backing"}));
                    match commit_plan(graph, &asked).await? {
                        Committing::Intermediate(plan) => jobs.start("job", options, || plan.job()).await,
                        Committing::Active(plan) => jobs.start("job", options, || plan.job()).await,
                    }
                }
            }
        });
        wait(started)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.commands = None;
        if let Some(thread) = self.thread.take()
            && !std::thread::panicking()
        {
            thread.join().expect("the thread of the jobs ends");
        }
    }
}

fn read<T: DeserializeOwned>(arguments: Value) -> T {
    serde_json::from_value(arguments).expect("the arguments are well-formed")
}

/// Which job it is. Each goes on between the nodes `source`, over `backing`, and `target`; those that need no target write
/// to one of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Backup,
    /// A mirror in the background.
    Mirror,
    /// A write-blocking mirror.
    Blocking,
    Stream,
    /// Of `source`, below a node `top`.
    Commit,
    ActiveCommit,
}

impl Kind {
    pub const ALL: [Self; 6] = [
        Self::Backup,
        Self::Mirror,
        Self::Blocking,
        Self::Stream,
        Self::Commit,
        Self::ActiveCommit,
    ];

    fn device(self) -> &'static str {
        match self {
            Self::Commit => "top",
            _ => "source",
        }
    }

    pub fn has_target(self) -> bool {
        matches!(self, Self::Backup | Self::Mirror | Self::Blocking)
    }

    /// It is ready at first, and ends when a user says so.
    pub fn is_completed(self) -> bool {
        matches!(self, Self::Mirror | Self::Blocking | Self::ActiveCommit)
    }

    pub fn nodes(self) -> &'static [&'static str] {
        match self {
            Self::Backup | Self::Mirror | Self::Blocking => &["source", "backing", "target"],
            Self::Stream | Self::ActiveCommit => &["source", "backing"],
            Self::Commit => &["top", "source", "backing"],
        }
    }

    /// The node that the data is read from.
    pub fn read(self) -> &'static str {
        match self {
            Self::Commit | Self::ActiveCommit => "source",
            _ => "backing",
        }
    }

    /// The node that is written, of those that the test named.
    pub fn written(self) -> &'static str {
        match self {
            Self::Backup | Self::Mirror | Self::Blocking => "target",
            Self::Stream => "source",
            Self::Commit | Self::ActiveCommit => "backing",
        }
    }

    /// What its end does that can fail.
    pub fn last_step(self) -> Option<(&'static str, Fails)> {
        match self {
            Self::Backup => None,
            Self::Mirror | Self::Blocking => Some(("target", Fails::Flush)),
            Self::ActiveCommit => Some(("backing", Fails::Flush)),
            Self::Stream => Some(("source", Fails::Link)),
            Self::Commit => Some(("top", Fails::Link)),
        }
    }

    /// The nodes with data in the one that it is read from; in an iothread of its own if asked for.
    pub fn world(self, iothread: bool) -> World {
        let world = World::sized(self.nodes(), DISK);
        world.memory("backing");
        if self.read() == "backing" {
            fill(&world, "backing");
        }
        world.overlay("source", "backing");
        if self.read() == "source" {
            fill(&world, "source");
        }
        match self {
            Self::Commit => world.overlay("top", "source"),
            _ if self.has_target() => world.memory("target"),
            _ => {}
        }
        if iothread {
            world.iothread("io");
            world.move_to("source", Some("io"));
        }
        world
    }

    /// The step at which it is held that reads, or that writes.
    pub fn step(writes: bool) -> Step {
        Step::Request(match writes {
            true => OperationKind::Write,
            false => OperationKind::Read,
        })
    }
}

fn part(at: usize) -> u8 {
    at as u8 + 1
}

fn fill(world: &World, node: &str) {
    let client = world.client(node);
    for at in 0..DISK / PART {
        let write = client.write((at * PART) as u64, bytes(part(at), PART), RequestFlags::empty());
        wait(write).0.expect("the write succeeds");
    }
    wait(world.graph.detach(client.root())).expect("the node is held");
}

/// Checks that a node has all the data.
pub fn check(world: &World, node: &str) {
    let client = world.client_with(node, Permissions::CONSISTENT_READ);
    for at in 0..DISK / PART {
        let (read, buffers) = wait(client.read((at * PART) as u64, Buffers::zeroed(PART)));
        read.expect("the read succeeds");
        assert!(buffers.to_vec() == vec![part(at); PART], "part {at} of {node}");
    }
    wait(world.graph.detach(client.root())).expect("the node is held");
}

/// Checks that the job has left nothing: its nodes can be held, moved and left by everybody else.
pub fn check_free(world: &World, kind: Kind, iothread: bool) {
    for node in kind.nodes() {
        // A node that has left the chain may stand by itself, with others still above it.
        let client = world.client_with(node, Permissions::CONSISTENT_READ);
        wait(world.graph.detach(client.root())).expect("the node is held");
        world.move_to(node, None);
    }
    if iothread {
        let deleted = world.graph.ask(DelIothread { id: "io".to_owned() });
        wait(deleted).expect("nothing was left behind there");
    }
}
