//! The run of one seed: a safety phase with faults anywhere, then a liveness phase without, or a loss of power.

use std::cell::RefCell;
use std::fs;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use fastrand::Rng;
use millpond::daemon::Daemon;
use millpond::delay::{Chaos, DelayRules};
use millpond::graph::GraphHandle;
use millpond_messages::graph::ListDrains;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::client::{Client, Waiting};
use super::drainer::{drain, watch};
use super::editor::{Edits, check_graph, edit, edit_beside};
use super::embedder::embed;
use super::jobber::run_jobs;
use super::monitor::Monitor;
use super::oracle::Oracle;
use super::side::{Side, read_side, use_side};
use super::site::{Images, Site, images_in, images_left, read_all};
use super::stage::{Engineer, Stage};
use super::swarm::{End, Shape, Swarm};
use super::target::FIRST_SUCCESSOR;
use super::trace::Trace;
use crate::crash::census::{Census, census};
use crate::crash::link::Stored;

/// How long all that is pending may take once faults have stopped: far beyond what the slowest disk explains.
const BOUND: Duration = Duration::from_secs(60);

/// How a seed's run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// Its options, in words.
    pub swarm: String,
    /// The hash of its trace.
    pub hash: u64,
    /// The trace's length.
    pub lines: u64,
    /// Why it failed.
    pub failure: Option<String>,
    /// The end of its trace, if it failed.
    pub last: Vec<String>,
}

/// Runs a seed on this thread. Its trace goes to standard output if `shown`.
///
/// # Errors
/// Something that the run itself needs cannot be had.
pub fn run_seed(seed: u64, shown: bool) -> io::Result<Report> {
    let mut random = Rng::with_seed(seed);
    let mut swarm = Swarm::draw(&mut random);
    // So that seeds with even numbers find what they found before there were jobs.
    swarm.jobs = seed % 2 == 1;
    let trace = Rc::new(Trace::new(shown));
    trace.line(Duration::ZERO, "stage", format_args!("{swarm}"));
    let folder = tempfile::Builder::new()
        .prefix("millpond-sim")
        .tempdir_in(memory())?;
    let failure = Run {
        swarm: swarm.clone(),
        trace: Rc::clone(&trace),
        random,
        folder: folder.path().to_owned(),
    }
    .whole()?;
    let last = if failure.is_some() {
        trace.last()
    } else {
        Vec::new()
    };
    Ok(Report {
        seed,
        swarm: swarm.to_string(),
        hash: trace.hash(),
        lines: trace.lines(),
        failure,
        last,
    })
}

/// Where files are in memory, so that nothing of the run depends on the host's disk.
fn memory() -> PathBuf {
    let shared = Path::new("/dev/shm");
    if shared.is_dir() {
        shared.to_owned()
    } else {
        std::env::temp_dir()
    }
}

/// A run in the making.
struct Run {
    swarm: Swarm,
    trace: Rc<Trace>,
    random: Rng,
    folder: PathBuf,
}

/// What is left of the first part.
struct Left {
    stage: Rc<Stage>,
    oracle: Oracle,
    side: Rc<RefCell<Side>>,
    images: Images,
    /// Everything was closed in order, rather than cut off.
    closed: bool,
}

impl Left {
    /// Everything was closed in order: all that was acknowledged is on the disks.
    fn closed(mut self) -> Self {
        let barrier = self.oracle.barrier();
        self.oracle.flushed(&barrier);
        let side = Rc::clone(&self.side.borrow().oracle);
        let barrier = side.borrow_mut().barrier();
        side.borrow_mut().flushed(&barrier);
        self.closed = true;
        self
    }
}

impl Run {
    fn whole(mut self) -> io::Result<Option<String>> {
        let before = self.folder.join("a");
        fs::create_dir(&before)?;
        let stage = Stage::set(self.swarm.clone(), Rc::clone(&self.trace), self.random.fork());
        let left: Option<Left> = system(self.first(Rc::clone(&stage), images_in(&before, 1)))??;
        if let Some(text) = stage.violation() {
            return Ok(Some(text));
        }
        let Some(left) = left else { return Ok(None) };
        let after = self.folder.join("b");
        fs::create_dir(&after)?;
        self.keep(&left, &after)?;
        if let Some(text) = left.stage.violation() {
            return Ok(Some(text));
        }
        let Some(instead) = left.images.instead.clone() else {
            return self.opened(&left, &after, &left.images);
        };
        // It is not known which of two images the disk was in the end: one of them has to be whole.
        let copy = self.folder.join("c");
        fs::create_dir(&copy)?;
        for entry in fs::read_dir(&after)? {
            let entry = entry?;
            fs::copy(entry.path(), copy.join(entry.file_name()))?;
        }
        let Some(old) = self.opened(&left, &after, &left.images)? else {
            return Ok(None);
        };
        let images = Images {
            chain: instead,
            ..left.images.clone()
        };
        let new = self.opened(&left, &copy, &images)?;
        Ok(new.map(|new| format!("neither is whole: {old}; and {new}")))
    }

    /// Opens what is left in a folder; answers what is wrong with it.
    fn opened(&mut self, left: &Left, folder: &Path, images: &Images) -> io::Result<Option<String>> {
        let mut calm = self.swarm.clone();
        calm.errors = 0;
        let stage = Stage::set(calm, Rc::clone(&self.trace), self.random.fork());
        system(second(Rc::clone(&stage), images_left(folder, images)?, left))??;
        Ok(stage.violation())
    }

    /// Writes what the disks have kept, and looks at images of a format with a second opinion.
    fn keep(&mut self, left: &Left, folder: &Path) -> io::Result<()> {
        let random = &mut self.random;
        let stage = &left.stage;
        let mut kept = Vec::new();
        stage.disks(|disks| {
            for disk in disks.all() {
                let bytes = if left.closed {
                    disk.flushed_bytes().to_vec()
                } else {
                    disk.crashed(random)
                };
                kept.push((disk.name.clone(), bytes));
            }
        });
        for (name, bytes) in kept {
            let index = name.strip_prefix("img").and_then(|index| index.parse().ok());
            // An overlay that was about to be made may be anything yet.
            let in_use =
                index.is_none_or(|index: usize| index < left.images.count || index >= FIRST_SUCCESSOR);
            let in_use = in_use && !left.stage.is_unmade(&name);
            if in_use && bytes.starts_with(b"QFI\xfb") {
                self.look_at_image(left, &name, &bytes);
            }
            fs::write(folder.join(&name), bytes)?;
        }
        // A file that no request has reached is as it was made.
        for entry in fs::read_dir(&left.images.folder)? {
            let entry = entry?;
            let copy = folder.join(entry.file_name());
            if entry.file_type()?.is_file() && !copy.exists() {
                fs::copy(entry.path(), copy)?;
            }
        }
        Ok(())
    }

    /// No image is corrupt, whatever happened. Clusters are lost only by a loss of power, or where what failed was a table.
    fn look_at_image(&self, left: &Left, name: &str, bytes: &[u8]) {
        let stage = &left.stage;
        let found = match census(&Stored::qcow2(bytes.to_vec())) {
            Ok(found) => found,
            Err(text) => return stage.violated(format!("{name} is no image any more: {text}")),
        };
        if let Some(first) = found.corruptions.first() {
            let count = found.corruptions.len();
            stage.violated(format!("{name} has {count} corruptions, the first: {first}"));
        }
        let may_leak =
            !left.closed || stage.is_given_up(name) || (stage.has_failed() && !self.swarm.only_payload);
        if !may_leak && (found.leaks > 0 || found.dirty) {
            let Census { leaks, dirty, .. } = found;
            stage.violated(format!(
                "{name} was closed with {leaks} leaked clusters, dirty: {dirty}"
            ));
        }
    }

    /// The run up to its end, or to the loss of power.
    async fn first(&mut self, stage: Rc<Stage>, images: Images) -> io::Result<Option<Left>> {
        let mut engineer = Engineer::new(Rc::clone(&stage));
        let site = match worked(&mut engineer, timeout(BOUND, self.set_up(&stage, &images))).await {
            Ok(site) => site?,
            Err(_elapsed) => {
                stage.violated("the daemon does not start".to_owned());
                return Ok(None);
            }
        };
        stage.set_faults(true);
        if !self.swarm.hops.is_empty() {
            let rules = DelayRules::new(Some(self.random.u64(..)), self.swarm.hops.clone());
            worked(&mut engineer, hold_messages(&site.graph, Some(rules))).await?;
        }
        let second = if self.swarm.second_editor {
            let monitor = site.another_monitor(&stage, &images, ("qmp2", "monitor 2"));
            Some(worked(&mut engineer, monitor).await?)
        } else {
            None
        };
        let jobs = if self.swarm.jobs {
            let monitor = site.another_monitor(&stage, &images, ("qmp3", "monitor of jobs"));
            Some(worked(&mut engineer, monitor).await?)
        } else {
            None
        };
        let mut cast = Cast::start(&stage, site, images, [second, jobs], &mut self.random);
        let crash = self.swarm.crash.then(|| self.random.u64(5_000..400_000));
        let limit = Duration::from_micros(crash.unwrap_or(self.random.u64(50_000..3_000_000)));
        // Ends early when all clients have.
        let early = worked(&mut engineer, timeout(limit, cast.clients_end()))
            .await
            .is_ok();
        if crash.is_some() && !early {
            engineer.lose_power();
            return Ok(Some(cast.cut_off(stage)));
        }
        stage.set_faults(false);
        worked(&mut engineer, hold_messages(&cast.graph, None)).await?;
        if self.swarm.end != End::Calm {
            return worked(&mut engineer, cast.close_in_the_middle(stage)).await;
        }
        let end = worked(&mut engineer, cast.end(&stage)).await?;
        let Some(site) = end else { return Ok(None) };
        worked(&mut engineer, close(stage, cast, site)).await
    }

    async fn set_up(&self, stage: &Rc<Stage>, images: &Images) -> io::Result<Site> {
        let mut site = Site::start(stage, images).await?;
        site.create_base(stage, images).await?;
        site.serve(stage, images).await?;
        if self.swarm.rot {
            stage.disks(|disks| {
                for disk in disks.all() {
                    disk.rotten = disk.name == "q1";
                }
            });
        }
        Ok(site)
    }
}

/// Holds messages between actors back, or lets them go.
async fn hold_messages(graph: &GraphHandle, rules: Option<DelayRules>) -> io::Result<()> {
    let set = graph.set_chaos(rules.map(Chaos::new));
    match timeout(BOUND, set).await {
        Ok(_) => Ok(()),
        Err(_elapsed) => Err(io::Error::other("the delay rules cannot be changed")),
    }
}

/// Everybody who does something in a run.
struct Cast {
    oracle: Rc<RefCell<Oracle>>,
    clients: Vec<JoinHandle<()>>,
    waiting: Vec<Waiting>,
    edits: Rc<Edits>,
    editor: Option<JoinHandle<Site>>,
    drainer: Option<JoinHandle<()>>,
    embedder: Option<JoinHandle<()>>,
    side: Rc<RefCell<Side>>,
    side_user: Option<JoinHandle<()>>,
    second_editor: Option<JoinHandle<()>>,
    jobber: Option<JoinHandle<()>>,
    watcher: Option<JoinHandle<()>>,
    command: Rc<RefCell<Option<String>>>,
    graph: GraphHandle,
    daemon: Daemon,
}

impl Cast {
    fn start(
        stage: &Rc<Stage>,
        site: Site,
        images: Images,
        [second, jobs]: [Option<Monitor>; 2],
        random: &mut Rng,
    ) -> Self {
        let swarm = stage.swarm();
        let oracle = Rc::new(RefCell::new(Oracle::new(swarm.size)));
        let server = images.server();
        let (mut clients, mut waiting) = (Vec::new(), Vec::new());
        for index in 0..swarm.clients {
            let client = Client::new(
                Rc::clone(stage),
                Rc::clone(&oracle),
                format!("client {index}"),
                server.clone(),
                random.fork(),
            );
            waiting.push(client.pending());
            let pending = client.pending();
            stage.add_witness(Box::new(move || pending.told()));
            clients.push(tokio::task::spawn_local(client.run()));
        }
        let edits = Edits::new(images);
        let (command, graph) = (site.monitor.current(), site.graph.clone());
        let daemon = site.daemon.clone();
        let editor = edit(Rc::clone(stage), site, Rc::clone(&edits), random.fork());
        let editor = Some(tokio::task::spawn_local(editor));
        let drainer = swarm.drains.then(|| {
            let drainer = drain(Rc::clone(stage), graph.clone(), Rc::clone(&edits), random.fork());
            tokio::task::spawn_local(drainer)
        });
        let watcher = watch(Rc::clone(stage), graph.clone(), Rc::clone(&edits), random.fork());
        let watcher = Some(tokio::task::spawn_local(watcher));
        let embedder = swarm.embedder.then(|| {
            let (stage, oracle, edits) = (Rc::clone(stage), Rc::clone(&oracle), Rc::clone(&edits));
            tokio::task::spawn_local(embed(stage, graph.clone(), oracle, edits, random.fork()))
        });
        let side = Side::new(swarm.size);
        let side_user = swarm.side.then(|| {
            let (stage, side, edits) = (Rc::clone(stage), Rc::clone(&side), Rc::clone(&edits));
            tokio::task::spawn_local(use_side(stage, graph.clone(), side, edits, random.fork()))
        });
        let second_editor = second.map(|monitor| {
            let editor = edit_beside(Rc::clone(stage), monitor, Rc::clone(&edits), random.fork());
            tokio::task::spawn_local(editor)
        });
        let jobber = jobs.map(|monitor| {
            let (oracle, edits) = (Rc::clone(&oracle), Rc::clone(&edits));
            let handles = (graph.clone(), monitor);
            let jobs = run_jobs(Rc::clone(stage), handles, oracle, edits, random.fork());
            tokio::task::spawn_local(jobs)
        });
        Self {
            oracle,
            clients,
            waiting,
            jobber,
            edits,
            editor,
            drainer,
            embedder,
            side,
            side_user,
            second_editor,
            watcher,
            command,
            graph,
            daemon,
        }
    }

    async fn clients_end(&mut self) {
        while let Some(client) = self.clients.last_mut() {
            if let Err(error) = client.await {
                std::panic::resume_unwind(error.into_panic());
            }
            self.clients.pop();
        }
    }

    /// Waits for all to end. None if they do not: why is the run's failure.
    async fn end(&mut self, stage: &Rc<Stage>) -> io::Result<Option<Site>> {
        self.edits.end();
        let all = async {
            self.clients_end().await;
            let others = [
                self.embedder.take(),
                self.side_user.take(),
                self.second_editor.take(),
                self.jobber.take(),
                self.drainer.take(),
                self.watcher.take(),
            ];
            for other in others.into_iter().flatten() {
                other.await.map_err(io::Error::other)?;
            }
            match self.editor.take() {
                Some(editor) => editor.await.map_err(io::Error::other),
                None => Err(io::Error::other("the editor has ended before")),
            }
        };
        match timeout(BOUND, all).await {
            Ok(site) => site.map(Some),
            Err(_elapsed) => {
                let why = self.explained(stage).await;
                stage.violated(why);
                Ok(None)
            }
        }
    }

    /// What everybody waits for.
    async fn explained(&self, stage: &Stage) -> String {
        let mut why = vec!["what was pending did not end after faults had stopped:".to_owned()];
        why.extend(self.waiting.iter().filter_map(Waiting::told));
        why.extend(
            self.command
                .borrow()
                .as_ref()
                .map(|command| format!("the monitor waits for {command}")),
        );
        match timeout(Duration::from_secs(1), self.graph.ask(ListDrains)).await {
            Ok(Ok(drains)) => why.extend(drains.iter().map(|drain| format!("a drain waits: {drain:?}"))),
            Ok(Err(error)) => why.push(format!("the graph does not tell: {error}")),
            Err(_elapsed) => why.push("the graph actor does not answer".to_owned()),
        }
        stage.disks(|disks| {
            let busy = disks.all().filter(|disk| disk.in_flight > 0);
            why.extend(busy.map(|disk| format!("{} has {} requests in flight", disk.name, disk.in_flight)));
        });
        why.join("\n    ")
    }

    /// Closes the daemon while everybody is in the middle of something; the disks may have died as well.
    async fn close_in_the_middle(mut self, stage: Rc<Stage>) -> io::Result<Option<Left>> {
        if stage.swarm().end == End::Dead {
            stage.kill_disks();
        }
        stage.set_closing();
        self.edits.end();
        let all_ended = async {
            let closed = self.daemon.shut_down().await;
            self.clients_end().await;
            closed
        };
        match timeout(BOUND, all_ended).await {
            Ok(Ok(())) => Ok(Some(self.cut_off(stage).closed())),
            Ok(Err(error)) => {
                stage.line("stage", format_args!("closed with an error: {error}"));
                if !stage.has_failed() && !stage.disks_are_dead() {
                    stage.violated(format!("the daemon cannot close everything: {error}"));
                }
                Ok(Some(self.cut_off(stage)))
            }
            Err(_elapsed) => {
                let why = self.explained(&stage).await;
                stage.violated(format!("the daemon does not end: {why}"));
                Ok(None)
            }
        }
    }

    /// The power is gone.
    fn cut_off(self, stage: Rc<Stage>) -> Left {
        self.clients.iter().for_each(JoinHandle::abort);
        self.waiting.iter().for_each(Waiting::give_up);
        let images = self.edits.images.borrow().clone();
        Left {
            stage,
            oracle: self.oracle.replace(Oracle::new(0)),
            side: Rc::clone(&self.side),
            images,
            closed: false,
        }
    }
}

/// Looks at everything once more, and closes it in order.
async fn close(stage: Rc<Stage>, cast: Cast, mut site: Site) -> io::Result<Option<Left>> {
    let images = cast.edits.images.borrow().clone();
    check_graph(&stage, &mut site).await?;
    read_and_compare(&stage, &images, &cast.oracle).await;
    let closed = timeout(BOUND, site.daemon.shut_down()).await;
    let left = cast.cut_off(Rc::clone(&stage));
    match closed {
        Ok(Ok(())) => Ok(Some(left.closed())),
        // What was flushed before it failed is there all the same.
        Ok(Err(error)) if stage.may_fail(stage.moment(), false) => {
            stage.line("stage", format_args!("closed with an error: {error}"));
            Ok(Some(left))
        }
        Ok(Err(error)) => {
            stage.violated(format!("the daemon cannot close everything: {error}"));
            Ok(None)
        }
        Err(_elapsed) => {
            stage.violated("the daemon does not end".to_owned());
            Ok(None)
        }
    }
}

async fn read_and_compare(stage: &Stage, images: &Images, oracle: &RefCell<Oracle>) {
    let size = stage.swarm().size;
    let since = stage.moment();
    match read_all(images, size).await {
        Ok(bytes) => {
            if let Err(text) = oracle.borrow().reads_now(&bytes) {
                stage.violated(format!("at the end {text}"));
            }
        }
        // Images that vote may have lost their majority where each missed another write; and what is copied up by reads
        // cannot be stored behind a flush that failed.
        Err(_) if stage.may_fail(since, true) => {}
        Err(error) => stage.violated(format!("the disk cannot be read at the end: {error}")),
    }
}

/// Opens what was left, and holds it against what must be there.
async fn second(stage: Rc<Stage>, images: Images, left: &Left) -> io::Result<()> {
    let mut engineer = Engineer::new(Rc::clone(&stage));
    let looked = async {
        let mut site = Site::start(&stage, &images).await?;
        if let Err(error) = site.serve(&stage, &images).await {
            stage.violated(format!("what is left cannot be opened: {error}"));
            return Ok(());
        }
        // Images that vote differ in what failed, and in what was not flushed.
        let all_same = left.closed && !left.stage.has_failed();
        let lost_majority = stage.swarm().shape == Shape::Quorum && !all_same;
        match read_all(&images, stage.swarm().size).await {
            Ok(bytes) => {
                if let Err(text) = left.oracle.survived(&bytes) {
                    stage.violated(format!("after the power was lost {text}"));
                }
            }
            Err(_) if lost_majority => {}
            Err(error) => stage.violated(format!("what is left cannot be read: {error}")),
        }
        if stage.swarm().side {
            match read_side(&site.graph).await {
                Ok(bytes) => {
                    if let Err(text) = left.side.borrow().check(&bytes, left.closed) {
                        stage.violated(format!("after the power was lost {text}"));
                    }
                }
                Err(error) => {
                    stage.violated(format!("what is left of the side disk cannot be read: {error}"))
                }
            }
        }
        if let Err(error) = site.daemon.shut_down().await {
            stage.violated(format!("what is left cannot be closed: {error}"));
        }
        io::Result::Ok(())
    };
    worked(&mut engineer, looked).await
}

/// Works the stage for as long as a future takes.
async fn worked<T>(engineer: &mut Engineer, future: impl Future<Output = T>) -> T {
    tokio::select! {
        biased;
        output = future => output,
        () = engineer.work() => unreachable!("an engineer works without end"),
    }
}

/// Runs a future in an actix system whose clock stands still.
fn system<T>(future: impl Future<Output = T>) -> io::Result<T> {
    let runtime = || {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder
            .enable_all()
            .start_paused(true)
            .build()
            .expect("a runtime can be made")
    };
    Ok(actix_rt::System::with_tokio_rt(runtime).block_on(future))
}
