//! What a guest feels of the moments at which a job has it wait: the pivot of a mirror and of an active commit, and a cut
//! through a hundred disks at once.

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Place, copies};
use crate::Outcome;
use crate::compare::bench::Bench;
use crate::compare::image;
use crate::compare::statistics::{Samples, alternate};
use crate::compare::table::{Better, Line, Section, Verdict, ratio, spreads};
use crate::load::{Choice, Kind, Report, Running, Spec, Target, start};
use crate::qmp::Monitor;
use crate::server::Program;

/// Requests in flight during a pivot.
const DEPTH: u32 = 64;
/// Disks that are cut through at once.
const DISKS: usize = 100;
/// Before what is measured, so that it is known what requests take without it.
const CALM: Duration = Duration::from_millis(300);
/// How long a load goes on at most.
const LONGEST: Duration = Duration::from_secs(40);
/// How long a job may take to be ready, or to complete.
const PATIENCE: Duration = Duration::from_secs(20);

/// One row.
struct Moment {
    work: &'static str,
    run: fn(&Place<'_>, &Program) -> Outcome<Seen>,
    /// The longest that a request may wait.
    most: Duration,
    /// How many times less than the peer's that is to be.
    times: Option<f64>,
}

const PIVOT: Moment = Moment {
    work: "pivot of an active commit, 64 reads in flight: longest request delay added",
    run: |place, program| pivot(place, program, Pivot::Commit),
    most: Duration::from_millis(5),
    times: Some(10.0),
};

const CUT: Moment = Moment {
    work: "cut of 100 nodes by backups: longest request delay added",
    run: |place, program| cut(place, program, Cut::Backup),
    most: Duration::from_millis(20),
    times: None,
};

const MOMENTS: [Moment; 5] = [
    Moment {
        work: "pivot of a mirror in the background, 64 reads in flight: longest request delay added",
        run: |place, program| pivot(place, program, Pivot::Background),
        ..PIVOT
    },
    Moment {
        work: "pivot of a write-blocking mirror, 64 writes in flight: longest request delay added",
        run: |place, program| pivot(place, program, Pivot::WriteBlocking),
        ..PIVOT
    },
    PIVOT,
    CUT,
    Moment {
        work: "cut of 100 nodes by snapshots: longest request delay added",
        run: |place, program| cut(place, program, Cut::Snapshot),
        ..CUT
    },
];

/// What a run showed, in milliseconds.
#[derive(Debug, Clone, Copy)]
struct Seen {
    /// The longest request of the moment, less what half of the requests take at most just before.
    delay: f64,
    /// How long the whole took, from the command to its end.
    whole: f64,
}

/// Adds the rows that are asked for.
pub fn rows(bench: &Bench<'_>, section: &mut Section) {
    for moment in &MOMENTS {
        if bench.wants(moment.work) {
            let outcome = row(bench, moment, section);
            section.attempt(moment.work, outcome);
        }
    }
}

fn row(bench: &Bench<'_>, moment: &Moment, section: &mut Section) -> Outcome<()> {
    let place = Place::new(bench, bench.dir());
    let programs = bench.programs();
    let run = |which: usize| (moment.run)(&place, programs[which]);
    let runs = alternate(bench.runs(), programs.len(), programs.len(), run, |seen| {
        [seen.delay]
    });
    copies::remove(&place)?;
    let runs = bench.beside_peer(runs?);
    let samples = |which: usize, figure: fn(&Seen) -> f64| {
        let runs = runs.get(which).map(Vec::as_slice).unwrap_or_default();
        Samples::new(runs.iter().map(figure))
    };
    let [peer, ours] = [0, 1].map(|which| Shown {
        delay: samples(which, |seen| seen.delay),
        whole: samples(which, |seen| seen.whole),
    });
    section.lines.push(line(moment, &peer, &ours));
    Ok(())
}

/// All runs of one program.
struct Shown {
    delay: Samples,
    whole: Samples,
}

impl Shown {
    fn words(&self) -> String {
        match (self.delay.median(), self.whole.median()) {
            (Some(delay), Some(whole)) => format!("{delay:.2} ms (the whole {whole:.0} ms)"),
            _ => "-".to_owned(),
        }
    }
}

fn line(moment: &Moment, peer: &Shown, ours: &Shown) -> Line {
    let most = moment.most.as_secs_f64() * 1e3;
    let found = ratio(&peer.delay, &ours.delay, Better::Less);
    let mut misses = Vec::new();
    if let Some(delay) = ours.delay.median().filter(|delay| *delay > most) {
        misses.push(format!("{delay:.2} ms of {most:.0} ms"));
    }
    let mut target = format!("{most:.0} ms");
    let mut verdict = Verdict::from_misses(&misses);
    if let Some(times) = moment.times {
        target = format!("{target}; {times:.0}x");
        match &found {
            Ok(found) if *found < times => {
                misses.push(format!("{found:.2}x of {times:.0}x"));
                verdict = Verdict::from_misses(&misses);
            }
            Ok(_) => {}
            Err(why) if misses.is_empty() => verdict = Verdict::Open(why.clone()),
            Err(_) => {}
        }
    }
    let nothing = || "-".to_owned();
    Line {
        work: moment.work.to_owned(),
        peer: peer.words(),
        ours: ours.words(),
        ratio: found.map_or_else(|_| nothing(), |ratio| format!("{ratio:.2}x")),
        target,
        verdict,
        further: vec![nothing(), nothing(), nothing(), spreads(&peer.delay, &ours.delay)],
    }
}

/// Bytes of the disks here: what is measured does not depend on it.
const SIZE: u64 = 64 << 20;

/// A daemon that serves NBD.
fn serve(place: &Place<'_>, program: &Program) -> Outcome<(Monitor, PathBuf)> {
    let socket = place.dir.join("guest.sock");
    let mut monitor = Monitor::start(program, place.dir)?;
    let address = json!({ "type": "unix", "data": { "path": socket } });
    monitor.execute("nbd-server-start", &json!({ "addr": address }))?;
    Ok((monitor, socket))
}

fn export(monitor: &mut Monitor, node: &str, further: &Value) -> Outcome<()> {
    let mut export = json!({ "type": "nbd", "id": node, "node-name": node, "name": node, "writable": true });
    if let (Value::Object(export), Value::Object(further)) = (&mut export, further) {
        export.extend(further.clone());
    }
    monitor.execute("block-export-add", &export)?;
    Ok(())
}

fn load(socket: PathBuf, disk: &str, kind: Kind, depth: u32) -> Outcome<Running> {
    start(&Spec {
        target: Target::unix(socket, disk),
        mix: Choice::only(kind),
        depth,
        duration: LONGEST,
        counters: false,
        ..Spec::default()
    })
}

/// Does something beside loads that have run for a while.
fn beside(loads: Vec<Running>, act: impl FnOnce() -> Outcome<()>) -> Outcome<Seen> {
    let counted_from: Vec<Instant> = loads.iter().map(Running::counted_from).collect();
    for counts in &counted_from {
        thread::sleep(counts.saturating_duration_since(Instant::now()));
    }
    thread::sleep(CALM);
    let from = Instant::now();
    let acted = act();
    let until = Instant::now();
    // What was held until the very end is answered after it.
    thread::sleep(CALM);
    let reports: Vec<Report> = loads.into_iter().map(Running::stop).collect::<Outcome<_>>()?;
    acted?;
    let mut delay: f64 = 0.0;
    for (report, counted_from) in reports.iter().zip(counted_from) {
        let longest = report
            .longest_between(from, until)
            .ok_or("no requests meanwhile")?;
        let since = |instant: Instant| instant.saturating_duration_since(counted_from);
        let before = report.timeline.between(since(from - CALM / 2), since(from))?;
        delay = delay.max(longest.as_secs_f64() * 1e3 - before.microseconds(50.0) / 1e3);
    }
    Ok(Seen {
        delay: delay.max(0.001),
        whole: (until - from).as_secs_f64() * 1e3,
    })
}

/// What ends in a pivot.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pivot {
    Background,
    WriteBlocking,
    Commit,
}

fn pivot(place: &Place<'_>, program: &Program, pivot: Pivot) -> Outcome<Seen> {
    let (mut monitor, socket) = serve(place, program)?;
    let backing = (pivot == Pivot::Commit).then_some("base");
    for disk in ["base", "copy"] {
        copies::add_empty(&mut monitor, place, (disk, SIZE), None)?;
    }
    copies::add_empty(&mut monitor, place, ("disk", SIZE), backing)?;
    monitor.execute("object-add", &json!({ "qom-type": "iothread", "id": "io" }))?;
    export(&mut monitor, "disk", &json!({ "iothread": "io" }))?;
    // Every cluster is there, so that requests take the same all the time.
    let fill = Spec {
        target: Target::unix(socket.clone(), "disk"),
        mix: Choice::only(Kind::Write),
        depth: DEPTH,
        duration: CALM,
        counters: false,
        ..Spec::default()
    };
    crate::load::run(&fill)?;
    let (command, arguments) = match pivot {
        Pivot::Commit => ("block-commit", json!({ "job-id": "job", "device": "disk" })),
        Pivot::Background | Pivot::WriteBlocking => {
            let mode = match pivot {
                Pivot::WriteBlocking => "write-blocking",
                _ => "background",
            };
            let mirror = json!({ "job-id": "job", "device": "disk", "target": "copy", "sync": "full", "copy-mode": mode });
            ("blockdev-mirror", mirror)
        }
    };
    monitor.execute(command, &arguments)?;
    wait(&mut monitor)?;
    let kind = match pivot {
        Pivot::WriteBlocking => Kind::Write,
        Pivot::Background | Pivot::Commit => Kind::Read,
    };
    let loads = vec![load(socket, "disk", kind, DEPTH)?];
    beside(loads, || {
        monitor.forget_job();
        monitor.execute("job-complete", &json!({ "id": "job" }))?;
        wait(&mut monitor)
    })
}

fn wait(monitor: &mut Monitor) -> Outcome<()> {
    match monitor.wait_job(PATIENCE)? {
        true => Ok(()),
        false => Err(format!("the job was not there after {} s", PATIENCE.as_secs()).into()),
    }
}

/// How disks are cut through.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cut {
    Backup,
    Snapshot,
}

/// The first disk and the last are written by a client each.
fn cut(place: &Place<'_>, program: &Program, cut: Cut) -> Outcome<Seen> {
    let (mut monitor, socket) = serve(place, program)?;
    let empty = place.image("empty");
    image::create(&empty, "qcow2", &SIZE.to_string(), &[])?;
    let mut actions = Vec::new();
    for at in 0..DISKS {
        let [disk, other] = ["disk", "other"].map(|name| format!("{name}{at}"));
        for name in [&disk, &other] {
            fs::copy(&empty, place.image(name))?;
            copies::add(&mut monitor, place, name, None)?;
        }
        export(&mut monitor, &disk, &json!({}))?;
        actions.push(match cut {
            Cut::Backup => json!({ "type": "blockdev-backup", "data": {
                "job-id": format!("job{at}"), "device": disk, "target": other, "sync": "none" } }),
            Cut::Snapshot => {
                json!({ "type": "blockdev-snapshot", "data": { "node": disk, "overlay": other } })
            }
        });
    }
    let last = format!("disk{}", DISKS - 1);
    let mut loads = Vec::new();
    for disk in ["disk0", last.as_str()] {
        loads.push(load(socket.clone(), disk, Kind::Write, 1)?);
    }
    beside(loads, || {
        monitor.execute("transaction", &json!({ "actions": actions }))?;
        Ok(())
    })
}
