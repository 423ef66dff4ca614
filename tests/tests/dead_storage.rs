//! Storage that never answers does not hold up the daemon's end for ever, and the end says what was waited for.

use std::time::{Duration, Instant};

use millpond_tests::daemon::daemon;
use millpond_tests::nbd::Request;
use serde_json::json;

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
