//! `blockdev-mirror` and the commit of an active image beside QEMU's daemon: the same answers, texts and events, and the same
//! images in the end; then under load and with errors, where source and target are alike in the end.

use std::path::Path;
use std::time::{Duration, Instant};

use millpond_tests::beside::{Command, beside_qemu, same_answers};
use millpond_tests::daemon::{Daemon, daemon};
use millpond_tests::model::Model;
use millpond_tests::nbd::{Request, Session};
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

/// Opens `disk` over `base`, and `target`, whose file may fail by a rule of blkdebug.
fn open(daemon: &mut Daemon, target_format: &str, target: Value, rule: Option<Value>) {
    let dir = daemon.dir().to_owned();
    disk(&dir);
    image::create(&dir.join("target"), target_format, "", SIZE);
    let base = json!({"driver": "qcow2", "node-name": "base", "file": image::file("bfile", &dir.join("base")),
        "read-only": true});
    daemon.qmp.ok("blockdev-add", base);
    let disk = json!({"driver": "qcow2", "node-name": "disk", "file": image::file("file", &dir.join("disk")),
        "backing": "base", "discard": "unmap"});
    daemon.qmp.ok("blockdev-add", disk);
    let mut file = image::file("tfile", &dir.join("target"));
    if let Some(rule) = rule {
        file = json!({"driver": "blkdebug", "node-name": "debug", "image": file, "inject-error": [rule]});
    }
    let mut options = json!({"driver": target_format, "node-name": "target", "file": file});
    merge(&mut options, &target);
    daemon.qmp.ok("blockdev-add", options);
}

fn merge(into: &mut Value, more: &Value) {
    for (name, value) in more.as_object().expect("an object") {
        into[name] = value.clone();
    }
}

fn mirror(more: Value) -> Value {
    let mut arguments = json!({"job-id": "j", "device": "disk", "target": "target", "sync": "full"});
    merge(&mut arguments, &more);
    arguments
}

fn told(event: &mut Value) -> String {
    event.as_object_mut().expect("an event").remove("timestamp");
    event.to_string()
}

/// What is told of the job until it is in this state.
fn told_until(daemon: &mut Daemon, status: &str) -> Vec<String> {
    let last = daemon
        .qmp
        .wait_event_where("JOB_STATUS_CHANGE", |data| data["status"] == status);
    let mut events: Vec<String> = daemon.qmp.take_events().iter_mut().map(told).collect();
    events.push(last.to_string());
    // Whether a drained section of the daemon's own finds the job at work is a matter of time.
    let pauses = ["paused", "standby"].map(|status| format!("\"status\":\"{status}\""));
    events.retain(|event| !pauses.iter().any(|pause| event.contains(pause)));
    events.dedup();
    events
}

fn wait_ready(daemon: &mut Daemon) -> Value {
    daemon.qmp.wait_event("BLOCK_JOB_READY")
}

/// The block jobs as they are shown; whether one is at work just now is a matter of time.
fn jobs(daemon: &mut Daemon) -> String {
    let mut jobs = daemon.qmp.ok("query-block-jobs", json!({}));
    jobs[0].as_object_mut().expect("a job").remove("busy");
    jobs.to_string()
}

fn wait_gone(daemon: &mut Daemon) {
    daemon
        .qmp
        .wait_event_where("JOB_STATUS_CHANGE", |data| data["status"] == "null");
}

/// What an image shows, once the daemon has ended.
fn shown(daemon: &Daemon, format: &str, name: &str) -> Vec<u8> {
    let (path, flat) = (daemon.path(name), daemon.path("flat"));
    tool::run("qemu-img", &["convert", "-f", format, "-O", "raw", &path, &flat]);
    std::fs::read(flat).expect("a file was made")
}

fn ended(daemon: &mut Daemon) {
    daemon.qmp.quit();
    daemon.expect_clean_exit();
}

#[test]
fn what_cannot_be_mirrored_is_refused_as_in_qemu() {
    let scratch = millpond_tests::daemon::scratch();
    let dir = scratch.path();
    disk(dir);
    image::create(&dir.join("target"), "qcow2", "", SIZE);
    let file = |name: &str| {
        let filename = dir.join(name);
        json!({"driver": "file", "node-name": format!("{name}-file"), "filename": filename, "locking": "off"})
    };
    let add = |options: Value| -> Command { ("blockdev-add", options) };
    let ask = |more: Value| -> Command { ("blockdev-mirror", mirror(more)) };
    let base = json!({"driver": "qcow2", "node-name": "base", "file": file("base"), "read-only": true});
    let commands = [
        add(base),
        add(json!({"driver": "qcow2", "node-name": "disk", "file": file("disk"), "backing": "base"})),
        add(json!({"driver": "qcow2", "node-name": "target", "file": file("target")})),
        add(json!({"driver": "raw", "node-name": "over", "file": "disk"})),
        ask(json!({})),
        ("blockdev-del", json!({"node-name": "over"})),
        ask(json!({"device": "none"})),
        ask(json!({"target": "none"})),
        ask(json!({"target": "disk"})),
        ask(json!({"target": "base"})),
        ask(json!({"granularity": 100})),
        ask(json!({"granularity": 1000})),
        ask(json!({"granularity": 128 * MIB})),
        ask(json!({"granularity": -1})),
        ask(json!({"buf-size": -1})),
        ask(json!({"sync": "incremental"})),
        ask(json!({"sync": "bitmap"})),
        ask(json!({"replaces": "none"})),
        ask(json!({"replaces": "target"})),
        ask(json!({"replaces": "disk-file"})),
        ask(json!({"copy-mode": "sometimes"})),
        ask(json!({"speed": -1})),
        ask(json!({"filter-node-name": "disk"})),
        ask(json!({"job-id": "7"})),
        (
            "blockdev-mirror",
            json!({"device": "disk", "target": "target", "sync": "full"}),
        ),
        ("query-block-jobs", json!({})),
        ("x-debug-query-block-graph", json!({})),
        ask(json!({"speed": 1, "filter-node-name": "f", "auto-dismiss": false})),
        ("blockdev-backup", mirror(json!({"job-id": "k"}))),
        ask(json!({"job-id": "k"})),
        ("blockdev-backup", mirror(json!({"job-id": "k", "device": "f"}))),
        (
            "blockdev-backup",
            mirror(json!({"job-id": "k", "device": "target", "target": "base"})),
        ),
        ("block_resize", json!({"node-name": "target", "size": SIZE * 2})),
        ("blockdev-del", json!({"node-name": "target"})),
        ("blockdev-del", json!({"node-name": "f"})),
        (
            "x-blockdev-set-iothread",
            json!({"node-name": "disk", "iothread": null}),
        ),
        (
            "change-backing-file",
            json!({"device": "f", "image-node-name": "f", "backing-file": "x"}),
        ),
        (
            "block-job-change",
            json!({"id": "none", "type": "mirror", "copy-mode": "background"}),
        ),
        ("block-job-change", json!({"id": "j", "type": "mirror"})),
        ("block-job-change", json!({"id": "j", "type": "commit"})),
        (
            "block-job-change",
            json!({"id": "j", "type": "mirror", "copy-mode": "background"}),
        ),
        (
            "block-job-change",
            json!({"id": "j", "type": "mirror", "copy-mode": "write-blocking"}),
        ),
        (
            "block-job-change",
            json!({"id": "j", "type": "mirror", "copy-mode": "background"}),
        ),
        ("block-job-complete", json!({"device": "j"})),
        ("block-job-pause", json!({"device": "j"})),
        ("block-job-cancel", json!({"device": "j"})),
        ("block-job-cancel", json!({"device": "j", "force": true})),
    ];
    same_answers(&commands);
}

/// How a user ends a mirror that is ready.
#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    Complete,
    /// Without force: the target stands by itself.
    Stop,
    Cancel,
}

impl End {
    fn ask(self, daemon: &mut Daemon) {
        let (command, arguments) = match self {
            Self::Complete => ("job-complete", json!({"id": "j"})),
            Self::Stop => ("block-job-cancel", json!({"device": "j"})),
            Self::Cancel => ("job-cancel", json!({"id": "j"})),
        };
        daemon.qmp.ok(command, arguments);
    }
}

#[test]
fn a_mirror_of_an_idle_disk_has_the_events_and_the_target_of_qemus() {
    let unmap = json!({"discard": "unmap"});
    for (more, format, target, end) in [
        (json!({}), "qcow2", json!({}), End::Complete),
        (
            json!({"copy-mode": "write-blocking"}),
            "qcow2",
            unmap.clone(),
            End::Complete,
        ),
        (
            json!({"auto-finalize": false, "auto-dismiss": false}),
            "raw",
            json!({}),
            End::Complete,
        ),
        (
            json!({"granularity": 65_536, "buf-size": 1}),
            "raw",
            unmap,
            End::Stop,
        ),
        (json!({"sync": "none"}), "raw", json!({}), End::Stop),
        (json!({}), "raw", json!({}), End::Cancel),
    ] {
        beside_qemu(|mut daemon: Daemon| {
            open(&mut daemon, format, target.clone(), None);
            daemon.qmp.ok("blockdev-mirror", mirror(more.clone()));
            let ready = wait_ready(&mut daemon);
            let mut seen = vec![ready.to_string()];
            daemon.qmp.take_events();
            seen.push(jobs(&mut daemon));
            end.ask(&mut daemon);
            if more["auto-finalize"] == json!(false) {
                seen.extend(told_until(&mut daemon, "pending"));
                seen.push(daemon.qmp.ok("query-jobs", json!({})).to_string());
                daemon.qmp.ok("job-finalize", json!({"id": "j"}));
                seen.extend(told_until(&mut daemon, "concluded"));
                seen.push(daemon.qmp.ok("query-block-jobs", json!({})).to_string());
                daemon.qmp.ok("job-dismiss", json!({"id": "j"}));
            }
            seen.extend(told_until(&mut daemon, "null"));
            ended(&mut daemon);
            let (disk, target) = (shown(&daemon, "qcow2", "disk"), shown(&daemon, format, "target"));
            (seen, disk == target)
        });
    }
}

/// The target has other data, and is of the wrong size: QEMU finds that out once the job runs.
#[test]
fn a_target_of_another_size_ends_the_job_as_in_qemu() {
    beside_qemu(|mut daemon: Daemon| {
        open(&mut daemon, "raw", json!({"size": MIB}), None);
        daemon.qmp.ok("blockdev-mirror", mirror(json!({})));
        let seen = told_until(&mut daemon, "null");
        ended(&mut daemon);
        seen
    });
}

/// A request of the target fails, by each policy.
#[test]
fn an_error_of_the_target_is_dealt_with_by_its_policy_as_in_qemu() {
    for (policy, errno, stops) in [
        ("report", 5, false),
        ("stop", 5, true),
        ("enospc", 28, true),
        ("ignore", 5, false),
    ] {
        beside_qemu(|mut daemon: Daemon| {
            let rule = json!({"event": "write_aio", "errno": errno, "once": true});
            open(&mut daemon, "raw", json!({}), Some(rule));
            let arguments = mirror(json!({"on-target-error": policy, "auto-dismiss": false}));
            daemon.qmp.ok("blockdev-mirror", arguments);
            let error = daemon.qmp.wait_event("BLOCK_JOB_ERROR");
            let mut seen = vec![error.to_string()];
            if stops {
                daemon
                    .qmp
                    .wait_event_where("JOB_STATUS_CHANGE", |data| data["status"] == "paused");
                let jobs = daemon.qmp.ok("query-block-jobs", json!({}));
                seen.push(format!("{} {}", jobs[0]["io-status"], jobs[0]["status"]));
                daemon.qmp.ok("job-resume", json!({"id": "j"}));
            }
            if policy == "report" {
                daemon
                    .qmp
                    .wait_event_where("JOB_STATUS_CHANGE", |data| data["status"] == "concluded");
            } else {
                wait_ready(&mut daemon);
                End::Stop.ask(&mut daemon);
                daemon
                    .qmp
                    .wait_event_where("JOB_STATUS_CHANGE", |data| data["status"] == "concluded");
            }
            let jobs = daemon.qmp.ok("query-jobs", json!({}));
            seen.push(format!("{} {}", jobs[0]["status"], jobs[0]["error"]));
            daemon.qmp.ok("job-dismiss", json!({"id": "j"}));
            ended(&mut daemon);
            let alike = shown(&daemon, "qcow2", "disk") == shown(&daemon, "raw", "target");
            (seen, policy == "report" || alike)
        });
    }
}

/// What is left when a job is finalized is copied then; nobody can resume a job that stopped meanwhile.
#[test]
fn a_target_that_fails_as_its_mirror_is_finalized_ends_the_job() {
    let mut daemon = daemon().nbd_unix().start();
    let rule = json!({"event": "write_aio", "errno": 5});
    open(&mut daemon, "raw", json!({}), Some(rule));
    let mut guest = export(&mut daemon, "disk");
    let arguments = mirror(json!({"sync": "none", "on-target-error": "stop", "auto-finalize": false}));
    daemon.qmp.ok("blockdev-mirror", arguments);
    wait_ready(&mut daemon);
    daemon.qmp.ok("job-complete", json!({"id": "j"}));
    daemon
        .qmp
        .wait_event_where("JOB_STATUS_CHANGE", |data| data["status"] == "pending");
    guest.ok(&Request::write(0, vec![6; 4096]));
    daemon.qmp.ok("job-finalize", json!({"id": "j"}));
    let error = daemon.qmp.wait_event("BLOCK_JOB_ERROR");
    assert_eq!(error["action"], "report", "{error}");
    let completed = daemon.qmp.wait_event("BLOCK_JOB_COMPLETED");
    assert_eq!(completed["error"], "Input/output error", "{completed}");
    wait_gone(&mut daemon);
    assert_eq!(guest.read(0, 4), [6; 4], "the source is what it was");
    guest.ok(&Request::write(0, vec![7; 4096]));
    daemon.kill();
}

fn export(daemon: &mut Daemon, node: &str) -> Session {
    let options = json!({"type": "nbd", "id": "e", "node-name": node, "writable": true});
    daemon.qmp.ok("block-export-add", options);
    daemon.session(node)
}

/// Random requests while the disk is mirrored and as that is ended; `beside` does something else meanwhile.
#[track_caller]
fn mirrored_under_load(format: &str, more: &Value, end: End, beside: impl Fn(&mut Daemon, u32)) {
    let mut daemon = daemon().nbd_unix().start();
    open(&mut daemon, format, json!({}), None);
    let mut guest = export(&mut daemon, "disk");
    let mut now = Model::of(guest.read_all());
    let mut arguments = mirror(json!({"speed": 2 * MIB}));
    merge(&mut arguments, more);
    daemon.qmp.ok("blockdev-mirror", arguments);
    let mut rng = seeded("mirror");
    one_by_one(&mut guest, &mut now, &mut rng, Mix::ALL, 40, 200_000);
    let mut load = Load::new(guest, now, 0..SIZE, rng.fork(), Mix::NO_TRIM, 16);
    let mut go_on = |steps: u32| {
        for _ in 0..steps {
            load.step().expect("the guest's requests are answered");
        }
    };
    for step in 0..12 {
        go_on(40);
        beside(&mut daemon, step);
    }
    daemon
        .qmp
        .ok("block-job-set-speed", json!({"device": "j", "speed": 0}));
    go_on(20);
    wait_ready(&mut daemon);
    go_on(40);
    end.ask(&mut daemon);
    // What is under way when it ends is answered once.
    go_on(120);
    if end == End::Complete {
        let completed = daemon.qmp.wait_event("BLOCK_JOB_COMPLETED");
        assert_eq!(completed["error"], Value::Null);
    }
    wait_gone(&mut daemon);
    go_on(40);
    let (now, mut guest) = load.finish().expect("the guest's requests are answered");
    now.check(0, &guest.read_all());
    drop(guest);
    ended(&mut daemon);
    let (format, name) = match end {
        End::Complete => (format, "target"),
        End::Stop | End::Cancel => ("qcow2", "disk"),
    };
    now.check(0, &shown(&daemon, format, name));
    image::assert_clean(Path::new(&daemon.path("disk")));
}

#[test]
fn a_mirror_under_load_ends_with_all_that_was_written() {
    mirrored_under_load("qcow2", &json!({}), End::Complete, |_, _| {});
    mirrored_under_load(
        "raw",
        &json!({"copy-mode": "write-blocking", "granularity": 512, "buf-size": 65_536}),
        End::Complete,
        |_, _| {},
    );
}

/// A guest that stops writing before the end: the target stands alone with what it wrote, to the last byte.
#[test]
fn a_mirror_that_is_stopped_leaves_a_copy_of_that_moment() {
    for copy_mode in ["background", "write-blocking"] {
        let mut daemon = daemon().nbd_unix().start();
        open(&mut daemon, "qcow2", json!({}), None);
        let mut guest = export(&mut daemon, "disk");
        let mut now = Model::of(guest.read_all());
        daemon
            .qmp
            .ok("blockdev-mirror", mirror(json!({"copy-mode": copy_mode})));
        wait_ready(&mut daemon);
        let mut rng = seeded("stopped mirror");
        one_by_one(&mut guest, &mut now, &mut rng, Mix::ALL, 200, 200_000);
        let then = Model::of(guest.read_all());
        End::Stop.ask(&mut daemon);
        wait_gone(&mut daemon);
        guest.ok(&Request::write(0, vec![0xee; 65_536]));
        drop(guest);
        ended(&mut daemon);
        then.check(0, &shown(&daemon, "qcow2", "target"));
    }
}

/// The mode changes, the node moves between iothreads, and the job is paused and resumed, under load.
#[test]
fn a_mirror_follows_its_node_to_other_iothreads() {
    for copy_mode in ["background", "write-blocking"] {
        let more = json!({"copy-mode": copy_mode});
        mirrored_under_load("qcow2", &more, End::Complete, |daemon, step| {
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
            match step % 4 {
                1 => drop(daemon.qmp.ok("job-pause", json!({"id": "j"}))),
                2 => drop(daemon.qmp.ok("job-resume", json!({"id": "j"}))),
                _ => {}
            }
            if step == 7 {
                let mode = json!({"id": "j", "type": "mirror", "copy-mode": "write-blocking"});
                daemon.qmp.ok("block-job-change", mode);
            }
        });
    }
}

/// A mirror that is cancelled by force leaves the disk to its users, without a filter, while they write through it.
#[test]
fn a_mirror_cancelled_by_force_under_load_leaves_the_chain_as_it_was() {
    for copy_mode in ["background", "write-blocking"] {
        mirrored_under_load("raw", &json!({"copy-mode": copy_mode}), End::Cancel, |_, _| {});
    }
}

/// What a target that never answers holds up is what waits for it, until the job is told to end: a guest's write that was to
/// reach it as well ends with the source's answer.
#[test]
fn a_mirror_to_a_dead_target_ends_when_it_is_cancelled() {
    let mut daemon = daemon().nbd_unix().start();
    open(&mut daemon, "qcow2", json!({}), None);
    let dead = json!({
        "driver": "null-co", "node-name": "dead", "size": SIZE, "latency-ns": 3_600_000_000_000_u64,
    });
    daemon.qmp.ok("blockdev-add", dead);
    let mut guest = export(&mut daemon, "disk");
    let arguments = mirror(json!({"target": "dead", "copy-mode": "write-blocking"}));
    daemon.qmp.ok("blockdev-mirror", arguments);
    daemon
        .qmp
        .wait_event_where("JOB_STATUS_CHANGE", |data| data["status"] == "running");
    let write = guest
        .submit(&Request::write(0, vec![5; 4096]))
        .expect("the request is sent");
    daemon.qmp.ok("job-cancel", json!({"id": "j"}));
    daemon.qmp.wait_event("BLOCK_JOB_CANCELLED");
    wait_gone(&mut daemon);
    let answer = guest.complete().expect("the write is answered");
    assert_eq!((answer.cookie, answer.error), (write, 0));
    assert_eq!(guest.read(0, 4), [5; 4]);
    daemon.kill();
}

/// One of a quorum's children is replaced by a mirror of the quorum.
#[test]
fn a_mirror_takes_the_place_of_a_child_of_a_quorum() {
    let mut daemon = daemon().nbd_unix().start();
    let names = ["a", "b", "c", "new"];
    for name in names {
        image::create(&daemon.dir().join(name), "raw", "", SIZE);
        let mut file = image::file(name, &daemon.dir().join(name));
        file["discard"] = json!("unmap");
        daemon.qmp.ok("blockdev-add", file);
    }
    let quorum =
        json!({"driver": "quorum", "node-name": "q", "children": ["a", "b", "c"], "vote-threshold": 2});
    daemon.qmp.ok("blockdev-add", quorum);
    let mut guest = export(&mut daemon, "q");
    guest.ok(&Request::write(MIB, vec![6; 65_536]));
    let arguments = mirror(json!({"device": "q", "target": "new", "replaces": "b"}));
    daemon.qmp.ok("blockdev-mirror", arguments);
    wait_ready(&mut daemon);
    guest.ok(&Request::write(2 * MIB, vec![7; 65_536]));
    End::Complete.ask(&mut daemon);
    let completed = daemon.qmp.wait_event("BLOCK_JOB_COMPLETED");
    assert_eq!(completed["error"], Value::Null);
    wait_gone(&mut daemon);
    daemon.qmp.ok("blockdev-del", json!({"node-name": "b"}));
    guest.ok(&Request::write(3 * MIB, vec![8; 65_536]));
    let now = guest.read_all();
    drop(guest);
    ended(&mut daemon);
    let file = |name: &str| std::fs::read(daemon.path(name)).expect("the file is there");
    assert_eq!(file("a"), now);
    assert_eq!(file("new"), now);
    assert_ne!(file("b"), now, "what was replaced is written no more");
}

fn commit(more: Value) -> Value {
    let mut arguments = json!({"job-id": "j", "device": "disk"});
    merge(&mut arguments, &more);
    arguments
}

#[test]
fn the_commit_of_an_active_image_is_as_in_qemu() {
    for (more, end) in [
        (
            json!({"base-node": "base", "filter-node-name": "f"}),
            End::Complete,
        ),
        (json!({"top-node": "disk", "on-error": "stop"}), End::Stop),
        (json!({}), End::Cancel),
    ] {
        beside_qemu(|mut daemon: Daemon| {
            open(&mut daemon, "raw", json!({}), None);
            let refused = |daemon: &mut Daemon, more: Value| {
                let refused = daemon.qmp.execute("block-commit", commit(more));
                refused.expect_err("it is refused").desc
            };
            let mut seen = vec![
                refused(&mut daemon, json!({"backing-file": "x"})),
                refused(&mut daemon, json!({"base-node": "disk"})),
                refused(&mut daemon, json!({"speed": -1})),
            ];
            daemon.qmp.take_events();
            daemon.qmp.ok("block-commit", commit(more.clone()));
            seen.push(wait_ready(&mut daemon).to_string());
            seen.push(refused(&mut daemon, json!({"job-id": "k"})));
            seen.push(jobs(&mut daemon));
            daemon.qmp.take_events();
            end.ask(&mut daemon);
            seen.extend(told_until(&mut daemon, "null"));
            let nodes = daemon.qmp.ok("query-named-block-nodes", json!({"flat": true}));
            let nodes = nodes.as_array().expect("a list").iter();
            let mut nodes: Vec<_> = nodes
                .map(|node| format!("{} {}", node["node-name"], node["ro"]))
                .collect();
            nodes.sort();
            seen.extend(nodes);
            ended(&mut daemon);
            let alike = shown(&daemon, "qcow2", "base") == shown(&daemon, "qcow2", "disk");
            (seen, alike, image::map("qcow2", &daemon.path("disk")))
        });
    }
}

/// The active image is merged down while it is written: its users are the base's in the end, or its own where that is stopped.
#[test]
fn a_commit_of_the_active_image_under_load_ends_with_all_that_was_written() {
    committed_under_load(End::Complete, "base");
    committed_under_load(End::Stop, "disk");
}

#[track_caller]
fn committed_under_load(end: End, shows: &str) {
    let mut daemon = daemon().nbd_unix().start();
    open(&mut daemon, "raw", json!({}), None);
    let mut guest = export(&mut daemon, "disk");
    let mut now = Model::of(guest.read_all());
    daemon
        .qmp
        .ok("block-commit", commit(json!({"speed": MIB, "base-node": "base"})));
    let mut rng = seeded("active commit");
    one_by_one(&mut guest, &mut now, &mut rng, Mix::ALL, 60, 200_000);
    let mut load = Load::new(guest, now, 0..SIZE, rng.fork(), Mix::NO_TRIM, 16);
    for _ in 0..300 {
        load.step().expect("the guest's requests are answered");
    }
    daemon
        .qmp
        .ok("block-job-set-speed", json!({"device": "j", "speed": 0}));
    wait_ready(&mut daemon);
    end.ask(&mut daemon);
    for _ in 0..200 {
        load.step().expect("the guest's requests are answered");
    }
    let completed = daemon.qmp.wait_event("BLOCK_JOB_COMPLETED");
    assert_eq!(completed["error"], Value::Null);
    wait_gone(&mut daemon);
    let (now, mut guest) = load.finish().expect("the guest's requests are answered");
    now.check(0, &guest.read_all());
    drop(guest);
    ended(&mut daemon);
    now.check(0, &shown(&daemon, "qcow2", shows));
}

fn to_file(more: Value) -> Value {
    let mut arguments = json!({"job-id": "j", "device": "disk", "target": "new", "sync": "full"});
    merge(&mut arguments, &more);
    arguments
}

#[test]
fn a_mirror_to_a_file_makes_and_opens_it_as_qemu_does() {
    beside_qemu(|mut daemon: Daemon| {
        open(&mut daemon, "raw", json!({}), None);
        let path = daemon.path("new");
        let mut seen = Vec::new();
        for more in [
            json!({"device": "none"}),
            json!({"format": "none"}),
            json!({"mode": "existing", "target": format!("{path}.none")}),
            json!({"replaces": "base"}),
            json!({"replaces": "base", "node-name": "n"}),
            json!({"node-name": "disk"}),
            json!({"granularity": 3}),
            json!({"sync": "bitmap"}),
            json!({"target": "/nonexistent/x"}),
            json!({"job-id": "7"}),
            json!({"speed": -1}),
        ] {
            let mut arguments = to_file(json!({"target": path}));
            merge(&mut arguments, &more);
            let refused = daemon.qmp.execute("drive-mirror", arguments);
            let text = refused.expect_err("it is refused").desc;
            seen.push(text.replace(&daemon.dir().display().to_string(), "DIR"));
        }
        let nodes = daemon.qmp.ok("query-named-block-nodes", json!({"flat": true}));
        seen.push(nodes.as_array().expect("a list").len().to_string());
        ended(&mut daemon);
        seen
    });
}

/// What is made for each kind of mirror, and what the disk's users see once its file has taken the disk's place.
#[test]
fn a_file_that_was_mirrored_to_takes_the_place_of_the_disk_over_its_backing_image() {
    for more in [
        json!({"sync": "full"}),
        json!({"sync": "full", "format": "raw"}),
        json!({"sync": "top", "node-name": "new"}),
        json!({"sync": "none", "copy-mode": "write-blocking"}),
        json!({"sync": "full", "mode": "existing", "format": "raw", "unmap": false}),
    ] {
        beside_qemu(|mut daemon: Daemon| {
            open(&mut daemon, "raw", json!({}), None);
            let path = daemon.path("new");
            let format = more["format"].as_str().unwrap_or("qcow2");
            if more["mode"] == "existing" {
                std::fs::write(&path, vec![3; SIZE as usize]).expect("a file is made");
            }
            let mut guest = export(&mut daemon, "disk");
            let mut arguments = to_file(json!({"target": path}));
            merge(&mut arguments, &more);
            daemon.qmp.ok("drive-mirror", arguments);
            let ready = wait_ready(&mut daemon);
            guest.ok(&Request::write(3 * MIB, vec![0x33; 65_536]));
            End::Complete.ask(&mut daemon);
            let completed = daemon.qmp.wait_event("BLOCK_JOB_COMPLETED");
            assert_eq!(completed["error"], Value::Null);
            wait_gone(&mut daemon);
            guest.ok(&Request::write(4 * MIB, vec![0x44; 65_536]));
            let now = guest.read_all();
            drop(guest);
            let nodes = daemon.qmp.ok("query-named-block-nodes", json!({"flat": true}));
            let nodes = nodes.as_array().expect("a list").iter();
            let mut nodes: Vec<_> = nodes
                .map(|node| format!("{} {} {}", node["drv"], node["ro"], node["backing_file"]))
                .collect();
            nodes.sort();
            let dir = daemon.dir().display().to_string();
            let nodes = nodes.join("\n").replace(&dir, "DIR");
            ended(&mut daemon);
            assert!(shown(&daemon, format, "new") == now, "{more}");
            (ready.to_string(), nodes, now)
        });
    }
}

/// Whoever came to the source by its own name would write below the filter, and what it wrote would be missing in the target.
#[test]
fn nobody_writes_to_the_source_past_the_mirror() {
    let mut daemon = daemon().nbd_unix().start();
    open(&mut daemon, "raw", json!({}), None);
    daemon.qmp.ok("blockdev-mirror", mirror(json!({})));
    wait_ready(&mut daemon);
    let options = json!({"type": "nbd", "id": "e", "node-name": "disk", "writable": true});
    let refused = daemon.qmp.execute("block-export-add", options);
    let text = refused.expect_err("it is refused").desc;
    assert!(
        text.starts_with("Permission conflict on node 'disk': permissions 'write'"),
        "{text}"
    );
    End::Stop.ask(&mut daemon);
    wait_gone(&mut daemon);
    drop(export(&mut daemon, "disk"));
    ended(&mut daemon);
}

/// A guest that writes more than the target takes: from the moment when the end is asked for it is held to what the target
/// takes, so that the end comes.
#[test]
fn a_mirror_ends_though_more_is_written_than_its_target_takes() {
    let mut daemon = daemon().nbd_unix().start();
    open(&mut daemon, "raw", json!({}), None);
    let group = json!({"qom-type": "throttle-group", "id": "slow", "limits": {"bps-write": 4 * MIB}});
    daemon.qmp.ok("object-add", group);
    let throttle =
        json!({"driver": "throttle", "node-name": "slow", "throttle-group": "slow", "file": "target"});
    daemon.qmp.ok("blockdev-add", throttle);
    let mut guest = export(&mut daemon, "disk");
    let now = Model::of(guest.read_all());
    daemon
        .qmp
        .ok("blockdev-mirror", mirror(json!({"target": "slow"})));
    wait_ready(&mut daemon);
    let mut load = Load::new(guest, now, 0..SIZE, seeded("slow target"), Mix::NO_TRIM, 16);
    let mut go_on = || load.step().expect("the guest's requests are answered");
    (0..400).for_each(|_| go_on());
    End::Complete.ask(&mut daemon);
    let deadline = Instant::now() + Duration::from_secs(60);
    let is_over = |event: &Value| event["event"] == "BLOCK_JOB_COMPLETED";
    while !daemon.qmp.take_events().iter().any(is_over) {
        assert!(
            Instant::now() < deadline,
            "the guest keeps the mirror from its end"
        );
        (0..20).for_each(|_| go_on());
        daemon.qmp.ok("query-jobs", json!({}));
    }
    let (now, mut guest) = load.finish().expect("the guest's requests are answered");
    now.check(0, &guest.read_all());
    drop(guest);
    ended(&mut daemon);
    now.check(0, &shown(&daemon, "raw", "target"));
}

/// What is answered while writes are blocking is in the target by then, however slow that is.
#[test]
fn a_blocking_write_is_answered_once_the_target_has_it() {
    let mut daemon = daemon().nbd_unix().start();
    open(&mut daemon, "raw", json!({}), None);
    let group = json!({"qom-type": "throttle-group", "id": "slow", "limits": {"iops-write": 20}});
    daemon.qmp.ok("object-add", group);
    let throttle =
        json!({"driver": "throttle", "node-name": "slow", "throttle-group": "slow", "file": "target"});
    daemon.qmp.ok("blockdev-add", throttle);
    let mut guest = export(&mut daemon, "disk");
    let blocking = json!({"target": "slow", "copy-mode": "write-blocking"});
    daemon.qmp.ok("blockdev-mirror", mirror(blocking));
    wait_ready(&mut daemon);
    let target = daemon.path("target");
    for number in 1..=12_u8 {
        let offset = u64::from(number) * 65_536;
        guest.write(offset, &[number; 4096]);
        let shown = std::fs::read(&target).expect("the target is a file");
        let there = &shown[offset as usize..][..4096];
        assert!(there.iter().all(|byte| *byte == number), "write {number}");
    }
    drop(guest);
    End::Stop.ask(&mut daemon);
    wait_gone(&mut daemon);
    ended(&mut daemon);
}
