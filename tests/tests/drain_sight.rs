//! A drain that takes long can be asked what it waits for, and holds up no question meanwhile.

use std::thread;

use millpond_tests::daemon::daemon;
use millpond_tests::nbd::Request;
use serde_json::{Value, json};

/// How long the slow node takes for a read: longer than what follows needs, short enough to be waited for.
const LATENCY_NS: u64 = 2_000_000_000;

#[test]
fn a_slow_drain_names_the_node_the_request_and_its_age() {
    let daemon = daemon()
        .monitors(3)
        .nbd_unix()
        .option("--object", "iothread,id=io0")
        .blockdev(json!({
            "driver": "null-co", "node-name": "slow", "read-zeroes": true, "latency-ns": LATENCY_NS,
        }))
        .blockdev(json!({ "driver": "raw", "node-name": "disk", "file": "slow" }))
        .export("disk")
        .start();
    let (mut changing, mut asking) = (daemon.monitor(1), daemon.monitor(2));
    let mut session = daemon.session("disk").pipelined();
    let read = session
        .submit(&Request::read(4096, 512))
        .expect("the read is sent");
    // What is wrong in itself is answered at once: then the read sent before it is known to be in flight.
    let wrong = session
        .submit(&Request::trim(1 << 40, 512))
        .expect("the trim is sent");
    assert_eq!(session.complete().expect("the trim is answered").cookie, wrong);

    let change = thread::spawn(move || {
        let arguments = json!({ "node-name": "disk", "iothread": "io0", "force": true });
        changing.ok("x-blockdev-set-iothread", arguments);
        changing
    });
    let waiting = loop {
        let drains = asking.ok("x-millpond-query-drains", json!({}));
        let request = drains[0]["waiting-for"][0]["requests"][0].clone();
        if !request.is_null() {
            break (drains[0].clone(), request);
        }
        assert!(
            !change.is_finished(),
            "the drain ended before it was seen to wait"
        );
    };
    let (drain, request) = waiting;
    assert_eq!(drain["user"], "x-blockdev-set-iothread");
    assert_eq!(drain["waiting-for"][0]["node-name"], "disk");
    assert_eq!(
        (&request["operation"], &request["offset"], &request["len"]),
        (&json!("read"), &json!(4096), &json!(512))
    );
    assert_eq!(request["stands-at"], "slow");
    let age = request["age-ns"].as_u64().expect("an age");
    assert!(age < LATENCY_NS * 10, "{age}");
    assert!(asking.ok("query-named-block-nodes", json!({})).is_array());

    assert_eq!(session.complete().expect("the read is answered").cookie, read);
    drop(change.join().expect("the change"));
    assert_eq!(
        asking.ok("x-millpond-query-drains", json!({})),
        Value::Array(Vec::new())
    );
    daemon.quit();
}
