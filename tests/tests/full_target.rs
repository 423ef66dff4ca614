//! A job whose target has no room left stands still, and goes on by itself when there is room: where that is asked for.

use std::path::Path;

use millpond_tests::daemon::{Daemon, daemon};
use millpond_tests::mounted::Mounted;
use millpond_tests::{image, tool};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

fn until(daemon: &mut Daemon, status: &str) {
    daemon
        .qmp
        .wait_event_where("JOB_STATUS_CHANGE", |data| data["status"] == status);
}

/// Copies six megabytes to a target for which there is room for three.
fn stopped(daemon: &mut Daemon, small: &Mounted, command: &str) {
    let disk = daemon.dir().join("disk");
    image::create(&disk, "raw", "", 6 * MIB);
    tool::qemu_io(&["-f", "raw", &disk.display().to_string()], &["write -P 7 0 3M"]);
    std::fs::write(small.dir().join("filler"), vec![1; 2 << 20]).expect("there is room for it");
    image::create(&small.dir().join("target"), "raw", "", 6 * MIB);
    daemon.qmp.ok("blockdev-add", image::file("disk", &disk));
    daemon
        .qmp
        .ok("blockdev-add", image::file("target", &small.dir().join("target")));
    let job = json!({"job-id": "j", "device": "disk", "target": "target", "sync": "full",
        "on-target-error": "enospc", "auto-dismiss": false});
    daemon.qmp.ok(command, job);
    let error = daemon.qmp.wait_event("BLOCK_JOB_ERROR");
    assert_eq!(
        error,
        json!({"device": "j", "operation": "write", "action": "stop"})
    );
    until(daemon, "paused");
    let jobs = daemon.qmp.ok("query-block-jobs", json!({}));
    assert_eq!(jobs[0]["io-status"], "nospace");
}

fn ends_well(daemon: &mut Daemon, small: &Mounted, command: &str) {
    if command == "blockdev-mirror" {
        daemon.qmp.wait_event("BLOCK_JOB_READY");
        daemon.qmp.ok("block-job-cancel", json!({"device": "j"}));
    }
    until(daemon, "concluded");
    let jobs = daemon.qmp.ok("query-jobs", json!({}));
    assert_eq!(jobs[0]["error"], Value::Null);
    let read = |path: &Path| std::fs::read(path).expect("the file is there");
    assert!(read(&small.dir().join("target")) == read(&daemon.dir().join("disk")));
}

#[test]
fn a_job_goes_on_by_itself_when_there_is_room_where_that_is_asked_for() {
    for command in ["blockdev-mirror", "blockdev-backup"] {
        let small = Mounted::tmpfs(4);
        let mut daemon = daemon().start();
        stopped(&mut daemon, &small, command);
        daemon
            .qmp
            .ok("x-millpond-job-retry", json!({"id": "j", "seconds": 1}));
        // It tries, and there is no room yet.
        daemon.qmp.wait_event("BLOCK_JOB_ERROR");
        std::fs::remove_file(small.dir().join("filler")).expect("the file is there");
        ends_well(&mut daemon, &small, command);
        daemon.quit();
    }
}

/// As in QEMU, which knows no other way.
#[test]
fn a_job_waits_for_its_user_where_nothing_is_asked_for() {
    let mut daemon = daemon().start();
    let small = Mounted::tmpfs(4);
    stopped(&mut daemon, &small, "blockdev-mirror");
    std::fs::remove_file(small.dir().join("filler")).expect("the file is there");
    // Two jobs of the same daemon: what one is told is no matter of the other's.
    let refused = daemon
        .qmp
        .refused("x-millpond-job-retry", json!({"id": "k", "seconds": 1}));
    assert_eq!(refused.desc, "Block job 'k' not found");
    let jobs = daemon.qmp.ok("query-block-jobs", json!({}));
    assert_eq!(
        (&jobs[0]["status"], &jobs[0]["io-status"]),
        (&json!("paused"), &json!("nospace"))
    );
    daemon.qmp.ok("job-resume", json!({"id": "j"}));
    ends_well(&mut daemon, &small, "blockdev-mirror");
    daemon.quit();
}
