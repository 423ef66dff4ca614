//! `--object chaos`: a daemon whose messages are held back by a policy, and whose clients are slow or die.

use std::time::{Duration, Instant};

use millpond_tests::daemon::{Builder, Daemon, daemon};
use millpond_tests::nbd::{Connect, Request};
use serde_json::{Value, json};

fn disk() -> Builder {
    daemon()
        .nbd_unix()
        .blockdev(json!({ "driver": "null-co", "node-name": "disk", "size": 1 << 20, "read-zeroes": true }))
        .export("disk")
}

fn property(daemon: &mut Daemon, name: &str) -> Value {
    daemon
        .qmp
        .ok("qom-get", json!({ "path": "/objects/c0", "property": name }))
}

fn add(daemon: &mut Daemon, rules: Value) {
    let object = json!({ "qom-type": "chaos", "id": "c0", "seed": 42, "rules": rules });
    daemon.qmp.ok("object-add", object);
}

/// Waits until a property has at least this value.
fn until(daemon: &mut Daemon, name: &str, least: u64) {
    let end = Instant::now() + millpond_tests::PATIENCE;
    while property(daemon, name).as_u64() < Some(least) {
        assert!(Instant::now() < end, "{name} stays below {least}");
    }
}

#[test]
fn nonsense_is_refused_with_what_is_wrong() {
    for (options, expected) in [
        (
            "rules.0.delay=often",
            "rules.0.delay: 'often' is no delay: expected none, fixed:TIME,",
        ),
        (
            "rules.0.delay=fixed:5",
            "rules.0.delay: '5' is no time: expected a whole number with ns, us, ms or s",
        ),
        (
            "rules.0.kind=letter,rules.0.delay=none",
            "rules.0.kind: 'letter' is no kind of message",
        ),
        (
            "rules.0.sender=me,rules.0.delay=none",
            "rules.0.sender: 'me' is no actor",
        ),
        ("rules.0.node=disk", "rules.0 does nothing"),
        (
            "rules.0.dying-client=soon",
            "rules.0.dying-client: 'soon' is no death",
        ),
        ("rules.0.stall=1s", "rules.0.stall: '1s' does not say how often"),
        ("rules.0.colour=red", "Parameter 'rules.0.colour' is unexpected"),
        ("seed=many", "Parameter 'seed' expects"),
    ] {
        let said = daemon()
            .option("--object", format!("chaos,id=c0,{options}"))
            .refused();
        assert!(said.contains(expected), "{options}: {said}");
    }
}

#[test]
fn the_seed_is_shown_and_what_is_held_goes_out_when_the_object_is_removed() {
    let mut daemon = disk()
        .option(
            "--object",
            "chaos,id=c0,rules.0.kind=read,rules.0.delay=fixed:3600s",
        )
        .start();
    let seed = property(&mut daemon, "seed").as_u64().expect("a number");
    assert!(daemon.log().contains(&format!("seed={seed}")), "{}", daemon.log());
    assert_eq!(
        property(&mut daemon, "rules"),
        json!([{ "kind": "read", "delay": "fixed:3600s" }])
    );
    let mut session = Connect::default().open(&daemon.address(), "disk");
    session
        .submit(&Request::read(0, 512))
        .expect("a request can be sent");
    session
        .submit(&Request::read(512, 512))
        .expect("a request can be sent");
    until(&mut daemon, "held", 2);
    let second = json!({ "qom-type": "chaos", "id": "c1" });
    assert_eq!(
        daemon.qmp.refused("object-add", second).desc,
        "only one chaos instance allowed"
    );
    daemon.qmp.ok("object-del", json!({ "id": "c0" }));
    for _ in 0..2 {
        session.complete().expect("the read is answered");
    }
    daemon.quit();
}

#[test]
fn rules_can_be_changed_while_they_hold_something() {
    let mut daemon = disk().start();
    add(&mut daemon, json!([{ "kind": "read", "delay": "fixed:3600s" }]));
    let mut session = Connect::default().open(&daemon.address(), "disk");
    session
        .submit(&Request::read(0, 512))
        .expect("a request can be sent");
    until(&mut daemon, "held", 1);
    let set = |value: Value| json!({ "path": "c0", "property": "rules", "value": value });
    let refused = daemon.qmp.refused("qom-set", set(json!([{ "delay": "later" }])));
    assert!(
        refused.desc.starts_with("rules.0.delay: 'later' is no delay"),
        "{}",
        refused.desc
    );
    assert_eq!(
        property(&mut daemon, "held"),
        1,
        "a refused change changes nothing"
    );
    daemon
        .qmp
        .ok("qom-set", set(json!([{ "kind": "write", "delay": "none" }])));
    session.complete().expect("the read is answered");
    session.read(0, 512);
    assert_eq!(property(&mut daemon, "seed"), 42);
    let refused = json!({ "path": "c0", "property": "held", "value": 0 });
    assert_eq!(
        daemon.qmp.refused("qom-set", refused).desc,
        "Property 'chaos.held' is not writable"
    );
    daemon.quit();
}

#[test]
fn a_slow_client_is_received_and_answered_late() {
    let mut daemon = disk().start();
    add(
        &mut daemon,
        json!([{ "slow-client": "fixed:150ms", "node": "disk" }]),
    );
    let mut session = Connect::default().open(&daemon.address(), "disk");
    let begun = Instant::now();
    session.read(0, 512);
    assert!(
        begun.elapsed() >= Duration::from_millis(300),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(property(&mut daemon, "delayed"), 2);
    daemon.quit();
}

#[test]
fn a_dying_client_is_cut_after_so_many_requests_and_no_other() {
    let mut daemon = disk().start();
    add(
        &mut daemon,
        json!([{ "dying-client": "after:5", "node": "disk" }]),
    );
    for _ in 0..2 {
        let mut session = Connect::default().open(&daemon.address(), "disk");
        for _ in 0..5 {
            session.read(0, 512);
        }
        session
            .call(&Request::read(0, 512))
            .expect_err("the connection is cut");
    }
    assert_eq!(property(&mut daemon, "cut-connections"), 2);
    daemon.qmp.ok("object-del", json!({ "id": "c0" }));
    let mut session = Connect::default().open(&daemon.address(), "disk");
    for _ in 0..10 {
        session.read(0, 512);
    }
    daemon.quit();
}

#[test]
fn clients_that_die_by_chance_leave_nothing_in_flight() {
    let mut daemon = disk().start();
    add(
        &mut daemon,
        json!([
            { "dying-client": "probability:0.1", "node": "disk" },
            { "kind": "request", "delay": "exponential:1ms" },
        ]),
    );
    let mut cut = 0;
    while cut < 20 {
        let mut session = Connect::default().open(&daemon.address(), "disk").pipelined();
        for number in 0..32 {
            if session.submit(&Request::read(number * 512, 512)).is_err() {
                break;
            }
        }
        while session.in_flight() > 0 {
            if session.complete().is_err() {
                cut += 1;
                break;
            }
        }
    }
    assert!(property(&mut daemon, "cut-connections").as_u64() >= Some(20));
    // A node with something in flight could not be drained, and the export not be removed.
    let export = daemon.qmp.ok("query-block-exports", json!({}))[0]["id"].clone();
    daemon
        .qmp
        .ok("block-export-del", json!({ "id": export, "mode": "hard" }));
    daemon.qmp.wait_event("BLOCK_EXPORT_DELETED");
    daemon.qmp.ok("blockdev-del", json!({ "node-name": "disk" }));
    assert_eq!(property(&mut daemon, "held"), 0);
    daemon.quit();
}
