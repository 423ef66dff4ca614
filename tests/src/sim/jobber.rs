//! Who runs jobs that copy beside all else: images are streamed up and committed down, the disk is backed up and mirrored.
//!
//! A job changes no byte that a user sees, which the oracle of the served disk sees to. A backup's target is held against what
//! the disk may have been when the job began, that of a mirror which is stopped against what it may have been at the end. Jobs wait to be finalized, so that it is known when they change the chain.

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
use super::site::add_target;
use super::stage::{Moment, Stage};

/// The id of the job.
const ID: &str = "job";
/// The node that is backed up to.
const TARGET: &str = "target";

/// How a job ended.
#[derive(Debug, PartialEq, Eq)]
enum Ended {
    Well,
    Failed(String),
    /// The run is over.
    CutOff,
}

/// How the disk is copied to a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Copying {
    /// As it was at the start.
    Backup,
    /// As it is at the end.
    Mirror,
}

/// What a copy's target must show.
struct Kept {
    oracle: Oracle,
    look: Look,
}

struct Jobber {
    stage: Rc<Stage>,
    graph: GraphHandle,
    monitor: Monitor,
    oracle: Rc<RefCell<Oracle>>,
    edits: Rc<Edits>,
    random: Rng,
    targets: usize,
    /// The job that goes on is a mirror, which a user ends.
    mirrors: bool,
    /// What a mirror's target must show.
    ended_at: Option<Kept>,
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
        mirrors: false,
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

    async fn one_job(&mut self) -> io::Result<()> {
        let places = self.edits.images.borrow().chain.len();
        match self.random.u32(0..8) {
            0 | 1 if places > 1 => self.stream().await,
            2..5 if places > 2 => self.commit().await,
            5 => self.copy_out(Copying::Backup).await,
            _ => self.copy_out(Copying::Mirror).await,
        }
    }

    /// Options of any job.
    fn options(&mut self) -> Value {
        let speed = [0, 0, 1 << 20, 16 << 20][self.random.usize(0..4)];
        json!({"job-id": ID, "speed": speed, "auto-finalize": false, "auto-dismiss": false})
    }

    fn on_error(&mut self) -> &'static str {
        ["report", "stop", "enospc", "ignore"][self.random.usize(0..4)]
    }

    async fn stream(&mut self) -> io::Result<()> {
        let edits = Rc::clone(&self.edits);
        let turn = edits.turn.lock().await;
        let images = edits.images.borrow().clone();
        let last = images.chain.len() - 1;
        // Nothing, or an image of the chain, is below in the end.
        let base = self.random.usize(0..=last);
        let mut job = self.options();
        job["device"] = json!(images.top());
        job["on-error"] = json!(self.on_error());
        if let Some(base) = base.checked_sub(1) {
            job["base-node"] = json!(format!("n{}", images.chain[base]));
            job["backing-file"] = json!(images.backing_name(base));
        }
        let since = self.stage.moment();
        if self.start("block-stream", job).await? {
            drop(turn);
            self.see_through(since, base..last).await?;
        }
        Ok(())
    }

    async fn commit(&mut self) -> io::Result<()> {
        let edits = Rc::clone(&self.edits);
        let turn = edits.turn.lock().await;
        let images = edits.images.borrow().clone();
        let top = self.random.usize(1..images.chain.len() - 1);
        let base = self.random.usize(0..top);
        let mut job = self.options();
        job["device"] = json!(images.root(self.stage.swarm()));
        job["top-node"] = json!(format!("n{}", images.chain[top]));
        job["base-node"] = json!(format!("n{}", images.chain[base]));
        job["backing-file"] = json!(images.backing_name(base));
        job["on-error"] = json!(self.on_error());
        let since = self.stage.moment();
        if self.start("block-commit", job).await? {
            drop(turn);
            let places = base + 1..top + 1;
            self.see_through(since, places).await?;
        }
        Ok(())
    }

    async fn copy_out(&mut self, copying: Copying) -> io::Result<()> {
        let edits = Rc::clone(&self.edits);
        let turn = edits.turn.lock().await;
        let images = edits.images.borrow().clone();
        self.targets += 1;
        let since = self.stage.moment();
        let file = format!("target{}", self.targets);
        let is_qcow2 = self.random.bool();
        let (stage, monitor) = (Rc::clone(&self.stage), &mut self.monitor);
        if let Err(text) = add_target(&stage, monitor, &images, (TARGET, &file), is_qcow2).await? {
            if !stage.may_fail(since, false) {
                stage.violated(format!("a target cannot be made: {text}"));
            }
            // What is left of it is in the way of the next.
            edits.jobs_ended.set(true);
            stage.set_unmade(&file);
            return Ok(());
        }
        let mut job = self.options();
        job["device"] = json!(images.top());
        job["target"] = json!(TARGET);
        job["sync"] = json!("full");
        job["on-source-error"] = json!(self.on_error());
        job["on-target-error"] = json!(self.on_error());
        let command = match copying {
            Copying::Backup => "blockdev-backup",
            Copying::Mirror => {
                // Only what nobody stands on is mirrored.
                job["device"] = json!(images.root(self.stage.swarm()));
                job["copy-mode"] = json!(["background", "write-blocking"][self.random.usize(0..2)]);
                job["granularity"] = json!([0, 512, 4096][self.random.usize(0..3)]);
                "blockdev-mirror"
            }
        };
        self.mirrors = copying == Copying::Mirror;
        self.ended_at = None;
        let look = self.look();
        if self.start(command, job).await? {
            let begun_at = self.kept(look);
            drop(turn);
            let ended = self.see_through(since, 0..0).await?;
            let kept = match copying {
                Copying::Backup => Some(begun_at),
                Copying::Mirror => self.ended_at.take(),
            };
            if let (Ended::Well, Some(kept)) = (ended, kept) {
                self.compare(since, kept).await;
            }
        }
        self.mirrors = false;
        if self.stage.is_ending() {
            return Ok(());
        }
        for node in [TARGET, "target-file"] {
            if let Err(text) = self
                .monitor
                .run("blockdev-del", json!({"node-name": node}))
                .await?
                && !self.stage.is_ending()
            {
                self.stage.violated(format!("{node} cannot be deleted: {text}"));
            }
        }
        Ok(())
    }

    /// Begins to look at the whole disk.
    fn look(&self) -> Look {
        let mut oracle = self.oracle.borrow_mut();
        let cells = oracle.cells();
        oracle.look(0, cells)
    }

    /// What was seen by a look that ends now: whatever is acknowledged from here on may not be in it, and what was before it
    /// began has to be.
    fn kept(&self, look: Look) -> Kept {
        let oracle = self.oracle.borrow().clone();
        Kept { oracle, look }
    }

    /// Reads the whole target, and holds it against what the disk was in the moment that it is to show.
    async fn compare(&self, since: Moment, mut kept: Kept) {
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
    async fn start(&mut self, command: &str, job: Value) -> io::Result<bool> {
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

    /// Watches a job up to its end, and gets in its way. `leaves` are places in the chain, from the base on, whose images are
    /// not in it any more once the job is finalized.
    async fn see_through(&mut self, since: Moment, leaves: Range<usize>) -> io::Result<Ended> {
        let stage = Rc::clone(&self.stage);
        let mut cancelled = false;
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
                "pending" => self.finalize(&leaves, &mut cancelled).await?,
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
                _ if cancelled || !self.goes_on() || self.random.u32(0..80) == 0 => {
                    cancelled = true;
                    // What it does at its end comes at any time.
                    edit.get_or_insert_with(|| stage.sections.edit());
                    let _ = self.monitor.run("job-cancel", json!({"id": ID})).await?;
                }
                // Without force: the target is left as it is then.
                "ready" if self.random.u32(0..10) == 0 => {
                    let stop = json!({"device": ID});
                    let _ = self.monitor.run("block-job-cancel", stop).await?;
                }
                _ => self.meddle().await?,
            }
        };
        if let Ended::Failed(text) = &ended
            && !cancelled
            && !stage.may_fail(since, false)
        {
            stage.violated(format!("a job failed: {text}"));
        }
        Ok(ended)
    }

    async fn find(&mut self) -> io::Result<Option<Value>> {
        let jobs = self.monitor.must("query-jobs", json!({})).await?;
        let mut jobs = jobs.as_array().cloned().unwrap_or_default().into_iter();
        Ok(jobs.find(|job| job["id"] == ID))
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
    async fn finalize(&mut self, leaves: &Range<usize>, cancelled: &mut bool) -> io::Result<()> {
        let edits = Rc::clone(&self.edits);
        let turn = edits.turn.lock().await;
        let stage = Rc::clone(&self.stage);
        let _edit = stage.sections.edit();
        let gives_up = *cancelled || self.random.u32(0..5) == 0;
        *cancelled |= gives_up;
        let changes = !gives_up && !leaves.is_empty();
        if changes {
            edits.unsettle(&stage);
        }
        let look = (self.mirrors && !gives_up).then(|| self.look());
        let verb = if gives_up { "job-cancel" } else { "job-finalize" };
        let _ = self.monitor.run(verb, json!({"id": ID})).await?;
        // It takes as long as its drained section does, which others' requests decide.
        loop {
            if stage.is_ending() {
                return Ok(());
            }
            let Some(job) = self.find().await? else { break };
            if job["status"] == "concluded" {
                self.ended_at = look.map(|look| self.kept(look));
                if changes && job["error"].is_null() {
                    edits.images.borrow_mut().chain.drain(leaves.clone());
                }
                break;
            }
            sleep(Duration::from_micros(300)).await;
        }
        if changes {
            edits.settle();
        }
        drop(turn);
        Ok(())
    }
}
