//! The jobs: the images that each needs, how it is started, and what it took.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Place, limit};
use crate::Outcome;
use crate::compare::image;
use crate::process::cpu_time;
use crate::qmp::Monitor;
use crate::server::Program;

/// How long a job may take.
const LIMIT: Duration = Duration::from_secs(120);

/// The length of the image that has little data.
const SPARSE: u64 = 1 << 40;
/// In how many places that has its data.
const PLACES: u64 = 64;

/// One row.
pub struct Copy {
    pub work: &'static str,
    /// It runs on the disk, not in memory.
    pub on_disk: bool,
    /// Its target may not have more than its source.
    pub stays_sparse: bool,
    /// Makes what [`Copy::run`] needs, unless it is there.
    make: fn(&Place<'_>) -> Outcome<()>,
    /// Runs it once.
    pub run: fn(&Place<'_>, &Program) -> Outcome<Copied>,
    pub limit_name: &'static str,
    pub limit: fn(&Place<'_>) -> Outcome<Duration>,
    /// How much of the limit's speed is wanted, as a part.
    pub of_limit: f64,
    /// How many times the peer's speed is wanted.
    pub times: Option<f64>,
    /// How much of the peer's CPU time is allowed.
    pub cpu: Option<f64>,
}

/// What a run took.
#[derive(Debug, Clone, Copy)]
pub struct Copied {
    pub seconds: f64,
    /// The daemon's CPU time in seconds; not a number if there was no daemon.
    pub cpu: f64,
    /// What the target holds on the disk, by what the source holds there.
    pub allocated: f64,
}

impl Copied {
    /// Something without a daemon.
    pub fn taking(time: Duration) -> Self {
        Self {
            seconds: time.as_secs_f64(),
            cpu: f64::NAN,
            allocated: f64::NAN,
        }
    }
}

/// What most rows want.
const DENSE: Copy = Copy {
    work: "",
    on_disk: false,
    stays_sparse: false,
    make: |place| make_image(place, "full", place.size),
    run: backup,
    limit_name: "limit",
    limit: limit::large,
    of_limit: 0.9,
    times: Some(1.3),
    cpu: Some(0.5),
};

/// The rows, one a job.
pub const COPIES: [Copy; 9] = [
    Copy {
        work: "blockdev-backup full, qcow2 to qcow2, 1 GiB",
        ..DENSE
    },
    Copy {
        work: "block-stream of 1 GiB",
        run: stream,
        ..DENSE
    },
    Copy {
        work: "blockdev-mirror full, qcow2 to qcow2, 1 GiB",
        run: mirror,
        times: Some(1.1),
        ..DENSE
    },
    Copy {
        work: "block-commit of 512 MiB, intermediate",
        run: commit,
        ..COMMIT
    },
    Copy {
        work: "block-commit of 512 MiB, active",
        run: commit_active,
        ..COMMIT
    },
    Copy {
        work: "blockdev-backup full, raw to raw, 1 GiB",
        run: backup_raw,
        ..RAW
    },
    Copy {
        work: "blockdev-mirror full, raw to raw, 1 GiB",
        run: mirror_raw,
        ..RAW
    },
    Copy {
        work: "blockdev-backup of a sparse 1 TiB image with 1 GiB of data",
        run: |place, program| sparse(place, program, "blockdev-backup"),
        limit: |place| dense(place, backup),
        ..SPARSELY
    },
    Copy {
        work: "blockdev-mirror of a sparse 1 TiB image with 1 GiB of data",
        run: |place, program| sparse(place, program, "blockdev-mirror"),
        limit: |place| dense(place, mirror),
        ..SPARSELY
    },
];

const COMMIT: Copy = Copy {
    make: |place| make_image(place, "half", place.size / 2),
    limit: limit::half,
    times: Some(1.1),
    ..DENSE
};

const RAW: Copy = Copy {
    on_disk: true,
    make: |place| image::fill(&place.dir.join("full.raw"), place.size),
    limit_name: "speed of cp --reflink=auto",
    limit: limit::reflink,
    times: None,
    cpu: None,
    ..DENSE
};

/// Where the limit is Millpond's own copy of as much data that lies close together.
const SPARSELY: Copy = Copy {
    stays_sparse: true,
    make: |place| {
        make_image(place, "full", place.size)?;
        make_sparse(place)
    },
    limit_name: "speed on 1 GiB alone",
    times: None,
    cpu: None,
    ..DENSE
};

/// Makes what a row needs, unless it is there.
pub fn make(place: &Place<'_>, copy: &Copy) -> Outcome<()> {
    (copy.make)(place)
}

/// Makes a qcow2 image full of data.
pub fn make_image(place: &Place<'_>, name: &str, size: u64) -> Outcome<()> {
    let raw = place.dir.join(format!("{name}.made"));
    image::fill(&raw, size)?;
    image::convert(&raw, &place.image(name), &[])?;
    Ok(fs::remove_file(raw)?)
}

/// Makes a qcow2 image that is much longer than its data.
fn make_sparse(place: &Place<'_>) -> Outcome<()> {
    let raw = place.dir.join("sparse.made");
    let file = File::create(&raw)?;
    file.set_len(SPARSE)?;
    let part = usize::try_from(place.size / PLACES)?;
    for place in 0..PLACES {
        file.write_all_at(&vec![7; part], place * (SPARSE / PLACES))?;
    }
    image::convert(&raw, &place.image("sparse"), &[])?;
    Ok(fs::remove_file(raw)?)
}

/// Removes all images: the next row has room for its own.
pub fn remove(place: &Place<'_>) -> Outcome<()> {
    for entry in fs::read_dir(place.dir)? {
        let path = entry?.path();
        let is_image = path.extension().is_some_and(|end| end == "qcow2" || end == "raw");
        if is_image {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// Adds a qcow2 image as a node of its name.
pub fn add(monitor: &mut Monitor, place: &Place<'_>, name: &str, backing: Option<&str>) -> Outcome<()> {
    let node = json!({
        "driver": "qcow2", "node-name": name, "backing": backing,
        "file": { "driver": "file", "filename": place.image(name) },
    });
    monitor.execute("blockdev-add", &node)?;
    Ok(())
}

/// Makes an empty image, and adds it.
pub fn add_empty(
    monitor: &mut Monitor,
    place: &Place<'_>,
    (name, size): (&str, u64),
    backing: Option<&str>,
) -> Outcome<()> {
    let path = place.image(name);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
        _ => image::create(&path, "qcow2", &size.to_string(), &[])?,
    }
    add(monitor, place, name, backing)
}

/// What copies one node to another.
fn to_copy(device: &str) -> Value {
    json!({ "job-id": "job", "device": device, "target": "copy", "sync": "full" })
}

fn copy(place: &Place<'_>, program: &Program, command: &str) -> Outcome<Copied> {
    let mut monitor = Monitor::start(program, place.dir)?;
    add(&mut monitor, place, "full", None)?;
    add_empty(&mut monitor, place, ("copy", place.size), None)?;
    timed(&mut monitor, command, &to_copy("full"))
}

fn backup(place: &Place<'_>, program: &Program) -> Outcome<Copied> {
    copy(place, program, "blockdev-backup")
}

fn mirror(place: &Place<'_>, program: &Program) -> Outcome<Copied> {
    copy(place, program, "blockdev-mirror")
}

/// Millpond's copy of data that lies close together.
fn dense(place: &Place<'_>, run: fn(&Place<'_>, &Program) -> Outcome<Copied>) -> Outcome<Duration> {
    Ok(Duration::from_secs_f64(run(place, place.ours)?.seconds))
}

fn sparse(place: &Place<'_>, program: &Program, command: &str) -> Outcome<Copied> {
    let mut monitor = Monitor::start(program, place.dir)?;
    add(&mut monitor, place, "sparse", None)?;
    add_empty(&mut monitor, place, ("copy", SPARSE), None)?;
    let copied = timed(&mut monitor, command, &to_copy("sparse"))?;
    let [source, target] = ["sparse", "copy"].map(|name| fs::metadata(place.image(name)));
    // The tables of a cache that was not written yet are not there.
    let allocated = (target?.blocks() as f64 / source?.blocks() as f64 * 20.0).round() / 20.0;
    Ok(Copied { allocated, ..copied })
}

fn raw(place: &Place<'_>, program: &Program, command: &str) -> Outcome<Copied> {
    let copy = place.dir.join("copy.raw");
    File::create(&copy)?.set_len(place.size)?;
    let mut monitor = Monitor::start(program, place.dir)?;
    for name in ["full", "copy"] {
        let filename = place.dir.join(format!("{name}.raw"));
        let file = json!({ "driver": "file", "filename": filename });
        let node = json!({ "driver": "raw", "node-name": name, "file": file });
        monitor.execute("blockdev-add", &node)?;
    }
    timed(&mut monitor, command, &to_copy("full"))
}

fn backup_raw(place: &Place<'_>, program: &Program) -> Outcome<Copied> {
    raw(place, program, "blockdev-backup")
}

fn mirror_raw(place: &Place<'_>, program: &Program) -> Outcome<Copied> {
    raw(place, program, "blockdev-mirror")
}

fn stream(place: &Place<'_>, program: &Program) -> Outcome<Copied> {
    let mut monitor = Monitor::start(program, place.dir)?;
    add(&mut monitor, place, "full", None)?;
    add_empty(&mut monitor, place, ("overlay", place.size), Some("full"))?;
    let arguments = json!({ "job-id": "job", "device": "overlay" });
    timed(&mut monitor, "block-stream", &arguments)
}

/// An image below the topmost one.
fn commit(place: &Place<'_>, program: &Program) -> Outcome<Copied> {
    let mut monitor = Monitor::start(program, place.dir)?;
    add_empty(&mut monitor, place, ("base", place.size / 2), None)?;
    add(&mut monitor, place, "half", Some("base"))?;
    add_empty(&mut monitor, place, ("top", place.size / 2), Some("half"))?;
    let arguments = json!({ "job-id": "job", "device": "top", "top-node": "half", "base-node": "base" });
    timed(&mut monitor, "block-commit", &arguments)
}

/// The topmost image.
fn commit_active(place: &Place<'_>, program: &Program) -> Outcome<Copied> {
    let mut monitor = Monitor::start(program, place.dir)?;
    add_empty(&mut monitor, place, ("base", place.size / 2), None)?;
    add(&mut monitor, place, "half", Some("base"))?;
    let arguments = json!({ "job-id": "job", "device": "half" });
    timed(&mut monitor, "block-commit", &arguments)
}

/// Starts the job called `job` and waits until it is over, or ready to be completed: then everything is copied.
fn timed(monitor: &mut Monitor, command: &str, arguments: &Value) -> Outcome<Copied> {
    let pid = monitor.pid();
    let (begun, used) = (Instant::now(), cpu_time(pid)?);
    monitor.execute(command, arguments)?;
    if !monitor.wait_job(LIMIT)? {
        return Err(format!("{command} was not over after {} s", LIMIT.as_secs()).into());
    }
    let seconds = begun.elapsed().as_secs_f64();
    let cpu = cpu_time(pid)?.saturating_sub(used).as_secs_f64();
    Ok(Copied {
        seconds,
        cpu,
        allocated: f64::NAN,
    })
}
