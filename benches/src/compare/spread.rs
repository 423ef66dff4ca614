//! The rows about exports on two iothreads against one: Millpond beside itself, since the peer refuses a list for them.

use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use millpond_tests::fuse::Offered;

use super::bench::Bench;
use super::exports;
use super::graph::pair;
use super::rates::{SIZE, rate_line};
use super::statistics::alternate;
use super::table::Section;
use super::virtio;
use crate::Outcome;
use crate::load::{self, Spec};
use crate::server::Server;

/// Requests in flight on a connection or a queue.
const DEPTH: u16 = 16;
/// Connections, or queues.
const SOURCES: u16 = 2;
/// How long requests run before they count.
const WARM_UP: Duration = Duration::from_millis(200);
/// How long an export may take to come up.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a row exports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Nbd,
    Virtio,
    /// A file, by the device or over io_uring.
    Fuse {
        over_io_uring: bool,
    },
}

const ROWS: [(&str, Kind); 4] = [
    (
        "NBD, null, 4 KiB read, two connections: two iothreads against one",
        Kind::Nbd,
    ),
    (
        "vhost-user-blk, null, 4 KiB read, two queues: two iothreads against one",
        Kind::Virtio,
    ),
    (
        "FUSE, null, 4 KiB read, two processors: two iothreads against one",
        Kind::Fuse { over_io_uring: false },
    ),
    (
        "FUSE over io_uring, null, 4 KiB read, two processors: two iothreads against one",
        Kind::Fuse { over_io_uring: true },
    ),
];

/// How many times the rate of one iothread two are to have.
const TARGET: f64 = 1.7;

/// Adds the rows that are asked for. What stands in the peer's place is Millpond with one iothread.
pub fn rows(bench: &Bench<'_>, section: &mut Section) {
    for (name, kind) in ROWS.iter().filter(|(name, _)| bench.wants(name)) {
        let outcome = row(bench, name, *kind, section);
        section.attempt(name, outcome);
    }
}

fn row(bench: &Bench<'_>, name: &str, kind: Kind, section: &mut Section) -> Outcome<()> {
    let lists = [",iothread.0=io0", ",iothread.0=io0,iothread.1=io1"];
    let measure = |which: usize| measure(bench, kind, lists[which]);
    let runs = alternate(bench.runs(), lists.len(), lists.len(), measure, |rate| [*rate])?;
    section
        .lines
        .push(rate_line(name, &pair(&runs, |rate| *rate), TARGET));
    Ok(())
}

fn measure(bench: &Bench<'_>, kind: Kind, iothreads: &str) -> Outcome<f64> {
    let (socket, device) = (bench.dir().join("bench.sock"), bench.dir().join("vhost.sock"));
    if device.exists() {
        std::fs::remove_file(&device)?;
    }
    let file = bench.dir().join("exported");
    let over_io_uring = kind == Kind::Fuse { over_io_uring: true };
    let _offered = over_io_uring.then(Offered::new);
    let mut command = daemon(bench, &socket, &device, iothreads);
    if let Kind::Fuse { .. } = kind {
        File::create(&file)?;
        let transport = if over_io_uring { "on" } else { "off" };
        command.arg("--export").arg(format!(
            "fuse,id=file,node-name=disk,mountpoint={},x-millpond-io-uring={transport}{iothreads}",
            file.display()
        ));
    }
    command
        .arg("--export")
        .arg(format!("nbd,id=disk,node-name=disk,name=disk{iothreads}"));
    let server = Server::spawn(command, socket, "disk")?;
    // It listens before it has its exports.
    let is_up = || match kind {
        Kind::Nbd => true,
        Kind::Virtio => device.exists(),
        Kind::Fuse { .. } => std::fs::metadata(&file).is_ok_and(|facts| facts.len() == SIZE),
    };
    let deadline = Instant::now() + PATIENCE;
    while !is_up() {
        if Instant::now() > deadline {
            return Err("the export does not come up".into());
        }
        std::thread::yield_now();
    }
    match kind {
        Kind::Fuse { .. } => exports::file(&file, DEPTH, SOURCES.into(), bench.seconds()),
        Kind::Nbd => {
            let report = load::run(&Spec {
                target: server.target().clone(),
                depth: DEPTH.into(),
                connections: SOURCES,
                warm_up: WARM_UP,
                duration: Duration::from_secs_f64(bench.seconds()),
                ..Spec::default()
            })?;
            Ok(report.rate())
        }
        Kind::Virtio => virtio::rate(&device, SOURCES, DEPTH, bench.seconds()),
    }
}

/// A daemon that shows the node to a virtual machine, and can by NBD.
fn daemon(bench: &Bench<'_>, socket: &Path, device: &Path, iothreads: &str) -> Command {
    let mut command = bench.ours().command();
    command.args(["--object", "iothread,id=io0", "--object", "iothread,id=io1"]);
    command
        .arg("--blockdev")
        .arg(format!("null-co,node-name=disk,size={SIZE}"));
    command
        .arg("--nbd-server")
        .arg(format!("addr.type=unix,addr.path={}", socket.display()));
    command.arg("--export").arg(format!(
        "vhost-user-blk,id=device,node-name=disk,num-queues={SOURCES},addr.type=unix,addr.path={}{iothreads}",
        device.display()
    ));
    command
}
