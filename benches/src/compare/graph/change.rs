//! What a change of the graph costs the clients that are at work: the longest that a request waits because of it.
//!
//! A load keeps 32 reads in flight while a monitor changes the graph below it, again and again. For each change the
//! longest request among those in flight while it was carried out is found; what half of the requests take at most just
//! before it is taken off. The same is done for times when nothing changes, so that one can see what would have been
//! there anyway.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{floor, micros, pair, show_micros};
use crate::Outcome;
use crate::compare::bench::Bench;
use crate::compare::image;
use crate::compare::statistics::{Samples, alternate};
use crate::compare::table::{Better, Section, compared};
use crate::load::{self, Report, Spec, Target};
use crate::qmp::Monitor;
use crate::server::Program;

const DEPTH: u32 = 32;

/// Between two changes, so that the load is what it was before the next.
const PAUSE: Duration = Duration::from_millis(15);

/// A report tells the slowest request of each millisecond: a time of two has a whole one in it.
const SHORTEST: Duration = Duration::from_millis(2);

/// How long the load may take; it is ended when all changes are done.
const LONGEST: Duration = Duration::from_secs(300);

/// How often each change is made in a run: some thousand times in all runs.
const ROUNDS: usize = 340;

/// The delay that Millpond's clients see is to be a tenth of the peer's.
const TENTH: f64 = 10.0;

/// A delay below this is none that can be told, in microseconds.
const LEAST: f64 = 1.0;

/// Kinds of changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Snapshot,
    Reopen,
    Insert,
    Drop,
}

const CHANGES: [(Change, &str); 4] = [
    (
        Change::Snapshot,
        "blockdev-snapshot under full load: longest request delay caused",
    ),
    (
        Change::Reopen,
        "blockdev-reopen under full load: longest request delay caused",
    ),
    (
        Change::Insert,
        "filter insert under full load: longest request delay caused",
    ),
    (
        Change::Drop,
        "filter drop under full load: longest request delay caused",
    ),
];

/// A change that was carried out between two instants.
#[derive(Debug, Clone, Copy)]
struct Done {
    change: Change,
    from: Instant,
    until: Instant,
}

impl Done {
    fn time(&self) -> Duration {
        (self.until - self.from).max(SHORTEST)
    }
}

/// What one run showed, in microseconds: medians over all changes of a kind.
#[derive(Debug, Clone)]
struct Delays {
    caused: [f64; CHANGES.len()],
    /// What each change of a kind caused.
    each: [Vec<f64>; CHANGES.len()],
    /// The same when nothing changes.
    calm: f64,
    /// How long `blockdev-reopen` took until it was answered.
    answered: f64,
}

/// Adds the rows about changes under load.
pub fn rows(bench: &Bench<'_>, section: &mut Section) -> Outcome<()> {
    let answered = "blockdev-reopen under full load: until it is answered";
    let wanted = CHANGES.map(|(_, work)| bench.wants(work));
    let wants_answered = bench.wants(answered);
    if !wants_answered && !wanted.contains(&true) {
        return Ok(());
    }
    let template = bench.dir().join("overlay.qcow2");
    image::create(&template, "qcow2", "1G", &[])?;
    let rounds = if bench.quick() { 3 } else { ROUNDS };
    let programs = bench.programs();
    let run = |which: usize| one_run(programs[which], bench.dir(), rounds);
    let runs = alternate(bench.runs(), programs.len(), programs.len(), run, |delays| {
        delays.caused
    })?;
    let runs = bench.beside_peer(runs);
    for (index, (_, work)) in CHANGES.iter().enumerate().filter(|(index, _)| wanted[*index]) {
        let (peer, ours) = pair(&runs, |delays| delays.caused[index]);
        let line = compared(work, &peer, &ours, Better::Less, Some(TENTH), show_micros);
        section.lines.push(line);
    }
    let (peer, ours) = pair(&runs, |delays| delays.calm);
    let work = "same, while nothing changes";
    section
        .lines
        .push(compared(work, &peer, &ours, Better::Less, None, show_micros));
    if wants_answered {
        let (peer, ours) = pair(&runs, |delays| delays.answered);
        let line = compared(answered, &peer, &ours, Better::Less, None, show_micros);
        section.lines.push(line);
    }
    section.notes.push(format!(
        "Changes: {DEPTH} reads of 4 KiB in flight on raw over null. The delay caused is the time of the slowest request \
         in flight during a change, less what half of the requests take at most just before it; a figure is the median of \
         {rounds} changes a run, or of half as many snapshots. The row \"while nothing changes\" is the same for as long a \
         time just before each change. The filter is blkdebug, put below the raw node and taken out again by \
         `blockdev-reopen`; a snapshot is a qcow2 overlay on top."
    ));
    section.notes.push(each_change(&runs, &floor::round_trips()?));
    Ok(())
}

/// A table of what single changes caused, in all runs together, and of what no change can do without.
fn each_change(runs: &[Vec<Delays>], floor: &Samples) -> String {
    let mut text = "Single changes, all runs together: the request delay caused, in microseconds. The floor is a bare round \
                    trip between two threads that sleep until they are woken, without any load.\n\n\
                    | change | whose | changes | p50 | p99 | p99.9 | max |\n| --- | --- | --- | --- | --- | --- | --- |\n"
        .to_owned();
    for (index, (_, work)) in CHANGES.iter().enumerate() {
        let what = work.split(" under").next().unwrap_or(work);
        for (whose, runs) in ["the peer's", "ours"].into_iter().zip(runs) {
            let all = Samples::new(runs.iter().flat_map(|run| run.each[index].iter().copied()));
            text.push_str(&quantiles(what, whose, &all));
        }
    }
    text.push_str(&quantiles("floor", "two threads", floor));
    text
}

fn quantiles(what: &str, whose: &str, all: &Samples) -> String {
    let part = |part| all.quantile(part).unwrap_or_default();
    let (half, most, nearly, max) = (part(0.5), part(0.99), part(0.999), part(1.0));
    let count = all.count();
    format!("| {what} | {whose} | {count} | {half:.0} | {most:.0} | {nearly:.0} | {max:.0} |\n")
}

fn one_run(program: &Program, dir: &Path, rounds: usize) -> Outcome<Delays> {
    let iothread = ["--object".to_owned(), "iothread,id=io".to_owned()];
    let mut monitor = Monitor::start_with(program, dir, &iothread)?;
    let socket = dir.join("change.nbd");
    serve(&mut monitor, &socket)?;
    let running = load::start(&Spec {
        target: Target::unix(socket.clone(), "disk"),
        depth: DEPTH,
        warm_up: Duration::from_millis(200),
        duration: LONGEST,
        counters: false,
        ..Spec::default()
    })?;
    let counted_from = running.counted_from();
    thread::sleep(counted_from.saturating_duration_since(Instant::now()) + PAUSE);
    let changed = change_often(&mut monitor, dir, rounds);
    let report = running.stop()?;
    std::fs::remove_file(&socket)?;
    delays(&report, counted_from, &changed?)
}

/// A null node below a raw node, exported for reading: what is measured is the graph and not a format.
fn serve(monitor: &mut Monitor, socket: &Path) -> Outcome<()> {
    let null = json!({ "driver": "null-co", "node-name": "null", "size": 1 << 30, "read-zeroes": false });
    monitor.execute("blockdev-add", &null)?;
    let filter = json!({ "driver": "blkdebug", "node-name": "filter", "image": "null" });
    monitor.execute("blockdev-add", &filter)?;
    monitor.execute("blockdev-add", &raw_over("null"))?;
    let address = json!({ "addr": { "type": "unix", "data": { "path": socket } } });
    monitor.execute("nbd-server-start", &address)?;
    let export =
        json!({ "type": "nbd", "id": "disk", "node-name": "disk", "name": "disk", "iothread": "io" });
    monitor.execute("block-export-add", &export)?;
    Ok(())
}

fn raw_over(node: &str) -> Value {
    json!({ "driver": "raw", "node-name": "disk", "file": node, "read-only": true })
}

fn change_often(monitor: &mut Monitor, dir: &Path, rounds: usize) -> Outcome<Vec<Done>> {
    let mut done = Vec::new();
    let reopen = |node: &str| ("blockdev-reopen", json!({ "options": [raw_over(node)] }));
    for _ in 0..rounds {
        for (change, node) in [
            (Change::Reopen, "null"),
            (Change::Insert, "filter"),
            (Change::Drop, "null"),
        ] {
            done.push(timed_change(monitor, change, reopen(node))?);
        }
    }
    let mut top = "disk".to_owned();
    // Fewer, since each makes the chain longer.
    for round in 0..rounds.div_ceil(2) {
        let overlay = format!("overlay{round}");
        let path = dir.join("overlays").join(format!("{overlay}.qcow2"));
        std::fs::create_dir_all(dir.join("overlays"))?;
        std::fs::copy(dir.join("overlay.qcow2"), &path)?;
        let node = json!({
            "driver": "qcow2", "node-name": overlay, "backing": null,
            "file": { "driver": "file", "filename": path },
        });
        monitor.execute("blockdev-add", &node)?;
        let snapshot = ("blockdev-snapshot", json!({ "node": top, "overlay": overlay }));
        done.push(timed_change(monitor, Change::Snapshot, snapshot)?);
        top = overlay;
    }
    Ok(done)
}

fn timed_change(monitor: &mut Monitor, change: Change, (command, arguments): (&str, Value)) -> Outcome<Done> {
    thread::sleep(PAUSE);
    let from = Instant::now();
    monitor.execute(command, &arguments)?;
    let until = Instant::now();
    Ok(Done { change, from, until })
}

/// The delays in a report whose load counted from an instant on. A change is looked at for no shorter than the report
/// can tell; the time when nothing changes is as long, in the pause before the change.
fn delays(report: &Report, counted_from: Instant, done: &[Done]) -> Outcome<Delays> {
    // Snapshots make requests slower for good: what is usual is told from the time just before each change.
    let usual = |at: Instant| {
        let index = (at - counted_from).as_nanos() / report.timeline.width().as_nanos().max(1);
        let slice = report.timeline.slices().get(usize::try_from(index).ok()?)?;
        Some(slice.microseconds(50.0))
    };
    let delay = |done: &Done, from: Instant, time: Duration| {
        let longest = micros(report.longest_between(from, from + time)?);
        Some((longest - usual(done.from - PAUSE / 2)?).max(LEAST))
    };
    let each = CHANGES.map(|(change, _)| {
        let of_kind = done.iter().filter(|done| done.change == change);
        let delays = of_kind.filter_map(|done| delay(done, done.from, done.time()));
        delays.collect::<Vec<f64>>()
    });
    let mut caused = [0.0; CHANGES.len()];
    for ((slot, delays), (_, work)) in caused.iter_mut().zip(&each).zip(CHANGES) {
        let median = Samples::new(delays.iter().copied()).median();
        *slot = median.ok_or_else(|| format!("{work}: no requests at that time"))?;
    }
    let calm = Samples::new(done.iter().filter_map(|done| {
        let before = PAUSE * 2 / 3;
        delay(done, done.from - before, done.time().min(before - SHORTEST))
    }));
    let reopens = done.iter().filter(|done| done.change == Change::Reopen);
    let answered = Samples::new(reopens.map(|done| micros(done.until - done.from)));
    Ok(Delays {
        caused,
        each,
        calm: calm.median().ok_or("no requests between changes")?,
        answered: answered.median().ok_or("no changes")?,
    })
}
