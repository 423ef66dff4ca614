//! `quorum` beside QEMU's own: the same answers to `x-blockdev-change`, the same graph, the same votes and events; and
//! children replaced under load.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use millpond_tests::beside::{Command, GRAPH, beside_qemu, same_answers};
use millpond_tests::daemon::{Daemon, daemon_in, scratch};
use millpond_tests::image;
use millpond_tests::model::Model;
use millpond_tests::nbd::Connect;
use millpond_tests::tool;
use millpond_tests::workload::{Load, Mix, seeded};
use serde_json::{Value, json};

fn null(name: &str, size: u64) -> Command {
    (
        "blockdev-add",
        json!({"driver": "null-co", "node-name": name, "size": size}),
    )
}

fn quorum(threshold: i64, children: Value, more: Value) -> Command {
    let mut options =
        json!({"driver": "quorum", "node-name": "q", "vote-threshold": threshold, "children": children});
    for (name, value) in more.as_object().expect("an object") {
        options[name] = value.clone();
    }
    ("blockdev-add", options)
}

fn change(arguments: Value) -> Command {
    ("x-blockdev-change", arguments)
}

fn del(name: &str) -> Command {
    ("blockdev-del", json!({ "node-name": name }))
}

fn graph() -> Command {
    (GRAPH, json!({}))
}

#[test]
fn options_are_refused_as_qemu_refuses_them() {
    let pair = json!(["a", "b"]);
    let fifo = json!({"blkverify": true, "rewrite-corrupted": true, "read-pattern": "fifo"});
    let commands = [
        null("a", 1 << 20),
        null("b", 1 << 20),
        null("long", 2 << 20),
        quorum(0, pair.clone(), json!({})),
        quorum(-1, pair.clone(), json!({})),
        quorum(3, pair.clone(), json!({})),
        quorum(1, json!([]), json!({})),
        quorum(1, json!(["a", "long"]), json!({})),
        quorum(1, json!(["a", "missing"]), json!({})),
        quorum(1, json!(["a", null]), json!({})),
        quorum(1, json!("a"), json!({})),
        quorum(1, json!(["a"]), json!({"read-pattern": "x"})),
        quorum(1, json!(["a"]), json!({"colour": 1})),
        quorum(1, pair.clone(), json!({"blkverify": true})),
        quorum(2, json!(["a", "b", "long"]), json!({"blkverify": true})),
        quorum(
            2,
            pair.clone(),
            json!({"blkverify": true, "rewrite-corrupted": true}),
        ),
        (
            "blockdev-add",
            json!({"driver": "quorum", "node-name": "q", "vote-threshold": 1}),
        ),
        (
            "blockdev-add",
            json!({"driver": "quorum", "node-name": "q", "children": ["a"]}),
        ),
        graph(),
        quorum(1, pair.clone(), fifo),
        graph(),
        del("q"),
        quorum(2, pair, json!({})),
        ("block_resize", json!({"node-name": "q", "size": 2 << 20})),
        (
            "blockdev-reopen",
            json!({"options": [
            {"driver": "quorum", "node-name": "q", "vote-threshold": 1, "children": ["a", "b"]}]}),
        ),
        graph(),
    ];
    same_answers(&commands);
}

#[test]
fn children_are_added_and_removed_with_qemus_answers() {
    let add = |parent: &str, node: &str| change(json!({"parent": parent, "node": node}));
    let remove = |parent: &str, child: &str| change(json!({"parent": parent, "child": child}));
    let mut commands: Vec<Command> = ["a", "b", "c", "d"].map(|name| null(name, 1 << 20)).into();
    commands.extend([
        quorum(2, json!(["a", "b"]), json!({"blkverify": true})),
        add("q", "c"),
        remove("q", "children.0"),
        del("q"),
        quorum(2, json!(["a", "b"]), json!({})),
        change(json!({"parent": "q"})),
        change(json!({"parent": "zz"})),
        change(json!({"parent": "q", "child": "children.0", "node": "c"})),
        change(json!({"parent": "zz", "child": "children.0", "node": "c"})),
        remove("q", "x"),
        remove("q", "children.01"),
        remove("q", "children.7"),
        remove("zz", "x"),
        add("q", "zz"),
        add("a", "c"),
        remove("a", "x"),
        remove("q", "children.0"),
        add("q", "q"),
        add("q", "b"),
        add("q", "c"),
        del("c"),
        graph(),
        remove("q", "children.1"),
        graph(),
        add("q", "b"),
        graph(),
        remove("q", "children.3"),
        add("q", "b"),
        add("q", "d"),
        graph(),
        ("query-named-block-nodes", json!({})),
        remove("q", "children.0"),
        remove("q", "children.2"),
        remove("q", "children.4"),
        (
            "blockdev-add",
            json!({"driver": "raw", "node-name": "top", "file": "q"}),
        ),
        add("top", "a"),
        remove("top", "file"),
        add("q", "top"),
        graph(),
        (
            "blockdev-add",
            json!({"driver": "null-co", "node-name": "ro", "size": 1 << 20, "read-only": true}),
        ),
        add("q", "ro"),
        (
            "block-export-add",
            json!({"type": "nbd", "id": "e", "node-name": "q", "writable": true}),
        ),
        remove("q", "children.5"),
        (
            "block-export-add",
            json!({"type": "nbd", "id": "e", "node-name": "q", "writable": true}),
        ),
        add("q", "ro"),
        add("q", "a"),
        graph(),
        ("query-named-block-nodes", json!({"flat": true})),
    ]);
    same_answers(&commands);
}

#[test]
fn nested_children_go_with_the_quorum_and_inherit_from_it() {
    let children = json!([
        {"driver": "null-co", "node-name": "a", "size": 1 << 20},
        {"driver": "raw", "node-name": "b", "file": {"driver": "null-co", "node-name": "bf", "size": 1 << 20}},
    ]);
    let commands = [
        quorum(1, children, json!({"read-only": true, "cache": {"direct": true}})),
        graph(),
        ("query-named-block-nodes", json!({})),
        change(json!({"parent": "q", "child": "children.1"})),
        graph(),
        del("q"),
        ("query-named-block-nodes", json!({})),
    ];
    same_answers(&commands);
}

/// Three files of these bytes in a daemon's folder, each behind a `blkdebug` node that fails what it is told to.
fn children(daemon: &mut Daemon, bytes: [u8; 3], faults: [&[(&str, u32)]; 3]) {
    for ((byte, faults), name) in bytes.into_iter().zip(faults).zip(["c0", "c1", "c2"]) {
        let path = daemon.path(name);
        fs::write(&path, [byte; 1 << 20]).expect("a file can be made");
        let rules = faults.iter().map(|(kind, errno)| {
            json!({"event": "none", "iotype": kind, "errno": errno, "once": false, "immediately": true})
        });
        let rules: Vec<Value> = rules.collect();
        let file = json!({"driver": "file", "filename": path});
        let mut options = json!({"driver": "blkdebug", "node-name": name, "image": file});
        if !rules.is_empty() {
            options["inject-error"] = json!(rules);
        }
        daemon.qmp.ok("blockdev-add", options);
    }
}

fn export(daemon: &mut Daemon, threshold: i64, more: Value) {
    let (command, options) = quorum(threshold, json!(["c0", "c1", "c2"]), more);
    daemon.qmp.ok(command, options);
    let export = json!({"type": "nbd", "id": "e", "node-name": "q", "writable": true});
    daemon.qmp.ok("block-export-add", export);
}

/// What `qemu-io` says, without how long it took.
fn qemu_io(daemon: &Daemon, commands: &str) -> String {
    let uri = daemon.uri("q");
    let mut arguments = vec!["-f", "raw", &uri];
    commands
        .split(';')
        .for_each(|command| arguments.extend(["-c", command]));
    let run = tool::try_run("qemu-io", &arguments);
    let told = run.stdout.lines().filter(|line| !line.contains("ops/sec"));
    format!("{commands}: {}", told.collect::<Vec<_>>().join("; "))
}

/// The quorum's events so far, and what each child's first bytes are.
fn aftermath(daemon: &mut Daemon) -> (BTreeSet<String>, Vec<[u8; 2]>) {
    // An answer of the graph: what happened before it was asked is told before it answers.
    daemon.qmp.ok("query-named-block-nodes", json!({"flat": true}));
    let events = daemon.qmp.take_events().into_iter();
    let events = events.map(|event| format!("{} {}", event["event"], event["data"]));
    let contents = ["c0", "c1", "c2"].map(|name| {
        let file = fs::File::open(daemon.path(name)).expect("the file is there");
        let mut bytes = [0; 2];
        // The last byte of the first block and the first of the second.
        file.read_exact_at(&mut bytes, 4095)
            .expect("the file can be read");
        bytes
    });
    (events.collect(), contents.into())
}

/// One command on one quorum, in a new pair of daemons: events that come within a second of others are held back.
fn same_fate(threshold: i64, more: Value, bytes: [u8; 3], faults: [&[(&str, u32)]; 3], command: &str) {
    beside_qemu(|mut daemon| {
        children(&mut daemon, bytes, faults);
        export(&mut daemon, threshold, more.clone());
        (qemu_io(&daemon, command), aftermath(&mut daemon))
    });
}

const EIO: u32 = 5;
const ENOSPC: u32 = 28;

// The last word on a read that fails is EIO: QEMU's server closes the connection after another.
#[test]
fn reads_are_voted_as_qemu_votes() {
    let plain = json!({});
    same_fate(2, plain.clone(), [1, 1, 1], [&[], &[], &[]], "read -P 1 0 4k");
    same_fate(2, plain.clone(), [1, 2, 2], [&[], &[], &[]], "read -P 2 0 4k");
    same_fate(1, plain.clone(), [1, 2, 3], [&[], &[], &[]], "read -P 3 512 1k");
    same_fate(3, plain.clone(), [1, 2, 2], [&[], &[], &[]], "read -P 2 0 4k");
    same_fate(
        2,
        plain.clone(),
        [1, 1, 1],
        [&[("read", EIO)], &[], &[]],
        "read -P 1 1k 3k",
    );
    same_fate(
        2,
        plain,
        [1, 1, 1],
        [&[("read", ENOSPC)], &[("read", EIO)], &[]],
        "read -P 1 0 4k",
    );
    let rewrite = json!({"rewrite-corrupted": true});
    same_fate(2, rewrite, [1, 2, 2], [&[], &[], &[]], "read -P 2 0 4k");
}

#[test]
fn fifo_reads_take_the_first_child_as_qemu_does() {
    let fifo = json!({"read-pattern": "fifo"});
    same_fate(3, fifo.clone(), [1, 2, 3], [&[], &[], &[]], "read -P 1 0 4k");
    same_fate(
        3,
        fifo.clone(),
        [1, 2, 3],
        [&[("read", EIO)], &[("read", ENOSPC)], &[]],
        "read -P 3 0 4k",
    );
    let all: [&[(&str, u32)]; 3] = [&[("read", ENOSPC)], &[("read", ENOSPC)], &[("read", EIO)]];
    same_fate(3, fifo, [1, 2, 3], all, "read -P 3 0 4k");
}

#[test]
fn writes_and_flushes_are_counted_as_qemu_counts() {
    let plain = json!({});
    let bytes = [1, 1, 1];
    let one: [&[(&str, u32)]; 3] = [&[("write", EIO)], &[], &[]];
    let two: [&[(&str, u32)]; 3] = [&[("write", ENOSPC)], &[("write", EIO)], &[]];
    let three: [&[(&str, u32)]; 3] = [&[("write", ENOSPC)], &[("write", EIO)], &[("write", ENOSPC)]];
    for faults in [one, two, three] {
        same_fate(2, plain.clone(), bytes, faults, "write -P 9 0 4k");
    }
    let zeroes: [&[(&str, u32)]; 3] = [&[("write-zeroes", EIO)], &[], &[]];
    same_fate(2, plain.clone(), bytes, zeroes, "write -z 0 4k");
    let flush: [&[(&str, u32)]; 3] = [&[("flush", EIO)], &[], &[]];
    same_fate(2, plain.clone(), bytes, flush, "write -P 9 0 4k;flush");
    same_fate(2, plain, bytes, one, "discard 0 64k");
}

#[test]
fn where_all_children_are_zero_a_reader_is_told() {
    beside_qemu(|mut daemon| {
        children(&mut daemon, [1, 1, 1], [&[], &[], &[]]);
        let hole = |name: &str, start: u64, end: u64| {
            let path = daemon.path(name);
            tool::run(
                "fallocate",
                &[
                    "-p",
                    "-o",
                    &start.to_string(),
                    "-l",
                    &(end - start).to_string(),
                    &path,
                ],
            );
        };
        hole("c0", 0, 1 << 18);
        hole("c1", 1 << 16, 1 << 20);
        hole("c2", 1 << 17, 1 << 19);
        export(&mut daemon, 2, json!({}));
        image::map("raw", &daemon.uri("q"))
    });
}

#[test]
fn a_difference_in_blkverify_mode_ends_the_daemon_as_it_ends_qemus() {
    beside_qemu(|mut daemon| {
        for (name, byte) in [("a", 1), ("b", 1)] {
            fs::write(daemon.path(name), [byte; 8192]).expect("a file can be made");
            daemon
                .qmp
                .ok("blockdev-add", image::file(name, Path::new(&daemon.path(name))));
        }
        let file = fs::OpenOptions::new()
            .write(true)
            .open(daemon.path("b"))
            .expect("the file is there");
        file.write_all_at(&[7], 5000).expect("the file can be written");
        let (command, options) = quorum(2, json!(["a", "b"]), json!({"blkverify": true}));
        daemon.qmp.ok(command, options);
        daemon.qmp.ok(
            "block-export-add",
            json!({"type": "nbd", "id": "e", "node-name": "q", "writable": true}),
        );
        assert!(
            qemu_io(&daemon, "read -P 1 0 4k").ends_with("bytes at offset 0"),
            "there they are the same"
        );
        let read = tool::try_run("qemu-io", &["-f", "raw", &daemon.uri("q"), "-c", "read 4k 1k"]);
        assert_ne!(read.code, Some(0), "what differs is not read");
        let status = daemon.wait();
        // What the client was answered is logged by the iothread, before or after the last words.
        let log = daemon.log();
        let mut said = log.lines().filter(|line| !line.contains(" WARN "));
        (status.code(), said.next_back().map(str::to_owned))
    });
}

const SIZE: u64 = 2 << 20;
const DEPTH: usize = 32;

fn rounds(default: u32) -> u32 {
    let given = std::env::var("MILLPOND_ROUNDS").ok();
    given.and_then(|rounds| rounds.parse().ok()).unwrap_or(default)
}

/// Clients on threads of their own, each with half of the disk.
struct Clients {
    stop: Arc<AtomicBool>,
    threads: Vec<thread::JoinHandle<Load>>,
}

impl Clients {
    fn start(daemon: &Daemon, rng: &mut fastrand::Rng) -> Clients {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = [0..SIZE / 2, SIZE / 2..SIZE].map(|part| {
            let session = Connect::default().open(&daemon.address(), "disk");
            let mut load = Load::new(session, Model::new(SIZE), part, rng.fork(), Mix::NO_TRIM, DEPTH);
            let stop = Arc::clone(&stop);
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    load.step().expect("the daemon answers every request");
                }
                load
            })
        });
        Clients {
            stop,
            threads: threads.into(),
        }
    }

    /// Ends the load and returns what the disk must contain, and how many requests were answered.
    fn finish(self) -> (Vec<u8>, u64) {
        self.stop.store(true, Ordering::Relaxed);
        let (mut content, mut completed) = (Vec::new(), 0);
        for thread in self.threads {
            let load = thread.join().expect("a client ends well");
            completed += load.completed();
            let (model, _session) = load.finish().expect("the daemon answers every request");
            let half = content.len() as u64;
            content.extend(model.range(half, SIZE / 2));
        }
        (content, completed)
    }
}

/// Each round adds an empty child, heals it by reading everything (what is outvoted is rewritten), and deletes the oldest
/// one; the node moves between iothreads meanwhile. At the end every child holds what the clients wrote: none of their
/// writes was undone by a rewrite of what was read before.
#[test]
fn children_are_replaced_and_healed_under_load() {
    let dir = scratch();
    let mut rng = seeded("children_are_replaced_and_healed_under_load");
    let path = |number: u32| -> PathBuf { dir.path().join(format!("child{number}.raw")) };
    let make = |number| {
        let file = fs::File::create(path(number)).expect("a file can be made");
        file.set_len(SIZE).expect("a file can be given a length");
        image::file(&format!("child{number}"), &path(number))
    };
    let options = json!({"driver": "quorum", "node-name": "disk", "vote-threshold": 2, "rewrite-corrupted": true,
        "children": ["child0", "child1"]});
    let mut daemon = daemon_in(dir.path())
        .option("--object", "iothread,id=first")
        .option("--object", "iothread,id=second")
        .nbd_unix()
        .blockdev(make(0))
        .blockdev(make(1))
        .blockdev(options)
        .option("--export", "nbd,id=disk,node-name=disk,name=disk,writable=on")
        .start();
    let clients = Clients::start(&daemon, &mut rng);
    let last = rounds(25) + 1;
    for number in 2..=last {
        daemon.qmp.ok("blockdev-add", make(number));
        let node = format!("child{number}");
        daemon
            .qmp
            .ok("x-blockdev-change", json!({"parent": "disk", "node": node}));
        let iothread = [json!("first"), json!("second"), Value::Null][number as usize % 3].clone();
        daemon.qmp.ok(
            "x-blockdev-set-iothread",
            json!({"node-name": "disk", "iothread": iothread, "force": true}),
        );
        let mut session = Connect::default().open(&daemon.address(), "disk");
        session.read_all();
        session.disconnect().expect("a goodbye closes the connection");
        let oldest = number - 2;
        let child = format!("children.{oldest}");
        daemon
            .qmp
            .ok("x-blockdev-change", json!({"parent": "disk", "child": child}));
        daemon
            .qmp
            .ok("blockdev-del", json!({"node-name": format!("child{oldest}")}));
        fs::remove_file(path(oldest)).expect("the file is there");
        assert!(
            clients.threads.iter().all(|thread| !thread.is_finished()),
            "a client has stopped"
        );
    }
    let (content, completed) = clients.finish();
    eprintln!("{last} children; {completed} requests");
    assert!(
        daemon.session("disk").read_all() == content,
        "the disk is not what its clients wrote"
    );
    daemon.quit();
    for number in [last - 1, last] {
        let child = fs::read(path(number)).expect("the file is there");
        assert!(child == content, "child {number} is not what the clients wrote");
    }
}
