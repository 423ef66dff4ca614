//! Transactions that start backups: beside QEMU's daemon the same answers, events and ends, each job alone or all alike; and under
//! load a cut through two disks that shows no later write without an earlier one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use millpond_tests::beside::{Command, GRAPH, beside_qemu, same_answers};
use millpond_tests::daemon::{Daemon, daemon, scratch};
use millpond_tests::image;
use millpond_tests::nbd::{Address, Connect, Request};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;
/// More than a job copies by one request.
const SIZE: u64 = 4 * MIB;

fn with(mut data: Value, more: &Value) -> Value {
    for (name, value) in more.as_object().expect("an object") {
        data[name] = value.clone();
    }
    data
}

/// The start of the backup `j-NODE` of a node to `t-NODE`.
fn backup(node: &str, more: Value) -> Value {
    let data =
        json!({"job-id": format!("j-{node}"), "device": node, "target": format!("t-{node}"), "sync": "full"});
    json!({"type": "blockdev-backup", "data": with(data, &more)})
}

fn over(node: &str, overlay: &str) -> Value {
    json!({"type": "blockdev-snapshot", "data": {"node": node, "overlay": overlay}})
}

fn abort() -> Value {
    json!({"type": "abort", "data": {}})
}

fn actions(actions: &[Value], mode: &str) -> Value {
    json!({"actions": actions, "properties": {"completion-mode": mode}})
}

/// The options of a node over a new image of the daemon's folder.
fn node(dir: &Path, name: &str) -> Value {
    image::create(&dir.join(name), "qcow2", "", SIZE);
    let file = json!({"driver": "file", "node-name": format!("{name}-file"), "filename": dir.join(name)});
    json!({"driver": "qcow2", "node-name": name, "file": file})
}

const NODES: [&str; 6] = ["a", "b", "c", "t-a", "t-b", "t-c"];

fn add_nodes(dir: &Path) -> Vec<Command> {
    let mut commands: Vec<Command> = NODES.map(|name| ("blockdev-add", node(dir, name))).into();
    let mut overlay = node(dir, "o");
    overlay["backing"] = Value::Null;
    commands.push(("blockdev-add", overlay));
    commands
}

#[test]
fn what_fails_leaves_nothing_and_is_answered_as_in_qemu() {
    let scratch = scratch();
    let mut commands = add_nodes(scratch.path());
    let transactions = [
        actions(
            &[backup("a", json!({})), backup("b", json!({"device": "none"}))],
            "individual",
        ),
        actions(
            &[backup("a", json!({})), backup("b", json!({"target": "none"}))],
            "individual",
        ),
        actions(
            &[backup("a", json!({"device": "none"})), backup("b", json!({}))],
            "grouped",
        ),
        actions(
            &[backup("a", json!({})), backup("b", json!({"device": "none"}))],
            "grouped",
        ),
        actions(
            &[backup("a", json!({})), backup("b", json!({"job-id": "j-a"}))],
            "individual",
        ),
        actions(
            &[backup("a", json!({})), backup("b", json!({"job-id": "7"}))],
            "individual",
        ),
        actions(
            &[backup("a", json!({})), backup("b", json!({"speed": -1}))],
            "individual",
        ),
        actions(
            &[backup("a", json!({})), backup("b", json!({"target": "t-a"}))],
            "individual",
        ),
        actions(
            &[
                backup("a", json!({})),
                backup("b", json!({"x-perf": {"max-workers": 0}})),
            ],
            "individual",
        ),
        actions(
            &[
                backup("a", json!({})),
                backup("b", json!({"sync": "bitmap", "bitmap": "m"})),
            ],
            "individual",
        ),
        actions(
            &[
                backup("a", json!({})),
                backup("b", json!({"filter-node-name": "a"})),
            ],
            "individual",
        ),
        actions(
            &[backup("a", json!({})), backup("b", json!({})), abort()],
            "individual",
        ),
        actions(&[backup("a", json!({})), over("b", "o"), abort()], "individual"),
        actions(
            &[over("a", "o"), backup("o", json!({"target": "t-a"})), abort()],
            "individual",
        ),
        actions(&[backup("a", json!({})), over("b", "o")], "grouped"),
        actions(&[over("b", "o"), backup("a", json!({}))], "grouped"),
        actions(&[backup("a", json!({})), abort()], "grouped"),
    ];
    for transaction in transactions {
        commands.extend([
            ("transaction", transaction),
            (GRAPH, json!({})),
            ("query-jobs", json!({})),
        ]);
    }
    same_answers(&commands);
}

fn start(daemon: &mut Daemon) {
    let dir = daemon.dir().to_owned();
    for (command, arguments) in add_nodes(&dir) {
        daemon.qmp.ok(command, arguments);
    }
    for disk in ["a", "b", "c"] {
        let export = json!({"type": "nbd", "id": disk, "node-name": disk, "name": disk, "writable": true});
        daemon.qmp.ok("block-export-add", export);
        let mut guest = daemon.session(disk);
        for at in 0..SIZE / MIB {
            guest.ok(&Request::write(at * MIB, vec![7; MIB as usize]));
        }
        drop(guest);
        unexport(daemon, disk);
    }
    daemon.qmp.take_events();
}

/// What has been told of jobs.
#[derive(Default)]
struct Told {
    /// The states of each job.
    states: BTreeMap<String, Vec<String>>,
    /// Everything but the states that each job comes to by itself, in its order.
    order: Vec<String>,
}

impl Told {
    /// Hears what is told until the job `j-a` is in this state, to which it comes as the last of all.
    fn until(&mut self, daemon: &mut Daemon, status: &str) {
        self.until_job(daemon, "j-a", status);
    }

    fn until_job(&mut self, daemon: &mut Daemon, job: &str, status: &str) {
        let last = daemon.qmp.wait_event_where("JOB_STATUS_CHANGE", |data| {
            data["id"] == job && data["status"] == status
        });
        for event in daemon.qmp.take_events() {
            self.hear(&event);
        }
        self.hear(&json!({"event": "JOB_STATUS_CHANGE", "data": last}));
    }

    /// The same until it waits for a user.
    fn until_pending(&mut self, daemon: &mut Daemon) {
        let last = daemon
            .qmp
            .wait_event_where("BLOCK_JOB_PENDING", |data| data["id"] == "j-a");
        for event in daemon.qmp.take_events() {
            self.hear(&event);
        }
        self.hear(&json!({"event": "BLOCK_JOB_PENDING", "data": last}));
    }

    fn hear(&mut self, event: &Value) {
        let data = &event["data"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let name = text(&event["event"]);
        if name == "JOB_STATUS_CHANGE" {
            let (id, status) = (text(&data["id"]), text(&data["status"]));
            let states = self.states.entry(id.clone()).or_default();
            // Whether a drained section of the daemon's own finds the job at work is a matter of time.
            if status != "paused" && states.last() != Some(&status) {
                states.push(status.clone());
            }
            if !["paused", "running", "waiting", "aborting"].contains(&status.as_str()) {
                self.order.push(format!("{id} {status}"));
            }
        } else {
            let id = format!("{}{}", text(&data["device"]), text(&data["id"]));
            self.order.push(format!("{name} {id} {}", data["error"]));
        }
    }

    fn shown(self) -> (Vec<(String, Vec<String>)>, Vec<String>) {
        (self.states.into_iter().collect(), self.order)
    }
}

const ALL: [&str; 3] = ["a", "b", "c"];

fn all(more: impl Fn(&str) -> Value) -> Vec<Value> {
    ALL.map(|node| backup(node, more(node))).into()
}

/// What is told of jobs and asked about them, as text without what depends on time.
fn jobs(daemon: &mut Daemon) -> Vec<String> {
    let jobs = daemon.qmp.ok("query-jobs", json!({}));
    let jobs = jobs.as_array().expect("a list").iter();
    jobs.map(|job| format!("{} {} {}", job["id"], job["status"], job["error"]))
        .collect()
}

/// The states of each job, their order among all, and what else was seen.
type Shown = (Vec<(String, Vec<String>)>, Vec<String>, Vec<String>);

fn finish(mut daemon: Daemon, told: Told, seen: Vec<String>) -> Shown {
    let left = jobs(&mut daemon);
    daemon.qmp.quit();
    daemon.expect_clean_exit();
    let (states, order) = told.shown();
    assert!(left.is_empty(), "{left:?}");
    (states, order, seen)
}

#[test]
fn jobs_that_end_together_wait_for_each_other_and_become_final_together() {
    for manual in [vec![], vec!["a"], vec!["a", "b", "c"]] {
        beside_qemu(|mut daemon: Daemon| {
            start(&mut daemon);
            let asked = all(|node| json!({"auto-finalize": !manual.contains(&node)}));
            daemon.qmp.ok("transaction", actions(&asked, "grouped"));
            let (mut told, mut seen) = (Told::default(), Vec::new());
            if !manual.is_empty() {
                told.until_pending(&mut daemon);
                seen.extend(jobs(&mut daemon));
                daemon.qmp.ok("job-finalize", json!({"id": "j-b"}));
            }
            told.until(&mut daemon, "null");
            for node in ALL {
                let data = std::fs::read(daemon.path(&format!("t-{node}"))).expect("a target is there");
                assert!(
                    data.windows(8).any(|bytes| bytes == [7; 8]),
                    "nothing was copied to {node}"
                );
            }
            finish(daemon, told, seen)
        });
    }
}

/// One job that is done waits for two that are slow; then one of them is cancelled, or the waiting one is.
#[test]
fn jobs_that_end_together_are_cancelled_together() {
    for (command, name, job) in [
        ("block-job-cancel", "device", "j-b"),
        ("job-cancel", "id", "j-a"),
        ("job-cancel", "id", "j-c"),
    ] {
        beside_qemu(|mut daemon: Daemon| {
            start(&mut daemon);
            let slow = |node: &str| {
                let speed = if node == "c" { 0 } else { 65536 };
                json!({"speed": speed, "auto-dismiss": false})
            };
            daemon.qmp.ok("transaction", actions(&all(slow), "grouped"));
            let mut told = Told::default();
            told.until_job(&mut daemon, "j-c", "waiting");
            let mut seen = Vec::new();
            for verb in [
                "job-pause",
                "job-resume",
                "job-complete",
                "job-finalize",
                "job-dismiss",
            ] {
                seen.push(daemon.qmp.refused(verb, json!({"id": "j-c"})).desc);
            }
            daemon.qmp.ok(command, json!({ name: job }));
            told.until(&mut daemon, "concluded");
            seen.extend(jobs(&mut daemon));
            for job in ["j-a", "j-b", "j-c"] {
                daemon.qmp.ok("job-dismiss", json!({"id": job}));
            }
            told.until_job(&mut daemon, "j-c", "null");
            finish(daemon, told, seen)
        });
    }
}

/// What waits for a user is cancelled with the first of it, and a paused job goes on to its end.
#[test]
fn jobs_that_wait_for_a_user_are_cancelled_together() {
    beside_qemu(|mut daemon: Daemon| {
        start(&mut daemon);
        let manual = |_: &str| json!({"auto-finalize": false});
        daemon.qmp.ok("transaction", actions(&all(manual), "grouped"));
        let mut told = Told::default();
        told.until_pending(&mut daemon);
        daemon.qmp.ok("job-cancel", json!({"id": "j-b"}));
        told.until(&mut daemon, "null");
        let slow = |_: &str| json!({"speed": 65536});
        daemon.qmp.ok("transaction", actions(&all(slow), "grouped"));
        daemon.qmp.ok("job-pause", json!({"id": "j-b"}));
        daemon.qmp.ok("block-job-cancel", json!({"device": "j-c"}));
        told.until(&mut daemon, "null");
        finish(daemon, told, Vec::new())
    });
}

#[test]
fn a_job_that_fails_takes_those_with_it_that_end_with_it() {
    for mode in ["grouped", "individual"] {
        beside_qemu(|mut daemon: Daemon| {
            start(&mut daemon);
            // The daemon is killed in the end: its target cannot be flushed.
            image::create(&daemon.dir().join("bad"), "raw", "", SIZE);
            let rule = json!({"event": "write_aio", "errno": 5});
            let file = json!({"driver": "blkdebug", "inject-error": [rule],
                "image": {"driver": "file", "filename": daemon.path("bad")}});
            let bad = json!({"driver": "raw", "node-name": "bad", "file": file});
            daemon.qmp.ok("blockdev-add", bad);
            let asked = all(|node| match node {
                "a" => json!({"target": "bad", "auto-dismiss": false}),
                // Alone they end by themselves.
                _ if mode == "grouped" => json!({"speed": 65536, "auto-dismiss": false}),
                _ => json!({"auto-dismiss": false}),
            });
            daemon.qmp.ok("transaction", actions(&asked, mode));
            let mut told = Told::default();
            for job in ["j-c", "j-b", "j-a"] {
                let states = told.states.get(job);
                if states.and_then(|states| states.last()).map(String::as_str) != Some("concluded") {
                    told.until_job(&mut daemon, job, "concluded");
                }
            }
            let seen = jobs(&mut daemon);
            for job in ["j-a", "j-b", "j-c"] {
                daemon.qmp.ok("job-dismiss", json!({"id": job}));
            }
            told.until_job(&mut daemon, "j-c", "null");
            let order = told.order.clone();
            daemon.kill();
            let states: Vec<_> = told.states.into_iter().collect();
            (states, (mode == "grouped").then_some(order), seen)
        });
    }
}

/// A client that writes a number to one disk, and once that is acknowledged, to the other.
struct Alternating {
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<u64>,
}

const BLOCK: usize = 4096;

fn block(number: u64) -> Vec<u8> {
    number.to_le_bytes().repeat(BLOCK / 8)
}

fn number(bytes: &[u8]) -> u64 {
    let number = bytes[..8].try_into().expect("eight bytes");
    u64::from_le_bytes(number)
}

impl Alternating {
    fn start(address: &Address, exports: [&str; 2]) -> Alternating {
        let mut sessions = exports.map(|export| Connect::default().open(address, export));
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut written = 0;
            while !stopped.load(Ordering::Relaxed) {
                written += 1;
                for session in &mut sessions {
                    session.ok(&Request::write(0, block(written)));
                }
            }
            written
        });
        Alternating { stop, thread }
    }

    fn finish(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("every write is acknowledged")
    }
}

/// How many cuts are made: `MILLPOND_CUTS` says it.
fn cuts() -> u64 {
    let asked = std::env::var("MILLPOND_CUTS").ok();
    asked.map_or(200, |cuts| cuts.parse().expect("MILLPOND_CUTS is a number"))
}

#[track_caller]
fn check_cut(first: u64, second: u64, cut: u64) {
    assert!(
        first == second || first == second + 1,
        "cut {cut}: {first} was acknowledged before {second} was written"
    );
}

fn raw_disk(daemon: &mut Daemon, name: &str) {
    image::create(&daemon.dir().join(name), "raw", "", 2 * MIB / 32);
    let file = json!({"driver": "file", "filename": daemon.path(name)});
    daemon.qmp.ok(
        "blockdev-add",
        json!({"driver": "raw", "node-name": name, "file": file}),
    );
}

fn export(daemon: &mut Daemon, node: &str, writable: bool) {
    let export = json!({"type": "nbd", "id": node, "node-name": node, "name": node, "writable": writable});
    daemon.qmp.ok("block-export-add", export);
}

fn unexport(daemon: &mut Daemon, node: &str) {
    daemon
        .qmp
        .ok("block-export-del", json!({"id": node, "mode": "hard"}));
    daemon
        .qmp
        .wait_event_where("BLOCK_EXPORT_DELETED", |data| data["id"] == node);
}

#[test]
fn two_backups_that_begin_together_show_one_moment() {
    let mut daemon = daemon().nbd_unix().start();
    for disk in ["a", "b", "t-a", "t-b"] {
        raw_disk(&mut daemon, disk);
    }
    for disk in ["a", "b"] {
        export(&mut daemon, disk, true);
    }
    let writer = Alternating::start(&daemon.address(), ["a", "b"]);
    for cut in 0..cuts() {
        let both = [backup("a", json!({})), backup("b", json!({}))];
        daemon.qmp.ok("transaction", actions(&both, "grouped"));
        daemon.qmp.wait_event_where("JOB_STATUS_CHANGE", |data| {
            data["id"] == "j-a" && data["status"] == "null"
        });
        let events = daemon.qmp.take_events();
        let completed =
            |event: &&Value| event["event"] == "BLOCK_JOB_COMPLETED" && event["data"]["error"].is_null();
        assert_eq!(events.iter().filter(completed).count(), 2, "{events:?}");
        let shown = ["t-a", "t-b"].map(|target| {
            let bytes = std::fs::read(daemon.path(target)).expect("a target is there");
            number(&bytes)
        });
        check_cut(shown[0], shown[1], cut);
    }
    assert!(writer.finish() > cuts(), "there was hardly a write between cuts");
    daemon.quit();
}

/// The number that a disk shows: from the topmost of these files, a raw one and qcow2 images over it, that has its first
/// block. They are read as they lie on the disk, which holds all that was written to an image with an overlay.
fn shown(chain: &[PathBuf]) -> u64 {
    for path in chain.iter().rev() {
        let bytes = std::fs::read(path).expect("an image is there");
        if !bytes.starts_with(b"QFI\xfb") {
            return number(&bytes);
        }
        let entry = |at: u64| {
            let at = usize::try_from(at).expect("a small image");
            let entry = bytes[at..at + 8].try_into().expect("eight bytes");
            // An offset in the file, without its flags.
            u64::from_be_bytes(entry) & 0x00ff_ffff_ffff_fe00
        };
        let l2 = entry(entry(40));
        let cluster = if l2 == 0 { 0 } else { entry(l2) };
        if cluster != 0 {
            return number(&bytes[usize::try_from(cluster).expect("a small image")..]);
        }
    }
    panic!("no image has the block")
}

#[test]
fn two_snapshots_that_are_made_together_show_one_moment() {
    const ROUND: u64 = 20;
    let mut daemon = daemon().nbd_unix().start();
    let mut written = 0;
    for round in 0..cuts().div_ceil(ROUND) {
        let disks = ["a", "b"].map(|disk| format!("{disk}{round}"));
        for disk in &disks {
            raw_disk(&mut daemon, disk);
            export(&mut daemon, disk, true);
        }
        let writer = Alternating::start(&daemon.address(), [&disks[0], &disks[1]]);
        let (mut tops, mut chains) = (disks.clone(), [Vec::new(), Vec::new()]);
        for cut in 0..ROUND {
            let overlays = tops.clone().map(|top| format!("{top}x"));
            let both = [0, 1].map(|at| {
                json!({"type": "blockdev-snapshot-sync", "data": {"node-name": tops[at],
                    "snapshot-node-name": overlays[at], "snapshot-file": daemon.path(&overlays[at])}})
            });
            daemon.qmp.ok("transaction", actions(&both, "individual"));
            for (chain, top) in chains.iter_mut().zip(&tops) {
                chain.push(daemon.path(top).into());
            }
            check_cut(shown(&chains[0]), shown(&chains[1]), round * ROUND + cut);
            tops = overlays;
        }
        written += writer.finish();
        for disk in &disks {
            unexport(&mut daemon, disk);
            daemon.qmp.ok("blockdev-del", json!({"node-name": disk}));
            let mut file = disk.clone();
            for _ in 0..=ROUND {
                std::fs::remove_file(daemon.path(&file)).expect("it was made");
                file.push('x');
            }
        }
    }
    assert!(written > cuts(), "there was hardly a write between cuts");
    daemon.quit();
}
