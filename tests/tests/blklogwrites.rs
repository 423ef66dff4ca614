//! `blklogwrites` beside QEMU's own: the same requests leave the same log, byte for byte, and the same logs are gone on
//! with or refused.

use std::cell::RefCell;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};

use millpond_tests::beside::{Command, GRAPH, beside_qemu, same_answers};
use millpond_tests::daemon::Daemon;
use millpond_tests::tool;
use serde_json::{Value, json};

const SIZE: usize = 1 << 20;

fn with(mut options: Value, more: &Value) -> Value {
    for (name, value) in more.as_object().expect("an object") {
        options[name] = value.clone();
    }
    options
}

/// The options of a node over the files `disk` and `log` of the daemon's folder, `log` holding `before`.
fn options(daemon: &Daemon, before: &[u8], more: &Value) -> Value {
    fs::write(daemon.path("disk"), vec![9; SIZE]).expect("a file can be made");
    fs::write(daemon.path("log"), before).expect("a file can be made");
    let [file, log] = ["disk", "log"]
        .map(|name| json!({"driver": "file", "filename": daemon.path(name), "discard": "unmap"}));
    let node =
        json!({"driver": "blklogwrites", "node-name": "w", "file": file, "log": log, "discard": "unmap"});
    with(node, more)
}

fn export(daemon: &mut Daemon, options: Value) {
    daemon.qmp.ok("blockdev-add", options);
    let export = json!({"type": "nbd", "id": "e", "node-name": "w", "writable": true});
    daemon.qmp.ok("block-export-add", export);
}

fn try_qemu_io(daemon: &Daemon, commands: &[&str]) -> Vec<bool> {
    let uri = daemon.uri("w");
    let run = |command: &&str| {
        let arguments = ["-t", "writeback", "-d", "unmap", "-f", "raw", &uri, "-c", command];
        tool::try_run("qemu-io", &arguments).code == Some(0)
    };
    commands.iter().map(run).collect()
}

/// Each sector of a file: the fields that an entry would have there, and a sum of it all.
fn sectors(path: &str, size: usize) -> Vec<([u64; 4], u64)> {
    let bytes = fs::read(path).expect("the file is there");
    let sector = |bytes: &[u8]| {
        let mut hasher = DefaultHasher::new();
        bytes.hash(&mut hasher);
        let mut fields = [0; 4];
        for (field, bytes) in fields.iter_mut().zip(bytes.chunks_exact(8)) {
            *field = u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
        }
        (fields, hasher.finish())
    };
    bytes.chunks(size).map(sector).collect()
}

const REQUESTS: [&str; 10] = [
    "write -P 1 0 4k",
    "write -P 2 513 100",
    "write -z 8k 4k",
    "write -z 9000 5000",
    "write -z -u 64k 64k",
    "discard 128k 64k",
    "flush",
    "write -f -P 3 16k 512",
    "write -z -f 32k 1k",
    "write -P 4 1020k 4k",
];

/// Makes requests of a node, and tells what they left.
fn logged(before: &[u8], sector: usize, more: &Value) {
    beside_qemu(|mut daemon| {
        let options = options(&daemon, before, more);
        export(&mut daemon, options);
        let done = try_qemu_io(&daemon, &REQUESTS);
        daemon
            .qmp
            .ok("block-export-del", json!({"id": "e", "mode": "hard"}));
        daemon.qmp.wait_event("BLOCK_EXPORT_DELETED");
        daemon.qmp.ok("blockdev-del", json!({"node-name": "w"}));
        daemon.qmp.quit();
        daemon.expect_clean_exit();
        let [log, disk] = ["log", "disk"].map(|name| sectors(&daemon.path(name), sector));
        assert!(log.len() > 10, "requests were logged: {log:x?}");
        (done, log, disk)
    });
}

#[test]
fn the_log_is_qemus_byte_for_byte() {
    logged(b"", 512, &json!({}));
    logged(b"", 4096, &json!({"log-sector-size": 4096}));
}

#[test]
fn the_superblock_follows_as_often_as_asked() {
    for interval in [1, 3, 4096] {
        let counts = beside_qemu_counts(interval);
        assert_eq!(
            counts,
            (1..=7).map(|n| n / interval * interval).collect::<Vec<_>>()
        );
    }
}

/// How many entries the superblock tells of after each of seven writes.
fn beside_qemu_counts(interval: u64) -> Vec<u64> {
    let counted = RefCell::new(Vec::new());
    beside_qemu(|mut daemon| {
        let options = options(&daemon, b"", &json!({"log-super-update-interval": interval}));
        export(&mut daemon, options);
        let mut session = daemon.session("w");
        let counts = (0..7).map(|number| {
            session.write(number * 512, &[1; 512]);
            let log = fs::read(daemon.path("log")).expect("the file is there");
            u64::from_le_bytes(log[16..24].try_into().expect("eight bytes"))
        });
        let counts: Vec<u64> = counts.collect();
        counted.replace(counts.clone());
        counts
    });
    counted.into_inner()
}

/// A log with a superblock and entries, each at the start of a sector of 512 bytes.
fn log(magic: u64, version: u64, count: u64, sector: u32, entries: &[[u64; 4]]) -> Vec<u8> {
    let mut bytes = [magic, version, count].map(u64::to_le_bytes).concat();
    bytes.extend(sector.to_le_bytes());
    bytes.resize(512, 0);
    for entry in entries {
        let end = bytes.len() + 512;
        bytes.extend(entry.map(u64::to_le_bytes).concat());
        bytes.resize(end, 0);
    }
    bytes
}

const MAGIC: u64 = 0x6a_7366_7773_6872;

#[test]
fn a_log_is_gone_on_with() {
    let append = json!({"log-append": true});
    logged(b"", 512, &append);
    // A write of one sector whose data is an entry's sector, a discard, a mark, and two that are not there.
    let entries = [[0, 1, 0, 0], [7, 7, 7, 7], [0, 99, 4, 0], [0, 0, 8, 3]];
    logged(&log(MAGIC, 1, 5, 512, &entries), 512, &append);
    logged(&log(MAGIC, 1, 2, 4096, &[]), 4096, &append);
}

#[test]
fn a_log_that_cannot_be_gone_on_with_is_refused() {
    let logs = [
        log(5, 1, 0, 512, &[]),
        log(MAGIC, 2, 0, 512, &[]),
        log(MAGIC, 1, 0, 513, &[]),
        log(MAGIC, 1, 0, 16, &[]),
        log(MAGIC, 1, 2, 512, &[[0, 0, 1, 0], [0, 0, 0x12, 0]]),
        b"short".to_vec(),
    ];
    for before in logs {
        beside_qemu(|mut daemon| {
            let options = options(&daemon, &before, &json!({"log-append": true}));
            let error = daemon.qmp.execute("blockdev-add", options);
            error.expect_err("the log is wrong").desc
        });
    }
}

#[test]
fn options_are_refused_as_qemu_refuses_them() {
    let null = |name: &str| {
        let options = json!({"driver": "null-co", "node-name": name, "size": SIZE});
        ("blockdev-add", options)
    };
    let add = |more: Value| -> Command {
        let node = json!({"driver": "blklogwrites", "node-name": "w", "file": "a", "log": "b"});
        ("blockdev-add", with(node, &more))
    };
    let reopen = json!({"options": [
        {"driver": "blklogwrites", "node-name": "w", "file": "a", "log": "b"}]});
    let commands = [
        null("a"),
        null("b"),
        (
            "blockdev-add",
            json!({"driver": "blklogwrites", "node-name": "w", "file": "a"}),
        ),
        (
            "blockdev-add",
            json!({"driver": "blklogwrites", "node-name": "w", "log": "a"}),
        ),
        add(json!({"colour": 1})),
        add(json!({"log-sector-size": 0})),
        add(json!({"log-sector-size": 513})),
        add(json!({"log-sector-size": 16})),
        add(json!({"log-sector-size": 1 << 24})),
        add(json!({"log-sector-size": -1})),
        add(json!({"log-super-update-interval": 0})),
        add(json!({"log-append": true, "log-sector-size": 512})),
        add(json!({"log-append": true, "log-super-update-interval": 0})),
        (GRAPH, json!({})),
        add(json!({"log-sector-size": 4096, "log-super-update-interval": 8})),
        (GRAPH, json!({})),
        ("query-named-block-nodes", json!({})),
        ("blockdev-reopen", reopen),
        (
            "block-export-add",
            json!({"type": "nbd", "id": "e", "node-name": "w", "writable": true}),
        ),
        (GRAPH, json!({})),
    ];
    same_answers(&commands);
}

/// What fails in one of the children fails the request, and goes on in the other.
#[test]
fn a_child_that_fails_leaves_what_it_leaves_in_qemu() {
    for (failing, kind) in [
        ("file", "write"),
        ("log", "write"),
        ("file", "write-zeroes"),
        ("log", "write-zeroes"),
        ("file", "flush"),
        ("log", "flush"),
        ("file", "discard"),
    ] {
        beside_qemu(|mut daemon| {
            let mut options = options(&daemon, b"", &json!({}));
            // Every client ends with a flush that nobody asks about.
            let once = kind != "flush";
            let rule =
                json!({"event": "none", "iotype": kind, "errno": 28, "once": once, "immediately": true});
            options[failing] = json!({"driver": "blkdebug", "image": options[failing], "inject-error": [rule], "discard": "unmap"});
            export(&mut daemon, options);
            let done = try_qemu_io(&daemon, &REQUESTS);
            assert!(done.contains(&false), "{failing} {kind} fails nothing");
            // Each daemon tries to flush as often as it likes before it ends.
            let left = ["log", "disk"].map(|name| sectors(&daemon.path(name), 512));
            daemon.qmp.quit();
            daemon.wait();
            (done, left)
        });
    }
}

/// A node that ignores flushes logs none.
#[test]
fn flushes_that_are_ignored_are_not_logged() {
    beside_qemu(|mut daemon| {
        let options = options(&daemon, b"", &json!({"cache": {"no-flush": true}}));
        export(&mut daemon, options);
        let done = try_qemu_io(&daemon, &["write -P 1 0 4k", "flush", "write -f -P 2 0 512"]);
        daemon.qmp.quit();
        daemon.expect_clean_exit();
        (done, sectors(&daemon.path("log"), 512))
    });
}
