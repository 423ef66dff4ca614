//! The rows about jobs that copy. Millpond does not have them yet: these rows tell what the peer takes.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::bench::Bench;
use super::image;
use super::statistics::Samples;
use super::table::{Line, Section};
use super::tools::Tool;
use crate::Outcome;
use crate::qmp::Monitor;
use crate::server::Program;

const NOT_BUILT: &str = "not built yet: Millpond has no jobs that copy";

/// Bytes that jobs copy, but for the commit, which copies half as many.
const SIZE: u64 = 1 << 30;

/// How long a job may take.
const LIMIT: Duration = Duration::from_secs(120);

/// Runs of each job: there is no ratio to be told yet.
const RUNS: u32 = 3;

/// One row.
struct Job {
    work: &'static str,
    target: &'static str,
    /// Runs it once in a folder that has `full.qcow2` and `half.raw`; the time it took.
    run: fn(&Program, &Path) -> Outcome<Duration>,
}

const JOBS: [Job; 5] = [
    Job {
        work: "blockdev-backup full, qcow2 to qcow2, 1 GiB",
        target: "3x",
        run: backup,
    },
    Job {
        work: "block-stream of 1 GiB",
        target: "3x",
        run: stream,
    },
    Job {
        work: "blockdev-mirror full, qcow2 to qcow2, 1 GiB",
        target: "1.5x",
        run: mirror,
    },
    Job {
        work: "block-commit of 512 MiB",
        target: "1.5x",
        run: commit,
    },
    Job {
        work: "convert qcow2 to qcow2, 1 GiB",
        target: "2x",
        run: |_, dir| convert(dir, &[]),
    },
];

/// Compression is asked for in two kinds, which take long: they run once.
const COMPRESSED: [(&str, &str); 2] = [
    (
        "convert qcow2 to qcow2 compressed (zlib), 1 GiB",
        "compression_type=zlib",
    ),
    (
        "convert qcow2 to qcow2 compressed (zstd), 1 GiB",
        "compression_type=zstd",
    ),
];

/// The rows that are asked for.
pub fn section(bench: &Bench<'_>) -> Section {
    let mut section = Section::new("Jobs", &[]);
    let mut made = false;
    let mut row = |section: &mut Section,
                   work: &str,
                   target: &str,
                   runs,
                   run: &dyn Fn(&Program) -> Outcome<Duration>| {
        if !bench.wants(work) {
            return;
        }
        let Some(peer) = bench.peer() else {
            section.lines.push(Line::open(work, target, "-", NOT_BUILT));
            return;
        };
        let times = (|| -> Outcome<Vec<f64>> {
            if !made {
                make(bench.dir(), if bench.quick() { SIZE / 64 } else { SIZE })?;
                made = true;
            }
            (0..runs).map(|_| Ok(run(peer)?.as_secs_f64())).collect()
        })();
        match times {
            Ok(times) => {
                let median = Samples::new(times).median().unwrap_or_default();
                let line = Line::open(work, target, format!("{median:.2} s"), NOT_BUILT);
                section.lines.push(line);
            }
            Err(error) => section.attempt(work, Err(error)),
        }
    };
    let runs = bench.runs().min(RUNS);
    for job in JOBS {
        row(&mut section, job.work, job.target, runs, &|peer| {
            (job.run)(peer, bench.dir())
        });
    }
    for (work, kind) in COMPRESSED {
        row(&mut section, work, "2x", 1, &|_| {
            convert(bench.dir(), &["-c", "-o", kind])
        });
    }
    section
}

/// The images that are copied.
fn make(dir: &Path, size: u64) -> Outcome<()> {
    let (full, half) = (dir.join("full.raw"), dir.join("half.raw"));
    image::fill(&full, size)?;
    image::fill(&half, size / 2)?;
    image::convert(&full, &dir.join("full.qcow2"))?;
    Ok(fs::remove_file(full)?)
}

/// Adds a qcow2 image as a node of its name.
fn add(monitor: &mut Monitor, dir: &Path, name: &str, backing: Option<&str>) -> Outcome<()> {
    let node = json!({
        "driver": "qcow2", "node-name": name, "backing": backing,
        "file": { "driver": "file", "filename": dir.join(format!("{name}.qcow2")) },
    });
    monitor.execute("blockdev-add", &node)?;
    Ok(())
}

/// Makes an empty image as large as the one that is copied, and adds it.
fn add_empty(
    monitor: &mut Monitor,
    dir: &Path,
    name: &str,
    like: &str,
    backing: Option<&str>,
) -> Outcome<()> {
    let size = fs::metadata(dir.join("half.raw"))?.len() * if like == "full" { 2 } else { 1 };
    image::create(
        &dir.join(format!("{name}.qcow2")),
        "qcow2",
        &size.to_string(),
        &[],
    )?;
    add(monitor, dir, name, backing)
}

fn backup(program: &Program, dir: &Path) -> Outcome<Duration> {
    let mut monitor = Monitor::start(program, dir)?;
    add(&mut monitor, dir, "full", None)?;
    add_empty(&mut monitor, dir, "copy", "full", None)?;
    let arguments = json!({ "job-id": "job", "device": "full", "target": "copy", "sync": "full" });
    timed_job(&mut monitor, "blockdev-backup", &arguments)
}

fn mirror(program: &Program, dir: &Path) -> Outcome<Duration> {
    let mut monitor = Monitor::start(program, dir)?;
    add(&mut monitor, dir, "full", None)?;
    add_empty(&mut monitor, dir, "copy", "full", None)?;
    let arguments = json!({ "job-id": "job", "device": "full", "target": "copy", "sync": "full" });
    timed_job(&mut monitor, "blockdev-mirror", &arguments)
}

fn stream(program: &Program, dir: &Path) -> Outcome<Duration> {
    let mut monitor = Monitor::start(program, dir)?;
    add(&mut monitor, dir, "full", None)?;
    add_empty(&mut monitor, dir, "overlay", "full", Some("full"))?;
    let arguments = json!({ "job-id": "job", "device": "overlay" });
    timed_job(&mut monitor, "block-stream", &arguments)
}

fn commit(program: &Program, dir: &Path) -> Outcome<Duration> {
    // What is committed is gone from the overlay in the end, so that each run needs one of its own.
    let overlay = dir.join("half.qcow2");
    if overlay.exists() {
        fs::remove_file(&overlay)?;
    }
    image::convert(&dir.join("half.raw"), &overlay)?;
    let mut monitor = Monitor::start(program, dir)?;
    add_empty(&mut monitor, dir, "base", "half", None)?;
    add(&mut monitor, dir, "half", Some("base"))?;
    let arguments = json!({ "job-id": "job", "device": "half" });
    timed_job(&mut monitor, "block-commit", &arguments)
}

/// Starts the job called `job` and waits until it is over, or ready to be completed: then everything is copied.
fn timed_job(monitor: &mut Monitor, command: &str, arguments: &Value) -> Outcome<Duration> {
    let begun = Instant::now();
    monitor.execute(command, arguments)?;
    while begun.elapsed() < LIMIT {
        let jobs = monitor.ask("query-block-jobs", &json!({}))?;
        match jobs.as_array().map(Vec::as_slice) {
            Some([]) => return Ok(begun.elapsed()),
            Some([job]) if job["ready"] == true => return Ok(begun.elapsed()),
            _ => thread::sleep(Duration::from_millis(2)),
        }
    }
    Err(format!("{command} has not ended in {} seconds", LIMIT.as_secs()).into())
}

/// `qemu-img convert` of the image, with these arguments.
fn convert(dir: &Path, arguments: &[&str]) -> Outcome<Duration> {
    let begun = Instant::now();
    let status = Command::new(Tool::QemuImg.program())
        .args(["convert", "-f", "qcow2", "-O", "qcow2"])
        .args(arguments)
        .arg(dir.join("full.qcow2"))
        .arg(dir.join("converted.qcow2"))
        .status()
        .map_err(|error| format!("{error}: {}", Tool::QemuImg.missing()))?;
    if status.success() {
        Ok(begun.elapsed())
    } else {
        Err("qemu-img convert failed".into())
    }
}
