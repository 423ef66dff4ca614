//! Storage that never answers holds up neither the daemon's end, which says what was waited for, nor that of a job which is
//! cancelled.

use std::time::{Duration, Instant};

use millpond_tests::daemon::{Daemon, daemon};
use millpond_tests::nbd::{Request, Session};
use millpond_tests::{image, tool};
use serde_json::{Value, json};

/// As good as never.
const HOUR_NS: u64 = 3_600_000_000_000;

#[test]
fn quit_ends_though_a_request_never_does_and_names_it() {
    let mut daemon = daemon()
        .nbd_unix()
        .option("--x-millpond-shutdown-grace", "2")
        .blockdev(json!({ "driver": "null-co", "node-name": "dead", "latency-ns": HOUR_NS }))
        .blockdev(json!({ "driver": "raw", "node-name": "disk", "file": "dead" }))
        .export("disk")
        .start();
    let mut session = daemon.session("disk").pipelined();
    session
        .submit(&Request::read(4096, 512))
        .expect("the read is sent");
    // What is wrong in itself is answered at once: then the read sent before it is known to be in flight.
    let wrong = session
        .submit(&Request::trim(1 << 40, 512))
        .expect("the trim is sent");
    assert_eq!(session.complete().expect("the trim is answered").cookie, wrong);
    let asked = Instant::now();
    daemon.qmp.quit();
    let status = daemon.wait();
    assert!(asked.elapsed() < Duration::from_secs(20), "{:?}", asked.elapsed());
    assert!(!status.success(), "not everything was closed");
    let log = daemon.log();
    assert!(log.contains("The nodes could not be closed"), "{log}");
    assert!(log.contains("the drain by 'quit' waits for node 'disk'"), "{log}");
    assert!(log.contains("a read of 512 bytes at 4096"), "{log}");
    assert!(log.contains("stood at 'dead'"), "{log}");
}

const MIB: u64 = 1 << 20;

/// How long a cancelled job may take though its storage is dead. It takes half a second, to the millisecond, where the clock is
/// a test's own (`job::tests::a_cancelled_job_gives_up_a_request_that_never_ends`); the rest is for a machine that has other
/// things to do.
const BOUND: Duration = Duration::from_secs(5);

/// Opens `top` over `disk` over `base`, of which `disk` has data, and `dead`; the base is dead as well where that is asked for.
fn open(daemon: &mut Daemon, base_is_dead: bool) {
    let dead =
        |name: &str| json!({"driver": "null-co", "node-name": name, "size": MIB, "latency-ns": HOUR_NS});
    daemon.qmp.ok("blockdev-add", dead("dead"));
    let path = |name: &str| daemon.dir().join(name);
    image::create(&path("base"), "raw", "", MIB);
    image::create_overlay(&path("disk"), "", &path("base"), "raw", None);
    let name = daemon.path("disk");
    tool::qemu_io(&["-f", "qcow2", &name], &["write -P 7 0 512k"]);
    image::create_overlay(&path("top"), "", &path("disk"), "qcow2", None);
    let base = if base_is_dead {
        dead("base")
    } else {
        image::file("base", &path("base"))
    };
    let over = |name: &str, backing: &str| {
        let file = image::file(&format!("{name}-file"), &path(name));
        json!({"driver": "qcow2", "node-name": name, "file": file, "backing": backing})
    };
    let nodes = [base, over("disk", "base"), over("top", "disk")];
    for node in nodes {
        daemon.qmp.ok("blockdev-add", node);
    }
}

fn guest(daemon: &mut Daemon) -> Session {
    let export = json!({"type": "nbd", "id": "e", "node-name": "top", "writable": true});
    daemon.qmp.ok("block-export-add", export);
    daemon.session("top")
}

/// What a guest does before the job is cancelled.
#[derive(Clone, Copy, PartialEq)]
enum Guest {
    Nothing,
    /// It writes what the job's storage is to have first, and waits.
    Waits,
    /// It writes what the job is to copy afterwards.
    Goes,
}

/// Runs a job up to where it waits for storage that never answers, says what is to be said, cancels it, and looks at what is
/// left.
#[track_caller]
fn ends_when_cancelled(command: &str, more: Value, acts: Guest, said: &[(&str, &str)]) {
    let mut daemon = daemon().nbd_unix().start();
    open(&mut daemon, more["target"].is_null());
    let mut guest = guest(&mut daemon);
    let mut job = json!({"job-id": "j", "device": "top"});
    for (name, value) in more.as_object().expect("an object") {
        job[name] = value.clone();
    }
    let is_ready_first = job["sync"] == "none" && command == "blockdev-mirror";
    daemon.qmp.ok(command, job);
    let status = if is_ready_first { "ready" } else { "running" };
    daemon
        .qmp
        .wait_event_where("JOB_STATUS_CHANGE", |data| data["status"] == status);
    let write = Request::write(0, vec![9; 65_536]);
    let cookie = (acts == Guest::Waits).then(|| guest.submit(&write).expect("it is sent"));
    if acts == Guest::Goes {
        guest.ok(&write);
    }
    if cookie.is_some() {
        // What is wrong in itself is answered at once: the write sent before it is under way then.
        let wrong = guest.submit(&Request::trim(1 << 40, 512)).expect("it is sent");
        assert_eq!(guest.complete().expect("the trim is answered").cookie, wrong);
    }
    for (verb, name) in said {
        daemon.qmp.ok(verb, json!({*name: "j"}));
    }
    let asked = Instant::now();
    daemon.qmp.ok("job-cancel", json!({"id": "j"}));
    daemon
        .qmp
        .wait_event_where("JOB_STATUS_CHANGE", |data| data["status"] == "null");
    let took = asked.elapsed();
    assert!(took < BOUND, "{command} {more}: {took:?}");
    if let Some(cookie) = cookie {
        let answer = guest.complete().expect("the write is answered");
        assert_eq!((answer.cookie, answer.error), (cookie, 0), "{command} {more}");
    }
    let byte = if acts == Guest::Nothing { 7 } else { 9 };
    assert_eq!(guest.read(0, 4), [byte; 4], "{command} {more}");
    // A whole cluster: nothing of it is read from below.
    guest.ok(&Request::write(MIB / 2, vec![3; 65_536]));
    daemon.kill();
}

#[test]
fn a_mirror_ends_when_it_is_cancelled_though_its_target_is_dead() {
    for copy_mode in ["background", "write-blocking"] {
        let to_dead = |sync: &str| json!({"target": "dead", "sync": sync, "copy-mode": copy_mode});
        ends_when_cancelled("blockdev-mirror", to_dead("full"), Guest::Nothing, &[]);
        let acts = if copy_mode == "background" {
            Guest::Goes
        } else {
            Guest::Waits
        };
        ends_when_cancelled("blockdev-mirror", to_dead("none"), acts, &[]);
        for said in [("job-complete", "id"), ("block-job-cancel", "device")] {
            ends_when_cancelled("blockdev-mirror", to_dead("none"), acts, &[said]);
        }
    }
}

#[test]
fn a_backup_ends_when_it_is_cancelled_though_its_target_is_dead() {
    let to_dead = |sync: &str| json!({"target": "dead", "sync": sync});
    ends_when_cancelled("blockdev-backup", to_dead("full"), Guest::Nothing, &[]);
    ends_when_cancelled("blockdev-backup", to_dead("full"), Guest::Waits, &[]);
    ends_when_cancelled("blockdev-backup", to_dead("none"), Guest::Waits, &[]);
}

#[test]
fn a_stream_and_a_commit_end_when_they_are_cancelled_though_their_base_is_dead() {
    ends_when_cancelled("block-stream", json!({}), Guest::Nothing, &[]);
    ends_when_cancelled("block-commit", json!({"top-node": "disk"}), Guest::Nothing, &[]);
    ends_when_cancelled("block-commit", json!({}), Guest::Nothing, &[]);
}
