//! Millpond and `qemu-storage-daemon` in turn, on the rows of the targets that exist so far.
//!
//! Each row runs both programs alternately (A B A B ...), each time as a new process, and compares medians. The peer
//! runs in the configuration that was best for it in a first short run. Images lie in memory, so that the programs are
//! measured and not a disk.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use clap::Args;

use crate::Outcome;
use crate::ceiling;
use crate::load::{self, Choice, Kind, Pattern, Report, Size, Spec, Target};
use crate::server::{Program, Server};

const MIB: u64 = 1 << 20;

/// The options of `millpond-bench compare`.
#[derive(Debug, Args)]
pub struct CompareArguments {
    /// Millpond's binary, built with --release
    #[arg(long, default_value = "target/release/millpond")]
    millpond: PathBuf,
    /// Where images and sockets are made; it should lie in memory
    #[arg(long, default_value = "/dev/shm")]
    dir: PathBuf,
    /// Runs of each program
    #[arg(long, default_value_t = 5)]
    runs: u32,
    /// Seconds a run
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Only rows whose name contains this
    #[arg(long, default_value = "")]
    only: String,
}

/// What is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Disk {
    /// A node that keeps nothing.
    Null,
    /// A raw file.
    Raw,
    /// A qcow2 image whose clusters are all allocated.
    Qcow2,
    /// An empty qcow2 image, new for each run.
    Empty,
}

struct Row {
    name: &'static str,
    target: &'static str,
    disk: Disk,
    write: bool,
    block: u32,
    depth: u16,
}

const fn row(
    name: &'static str,
    target: &'static str,
    disk: Disk,
    write: bool,
    block: u32,
    depth: u16,
) -> Row {
    Row {
        name,
        target,
        disk,
        write,
        block,
        depth,
    }
}

const ROWS: &[Row] = &[
    row("null, 4 KiB read, 1 in flight", "2x", Disk::Null, false, 4096, 1),
    row(
        "null, 4 KiB read, 32 in flight",
        "5x",
        Disk::Null,
        false,
        4096,
        32,
    ),
    row(
        "null, 4 KiB read, 128 in flight",
        "6x",
        Disk::Null,
        false,
        4096,
        128,
    ),
    row(
        "null, 4 KiB write, 32 in flight",
        "5x",
        Disk::Null,
        true,
        4096,
        32,
    ),
    row(
        "null, 256 KiB read, 8 in flight",
        "3x",
        Disk::Null,
        false,
        256 << 10,
        8,
    ),
    row(
        "null, 256 KiB write, 8 in flight",
        "3x",
        Disk::Null,
        true,
        256 << 10,
        8,
    ),
    row("raw, 4 KiB read, 32 in flight", "-", Disk::Raw, false, 4096, 32),
    row(
        "raw, 256 KiB read, 8 in flight",
        "3x",
        Disk::Raw,
        false,
        256 << 10,
        8,
    ),
    row(
        "qcow2, 4 KiB read, 32 in flight",
        "4x",
        Disk::Qcow2,
        false,
        4096,
        32,
    ),
    row(
        "qcow2, 4 KiB overwrite, 32 in flight",
        "4x",
        Disk::Qcow2,
        true,
        4096,
        32,
    ),
    row(
        "qcow2, 256 KiB read, 8 in flight",
        "3x",
        Disk::Qcow2,
        false,
        256 << 10,
        8,
    ),
    row(
        "qcow2, 256 KiB overwrite, 8 in flight",
        "3x",
        Disk::Qcow2,
        true,
        256 << 10,
        8,
    ),
    row(
        "qcow2, allocating 4 KiB write, 32 in flight",
        "3x",
        Disk::Empty,
        true,
        4096,
        32,
    ),
    row(
        "qcow2, allocating 64 KiB write, 32 in flight",
        "3x",
        Disk::Empty,
        true,
        65536,
        32,
    ),
];

/// How a program is set up; the peer's best is found by trying.
#[derive(Debug, Clone, Copy)]
struct Setup {
    /// Options of the iothread, beginning with a comma.
    iothread: &'static str,
    aio: &'static str,
}

const PEER_SETUPS: &[Setup] = &[
    Setup {
        iothread: "",
        aio: "threads",
    },
    Setup {
        iothread: ",poll-max-ns=0",
        aio: "threads",
    },
    Setup {
        iothread: "",
        aio: "io_uring",
    },
    Setup {
        iothread: ",poll-max-ns=0",
        aio: "io_uring",
    },
];

/// Millpond as it is without being told anything.
const OUR_SETUP: Setup = Setup {
    iothread: "",
    aio: "",
};

struct Comparison<'a> {
    arguments: &'a CompareArguments,
    dir: PathBuf,
}

/// Runs `millpond-bench compare`.
pub fn main(arguments: &CompareArguments) -> Outcome<()> {
    let dir = arguments
        .dir
        .join(format!("millpond-bench-{}", std::process::id()));
    std::fs::create_dir(&dir)?;
    let comparison = Comparison {
        arguments,
        dir: dir.clone(),
    };
    let outcome = comparison.run();
    std::fs::remove_dir_all(&dir)?;
    outcome
}

impl Comparison<'_> {
    fn run(&self) -> Outcome<()> {
        let ours = Program::millpond(self.arguments.millpond.clone());
        let peer = Program::peer();
        self.make_images()?;
        println!(
            "| work | qemu-storage-daemon | millpond | ratio | target | p50/p99 us peer, ours | CPU us peer, ours |"
        );
        println!("| --- | --- | --- | --- | --- | --- | --- |");
        for row in ROWS.iter().filter(|row| row.name.contains(&self.arguments.only)) {
            let setup = self.best_setup(&peer, row)?;
            let (mut theirs, mut our) = (Vec::new(), Vec::new());
            for _ in 0..self.arguments.runs.max(1) {
                theirs.push(self.measure(&peer, setup, row, self.arguments.seconds)?);
                our.push(self.measure(&ours, OUR_SETUP, row, self.arguments.seconds)?);
            }
            let (theirs, our) = (median(theirs)?, median(our)?);
            print_row(row, setup, &theirs, &our);
        }
        self.print_ceilings()
    }

    fn make_images(&self) -> Outcome<()> {
        let wanted = |disk| {
            ROWS.iter()
                .any(|row| row.disk == disk && row.name.contains(&self.arguments.only))
        };
        if wanted(Disk::Raw) {
            qemu_img(
                &["create", "-q", "-f", "raw", "-o", "preallocation=full"],
                &self.dir.join("disk.raw"),
                "256M",
            )?;
        }
        if wanted(Disk::Qcow2) {
            let path = self.dir.join("disk.qcow2");
            qemu_img(
                &["create", "-q", "-f", "qcow2", "-o", "preallocation=full"],
                &path,
                "256M",
            )?;
        }
        Ok(())
    }

    /// The peer's set-up that is fastest for this row.
    fn best_setup(&self, peer: &Program, row: &Row) -> Outcome<Setup> {
        let mut best = (0.0, PEER_SETUPS[0]);
        for setup in PEER_SETUPS {
            // The null driver has no file to be told how to read.
            if row.disk == Disk::Null && setup.aio != "threads" {
                continue;
            }
            let rate = self.measure(peer, *setup, row, 0.5)?.rate();
            if rate > best.0 {
                best = (rate, *setup);
            }
        }
        Ok(best.1)
    }

    fn measure(&self, program: &Program, setup: Setup, row: &Row, seconds: f64) -> Outcome<Report> {
        if row.disk == Disk::Empty {
            let path = self.dir.join("empty.qcow2");
            qemu_img(
                &["create", "-q", "-f", "qcow2"],
                &path,
                if row.block > 4096 { "64G" } else { "16G" },
            )?;
        }
        let server = Server::start(
            program,
            &self.dir,
            setup.iothread,
            &blockdevs(row.disk, setup, &self.dir),
        )?;
        // Each allocating write is to meet a new cluster: 4 KiB writes are random over a disk of many more clusters
        // than are written, larger ones follow each other.
        let sequential = row.disk == Disk::Empty && row.block >= 65536;
        let report = load::run(&Spec {
            target: server.target().clone(),
            mix: Choice::only(if row.write { Kind::Write } else { Kind::Read }),
            sizes: Choice::only(Size(row.block.into())),
            depth: row.depth.into(),
            pattern: if sequential {
                Pattern::Sequential
            } else {
                Pattern::Random
            },
            duration: Duration::from_secs_f64(seconds),
            server: Some(server.pid()),
            ..Spec::default()
        });
        Ok(report.map_err(|error| format!("{} at {}: {error}", program.name, row.name))?)
    }

    /// What the load client reaches against a responder with nothing behind it.
    fn print_ceilings(&self) -> Outcome<()> {
        let socket = self.dir.join("ceiling.sock");
        ceiling::spawn(&socket, ceiling::Engine::Ring)?;
        let target = Target::unix(socket, "");
        println!();
        for depth in [1, 32, 128] {
            let report = load::run(&Spec {
                target: target.clone(),
                depth,
                duration: Duration::from_secs_f64(self.arguments.seconds),
                ..Spec::default()
            })?;
            println!("ceiling, 4 KiB read, {depth} in flight: {:.0}/s", report.rate());
        }
        Ok(())
    }
}

/// The nodes below and including `disk`.
fn blockdevs(disk: Disk, setup: Setup, dir: &Path) -> Vec<String> {
    let aio = if setup.aio.is_empty() {
        String::new()
    } else {
        format!(",aio={}", setup.aio)
    };
    let file = |name: &str, node: &str| {
        let path = dir.join(name);
        format!(
            "file,node-name={node},filename={},discard=unmap{aio}",
            path.display()
        )
    };
    match disk {
        Disk::Null => vec![format!(
            "null-co,node-name=disk,size={},read-zeroes=off",
            1024 * MIB
        )],
        Disk::Raw => vec![
            file("disk.raw", "file"),
            "raw,node-name=disk,file=file".to_owned(),
        ],
        Disk::Qcow2 => vec![
            file("disk.qcow2", "file"),
            "qcow2,node-name=disk,file=file".to_owned(),
        ],
        Disk::Empty => vec![
            file("empty.qcow2", "file"),
            "qcow2,node-name=disk,file=file".to_owned(),
        ],
    }
}

fn qemu_img(args: &[&str], path: &Path, size: &str) -> Outcome<()> {
    let status = Command::new("qemu-img").args(args).arg(path).arg(size).status();
    let status =
        status.map_err(|error| format!("qemu-img: {error} (install the Debian package qemu-utils)"))?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("qemu-img {args:?} failed").into())
    }
}

/// The run whose rate is in the middle.
fn median(mut reports: Vec<Report>) -> Outcome<Report> {
    reports.sort_by(|one, other| one.rate().total_cmp(&other.rate()));
    let middle = reports.len() / 2;
    reports.into_iter().nth(middle).ok_or_else(|| "no runs".into())
}

fn print_row(row: &Row, setup: Setup, theirs: &Report, ours: &Report) {
    let setup = match row.disk {
        Disk::Null => setup.iothread.to_owned(),
        _ => format!("aio={}{}", setup.aio, setup.iothread),
    };
    let volume = |report: &Report| match row.block {
        4096 => format!("{:.1}k/s", report.rate() / 1000.0),
        _ => format!(
            "{:.2} GiB/s",
            report.rate() * f64::from(row.block) / f64::from(1 << 30)
        ),
    };
    let times = |report: &Report| {
        format!(
            "{:.0}/{:.0}",
            report.microseconds(50.0),
            report.microseconds(99.0)
        )
    };
    let cpu = |report: &Report| {
        report
            .cpu_microseconds()
            .map_or_else(|| "-".to_owned(), |cpu| format!("{cpu:.1}"))
    };
    println!(
        "| {} | {} {setup} | {} | {:.1}x | {} | {}, {} | {}, {} |",
        row.name,
        volume(theirs),
        volume(ours),
        ours.rate() / theirs.rate(),
        row.target,
        times(theirs),
        times(ours),
        cpu(theirs),
        cpu(ours)
    );
}
