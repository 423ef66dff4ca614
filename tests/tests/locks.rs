//! No lock is waited for, and nobody is woken by one, on the paths of requests and of changes of the graph: strace counts
//! the system call that locks come down to, in all threads, while both go on. What the system's allocator locks by itself is
//! left out: it is in any program that frees in one thread what was allocated in another.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use millpond_tests::daemon::{Daemon, daemon_in, scratch};
use millpond_tests::image;
use millpond_tests::model::Model;
use millpond_tests::nbd::Connect;
use millpond_tests::strace::Strace;
use millpond_tests::workload::{Load, Mix, seeded};
use serde_json::json;

const SIZE: u64 = 1 << 20;

/// Requests that are answered before the count begins, and while it goes on.
const REQUESTS: u64 = 400;
/// Changes of the graph, likewise.
const ROUNDS: u64 = 10;

/// A client that keeps some requests in flight.
struct Client {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    thread: thread::JoinHandle<Load>,
}

impl Client {
    fn start(daemon: &Daemon, export: &str, part: Range<u64>, depth: usize, rng: fastrand::Rng) -> Client {
        let session = Connect::default().open(&daemon.address(), export);
        let mut load = Load::new(session, Model::new(SIZE), part, rng, Mix::NO_TRIM, depth);
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&answered));
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                load.step().expect("the daemon answers every request");
                count.store(load.completed(), Ordering::Relaxed);
            }
            load
        });
        Client {
            stop,
            answered,
            thread,
        }
    }

    fn answered(&self) -> u64 {
        assert!(!self.thread.is_finished(), "a client has stopped");
        self.answered.load(Ordering::Relaxed)
    }

    fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        let load = self.thread.join().expect("a client ends well");
        load.finish().expect("the daemon answers every request");
    }
}

/// How far apart the heaps of glibc's arenas are, at the least: `HEAP_MAX_SIZE`.
const HEAP: u64 = 64 << 20;

/// Where a process has glibc's own variables, that of its first arena among them.
fn libc_of(pid: u32) -> Vec<Range<u64>> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("it runs");
    let own = maps.lines().filter(|line| line.contains("/libc.so"));
    let range = |line: &str| {
        let (start, end) = line.split(' ').next()?.split_once('-')?;
        let number = |digits| u64::from_str_radix(digits, 16).ok();
        Some(number(start)?..number(end)?)
    };
    own.filter_map(range).collect()
}

/// Whether a call is about the lock of one of glibc's arenas: that is at the start of an arena's heap, behind its header.
fn is_of_the_allocator(line: &str, libc: &[Range<u64>]) -> bool {
    let address = line
        .split("futex(0x")
        .nth(1)
        .and_then(|rest| rest.split(',').next());
    let address = address.and_then(|digits| u64::from_str_radix(digits, 16).ok());
    address.is_some_and(|address| address % HEAP <= 64 || libc.iter().any(|range| range.contains(&address)))
}

/// One round of changes: nodes come, go on top of what is served, move, and go.
fn change(daemon: &mut Daemon, round: u64) {
    let iothread = ["first", "second"][usize::from(round.is_multiple_of(2))];
    let qmp = &mut daemon.qmp;
    let null = json!({"driver": "null-co", "node-name": "passing", "size": 4096, "read-zeroes": true});
    qmp.ok("blockdev-add", null);
    qmp.ok("blockdev-del", json!({"node-name": "passing"}));
    for node in ["ring", "pool"] {
        let arguments = json!({"node-name": node, "iothread": iothread, "force": true});
        qmp.ok("x-blockdev-set-iothread", arguments);
    }
    let discard = if round.is_multiple_of(2) {
        "unmap"
    } else {
        "ignore"
    };
    let options = json!({"driver": "raw", "node-name": "ring", "file": "ring-file", "discard": discard});
    qmp.ok("blockdev-reopen", json!({"options": [options]}));
    qmp.ok("query-named-block-nodes", json!({"flat": true}));
}

#[test]
fn requests_and_changes_of_the_graph_wait_for_no_lock() {
    let dir = scratch();
    let mut rng = seeded("requests_and_changes_of_the_graph_wait_for_no_lock");
    let mut builder = daemon_in(dir.path())
        .option("--object", "iothread,id=first")
        .option("--object", "iothread,id=second")
        .nbd_unix();
    for (name, aio) in [("ring", "io_uring"), ("pool", "threads")] {
        let path = dir.path().join(name);
        std::fs::write(&path, vec![0; usize::try_from(SIZE).expect("it fits")])
            .expect("an image can be written");
        let mut file = image::file(&format!("{name}-file"), &path);
        file["aio"] = json!(aio);
        builder = builder
            .blockdev(file)
            .blockdev(image::over("raw", name, &format!("{name}-file")))
            .option(
                "--export",
                format!("nbd,id={name},node-name={name},name={name},writable=on"),
            );
    }
    let mut daemon = builder.start();
    let clients = [
        Client::start(&daemon, "ring", 0..SIZE, 16, rng.fork()),
        Client::start(&daemon, "pool", 0..SIZE / 2, 4, rng.fork()),
        // One request at a time: the workers fall asleep in between.
        Client::start(&daemon, "pool", SIZE / 2..SIZE, 1, rng.fork()),
    ];
    let go_on = |daemon: &mut Daemon| {
        let before: Vec<u64> = clients.iter().map(Client::answered).collect();
        let mut round = 0;
        let is_enough = |round| {
            let answered = clients.iter().zip(&before);
            round >= ROUNDS
                && answered
                    .into_iter()
                    .all(|(client, before)| client.answered() >= before + REQUESTS)
        };
        while !is_enough(round) {
            change(daemon, round);
            round += 1;
        }
        round
    };
    // Threads start, memory is taken.
    go_on(&mut daemon);
    let libc = libc_of(daemon.pid());
    let strace = Strace::attach(daemon.pid(), "futex", &dir.path().join("strace"));
    let rounds = go_on(&mut daemon);
    let futexes = strace.detach();
    let all = futexes.len();
    let calls: Vec<String> = futexes
        .into_iter()
        .filter(|line| !is_of_the_allocator(line, &libc))
        .collect();
    eprintln!("{} calls are the allocator's", all - calls.len());
    clients.into_iter().for_each(Client::finish);
    daemon.quit();
    assert!(
        calls.is_empty(),
        "{} calls in {rounds} rounds:\n{}",
        calls.len(),
        calls.join("\n")
    );
}
