//! Jobs whose target never answers: they hold their buffers and no more, however long a guest goes on writing, and whatever it
//! writes while they are cancelled, they end and its writes do.

use std::time::{Duration, Instant};

use millpond_tests::daemon::{Daemon, daemon};
use millpond_tests::nbd::Request;
use serde_json::{Value, json};

/// As good as never.
const HOUR_NS: u64 = 3_600_000_000_000;
const SIZE: u64 = 1 << 30;
const BLOCK: u64 = 64 << 10;

/// How often a job is cancelled, each time with a little more between that and the write.
const ROUNDS: u64 = 40;

/// A target that never answers.
fn dead(name: &str) -> Value {
    json!({ "driver": "null-co", "node-name": name, "size": SIZE, "latency-ns": HOUR_NS })
}

/// A daemon that serves a disk, and has a target that never answers.
fn start() -> Daemon {
    let disk = json!({ "driver": "null-co", "node-name": "disk", "size": SIZE, "read-zeroes": false });
    let target = dead("target");
    daemon()
        .nbd_unix()
        .option("--x-millpond-shutdown-grace", "1")
        .blockdev(disk)
        .blockdev(target)
        .export("disk")
        .start()
}

/// As many writes as a guest of a write each 72 ms sends in an hour.
#[test]
fn a_mirror_to_a_dead_target_holds_its_buffers_whatever_is_written() {
    const WRITES: u64 = 50_000;
    let mut daemon = start();
    daemon.qmp.ok(
        "blockdev-mirror",
        json!({ "job-id": "j", "device": "disk", "target": "target", "sync": "full" }),
    );
    let mut guest = daemon.session("disk");
    let mut write = |count: u64| {
        for at in 0..count {
            // Each part of the disk again and again, in no order.
            let block = at * 7919 % (SIZE / BLOCK);
            guest.ok(&Request::write(block * BLOCK, vec![at as u8; 4096]));
        }
    };
    write(WRITES / 10);
    let before = daemon.resident_kib();
    write(WRITES);
    let grown = daemon.resident_kib().saturating_sub(before);
    assert!(grown < 1 << 10, "{grown} KiB for {WRITES} writes");
    // Of its buffers the job has filled no more than it may.
    assert!(daemon.resident_kib() < 128 << 10, "{} KiB", daemon.resident_kib());
    let jobs = daemon.qmp.ok("query-block-jobs", json!({}));
    let (len, offset) = (jobs[0]["len"].as_u64(), jobs[0]["offset"].as_u64());
    assert_eq!((len, offset), (Some(SIZE), Some(0)), "{jobs}");
    daemon
        .qmp
        .ok("block-job-cancel", json!({ "device": "j", "force": true }));
    daemon
        .qmp
        .wait_event_where("BLOCK_JOB_CANCELLED", |data| data["device"] == "j");
    daemon.kill();
}

/// Cancels jobs that copy nothing of their own, while the first write comes that would wait for their target.
fn writes_beside_a_cancellation_end(command: &str, more: &Value) {
    let mut daemon = start();
    let mut guest = daemon.session("disk");
    for round in 0..ROUNDS {
        // The last one's target is waited for still.
        let target = format!("dead{round}");
        daemon.qmp.ok("blockdev-add", dead(&target));
        let mut arguments = more.clone();
        for (name, value) in [("job-id", "j"), ("device", "disk"), ("target", &target)] {
            arguments[name] = value.into();
        }
        daemon.qmp.ok(command, arguments);
        daemon
            .qmp
            .wait_event_where("JOB_STATUS_CHANGE", |data| data["status"] == "running");
        daemon
            .qmp
            .send_raw(r#"{"execute": "block-job-cancel", "arguments": {"device": "j", "force": true}}"#);
        for _ in 0..round / 4 {
            guest.read(0, 1);
        }
        guest.ok(&Request::write(0, vec![5; 4096]));
        daemon
            .qmp
            .answer()
            .expect("the daemon answers")
            .expect("the job is cancelled");
        daemon
            .qmp
            .wait_event_where("JOB_STATUS_CHANGE", |data| data["status"] == "null");
    }
    daemon.kill();
}

#[test]
fn a_write_beside_the_cancellation_of_a_mirror_ends() {
    let arguments = json!({"sync": "none", "copy-mode": "write-blocking"});
    writes_beside_a_cancellation_end("blockdev-mirror", &arguments);
}

#[test]
fn a_write_beside_the_cancellation_of_a_backup_ends() {
    writes_beside_a_cancellation_end("blockdev-backup", &json!({"sync": "none"}));
}

/// A target whose flushes fail at once, for ever, is asked again and again where faults are ignored, but with rests: others have
/// the iothread meanwhile.
#[test]
fn faults_that_are_ignored_are_not_met_again_without_a_rest() {
    const FAULTS: u32 = 20;
    const REST: Duration = Duration::from_millis(10);
    let broken = json!([{"event": "none", "iotype": "flush", "errno": 5}]);
    let image = json!({"driver": "null-co", "size": BLOCK});
    let disk = json!({"driver": "null-co", "node-name": "disk", "size": BLOCK, "read-zeroes": false});
    let target = json!({"driver": "blkdebug", "node-name": "target", "image": image, "inject-error": broken});
    let mut daemon = daemon()
        .nbd_unix()
        .blockdev(disk)
        .blockdev(target)
        .export("disk")
        .start();
    let mut guest = daemon.session("disk");
    daemon.qmp.ok(
        "blockdev-mirror",
        json!({
            "job-id": "j", "device": "disk", "target": "target", "sync": "full", "on-target-error": "ignore",
        }),
    );
    let mut fault = || {
        daemon
            .qmp
            .wait_event_where("BLOCK_JOB_ERROR", |data| data["action"] == "ignore");
    };
    fault();
    let begun = Instant::now();
    (0..FAULTS).for_each(|_| fault());
    // The first event may have been under way for any time.
    assert!(
        begun.elapsed() >= REST * (FAULTS - 1) / 2,
        "{:?}",
        begun.elapsed()
    );
    guest.read(0, 4096);
    daemon
        .qmp
        .ok("block-job-cancel", json!({"device": "j", "force": true}));
    daemon
        .qmp
        .wait_event_where("BLOCK_JOB_CANCELLED", |data| data["device"] == "j");
    daemon.kill();
}
