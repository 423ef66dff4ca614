//! A job whose target never answers holds its buffers and no more, however long its guest goes on writing.

use millpond_tests::daemon::{Daemon, daemon};
use millpond_tests::nbd::Request;
use serde_json::json;

/// As good as never.
const HOUR_NS: u64 = 3_600_000_000_000;
const SIZE: u64 = 1 << 30;
const BLOCK: u64 = 64 << 10;

/// A daemon that serves a disk, and has a target that never answers.
fn start() -> Daemon {
    let disk = json!({ "driver": "null-co", "node-name": "disk", "size": SIZE, "read-zeroes": false });
    let target = json!({ "driver": "null-co", "node-name": "target", "size": SIZE, "latency-ns": HOUR_NS });
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
