//! The rows about exports on two iothreads against one: Millpond beside itself, since the peer refuses a list for them.

use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use millpond_tests::fuse::Offered;
use millpond_tests::vhost::{FrontEnd, Guest, Queue, WRITE, kind};

use super::bench::Bench;
use super::exports;
use super::graph::pair;
use super::statistics::alternate;
use super::table::{Better, Section, compared};
use crate::Outcome;
use crate::load::{self, Spec};
use crate::server::Server;

/// Bytes of the null node behind the export.
const SIZE: u64 = 1 << 30;
/// Bytes of a request.
const BLOCK: usize = 4096;
/// Requests in flight on a connection or a queue.
const DEPTH: u16 = 16;
/// Connections, or queues.
const SOURCES: u16 = 2;
/// How long requests run before they count.
const WARM_UP: Duration = Duration::from_millis(200);
/// How long an answer may take.
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
    let (one, two) = pair(&runs, |rate| *rate);
    let show = |rate: f64| format!("{:.1}k/s", rate / 1000.0);
    let line = compared(name, &one, &two, Better::More, Some(TARGET), show);
    section.lines.push(line);
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
        Kind::Virtio => virtio(&device, bench.seconds()),
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

/// A request that is sent again as soon as it was answered: its first descriptor, and where its header and its status are.
struct Again {
    head: u16,
    header: u64,
    status: u64,
}

/// A queue with its requests.
struct Source {
    queue: Queue,
    requests: Vec<Again>,
    random: u64,
}

impl Source {
    fn begin(front_end: &mut FrontEnd, index: u16) -> Self {
        let mut queue = front_end.start_queue(index);
        let guest = &mut front_end.guest;
        let requests = (0..DEPTH).map(|_| {
            let (header, data, status) = (guest.header(kind::IN, 0), guest.room(BLOCK), guest.room(1));
            let pieces = [header, (data, BLOCK as u32, WRITE), (status, 1, WRITE)];
            let head = queue.describe(guest, &pieces);
            queue.offer(guest, head);
            Again {
                head,
                header: header.0,
                status,
            }
        });
        let requests = requests.collect();
        queue.kick();
        Self {
            queue,
            requests,
            random: u64::from(index) + 1,
        }
    }

    /// Waits for answers, and sends each request again; how many there were.
    fn turn(&mut self, guest: &Guest) -> Outcome<u16> {
        let mut answered = Some(self.queue.wait_for(guest, PATIENCE)?);
        let mut offered = 0;
        while let Some((head, _)) = answered {
            let found = self.requests.iter().find(|request| request.head == head);
            let Again { header, status, .. } = found.ok_or("an answer to no request")?;
            if guest.read_byte(*status) != 0 {
                return Err("a read failed".into());
            }
            self.random = self
                .random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let sector = (self.random >> 33) % (SIZE / BLOCK as u64) * (BLOCK as u64 / 512);
            guest.write(header + 8, &sector.to_le_bytes());
            self.queue.offer(guest, head);
            offered += 1;
            answered = self.queue.answer(guest);
        }
        self.queue.kick_where_awaited(guest, true, offered);
        Ok(offered)
    }
}

/// Reads at random over all queues of a virtio device; how many times a second.
fn virtio(socket: &Path, seconds: f64) -> Outcome<f64> {
    let mut front_end = FrontEnd::connect(socket);
    front_end.pass_memory();
    let mut sources: Vec<_> = (0..SOURCES)
        .map(|index| Source::begin(&mut front_end, index))
        .collect();
    let begun = Instant::now();
    let (mut count, mut since) = (0_u64, None);
    loop {
        // Each has requests in flight at any time: none is waited for in vain.
        for source in &mut sources {
            count += u64::from(source.turn(&front_end.guest)?);
        }
        let elapsed = begun.elapsed();
        if since.is_none() && elapsed > WARM_UP {
            since = Some((elapsed.as_secs_f64(), count));
        }
        if let Some((from, before)) = since
            && elapsed.as_secs_f64() > from + seconds
        {
            return Ok((count - before) as f64 / (elapsed.as_secs_f64() - from));
        }
    }
}
