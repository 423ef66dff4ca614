//! The rows about exports that are not NBD's: a virtio block device, and a node as a file.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use millpond_tests::fuse::Offered;

use super::bench::Bench;
use super::fairness;
use super::fio::{self, Load};
use super::image::fill;
use super::rates::{BLOCK, SIZE, rates};
use super::spread;
use super::table::Section;
use super::{tls, virtio};
use crate::Outcome;
use crate::process::Process;
use crate::server::Program;

/// How long a daemon may take to come up.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a row exports, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A null node as a virtio block device with one queue.
    VirtioNull,
    /// A null node as a file, by the device.
    FileNull,
    /// The same over io_uring. The peer has the device.
    FileNullRing,
    /// A raw image in memory as a file.
    FileRaw,
}

struct Row {
    name: &'static str,
    kind: Kind,
    depth: u16,
    /// How many times the peer's rate is wanted.
    target: f64,
}

const ROWS: [Row; 7] = [
    Row {
        name: "vhost-user-blk, null, 4 KiB read, 1 in flight, one queue",
        kind: Kind::VirtioNull,
        depth: 1,
        target: 1.5,
    },
    Row {
        name: "vhost-user-blk, null, 4 KiB read, 32 in flight, one queue",
        kind: Kind::VirtioNull,
        depth: 32,
        target: 2.5,
    },
    Row {
        name: "FUSE, null, 4 KiB read, 1 in flight",
        kind: Kind::FileNull,
        depth: 1,
        target: 1.2,
    },
    Row {
        name: "FUSE, null, 4 KiB read, 16 in flight",
        kind: Kind::FileNull,
        depth: 16,
        target: 2.0,
    },
    Row {
        name: "FUSE over io_uring, null, 4 KiB read, 1 in flight",
        kind: Kind::FileNullRing,
        depth: 1,
        target: 2.0,
    },
    Row {
        name: "FUSE over io_uring, null, 4 KiB read, 16 in flight",
        kind: Kind::FileNullRing,
        depth: 16,
        target: 2.0,
    },
    Row {
        name: "FUSE, raw in memory, 4 KiB read, 16 in flight",
        kind: Kind::FileRaw,
        depth: 16,
        target: 2.0,
    },
];

/// Runs all rows that are asked for.
pub fn section(bench: &Bench<'_>) -> Section {
    let mut section = Section::new("Exports", &["spread peer, ours"]);
    for row in ROWS.iter().filter(|row| bench.wants(row.name)) {
        let outcome = one_row(bench, row, &mut section);
        section.attempt(row.name, outcome);
    }
    spread::rows(bench, &mut section);
    tls::rows(bench, &mut section);
    fairness::rows(bench, &mut section);
    section
}

fn one_row(bench: &Bench<'_>, row: &Row, section: &mut Section) -> Outcome<()> {
    let _offered = (row.kind == Kind::FileNullRing).then(Offered::new);
    rates(bench, row.name, row.target, section, |program| {
        let daemon = Exporting::start(program, bench.dir(), row.kind)?;
        match row.kind {
            Kind::VirtioNull => virtio::rate(&daemon.place, 1, row.depth, bench.seconds()),
            Kind::FileNull | Kind::FileNullRing | Kind::FileRaw => {
                file(&daemon.place, row.depth, 1, bench.seconds())
            }
        }
    })
}

/// A daemon with an export.
struct Exporting {
    _process: Process,
    /// Its socket, or the file that it is mounted on.
    place: PathBuf,
}

impl Exporting {
    fn start(program: &Program, dir: &Path, kind: Kind) -> Outcome<Exporting> {
        let image = dir.join("exported.raw");
        let (blockdev, place) = match kind {
            Kind::VirtioNull => (null(), dir.join("vhost.sock")),
            Kind::FileNull | Kind::FileNullRing => (null(), dir.join("exported")),
            Kind::FileRaw => {
                fill(&image, SIZE)?;
                let blockdev = format!("driver=file,node-name=disk,filename={}", image.display());
                (blockdev, dir.join("exported"))
            }
        };
        // What the daemon before has left.
        if place.exists() {
            std::fs::remove_file(&place)?;
        }
        let export = match kind {
            Kind::VirtioNull => format!("vhost-user-blk,addr.type=unix,addr.path={}", place.display()),
            Kind::FileNull | Kind::FileNullRing | Kind::FileRaw => {
                File::create(&place)?;
                let transport = match program.name == Program::peer().name {
                    true => "",
                    false if kind == Kind::FileNullRing => ",x-millpond-io-uring=on",
                    false => ",x-millpond-io-uring=off",
                };
                format!("fuse,mountpoint={}{transport}", place.display())
            }
        };
        let process = program
            .command()
            .args(["--object", "iothread,id=io", "--blockdev", &blockdev, "--export"])
            .arg(format!("{export},id=exp,node-name=disk,writable=on,iothread=io"))
            .stdin(Stdio::null())
            .stderr(File::create(dir.join("exporting.log"))?)
            .spawn()
            .map_err(|error| format!("{}: {error}", program.name))?;
        let exporting = Exporting {
            _process: Process(process),
            place,
        };
        let deadline = Instant::now() + PATIENCE;
        while !exporting.is_up(kind) {
            if Instant::now() > deadline {
                let said = std::fs::read_to_string(dir.join("exporting.log")).unwrap_or_default();
                return Err(format!("{} does not come up; it said: {said}", program.name).into());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(exporting)
    }

    fn is_up(&self, kind: Kind) -> bool {
        match kind {
            Kind::VirtioNull => self.place.exists(),
            Kind::FileNull | Kind::FileNullRing | Kind::FileRaw => {
                std::fs::metadata(&self.place).is_ok_and(|facts| facts.len() == SIZE)
            }
        }
    }
}

fn null() -> String {
    format!("driver=null-co,node-name=disk,size={SIZE}")
}

/// Reads a file at random, past the page cache, by so many programs at once; how many times a second.
pub(super) fn file(path: &Path, depth: u16, jobs: u32, seconds: f64) -> Outcome<f64> {
    let output = fio::run(&Load {
        engine: if depth == 1 { "psync" } else { "io_uring" },
        work: "randread",
        block: BLOCK as u64,
        depth: depth.into(),
        jobs,
        seconds,
        file: path,
    })?;
    fio::rate(&fio::figures(&output, "read")?)
}
