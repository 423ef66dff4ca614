//! Exports on several iothreads: connections and queues are spread over them, wherever the node lives, and see its drains, moves
//! and changes as those beside it do.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use millpond_tests::daemon::{Builder, Daemon, daemon, daemon_in, scratch};
use millpond_tests::image;
use millpond_tests::model::Model;
use millpond_tests::nbd::{Connect, Request, Session};
use millpond_tests::program::oracle;
use millpond_tests::qmp::Qmp;
use millpond_tests::vhost::{self, FrontEnd, Queue, kind};
use millpond_tests::workload::{Load, Mix, seeded};
use serde_json::{Value, json};

const SIZE: u64 = 2 << 20;
const THREADS: [&str; 3] = ["io0", "io1", "io2"];
/// Clients, each with a part of the disk.
const CLIENTS: u64 = 4;

/// How long a request in a throttle group may keep others waiting: as good as for ever.
const PATIENT: Duration = Duration::from_secs(10);

fn rounds(default: u32) -> u32 {
    let given = std::env::var("MILLPOND_ROUNDS").ok();
    given.and_then(|rounds| rounds.parse().ok()).unwrap_or(default)
}

/// A daemon with three iothreads.
fn threads(builder: Builder) -> Builder {
    THREADS.iter().fold(builder.monitors(2), |builder, id| {
        builder.option("--object", format!("iothread,id={id}"))
    })
}

/// What `--export` is told of the three.
fn on_all() -> String {
    let listed = THREADS.iter().enumerate();
    listed
        .map(|(place, id)| format!(",iothread.{place}={id}"))
        .collect()
}

fn export() -> String {
    format!("nbd,id=exp,node-name=disk,name=disk,writable=on{}", on_all())
}

/// The operations that each of the three has begun.
fn operations(qmp: &mut Qmp) -> [u64; 3] {
    let reports = qmp.ok("x-millpond-query-iothreads", json!({}));
    let reports = reports.as_array().expect("a list");
    THREADS.map(|id| {
        let report = reports.iter().find(|report| report["id"] == id);
        let report = report.expect("the iothread reports");
        report["operations"].as_u64().expect("a number")
    })
}

/// The iothread that begins the most operations while something is done.
fn busiest(qmp: &mut Qmp, act: impl FnOnce()) -> usize {
    let before = operations(qmp);
    act();
    let after = operations(qmp);
    let begun = |place: usize| after[place] - before[place];
    (0..3).max_by_key(|place| begun(*place)).expect("there are three")
}

fn served_on(qmp: &mut Qmp, session: &mut Session) -> usize {
    busiest(qmp, || {
        for _ in 0..100 {
            session.read(0, 512);
        }
    })
}

fn set_iothread(qmp: &mut Qmp, node: &str, iothread: Value) {
    let to = json!({"node-name": node, "iothread": iothread, "force": true});
    qmp.ok("x-blockdev-set-iothread", to);
}

#[test]
fn a_connection_is_served_where_the_fewest_are_and_stays_there() {
    let daemon = threads(daemon())
        .nbd_unix()
        .blockdev(json!({"driver": "null-co", "node-name": "disk", "size": SIZE, "read-zeroes": true}))
        .option("--export", export())
        .start();
    let mut qmp = daemon.monitor(1);
    let mut sessions: Vec<_> = (0..5).map(|_| daemon.session("disk")).collect();
    let served: Vec<_> = sessions
        .iter_mut()
        .map(|session| served_on(&mut qmp, session))
        .collect();
    assert_eq!(served, [0, 1, 2, 0, 1]);
    // The third has none once its client is gone, and gets the next two.
    sessions
        .remove(2)
        .disconnect()
        .expect("a goodbye closes the connection");
    for _ in 0..2 {
        let mut next = daemon.session("disk");
        assert_eq!(served_on(&mut qmp, &mut next), 2);
        sessions.push(next);
    }
    for iothread in [json!("io2"), Value::Null] {
        set_iothread(&mut qmp, "disk", iothread);
        let served: Vec<_> = sessions
            .iter_mut()
            .map(|session| served_on(&mut qmp, session))
            .collect();
        assert_eq!(served, [0, 1, 0, 1, 2, 2], "nobody goes where the node goes");
    }
    daemon.quit();
}

#[test]
fn iothreads_that_cannot_be_used_are_refused_with_qemus_words() {
    let refused = |builder: Builder, more: &str| {
        let builder = builder
            .nbd_unix()
            .option("--object", "iothread,id=io0")
            .blockdev(json!({"driver": "null-co", "node-name": "disk"}))
            .option("--export", format!("nbd,id=exp,node-name=disk{more}"));
        let text = builder.refused();
        let text = text.lines().next().unwrap_or_default();
        text.rsplit(": ").next().unwrap_or_default().to_owned()
    };
    let missing = refused(daemon().program(oracle()), ",iothread=none");
    assert_eq!(refused(daemon(), ",iothread=none"), missing);
    for list in [",iothread.0=none", ",iothread.0=io0,iothread.1=none"] {
        assert_eq!(refused(daemon(), list), missing);
    }
    let fixed = "Cannot use fixed-iothread for a multi-threaded export";
    assert!(refused(daemon(), ",iothread.0=io0,fixed-iothread=on").contains(fixed));

    let daemon = threads(daemon())
        .nbd_unix()
        .blockdev(json!({"driver": "null-co", "node-name": "disk"}))
        .start();
    let mut qmp = daemon.monitor(1);
    let mut add = |iothread: Value| {
        let export = json!({"type": "nbd", "id": "exp", "node-name": "disk", "iothread": iothread});
        let added = qmp.execute("block-export-add", export);
        added.map_err(|error| error.desc)
    };
    let none = "The set of I/O threads must not be empty".to_owned();
    assert_eq!(add(json!([])), Err(none));
    let wrong = "Invalid parameter type for 'iothread', expected: BlockExportIothreads".to_owned();
    assert_eq!(add(json!(3)), Err(wrong));
    assert_eq!(add(json!(["io1", "io0"])), Ok(json!({})));
    for id in ["io0", "io1"] {
        let text = format!("object '{id}' is in use, can not be deleted");
        assert_eq!(qmp.refused("object-del", json!({"id": id})).desc, text);
    }
    qmp.ok("object-del", json!({"id": "io2"}));
    qmp.ok("block-export-del", json!({"id": "exp"}));
    qmp.ok("object-del", json!({"id": "io0"}));
    daemon.quit();
}

/// Clients on threads of their own, each with a part of the disk.
struct Clients {
    stop: Arc<AtomicBool>,
    threads: Vec<thread::JoinHandle<Load>>,
}

impl Clients {
    fn start(daemon: &Daemon, rng: &mut fastrand::Rng) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let part = SIZE / CLIENTS;
        let threads = (0..CLIENTS).map(|client| {
            let session = Connect::default().open(&daemon.address(), "disk");
            let part = client * part..(client + 1) * part;
            let mut load = Load::new(session, Model::new(SIZE), part, rng.fork(), Mix::NO_TRIM, 24);
            let stop = Arc::clone(&stop);
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    load.step().expect("the daemon answers every request");
                }
                load
            })
        });
        let threads = threads.collect();
        Self { stop, threads }
    }

    #[track_caller]
    fn assert_well(&self) {
        let well = self.threads.iter().all(|thread| !thread.is_finished());
        assert!(well, "a client has stopped");
    }

    /// What the disk must contain.
    fn finish(self) -> Vec<u8> {
        self.stop.store(true, Ordering::Relaxed);
        let mut content = Vec::new();
        for thread in self.threads {
            let load = thread.join().expect("a client ends well");
            assert!(load.completed() > 0);
            let (model, _session) = load.finish().expect("the daemon answers every request");
            let from = content.len() as u64;
            content.extend(model.range(from, SIZE / CLIENTS));
        }
        content
    }
}

/// A daemon with a qcow2 disk.
fn with_disk(folder: &Path) -> Builder {
    let path = folder.join("disk");
    image::create(&path, "qcow2", "", SIZE);
    threads(daemon_in(folder))
        .nbd_unix()
        .blockdev(image::file("file", &path))
        .blockdev(image::over("qcow2", "disk", "file"))
}

/// Where the node lives, and what is above it, in one round after the other: snapshots, a filter that comes and goes, moves to
/// each of the iothreads and to the main one, and commits.
fn change(qmp: &mut Qmp, folder: &Path, round: u32) {
    let top = format!("top{round}");
    let path = folder.join(&top);
    let below = match round {
        0 => "disk".to_owned(),
        _ => format!("top{}", round - 1),
    };
    let snapshot = json!({"node-name": below, "snapshot-file": path, "snapshot-node-name": top});
    qmp.ok("blockdev-snapshot-sync", snapshot);
    let iothread = match round % 4 {
        3 => Value::Null,
        place => json!(THREADS[place as usize]),
    };
    set_iothread(qmp, &top, iothread);
    if round % 2 == 1 {
        let commit = json!({"job-id": "commit", "device": top, "top-node": below, "auto-dismiss": false});
        qmp.run_job("commit", "block-commit", commit)
            .expect("the commit ends well");
    }
}

#[test]
fn the_graph_changes_under_clients_on_three_iothreads() {
    let folder = scratch();
    let daemon = with_disk(folder.path()).option("--export", export()).start();
    let mut qmp = daemon.monitor(1);
    let clients = Clients::start(&daemon, &mut seeded("threads"));
    for round in 0..rounds(12) {
        change(&mut qmp, folder.path(), round);
        clients.assert_well();
    }
    let expected = clients.finish();
    let mut session = daemon.session("disk");
    assert!(session.read_all() == expected, "left is what is read");
    drop(session);
    daemon.quit();
}

#[test]
fn clients_that_die_and_exports_that_are_removed_leave_nothing_behind() {
    let folder = scratch();
    let mut daemon = with_disk(folder.path()).start();
    let mut rng = seeded("dying clients");
    let add = json!({"type": "nbd", "id": "exp", "node-name": "disk", "name": "disk", "writable": true,
        "iothread": THREADS});
    for round in 0..rounds(20) {
        daemon.qmp.ok("block-export-add", add.clone());
        let mut sessions: Vec<_> = (0..6).map(|_| daemon.session("disk").pipelined()).collect();
        for session in &mut sessions {
            for _ in 0..rng.usize(1..40) {
                let write = Request::write(rng.u64(0..SIZE / 4096) * 4096, vec![rng.u8(..); 4096]);
                session.submit(&write).expect("the write is sent");
            }
        }
        let refused = daemon
            .qmp
            .refused("block-export-del", json!({"id": "exp", "mode": "safe"}));
        assert_eq!(refused.desc, "export 'exp' still in use");
        // Some leave by themselves, with requests in flight.
        sessions.truncate(rng.usize(0..6));
        if round % 2 == 0 {
            set_iothread(&mut daemon.qmp, "disk", json!(THREADS[round as usize % 3]));
        }
        daemon
            .qmp
            .ok("block-export-del", json!({"id": "exp", "mode": "hard"}));
        daemon.qmp.wait_event("BLOCK_EXPORT_DELETED");
    }
    for id in THREADS {
        daemon.qmp.ok("object-del", json!({"id": id}));
    }
    daemon.quit();
    image::assert_clean(&folder.path().join("disk"));
}

/// Three clients whose writes wait for hours, one on each iothread.
fn waiting(daemon: &Daemon) -> Vec<Session> {
    let mut first = daemon.session("disk");
    first.write(0, &[1; 4096]);
    let mut sessions = vec![first.pipelined()];
    sessions.extend((0..2).map(|_| daemon.session("disk").pipelined()));
    for session in &mut sessions {
        let write = Request::write(4096, vec![2; 4096]);
        session.submit(&write).expect("the write is sent");
        // What is wrong in itself is answered at once: the write has begun by then.
        let wrong = session.submit(&Request::trim(1 << 40, 512));
        let answer = session.complete().expect("the trim is answered");
        assert_eq!(answer.cookie, wrong.expect("the trim is sent"));
    }
    sessions
}

#[test]
fn what_waits_in_a_throttle_group_for_clients_on_other_iothreads_holds_up_nothing() {
    let limits = json!({"qom-type": "throttle-group", "id": "g", "limits": {"bps-write": 1}});
    let mut daemon = threads(daemon())
        .nbd_unix()
        .option("--object", limits.to_string())
        .blockdev(json!({"driver": "null-co", "node-name": "null", "size": SIZE}))
        .blockdev(json!({"driver": "throttle", "node-name": "disk", "file": "null", "throttle-group": "g"}))
        .option("--export", export())
        .start();
    let begun = Instant::now();
    let sessions = waiting(&daemon);
    daemon
        .qmp
        .ok("block-export-del", json!({"id": "exp", "mode": "hard"}));
    daemon.qmp.wait_event("BLOCK_EXPORT_DELETED");
    drop(sessions);
    for id in THREADS {
        daemon.qmp.ok("object-del", json!({"id": id}));
    }
    daemon.quit();
    assert!(begun.elapsed() < PATIENT, "{:?}", begun.elapsed());
}

/// A daemon that shows the disk as a virtio device with six queues, two on each iothread.
fn device(folder: &Path) -> (Daemon, FrontEnd, Vec<Queue>) {
    let more = format!(",writable=on,num-queues=6{}", on_all());
    let daemon = with_disk(folder)
        .option("--export", vhost::export(&folder.join("vhost.sock"), &more))
        .start();
    let mut front_end = FrontEnd::connect(daemon.path("vhost.sock"));
    front_end.pass_memory();
    let queues = (0..6).map(|index| front_end.start_queue(index)).collect();
    (daemon, front_end, queues)
}

#[test]
fn queues_take_turns_on_the_iothreads_of_their_device() {
    let folder = scratch();
    let (daemon, mut front_end, mut queues) = device(folder.path());
    let mut qmp = daemon.monitor(1);
    for (number, queue) in queues.iter_mut().enumerate() {
        let served = busiest(&mut qmp, || {
            for _ in 0..100 {
                // It neither asks the node nor its iothread.
                let (status, _) = front_end.request(queue, kind::GET_ID, 0, &[], 20);
                assert_eq!(status, 0);
            }
        });
        assert_eq!(served, number % 3);
    }
}

/// Writes blocks over all queues at once, each of its own, and reads those of the round before; every byte is looked at.
fn turn(front_end: &mut FrontEnd, queues: &mut [Queue], round: u64) {
    front_end.guest.forget();
    let blocks = SIZE / 4096;
    let content = |block: u64, round: u64| [(block * 7 + round) as u8; 4096];
    let mut begun = Vec::new();
    for block in 0..blocks / 8 {
        let queue = &mut queues[(block % 6) as usize];
        let (old, new) = (block * 8 + round % 2, block * 8 + (round + 1) % 2);
        let read = front_end.prepare(queue, kind::IN, old * 8, &[], 4096);
        let write = front_end.prepare(queue, kind::OUT, new * 8, &[&content(new, round)], 0);
        begun.push((old, read, write));
    }
    queues.iter().for_each(Queue::kick);
    for (place, queue) in queues.iter_mut().enumerate() {
        let count = begun
            .iter()
            .filter(|(block, ..)| block / 8 % 6 == place as u64)
            .count();
        for _ in 0..2 * count {
            queue
                .wait_for(&front_end.guest, vhost::PATIENCE)
                .expect("an answer");
        }
    }
    for (block, read, write) in begun {
        assert_eq!(front_end.guest.read(write, 1), [0], "a write to {block} failed");
        let data = front_end.guest.read(read, 4097);
        let expected = match round {
            0 => [0; 4096],
            _ => content(block, round - 1),
        };
        assert!(data[..4096] == expected && data[4096] == 0, "block {block}");
    }
}

#[test]
fn the_graph_changes_under_queues_on_three_iothreads() {
    let folder = scratch();
    let (daemon, mut front_end, mut queues) = device(folder.path());
    let mut qmp = daemon.monitor(1);
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let guest = thread::spawn(move || {
        let mut round = 0;
        while !stopped.load(Ordering::Relaxed) {
            turn(&mut front_end, &mut queues, round);
            round += 1;
            if round % 5 == 0 {
                // A queue that is stopped has answered all, and goes on where it was.
                let place = round as usize % 6;
                let base = front_end.stop_queue(&queues[place]);
                front_end.restart_queue(&queues[place], base as u16);
            }
        }
        round
    });
    for round in 0..rounds(12) {
        change(&mut qmp, folder.path(), round);
        assert!(!guest.is_finished(), "the guest has found a fault");
    }
    stop.store(true, Ordering::Relaxed);
    assert!(guest.join().expect("the guest ends well") > 0);
    qmp.ok("block-export-del", json!({"id": "exp", "mode": "hard"}));
    for id in THREADS {
        let gone = qmp.execute("object-del", json!({"id": id}));
        gone.expect("nothing is left there once the export is gone");
    }
    daemon.quit();
}
