//! Who runs jobs that copy beside all else: images are streamed up and committed down, the disk is backed up and mirrored.
//!
//! A job changes no byte that a user sees, which the oracle of the served disk sees to, also once the disk is another image. A
//! backup's target is held against what the disk may have been when the job began, that of a mirror which is stopped against
//! what it may have been at the end. Jobs wait to be finalized, so that it is known when they change the chain. However a job
//! ends, the chain is looked at: it is the one that was wanted, or the one that there was.

use std::cell::RefCell;
use std::io;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use fastrand::Rng;
use millpond::graph::GraphHandle;
use millpond_messages::Permissions;
use millpond_messages::graph::RootRequest;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::editor::{Edits, is_refusal};
use super::embedder::root_request;
use super::monitor::Monitor;
use super::oracle::{Look, Oracle};
use super::side::whole;
use super::site::{Images, file_nodes};
use super::stage::{Moment, Stage};
use super::target::TARGET;

/// The id of the job.
pub(super) const ID: &str = "job";

/// How long a cancelled job may take to end without its target: a second, and what its source's users have in flight.
const LONGEST_END: Duration = Duration::from_secs(3);

/// How a job ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ended {
    Well,
    Failed(String),
    /// The run is over.
    CutOff,
}

/// What a job comes to, unless it is given up or fails.
#[derive(Debug, Clone)]
pub(super) enum Goal {
    /// The chain stays as it is.
    Same,
    /// So it does, and the target shows what the disk is at the end, which a user decides on.
    Copy,
    /// The chain changes once the job is finalized.
    Chain(Next),
    /// It does, which a user decides on.
    Pivot(Next),
}

/// What becomes of the chain by a job.
#[derive(Debug, Clone)]
pub(super) struct Next {
    /// Places in the chain, from the base on, whose images are not in it any more.
    leaves: Range<usize>,
    /// The image that takes their place, and that of all above them.
    pub successor: Option<usize>,
    /// The filters above the chain are not there any more.
    pub is_bare: bool,
    /// This image is replaced, if it is the last one still: nothing else shows the same as what was copied.
    pub replaces: Option<usize>,
}

impl Next {
    /// The chain loses some places.
    pub fn without(images: &Images, leaves: Range<usize>) -> Self {
        Self {
            leaves,
            successor: None,
            is_bare: images.is_bare,
            replaces: None,
        }
    }

    /// What the chain is then, whatever overlays there are by now.
    fn chain(&self, images: &Images) -> Vec<usize> {
        let mut chain = images.chain.clone();
        let end = self.successor.map_or(self.leaves.end, |_| chain.len());
        chain.splice(self.leaves.start..end, self.successor);
        chain
    }

    /// Whether an overlay has come between what was copied and what is to be replaced.
    fn is_late(&self, images: &Images) -> bool {
        self.replaces.is_some() && self.replaces != images.chain.last().copied()
    }
}

/// What a copy's target must show.
pub(super) struct Kept {
    oracle: Oracle,
    look: Look,
}

/// Who runs jobs.
pub(super) struct Jobber {
    pub(super) stage: Rc<Stage>,
    graph: GraphHandle,
    pub(super) monitor: Monitor,
    oracle: Rc<RefCell<Oracle>>,
    pub(super) edits: Rc<Edits>,
    pub(super) random: Rng,
    pub(super) targets: usize,
    pub(super) successors: usize,
    /// The file that the job which goes on copies to.
    pub(super) target: Option<String>,
    /// What a mirror's target must show.
    pub(super) ended_at: Option<Kept>,
}

/// A job that is being watched.
struct Watched {
    goal: Goal,
    cancelled: bool,
    /// A user wants it to do what it is for.
    completed: bool,
    /// It cannot do that any more.
    is_late: bool,
}

/// Runs jobs until told to end.
pub async fn run_jobs(
    stage: Rc<Stage>,
    (graph, monitor): (GraphHandle, Monitor),
    oracle: Rc<RefCell<Oracle>>,
    edits: Rc<Edits>,
    random: Rng,
) {
    let mut jobber = Jobber {
        stage,
        graph,
        monitor,
        oracle,
        edits,
        random,
        targets: 0,
        successors: 0,
        target: None,
        ended_at: None,
    };
    while jobber.goes_on() {
        sleep(Duration::from_micros(jobber.random.u64(200..6000))).await;
        if !jobber.goes_on() {
            break;
        }
        let ran = jobber.one_job().await;
        if jobber.stage.is_ending() {
            break;
        }
        if let Err(error) = ran {
            jobber
                .stage
                .violated(format!("the monitor of jobs is lost: {error}"));
        }
    }
}

impl Jobber {
    fn goes_on(&self) -> bool {
        self.edits.goes_on(&self.stage) && !self.edits.jobs_ended.get()
    }

    /// Begins to look at the whole disk.
    pub(super) fn look(&self) -> Look {
        let mut oracle = self.oracle.borrow_mut();
        let cells = oracle.cells();
        oracle.look(0, cells)
    }

    /// What was seen by a look that ends now: whatever is acknowledged from here on may not be in it, and what was before it
    /// began has to be.
    pub(super) fn kept(&self, look: Look) -> Kept {
        let oracle = self.oracle.borrow().clone();
        Kept { oracle, look }
    }

    /// Reads the whole target, and holds it against what the disk was in the moment that it is to show.
    pub(super) async fn compare(&self, since: Moment, mut kept: Kept) {
        let request = RootRequest {
            permissions: Permissions::CONSISTENT_READ,
            ..root_request(TARGET.to_owned(), "reader")
        };
        let edit = self.stage.sections.edit();
        let attached = self.graph.attach(request).await;
        drop(edit);
        let client = match attached {
            Ok(client) => client,
            Err(error) if !self.stage.is_ending() => {
                return self
                    .stage
                    .violated(format!("the target cannot be opened: {error}"));
            }
            Err(_) => return,
        };
        match whole(&client).await {
            Ok(bytes) => {
                if let Err(text) = kept.oracle.seen(&kept.look, &bytes) {
                    self.stage.violated(format!("of the copy {text}"));
                }
            }
            Err(_) if self.stage.may_fail(since, false) => {}
            Err(error) => self.stage.violated(format!("the target cannot be read: {error}")),
        }
        let _edit = self.stage.sections.edit();
        // Where the daemon closes, the node is gone.
        let _ = self.graph.detach(client.root()).await;
    }

    /// Starts a job; it may be refused by what others do with its nodes, and where disks fail.
    pub(super) async fn start(&mut self, command: &str, job: Value) -> io::Result<bool> {
        let since = self.stage.moment();
        match self.monitor.run(command, job).await? {
            Ok(_) => Ok(true),
            Err(text) => {
                if !is_refusal(&text) && !self.stage.may_fail(since, false) {
                    self.stage.violated(format!("{command} failed: {text}"));
                }
                Ok(false)
            }
        }
    }

    /// Watches a job up to its end, and gets in its way.
    pub(super) async fn see_through(&mut self, since: Moment, goal: Goal) -> io::Result<Ended> {
        let stage = Rc::clone(&self.stage);
        let mut watched = Watched {
            goal,
            cancelled: false,
            completed: false,
            is_late: false,
        };
        // A job that fails takes its filter out at any time.
        let mut edit = (stage.swarm().errors > 0).then(|| stage.sections.edit());
        let ended = loop {
            sleep(Duration::from_micros(self.random.u64(100..4000))).await;
            if stage.is_ending() || stage.violation().is_some() {
                break Ended::CutOff;
            }
            let Some(job) = self.find().await? else {
                stage.violated("a job that nobody dismissed is gone".to_owned());
                break Ended::CutOff;
            };
            match job["status"].as_str().unwrap_or_default() {
                "pending" => self.finalize(&mut watched).await?,
                "concluded" => {
                    let dismissed = self.monitor.run("job-dismiss", json!({"id": ID})).await?;
                    if let Err(text) = dismissed {
                        stage.violated(format!("a concluded job cannot be dismissed: {text}"));
                    }
                    break match job["error"].as_str() {
                        None => Ended::Well,
                        Some(text) => Ended::Failed(text.to_owned()),
                    };
                }
                _ if watched.cancelled || !self.goes_on() || self.random.u32(0..80) == 0 => {
                    watched.cancelled = true;
                    // What it does at its end comes at any time.
                    edit.get_or_insert_with(|| stage.sections.edit());
                    self.target.iter().for_each(|target| stage.give_up(target));
                    let _ = self.monitor.run("job-cancel", json!({"id": ID})).await?;
                }
                "ready" if !watched.completed && self.random.u32(0..10) == 0 => {
                    self.decide(&mut watched).await?;
                }
                _ if self.target.is_some() && self.random.u32(0..60) == 0 => {
                    edit.get_or_insert_with(|| stage.sections.edit());
                    self.target_dies(&mut watched).await?;
                }
                _ => self.meddle().await?,
            }
        };
        if let Ended::Failed(text) = &ended
            && !watched.cancelled
            && !watched.is_late
            && !stage.may_fail(since, false)
        {
            stage.violated(format!("a job failed: {text}"));
        }
        drop(edit);
        if ended != Ended::CutOff {
            self.look_at_chain().await?;
        }
        Ok(ended)
    }

    /// Ends a job that is ready: it does what it is for, or leaves its target as it is then.
    async fn decide(&mut self, watched: &mut Watched) -> io::Result<()> {
        if matches!(watched.goal, Goal::Pivot(_)) && self.random.u32(0..4) > 0 {
            let completed = self.monitor.run("job-complete", json!({"id": ID})).await?;
            watched.completed = completed.is_ok();
            return Ok(());
        }
        // Without force.
        let stopped = self
            .monitor
            .run("block-job-cancel", json!({"device": ID}))
            .await?;
        if stopped.is_ok() && matches!(watched.goal, Goal::Pivot(_)) {
            watched.goal = Goal::Same;
        }
        Ok(())
    }

    /// The chain is the one that is known, and nothing of a job is left in it.
    async fn look_at_chain(&mut self) -> io::Result<()> {
        let edits = Rc::clone(&self.edits);
        let _turn = edits.turn.lock().await;
        let graph = self.monitor.must("x-debug-query-block-graph", json!({})).await?;
        let images = edits.images.borrow().clone();
        let root = images.root(self.stage.swarm());
        let chain = images.chain.iter().rev().map(|index| format!("n{index}"));
        let mut wanted: Vec<String> = chain.collect();
        wanted.splice(0..0, images.filters(self.stage.swarm()));
        let found = chain_below(&graph, &root);
        if found.as_ref() != Ok(&wanted) && !self.stage.is_ending() {
            self.stage
                .violated(format!("the chain is {found:?}, not {wanted:?}"));
        }
        Ok(())
    }

    async fn find(&mut self) -> io::Result<Option<Value>> {
        let jobs = self.monitor.must("query-jobs", json!({})).await?;
        let mut jobs = jobs.as_array().cloned().unwrap_or_default().into_iter();
        Ok(jobs.find(|job| job["id"] == ID))
    }

    /// The target does not answer for a while; or until the job, which is cancelled, has ended without it.
    async fn target_dies(&mut self, watched: &mut Watched) -> io::Result<()> {
        let stage = Rc::clone(&self.stage);
        stage.set_dead(self.target.as_deref());
        sleep(Duration::from_micros(self.random.u64(1..50_000))).await;
        if self.random.bool() && !stage.is_ending() {
            watched.cancelled = true;
            self.target.iter().for_each(|target| stage.give_up(target));
            let begun = stage.now();
            let _ = self.monitor.run("job-cancel", json!({"id": ID})).await?;
            loop {
                let job = self.find().await?;
                let is_over = job.is_none_or(|job| job["status"] == "concluded");
                let swarm = stage.swarm();
                // What holds the source's users back holds up the end of a job; and so does another change of the graph, which
                // may wait for the target itself.
                let is_held = swarm.throttle || !swarm.hops.is_empty() || stage.sections.are_held();
                let is_held = is_held || stage.sections.edits() > 1;
                let took = stage.now().saturating_duration_since(begun);
                if is_over || stage.is_ending() || (is_held && took > LONGEST_END) {
                    break;
                }
                if took > LONGEST_END {
                    stage.violated(format!("a job whose target is dead goes on for {took:?}"));
                    break;
                }
                sleep(Duration::from_millis(1)).await;
            }
        }
        stage.set_dead(None);
        Ok(())
    }

    /// A verb beside a job at work, or none. It may come when the job is in a state that refuses it.
    async fn meddle(&mut self) -> io::Result<()> {
        let (verb, arguments) = match self.random.u32(0..20) {
            0 | 1 => ("job-pause", json!({"id": ID})),
            2..9 => ("job-resume", json!({"id": ID})),
            9 => {
                let speed = [0, 1 << 20, 64 << 20][self.random.usize(0..3)];
                ("block-job-set-speed", json!({"device": ID, "speed": speed}))
            }
            _ => return Ok(()),
        };
        self.monitor.run(verb, arguments).await.map(drop)
    }

    /// Makes the result final, or gives it up.
    async fn finalize(&mut self, watched: &mut Watched) -> io::Result<()> {
        let edits = Rc::clone(&self.edits);
        let turn = edits.turn.lock().await;
        let stage = Rc::clone(&self.stage);
        let edit = stage.sections.edit();
        let gives_up = watched.cancelled || self.random.u32(0..5) == 0;
        watched.cancelled |= gives_up;
        let next = match &watched.goal {
            Goal::Chain(next) | Goal::Pivot(next) if !gives_up => Some(next.clone()),
            _ => None,
        };
        if let Some(next) = &next {
            let images = edits.images.borrow().clone();
            watched.is_late = next.is_late(&images);
            edits.unsettle(&stage);
            edits.images.borrow_mut().instead = Some(next.chain(&images));
        }
        let look = (matches!(watched.goal, Goal::Copy) && !gives_up).then(|| self.look());
        let verb = if gives_up { "job-cancel" } else { "job-finalize" };
        let _ = self.monitor.run(verb, json!({"id": ID})).await?;
        // It takes as long as its drained section does, which others' requests decide.
        let job = loop {
            if stage.is_ending() {
                return Ok(());
            }
            match self.find().await? {
                Some(job) if job["status"] != "concluded" => {}
                job => break job,
            }
            sleep(Duration::from_micros(300)).await;
        };
        let is_done = job.is_some_and(|job| job["error"].is_null());
        self.ended_at = look.map(|look| self.kept(look));
        if let Some(next) = next {
            let before = edits.images.borrow().clone();
            edits.images.borrow_mut().instead = None;
            if is_done {
                edits.images.borrow_mut().chain = next.chain(&before);
                edits.images.borrow_mut().is_bare = next.is_bare;
            }
            edits.settle();
            drop(edit);
            self.delete_what_left(&before).await?;
        }
        drop(turn);
        Ok(())
    }

    /// Deletes what was in the chain and is not any more; but not the base, which others use.
    async fn delete_what_left(&mut self, before: &Images) -> io::Result<()> {
        let after = self.edits.images.borrow().clone();
        let swarm = self.stage.swarm().clone();
        let left = before.filters(&swarm).into_iter();
        let mut left: Vec<String> = left.filter(|_| after.is_bare).collect();
        for index in before.chain.iter().rev() {
            if *index > 0 && !after.chain.contains(index) {
                left.push(format!("n{index}"));
                left.extend(file_nodes(&swarm, *index));
            }
        }
        self.delete(&left).await
    }
}

/// The nodes from `root` down to the last backing image, by their names.
fn chain_below(graph: &Value, root: &str) -> Result<Vec<String>, String> {
    let all = |what: &str| graph[what].as_array().cloned().unwrap_or_default();
    let (nodes, edges) = (all("nodes"), all("edges"));
    let named = |id: &Value| nodes.iter().find(|node| node["id"] == *id);
    let Some(mut at) = nodes.iter().find(|node| node["name"] == root) else {
        return Err(format!("there is no node {root}"));
    };
    let above = edges.iter().filter(|edge| edge["child"] == at["id"]);
    let mut above = above.filter_map(|edge| named(&edge["parent"]));
    if let Some(above) = above.find(|node| node["type"] == "block-driver") {
        return Err(format!("{} stands above it", above["name"]));
    }
    let mut chain = Vec::new();
    loop {
        chain.push(at["name"].as_str().unwrap_or_default().to_owned());
        let below = |name: &str| {
            let mut below = edges.iter().filter(|edge| edge["parent"] == at["id"]);
            below.find(|edge| edge["name"] == name)
        };
        let is_image = at["name"].as_str().is_some_and(|name| name.starts_with('n'));
        let next = below("backing").or_else(|| below("file").filter(|_| !is_image));
        match next.and_then(|edge| named(&edge["child"])) {
            Some(next) => at = next,
            None => return Ok(chain),
        }
    }
}
