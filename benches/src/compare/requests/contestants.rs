//! Who is measured: the peer as it is set up best, Millpond, and whoever else can serve the same.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::figures::Figures;
use super::limit;
use super::rows::{Disk, Row};
use crate::Outcome;
use crate::compare::bench::Bench;
use crate::compare::image;
use crate::compare::tools::Tool;
use crate::load::{self, Choice, Pattern, Size, Spec};
use crate::server::Server;

/// How a daemon is set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setup {
    /// Options of the iothread, beginning with a comma.
    iothread: &'static str,
    /// How files are read; empty to leave that to the daemon.
    aio: &'static str,
}

impl Setup {
    /// Millpond as it is without being told anything.
    const OURS: Setup = Setup {
        iothread: "",
        aio: "",
    };

    /// All that the peer can be set up as for this disk. The null driver has no file to be told how to read, and
    /// `aio=native` needs a disk past the page cache.
    fn of_peer(disk: Disk) -> Vec<Setup> {
        let aios: &[&str] = match disk {
            Disk::Null => &[""],
            _ if disk.is_direct() => &["threads", "native", "io_uring"],
            _ => &["threads", "io_uring"],
        };
        let polls = ["", ",poll-max-ns=0"];
        let pairs = aios.iter().flat_map(|aio| polls.map(|iothread| (*aio, iothread)));
        pairs.map(|(aio, iothread)| Setup { iothread, aio }).collect()
    }

    /// In words.
    pub fn words(self) -> String {
        let poll = if self.iothread.is_empty() {
            "poll on"
        } else {
            "poll off"
        };
        match self.aio {
            "" => poll.to_owned(),
            aio => format!("aio={aio}, {poll}"),
        }
    }
}

/// Who is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contestant {
    /// `qemu-storage-daemon`.
    Peer(Setup),
    /// Millpond.
    Ours,
    /// Millpond, of the image with the same data in it that is not encrypted.
    Plain,
    /// The bare responder.
    Ceiling,
    /// fio, without a server.
    Limit,
    /// `qemu-nbd`.
    QemuNbd,
    /// `nbdkit` with its null or its file plugin.
    Nbdkit,
}

impl Contestant {
    /// What tables call it.
    pub fn name(self) -> &'static str {
        match self {
            Contestant::Peer(_) => "qemu-storage-daemon",
            Contestant::Ours => "millpond",
            Contestant::Plain => "millpond, not encrypted",
            Contestant::Ceiling => "bare responder",
            Contestant::Limit => "fio, no server",
            Contestant::QemuNbd => "qemu-nbd",
            Contestant::Nbdkit => "nbdkit",
        }
    }

    /// Those that take part in a row besides the peer and Millpond, as far as they are installed.
    pub fn others(row: &Row) -> Vec<Contestant> {
        // The other servers are not told keys.
        if row.disk == Disk::Encrypted {
            return vec![Contestant::Plain];
        }
        let mut others = Vec::new();
        let mut add = |contestant, tool: Tool| {
            if tool.find().is_some() {
                others.push(contestant);
            }
        };
        if row.disk.is_direct() {
            add(Contestant::Limit, Tool::Fio);
        }
        add(Contestant::QemuNbd, Tool::QemuNbd);
        // It knows no qcow2, and its file plugin does not go past the page cache.
        if matches!(row.disk, Disk::Null | Disk::Raw) {
            add(Contestant::Nbdkit, Tool::Nbdkit);
        }
        // With large requests it is the copying that takes time, in which the responder does nothing clever.
        if row.disk == Disk::Null && row.block <= 4096 {
            others.insert(0, Contestant::Ceiling);
        }
        others
    }

    /// Whether a ratio is made of its runs, so that they must not scatter.
    pub fn is_judged(self) -> bool {
        !matches!(self, Contestant::QemuNbd | Contestant::Nbdkit)
    }
}

/// Bytes of the images in memory.
const MEMORY_SIZE: u64 = 256 << 20;

/// Bytes of the images on a disk: more than a disk keeps in a cache of its own, as a rule.
const DISK_SIZE: u64 = 1 << 30;

/// Bytes of a null node.
const NULL_SIZE: u64 = 1 << 30;

/// The object with the key of the image that is encrypted.
const KEY: &str = "secret,id=key,data=none of anybody's business";

/// How that image is made: the time that its key takes to be found is not measured.
const ENCRYPT: &str = "encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=10";

/// How long requests run before they count, in a run.
const WARM_UP: std::time::Duration = std::time::Duration::from_millis(200);

/// Makes what a disk is served from, unless an earlier row has.
pub fn prepare(bench: &Bench<'_>, disk: Disk) -> Outcome<()> {
    let raw = file(
        bench,
        if disk.is_direct() {
            Disk::DirectRaw
        } else {
            Disk::Raw
        },
    );
    let size = if disk.is_direct() { DISK_SIZE } else { MEMORY_SIZE };
    let size = if bench.quick() { size / 8 } else { size };
    match disk {
        Disk::Null | Disk::Empty => Ok(()),
        Disk::Raw | Disk::DirectRaw => image::fill(&raw, size),
        Disk::Qcow2 | Disk::DirectQcow2 => {
            image::fill(&raw, size)?;
            image::convert(&raw, &file(bench, disk), &[])
        }
        Disk::Encrypted => {
            prepare(bench, Disk::Qcow2)?;
            image::convert(&raw, &file(bench, disk), &["--object", KEY, "-o", ENCRYPT])
        }
    }
}

/// Where a disk's image is.
fn file(bench: &Bench<'_>, disk: Disk) -> PathBuf {
    match disk {
        Disk::Null => PathBuf::new(),
        Disk::Raw => bench.dir().join("disk.raw"),
        Disk::Qcow2 => bench.dir().join("disk.qcow2"),
        Disk::Empty => bench.dir().join("empty.qcow2"),
        Disk::Encrypted => bench.dir().join("encrypted.qcow2"),
        Disk::DirectRaw => bench.disk_dir().join("disk.raw"),
        Disk::DirectQcow2 => bench.disk_dir().join("disk.qcow2"),
    }
}

/// The peer's set-up that is fastest for this row.
pub fn best_setup(bench: &Bench<'_>, row: &Row) -> Outcome<Setup> {
    let seconds = if bench.quick() { 0.1 } else { 0.3 };
    let mut best = (f64::NEG_INFINITY, Setup::OURS);
    for setup in Setup::of_peer(row.disk) {
        let rate = measure(bench, Contestant::Peer(setup), row, seconds)?.rate;
        if rate > best.0 {
            best = (rate, setup);
        }
    }
    Ok(best.1)
}

/// One run.
pub fn measure(bench: &Bench<'_>, contestant: Contestant, row: &Row, seconds: f64) -> Outcome<Figures> {
    run(bench, contestant, row, seconds)
        .map_err(|error| format!("{} at {}: {error}", contestant.name(), row.name).into())
}

fn run(bench: &Bench<'_>, contestant: Contestant, row: &Row, seconds: f64) -> Outcome<Figures> {
    if row.disk == Disk::Empty {
        let size = if row.block > 4096 { "64G" } else { "16G" };
        image::create(&file(bench, row.disk), "qcow2", size, &[])?;
    }
    if contestant == Contestant::Limit {
        // A qcow2 image is not to be written to from outside: the raw file of the same size stands for it.
        return limit::measure(row, &file(bench, Disk::DirectRaw), seconds);
    }
    let disk = match contestant {
        Contestant::Plain => Disk::Qcow2,
        _ => row.disk,
    };
    let server = start(bench, contestant, disk)?;
    // Each allocating write is to meet a new cluster: 4 KiB writes are random over a disk of many more clusters than are
    // written, larger ones follow each other.
    let pattern = if row.disk == Disk::Empty && row.block > 4096 {
        Pattern::Sequential
    } else {
        Pattern::Random
    };
    let spec = Spec {
        target: server.target().clone(),
        mix: Choice::only(row.kind),
        sizes: Choice::only(Size(row.block)),
        depth: row.depth,
        pattern,
        warm_up: WARM_UP,
        duration: std::time::Duration::from_secs_f64(seconds),
        server: Some(server.pid()),
        ..Spec::default()
    };
    Ok(Figures::from(&load::run(&spec)?))
}

fn start(bench: &Bench<'_>, contestant: Contestant, disk: Disk) -> Outcome<Server> {
    let (dir, image) = (bench.dir(), file(bench, disk));
    let daemon = |program, setup: Setup| {
        let blockdevs = blockdevs(disk, setup, &image);
        Server::start(program, dir, setup.iothread, &[KEY], &blockdevs)
    };
    let socket = dir.join("bench.sock");
    match contestant {
        Contestant::Peer(setup) => daemon(bench.peer().ok_or_else(|| Tool::Peer.missing())?, setup),
        Contestant::Ours | Contestant::Plain => daemon(bench.ours(), Setup::OURS),
        Contestant::Ceiling => {
            let mut command = Command::new(std::env::current_exe()?);
            command.arg("ceiling").arg(&socket);
            Server::spawn(command, socket, "disk")
        }
        Contestant::QemuNbd => Server::spawn(qemu_nbd(disk, &image, &socket), socket, "disk"),
        Contestant::Nbdkit => Server::spawn(nbdkit(disk, &image, &socket), socket, "disk"),
        Contestant::Limit => Err("there is no server at the limit".into()),
    }
}

fn null_options() -> String {
    format!("size={NULL_SIZE},read-zeroes=off")
}

/// The nodes of a daemon, `disk` among them.
fn blockdevs(disk: Disk, setup: Setup, image: &Path) -> Vec<String> {
    let format = match disk {
        Disk::Null => return vec![format!("null-co,node-name=disk,{}", null_options())],
        Disk::Raw | Disk::DirectRaw => "raw",
        Disk::Qcow2 | Disk::Empty | Disk::DirectQcow2 => "qcow2",
        Disk::Encrypted => "qcow2,encrypt.format=luks,encrypt.key-secret=key",
    };
    let mut file = format!("file,node-name=file,filename={},discard=unmap", image.display());
    if !setup.aio.is_empty() {
        file.push_str(&format!(",aio={}", setup.aio));
    }
    if disk.is_direct() {
        file.push_str(",cache.direct=on");
    }
    vec![file, format!("{format},node-name=disk,file=file")]
}

fn qemu_nbd(disk: Disk, image: &Path, socket: &Path) -> Command {
    let mut command = Command::new(Tool::QemuNbd.program());
    command.args([
        "--persistent",
        "--shared=8",
        "--export-name=disk",
        "--discard=unmap",
    ]);
    command.arg(format!("--socket={}", socket.display()));
    let format = match disk {
        Disk::Null => {
            command.args(["--image-opts", &format!("driver=null-co,{}", null_options())]);
            return command;
        }
        Disk::Raw | Disk::DirectRaw => "raw",
        Disk::Qcow2 | Disk::Empty | Disk::Encrypted | Disk::DirectQcow2 => "qcow2",
    };
    if disk.is_direct() {
        command.args(["--cache=none", "--aio=native"]);
    }
    command.args(["-f", format]).arg(image);
    command
}

fn nbdkit(disk: Disk, image: &Path, socket: &Path) -> Command {
    let mut command = Command::new(Tool::Nbdkit.program());
    command.args(["--foreground", "--unix"]).arg(socket);
    match disk {
        Disk::Null => command.args(["null", &NULL_SIZE.to_string()]),
        _ => command.arg("file").arg(image),
    };
    command
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::requests::rows::ROWS;

    #[test]
    fn the_peer_is_tried_in_all_its_configurations() {
        assert_eq!(Setup::of_peer(Disk::Null).len(), 2);
        assert_eq!(Setup::of_peer(Disk::Qcow2).len(), 4);
        let direct = Setup::of_peer(Disk::DirectRaw);
        assert_eq!(direct.len(), 6);
        let words: Vec<_> = direct.into_iter().map(Setup::words).collect();
        assert!(words.contains(&"aio=native, poll off".to_owned()), "{words:?}");
    }

    #[test]
    fn disks_past_the_page_cache_are_opened_so_by_everyone() {
        let image = Path::new("/disk.raw");
        for row in ROWS.iter().filter(|row| row.disk.is_direct()) {
            let file = &blockdevs(row.disk, Setup::OURS, image)[0];
            assert!(file.ends_with(",cache.direct=on"), "{file}");
            let command = format!("{:?}", qemu_nbd(row.disk, image, Path::new("/socket")));
            assert!(command.contains("--cache=none"), "{command}");
            assert!(!Contestant::others(row).contains(&Contestant::Nbdkit));
        }
    }
}
