//! A guest that writes as fast as it can while a job goes on: how much of its throughput is left, and how long its
//! requests take.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Place, copies};
use crate::Outcome;
use crate::compare::bench::Bench;
use crate::compare::statistics::{Samples, alternate};
use crate::compare::table::{Better, Line, Section, Verdict, ratio, spreads};
use crate::load::{Choice, Kind, Running, Spec, Target, start};
use crate::qmp::Monitor;
use crate::server::Program;

/// Requests that the guest has in flight.
const DEPTH: u32 = 32;

/// How many times the peer's throughput is wanted, and how much of its p99 is allowed.
const TIMES: f64 = 2.0;
const OF_P99: f64 = 0.5;

/// The longest that a job is looked at, in runs' lengths: a mirror may never catch up with the guest.
const LONGEST: f64 = 5.0;

/// One row.
struct Job {
    work: &'static str,
    /// The guest is served from an iothread. The peer ends by a failed assertion where such a node is backed up.
    on_iothread: bool,
    command: &'static str,
    further: fn() -> Value,
}

const JOBS: [Job; 3] = [
    Job {
        work: "guest writes, 32 in flight, during a backup",
        on_iothread: false,
        command: "blockdev-backup",
        further: || json!({}),
    },
    Job {
        work: "guest writes, 32 in flight, during a mirror in the background",
        on_iothread: true,
        command: "blockdev-mirror",
        further: || json!({ "copy-mode": "background" }),
    },
    Job {
        work: "guest writes, 32 in flight, during a write-blocking mirror",
        on_iothread: true,
        command: "blockdev-mirror",
        further: || json!({ "copy-mode": "write-blocking" }),
    },
];

/// What the guest saw in a run.
#[derive(Debug, Clone, Copy)]
struct Seen {
    /// Requests a second before the job.
    before: f64,
    /// And while it went on.
    during: f64,
    /// All but a hundredth of the latter took at most this, in microseconds.
    p99: f64,
}

/// Adds the rows that are asked for.
pub fn rows(bench: &Bench<'_>, section: &mut Section) {
    for job in &JOBS {
        if bench.wants(job.work) {
            let outcome = row(bench, job, section);
            section.attempt(job.work, outcome);
        }
    }
}

fn row(bench: &Bench<'_>, job: &Job, section: &mut Section) -> Outcome<()> {
    let place = Place::new(bench, bench.dir());
    copies::make_image(&place, "full", place.size)?;
    let programs = bench.programs();
    let runs = alternate(
        bench.runs(),
        programs.len(),
        programs.len(),
        |which| run(&place, programs[which], job, bench.seconds()),
        |seen| [seen.during],
    )?;
    copies::remove(&place)?;
    let mut shown = runs.iter().map(|runs| Shown::new(runs));
    let peer = bench.peer().and_then(|_| shown.next()).unwrap_or_default();
    let ours = shown.next().unwrap_or_default();
    let target = format!("{TIMES}x; {:.0}% of the peer's p99", OF_P99 * 100.0);
    section.lines.push(line(job.work, target, &peer, &ours));
    Ok(())
}

/// All runs of one program.
#[derive(Default)]
struct Shown {
    kept: Samples,
    during: Samples,
    p99: Samples,
}

impl Shown {
    fn new(runs: &[Seen]) -> Self {
        Self {
            kept: Samples::new(runs.iter().map(|seen| seen.during / seen.before)),
            during: Samples::new(runs.iter().map(|seen| seen.during)),
            p99: Samples::new(runs.iter().map(|seen| seen.p99)),
        }
    }

    fn words(&self) -> String {
        match (self.kept.median(), self.during.median(), self.p99.median()) {
            (Some(kept), Some(during), Some(p99)) => format!(
                "{:.1}k/s ({:.0}% kept), p99 {p99:.0} us",
                during / 1000.0,
                kept * 100.0
            ),
            _ => "-".to_owned(),
        }
    }
}

fn line(work: &str, target: String, peer: &Shown, ours: &Shown) -> Line {
    let found = ratio(&peer.during, &ours.during, Better::More);
    let verdict = match &found {
        Err(why) => Verdict::Open(why.clone()),
        Ok(found) => {
            let mut misses = Vec::new();
            if *found < TIMES {
                misses.push(format!("{found:.2}x of {TIMES}x"));
            }
            if let (Some(our), Some(their)) = (ours.p99.median(), peer.p99.median())
                && our > their * OF_P99
            {
                misses.push(format!("{:.0}% of the peer's p99", our / their * 100.0));
            }
            Verdict::from_misses(&misses)
        }
    };
    let nothing = || "-".to_owned();
    Line {
        work: work.to_owned(),
        peer: peer.words(),
        ours: ours.words(),
        ratio: found.map_or_else(|_| nothing(), |ratio| format!("{ratio:.2}x")),
        target,
        verdict,
        further: vec![
            nothing(),
            nothing(),
            nothing(),
            spreads(&peer.during, &ours.during),
        ],
    }
}

fn run(place: &Place<'_>, program: &Program, job: &Job, seconds: f64) -> Outcome<Seen> {
    let socket = place.dir.join("guest.sock");
    let mut monitor = Monitor::start(program, place.dir)?;
    copies::add(&mut monitor, place, "full", None)?;
    copies::add_empty(&mut monitor, place, ("copy", place.size), None)?;
    let address = json!({ "type": "unix", "data": { "path": socket } });
    monitor.execute("nbd-server-start", &json!({ "addr": address }))?;
    let mut export = json!({
        "type": "nbd", "id": "disk", "node-name": "full", "name": "disk", "writable": true,
    });
    if job.on_iothread {
        monitor.execute("object-add", &json!({ "qom-type": "iothread", "id": "io" }))?;
        export["iothread"] = json!("io");
    }
    monitor.execute("block-export-add", &export)?;
    let (calm, longest) = (
        Duration::from_secs_f64(seconds),
        Duration::from_secs_f64(seconds * LONGEST),
    );
    let load = start(&Spec {
        target: Target::unix(socket, "disk"),
        mix: Choice::only(Kind::Write),
        depth: DEPTH,
        duration: calm + longest + Duration::from_secs(1),
        ..Spec::default()
    })?;
    let counted_from = load.counted_from();
    let begun = match beside(&load, &mut monitor, job, (counted_from + calm, longest)) {
        Ok(begun) => begun,
        Err(error) => {
            load.give_up();
            return Err(error);
        }
    };
    let ended = Instant::now();
    let report = load.stop()?;
    let since = |instant: Instant| instant.saturating_duration_since(counted_from);
    let before = report.timeline.between(Duration::ZERO, since(begun))?;
    let during = report.timeline.between(since(begun), since(ended))?;
    Ok(Seen {
        before: before.requests as f64 / since(begun).as_secs_f64(),
        during: during.requests as f64 / (ended - begun).as_secs_f64(),
        p99: during.microseconds(99.0),
    })
}

/// Starts the job beside the load at a time, and waits for its end, but not for longer than it is looked at; answers when it
/// was begun.
fn beside(
    load: &Running,
    monitor: &mut Monitor,
    job: &Job,
    (at, longest): (Instant, Duration),
) -> Outcome<Instant> {
    if !load.wait_until(at) {
        return Err("the load has ended before the job began".into());
    }
    let mut arguments = json!({ "job-id": "job", "device": "full", "target": "copy", "sync": "full" });
    if let (Value::Object(arguments), Value::Object(further)) = (&mut arguments, (job.further)()) {
        arguments.extend(further);
    }
    let begun = Instant::now();
    monitor.execute(job.command, &arguments)?;
    monitor.wait_job(longest)?;
    Ok(begun)
}
