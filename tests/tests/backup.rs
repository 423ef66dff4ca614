//! `blockdev-backup` beside QEMU's daemon: the same answers, texts and events, and the same images in the end; then under load
//! and with errors, where the target shows the moment when the job began.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use millpond_tests::beside::{Command, beside_qemu, same_answers};
use millpond_tests::daemon::{Daemon, daemon, scratch};
use millpond_tests::model::Model;
use millpond_tests::mounted::Mounted;
use millpond_tests::nbd::Request;
use millpond_tests::strace::Strace;
use millpond_tests::workload::{Load, Mix, one_by_one, seeded};
use millpond_tests::{image, tool};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 8 * MIB;

/// A disk over a base: data and zeroes in both, and holes.
fn disk(dir: &Path) {
    let (base, top) = (dir.join("base"), dir.join("disk"));
    image::create(&base, "qcow2", "", SIZE);
    let name = base.display().to_string();
    tool::qemu_io(&["-f", "qcow2", &name], &["write -P 7 0 2M", "write -P 8 6M 64k"]);
    image::create_overlay(&top, "", &base, "qcow2", None);
    let name = top.display().to_string();
    tool::qemu_io(&["-f", "qcow2", &name], &["write -z 1M 128k", "write -P 9 5M 1M"]);
}

/// Opens `disk` and `target`, whose file may fail by a rule of blkdebug.
fn open(daemon: &mut Daemon, target_format: &str, rule: Option<Value>) {
    let dir = daemon.dir().to_owned();
    disk(&dir);
    image::create(&dir.join("target"), target_format, "", SIZE);
    daemon
        .qmp
        .ok("blockdev-add", image::file("file", &dir.join("disk")));
    let mut options = image::over("qcow2", "disk", "file");
    options["discard"] = json!("unmap");
    daemon.qmp.ok("blockdev-add", options);
    let mut file = image::file("tfile", &dir.join("target"));
    if let Some(rule) = rule {
        file = json!({"driver": "blkdebug", "node-name": "debug", "image": file, "inject-error": [rule]});
    }
    daemon.qmp.ok(
        "blockdev-add",
        json!({"driver": target_format, "node-name": "target", "file": file}),
    );
}

fn backup(more: Value) -> Value {
    let mut arguments = json!({"job-id": "j", "device": "disk", "target": "target", "sync": "full"});
    for (name, value) in more.as_object().expect("an object") {
        arguments[name] = value.clone();
    }
    arguments
}

/// What is told of the job until it is in this state. How far it is is told only where that is the end.
fn told_until(daemon: &mut Daemon, status: &str) -> Vec<String> {
    let mut told: Vec<String> = Vec::new();
    let last = daemon
        .qmp
        .wait_event_where("JOB_STATUS_CHANGE", |data| data["status"] == status);
    for mut event in daemon.qmp.take_events() {
        event.as_object_mut().expect("an event").remove("timestamp");
        // Whether a drained section of the daemon's own finds the job at work is a matter of time.
        let is_pause = event["data"]["status"] == "paused";
        if !is_pause && told.last() != Some(&event.to_string()) {
            told.push(event.to_string());
        }
    }
    told.push(last.to_string());
    told
}

/// What the image in the file `name` shows and where it has data, once the daemon has ended.
fn found(daemon: &mut Daemon, format: &str, name: &str) -> (String, Vec<(u64, u64, bool, bool)>) {
    let path = daemon.path(name);
    let sum = tool::run(
        "qemu-img",
        &["convert", "-f", format, "-O", "raw", &path, &daemon.path("flat")],
    );
    let bytes = std::fs::read(daemon.path("flat")).expect("a file was made");
    let hash = bytes.iter().fold(0_u64, |hash, byte| {
        hash.wrapping_mul(0x100_0000_01b3).wrapping_add(u64::from(*byte))
    });
    (format!("{sum}{hash:x}"), image::map(format, &path))
}

fn ended(daemon: &mut Daemon) {
    daemon.qmp.quit();
    daemon.expect_clean_exit();
}

#[test]
fn what_cannot_be_backed_up_is_refused_as_in_qemu() {
    let scratch = millpond_tests::daemon::scratch();
    let dir = scratch.path();
    disk(dir);
    image::create(&dir.join("target"), "qcow2", "", SIZE);
    image::create(&dir.join("short"), "raw", "", MIB);
    let file = |name: &str| {
        let filename = dir.join(name);
        json!({"driver": "file", "node-name": format!("{name}-file"), "filename": filename, "locking": "off"})
    };
    let add = |options: Value| -> Command { ("blockdev-add", options) };
    let base = json!({"driver": "qcow2", "node-name": "base", "file": file("base")});
    let ask = |more: Value| -> Command { ("blockdev-backup", backup(more)) };
    let commands = [
        add(json!({"driver": "qcow2", "node-name": "disk", "file": file("disk"), "backing": base})),
        add(json!({"driver": "qcow2", "node-name": "target", "file": file("target")})),
        add(json!({"driver": "raw", "node-name": "short", "file": file("short")})),
        ask(json!({"device": "none"})),
        ask(json!({"target": "none"})),
        ask(json!({"target": "disk"})),
        ask(json!({"target": "short"})),
        ask(json!({"device": "short", "target": "base", "compress": true})),
        ask(json!({"device": "target", "target": "short", "compress": true})),
        ask(json!({"sync": "some"})),
        ask(json!({"sync": "bitmap"})),
        ask(json!({"sync": "incremental"})),
        ask(json!({"sync": "incremental", "bitmap": "b", "bitmap-mode": "never"})),
        ask(json!({"sync": "incremental", "bitmap": "b", "bitmap-mode": "on-success"})),
        ask(json!({"sync": "bitmap", "bitmap": "b", "bitmap-mode": "never"})),
        ask(json!({"bitmap-mode": "never"})),
        ask(json!({"speed": -1})),
        ask(json!({"x-perf": {"max-workers": 0}})),
        ask(json!({"x-perf": {"max-workers": -1}})),
        ask(json!({"x-perf": {"max-chunk": -1}})),
        ask(json!({"x-perf": {"min-cluster-size": 3000}})),
        ask(json!({"filter-node-name": "disk"})),
        ask(json!({"filter-node-name": "7"})),
        ask(json!({"job-id": "7"})),
        ask(json!({"on-target-error": "explode"})),
        ask(json!({"colour": 1})),
        (
            "blockdev-backup",
            json!({"device": "disk", "target": "target", "sync": "full"}),
        ),
        ("query-block-jobs", json!({})),
        ("x-debug-query-block-graph", json!({})),
        ask(json!({"sync": "none", "filter-node-name": "f"})),
        (
            "block-export-add",
            json!({"type": "nbd", "id": "e", "node-name": "disk", "writable": true}),
        ),
        (
            "block-export-add",
            json!({"type": "nbd", "id": "e", "node-name": "disk"}),
        ),
        ("block-export-del", json!({"id": "e"})),
        ask(json!({})),
        ask(json!({"job-id": "k"})),
        ask(json!({"job-id": "k", "target": "short"})),
        ("block_resize", json!({"node-name": "target", "size": SIZE * 2})),
        ("blockdev-del", json!({"node-name": "target"})),
        ("blockdev-del", json!({"node-name": "f"})),
        ("block-job-pause", json!({"device": "j"})),
        ("block-job-cancel", json!({"device": "j", "force": true})),
    ];
    same_answers(&commands);
}

#[test]
fn a_backup_of_an_idle_disk_has_the_events_and_the_target_of_qemus() {
    for (more, format) in [
        (json!({}), "qcow2"),
        (json!({"compress": true}), "qcow2"),
        (json!({"sync": "top"}), "qcow2"),
        (json!({"auto-finalize": false, "auto-dismiss": false}), "raw"),
    ] {
        beside_qemu(|mut daemon: Daemon| {
            open(&mut daemon, format, None);
            daemon.qmp.ok("blockdev-backup", backup(more.clone()));
            let mut seen = Vec::new();
            let waits = more["auto-finalize"] == json!(false);
            if waits {
                seen.extend(told_until(&mut daemon, "pending"));
                seen.push(daemon.qmp.ok("query-jobs", json!({})).to_string());
                daemon.qmp.ok("job-finalize", json!({"id": "j"}));
                seen.extend(told_until(&mut daemon, "concluded"));
                seen.push(daemon.qmp.ok("query-block-jobs", json!({})).to_string());
                daemon.qmp.ok("job-dismiss", json!({"id": "j"}));
            }
            seen.extend(told_until(&mut daemon, "null"));
            seen.push(daemon.qmp.ok("query-jobs", json!({})).to_string());
            ended(&mut daemon);
            (seen, found(&mut daemon, format, "target"))
        });
    }
}

/// A request of the target fails, by each policy.
#[test]
fn an_error_of_the_target_is_dealt_with_by_its_policy_as_in_qemu() {
    for (policy, errno, goes_on) in [
        ("report", 5, false),
        ("stop", 5, true),
        ("enospc", 28, true),
        ("ignore", 5, false),
    ] {
        beside_qemu(|mut daemon: Daemon| {
            let rule = json!({"event": "write_aio", "errno": errno, "once": true});
            open(&mut daemon, "raw", Some(rule));
            let arguments = backup(json!({"on-target-error": policy, "auto-dismiss": false}));
            daemon.qmp.ok("blockdev-backup", arguments);
            let mut seen = Vec::new();
            if goes_on {
                daemon.qmp.wait_event("BLOCK_JOB_ERROR");
                daemon
                    .qmp
                    .wait_event_where("JOB_STATUS_CHANGE", |data| data["status"] == "paused");
                let jobs = daemon.qmp.ok("query-block-jobs", json!({}));
                seen.push(format!("{} {}", jobs[0]["io-status"], jobs[0]["status"]));
                daemon.qmp.take_events();
                daemon.qmp.ok("job-resume", json!({"id": "j"}));
            }
            daemon
                .qmp
                .wait_event_where("JOB_STATUS_CHANGE", |data| data["status"] == "concluded");
            daemon.qmp.take_events();
            let jobs = daemon.qmp.ok("query-jobs", json!({}));
            seen.push(format!("{} {}", jobs[0]["status"], jobs[0]["error"]));
            daemon.qmp.ok("job-dismiss", json!({"id": "j"}));
            ended(&mut daemon);
            let target = (policy != "report").then(|| found(&mut daemon, "raw", "target").0);
            (seen, target)
        });
    }
}

/// Random requests while the disk is backed up: the target has what was there before the first of them.
#[track_caller]
fn backed_up_under_load(format: &str, more: Value, beside: impl Fn(&mut Daemon, u32)) {
    let mut daemon = daemon().nbd_unix().start();
    open(&mut daemon, format, None);
    let export = json!({"type": "nbd", "id": "e", "node-name": "disk", "writable": true});
    daemon.qmp.ok("block-export-add", export);
    let mut guest = daemon.session("disk");
    let then = Model::of(guest.read_all());
    let mut arguments = backup(json!({"speed": MIB}));
    for (name, value) in more.as_object().expect("an object") {
        arguments[name] = value.clone();
    }
    daemon.qmp.ok("blockdev-backup", arguments);
    let (mut now, mut rng) = (then.clone(), seeded("backup"));
    one_by_one(&mut guest, &mut now, &mut rng, Mix::ALL, 40, 200_000);
    let mut load = Load::new(guest, now, 0..SIZE, rng.fork(), Mix::NO_TRIM, 16);
    for step in 0..12 {
        for _ in 0..40 {
            load.step().expect("the guest's requests are answered");
        }
        beside(&mut daemon, step);
    }
    daemon
        .qmp
        .ok("block-job-set-speed", json!({"device": "j", "speed": 0}));
    let completed = daemon.qmp.wait_event("BLOCK_JOB_COMPLETED");
    assert_eq!(completed["error"], Value::Null);
    for _ in 0..40 {
        load.step().expect("the guest's requests are answered");
    }
    let (now, mut guest) = load.finish().expect("the guest's requests are answered");
    now.check(0, &guest.read_all());
    drop(guest);
    ended(&mut daemon);
    tool::run(
        "qemu-img",
        &[
            "convert",
            "-f",
            format,
            "-O",
            "raw",
            &daemon.path("target"),
            &daemon.path("flat"),
        ],
    );
    then.check(0, &std::fs::read(daemon.path("flat")).expect("a file was made"));
    image::assert_clean(Path::new(&daemon.path("disk")));
}

#[test]
fn a_backup_under_load_has_the_moment_of_its_start() {
    backed_up_under_load("qcow2", json!({}), |_, _| {});
    backed_up_under_load(
        "raw",
        json!({"x-perf": {"max-workers": 1, "max-chunk": 65_536}}),
        |_, _| {},
    );
}

/// The node moves between iothreads, and the job is paused and resumed, while it is backed up under load.
#[test]
fn a_backup_follows_its_node_to_other_iothreads() {
    backed_up_under_load("qcow2", json!({}), |daemon, step| {
        if step == 0 {
            daemon
                .qmp
                .ok("object-add", json!({"qom-type": "iothread", "id": "thread"}));
        }
        let iothread = if step % 2 == 0 {
            json!("thread")
        } else {
            Value::Null
        };
        let moved = json!({"node-name": "disk", "iothread": iothread, "force": true});
        daemon.qmp.ok("x-blockdev-set-iothread", moved);
        if step % 4 == 1 {
            daemon.qmp.ok("job-pause", json!({"id": "j"}));
        }
        if step % 4 == 2 {
            daemon.qmp.ok("job-resume", json!({"id": "j"}));
        }
    });
}

/// A backup that is cancelled leaves the disk to its users, without a filter.
#[test]
fn a_cancelled_backup_leaves_the_chain_as_it_was() {
    let mut daemon = daemon().nbd_unix().start();
    open(&mut daemon, "qcow2", None);
    let export = json!({"type": "nbd", "id": "e", "node-name": "disk", "writable": true});
    daemon.qmp.ok("block-export-add", export);
    let before = daemon.qmp.ok("x-debug-query-block-graph", json!({}));
    daemon.qmp.ok("blockdev-backup", backup(json!({"speed": 1})));
    let mut guest = daemon.session("disk");
    guest.ok(&Request::write(0, vec![1; 4096]));
    daemon.qmp.ok("job-cancel", json!({"id": "j"}));
    daemon.qmp.wait_event("BLOCK_JOB_CANCELLED");
    daemon
        .qmp
        .wait_event_where("JOB_STATUS_CHANGE", |data| data["status"] == "null");
    let after = daemon.qmp.ok("x-debug-query-block-graph", json!({}));
    let names = |graph: &Value| graph["nodes"].as_array().expect("a list").len();
    assert_eq!(names(&before), names(&after));
    assert_eq!(guest.read(0, 4), [1; 4]);
}

/// What a target that never answers holds up is what waits for it: the job ends when it is told to, by force.
#[test]
fn a_backup_to_a_dead_target_ends_when_it_is_cancelled() {
    let mut daemon = daemon().nbd_unix().start();
    open(&mut daemon, "qcow2", None);
    let dead = json!({
        "driver": "null-co", "node-name": "dead", "size": SIZE, "latency-ns": 3_600_000_000_000_u64,
    });
    daemon.qmp.ok("blockdev-add", dead);
    daemon
        .qmp
        .ok("blockdev-backup", backup(json!({"target": "dead"})));
    daemon
        .qmp
        .wait_event_where("JOB_STATUS_CHANGE", |data| data["status"] == "running");
    daemon.qmp.ok("job-cancel", json!({"id": "j"}));
    daemon.qmp.wait_event("BLOCK_JOB_CANCELLED");
    daemon.kill();
}

/// Opens the qcow2 images `disk` and `target`, without their backing images, backs the one up to the other, and ends the
/// daemon; answers how many bytes the target's file holds.
fn backed_up_alone(mut daemon: Daemon) -> u64 {
    for name in ["disk", "target"] {
        let file = image::file(&format!("{name}-file"), &daemon.dir().join(name));
        daemon.qmp.ok("blockdev-add", file);
        let mut options = image::over("qcow2", name, &format!("{name}-file"));
        options["backing"] = Value::Null;
        daemon.qmp.ok("blockdev-add", options);
    }
    daemon.qmp.ok("blockdev-backup", backup(json!({})));
    let done = daemon.qmp.wait_event("BLOCK_JOB_COMPLETED");
    assert_eq!(done["offset"], done["len"], "{done}");
    let (disk, target) = (daemon.path("disk"), daemon.path("target"));
    ended(&mut daemon);
    image::assert_identical(("qcow2", &disk), ("qcow2", &target));
    image::assert_clean(Path::new(&target));
    std::fs::metadata(target).expect("it is there").blocks() * 512
}

/// A new image has no tables for zeroes, however large it is.
#[test]
fn zeroes_that_a_target_shows_anyway_take_no_space() {
    let daemon = daemon().start();
    let dir = daemon.dir().to_owned();
    for name in ["disk", "target"] {
        image::create(&dir.join(name), "qcow2", "", 1 << 40);
    }
    let disk = dir.join("disk").display().to_string();
    tool::qemu_io(
        &["-f", "qcow2", &disk],
        &["write -P 7 512G 64k", "write -z 600G 64k"],
    );
    let held = backed_up_alone(daemon);
    assert!(held < MIB, "{held} bytes");
}

/// How often a job that copies a disk full of data has the kernel copy from file to file, with both in this folder.
fn range_copies(dir: &Path, command: &str, format: &str, more: Value) -> usize {
    let mut daemon = daemon().start();
    for (name, write) in [("disk", "write -P 7 0 8M"), ("target", "read 0 512")] {
        let path = dir.join(name);
        image::create(&path, format, "", SIZE);
        tool::qemu_io(&["-f", format, &path.display().to_string()], &[write]);
        let file = image::file(&format!("{name}-file"), &path);
        daemon.qmp.ok("blockdev-add", file);
        let node = image::over(format, name, &format!("{name}-file"));
        daemon.qmp.ok("blockdev-add", node);
    }
    let strace = Strace::attach(daemon.pid(), "copy_file_range", &daemon.dir().join("strace"));
    daemon.qmp.ok(command, backup(more));
    if command == "blockdev-mirror" {
        daemon.qmp.wait_event("BLOCK_JOB_READY");
        // A mirror that is ready ends with its target as it is.
        daemon.qmp.ok("block-job-cancel", json!({"device": "j"}));
    }
    daemon.qmp.wait_event("BLOCK_JOB_COMPLETED");
    let calls = strace.detach();
    let [disk, target] = ["disk", "target"].map(|name| dir.join(name).display().to_string());
    ended(&mut daemon);
    image::assert_identical((format, &disk), (format, &target));
    calls.len()
}

/// Between files the kernel copies, and has them share the bytes where they can, unless that is not wanted.
#[test]
fn data_goes_from_file_to_file_where_files_can_share_it() {
    let used = |dir: &Path| {
        tool::run("sync", &["--file-system", &dir.display().to_string()]);
        let about = rustix::fs::statvfs(dir).expect("the file system tells of itself");
        (about.f_blocks - about.f_bfree) * about.f_frsize
    };
    for (command, format) in [("blockdev-backup", "qcow2"), ("blockdev-mirror", "raw")] {
        let sharing = Mounted::btrfs();
        let empty = used(sharing.dir());
        let copies = range_copies(sharing.dir(), command, format, json!({}));
        assert!((8..64).contains(&copies), "{command} of {format}: {copies} calls");
        // The disk's eight mebibytes are there once.
        let used = used(sharing.dir()).saturating_sub(empty);
        assert!(
            (8 * MIB..12 * MIB).contains(&used),
            "{command} of {format}: {used} bytes"
        );
    }
    let wanted = |wanted: bool| json!({"x-perf": {"use-copy-range": wanted}});
    let elsewhere = scratch();
    let copies = |more| range_copies(elsewhere.path(), "blockdev-backup", "qcow2", more);
    assert!((8..64).contains(&copies(json!({}))));
    assert_eq!(copies(wanted(false)), 0);
    assert!((8..64).contains(&copies(wanted(true))));
}

/// An image that names a backing image will show it again one day, where nothing hides it.
#[test]
fn zeroes_hide_what_a_target_names_as_its_backing_image() {
    let daemon = daemon().start();
    let dir = daemon.dir().to_owned();
    image::create(&dir.join("disk"), "qcow2", "", SIZE);
    image::create(&dir.join("below"), "qcow2", "", SIZE);
    for (name, write) in [("disk", "write -P 7 1M 64k"), ("below", "write -P 8 0 8M")] {
        let path = dir.join(name).display().to_string();
        tool::qemu_io(&["-f", "qcow2", &path], &[write]);
    }
    image::create_overlay(&dir.join("target"), "", &dir.join("below"), "qcow2", None);
    backed_up_alone(daemon);
}

/// Beside QEMU's members there is how fast a job has been, once somebody has looked for some time, and what is left.
#[test]
fn whoever_looks_at_a_job_is_told_how_fast_it_is_and_what_is_left() {
    let mut daemon = daemon().nbd_unix().start();
    open(&mut daemon, "qcow2", None);
    daemon
        .qmp
        .ok("blockdev-backup", backup(json!({"speed": MIB / 4})));
    let first = daemon.qmp.ok("query-jobs", json!({}));
    assert_eq!(first[0].get("x-millpond-rate"), None, "{first}");
    let begun = Instant::now();
    let job = loop {
        let job = daemon.qmp.ok("query-jobs", json!({}))[0].clone();
        if job.get("x-millpond-rate").is_some() {
            break job;
        }
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "no rate is told: {job}"
        );
        std::thread::sleep(Duration::from_millis(50));
    };
    let number = |name: &str| job[name].as_i64().expect("a number");
    let left = number("total-progress") - number("current-progress");
    assert_eq!(number("x-millpond-bytes-left"), left);
    assert!(number("x-millpond-rate") > 0, "{job}");
    let rate = number("x-millpond-rate");
    let seconds = left / rate + i64::from(left % rate > 0);
    assert_eq!(number("x-millpond-seconds-left"), seconds);
    daemon.qmp.ok("job-cancel", json!({"id": "j"}));
    ended(&mut daemon);
}
