//! `throttle-group` and `throttle` beside QEMU's own: the same answers, the same nodes; and requests that wait are let
//! go by a drain, by other limits and by another group.

use std::time::{Duration, Instant};

use millpond_tests::beside::{Command, same_answers};
use millpond_tests::daemon::{Daemon, daemon};
use millpond_tests::nbd::{Request, Session};
use millpond_tests::program::{Program, oracle, under_test};
use serde_json::{Value, json};

/// So slow that a test that waited for it would be given up.
const SLOW: i64 = 1;

fn group(id: &str, more: Value) -> Command {
    let mut options = json!({"qom-type": "throttle-group", "id": id});
    for (name, value) in more.as_object().expect("an object") {
        options[name] = value.clone();
    }
    ("object-add", options)
}

fn limits(id: &str, limits: Value) -> Command {
    group(id, json!({ "limits": limits }))
}

fn del(id: &str) -> Command {
    ("object-del", json!({ "id": id }))
}

fn get(id: &str, property: &str) -> Command {
    ("qom-get", json!({"path": id, "property": property}))
}

fn set(id: &str, property: &str, value: Value) -> Command {
    (
        "qom-set",
        json!({"path": id, "property": property, "value": value}),
    )
}

fn throttle(node: &str, file: &str, group: &str) -> Value {
    json!({"driver": "throttle", "node-name": node, "file": file, "throttle-group": group})
}

fn add(options: Value) -> Command {
    ("blockdev-add", options)
}

#[test]
fn limits_are_refused_as_qemu_refuses_them() {
    let huge = 1_000_000_000_000_000_i64;
    let objects = [
        json!({"iops-total": 10, "iops-read": 5}),
        json!({"bps-total": 10, "bps-write": 5}),
        json!({"iops-total-max": 10, "iops-read-max": 5}),
        json!({"bps-total-max": 10}),
        json!({"iops-read-max": 10}),
        json!({"iops-total": 10, "iops-total-max": 5}),
        json!({"iops-total": 10, "iops-total-max-length": 5}),
        json!({"iops-total": 10, "iops-total-max": 20, "iops-total-max-length": 0}),
        json!({"iops-total-max-length": -1}),
        json!({"iops-total-max-length": 4_294_967_296_i64}),
        json!({"iops-total": -1}),
        json!({"iops-total": huge + 1}),
        json!({"iops-total": huge, "iops-total-max": huge, "iops-total-max-length": 2}),
        json!({"iops-size": 10}),
        json!({"iops-size": 1, "bps-total": -1}),
        json!({"bps-total-max": 1_000_000_000, "bps-total-max-length": 4_000_000_000_i64}),
        json!({"bps-total": 7, "bps-total-max": 5, "iops-read-max-length": 0}),
        json!({"iops": 1}),
        json!({"iops-total": "1"}),
        json!(3),
    ];
    let singles = [
        json!({"x-iops-total": 10, "x-iops-read": 5}),
        json!({"x-iops-total": -1}),
        json!({"x-iops-total": huge + 1}),
        json!({"x-iops-total-max-length": 0}),
        json!({"x-iops-total-max-length": 5}),
        json!({"x-iops-total-max-length": 4_294_967_296_i64}),
        json!({"x-iops-size": 5}),
        json!({"x-iops-total": "1"}),
        json!({"x-iops-total": 10, "limits": {"iops-read": 3}}),
        json!({"colour": 1}),
    ];
    let together = objects.into_iter().map(|given| limits("g", given));
    let singly = singles.into_iter().map(|given| group("g", given));
    let commands: Vec<Command> = together.chain(singly).collect();
    same_answers(&commands);
}

#[test]
fn properties_are_read_and_set_as_with_qemu() {
    let mut commands = vec![
        limits(
            "g",
            json!({"bps-total": 10, "bps-total-max": 20, "bps-total-max-length": 2}),
        ),
        group(
            "x",
            json!({"x-iops-read": 7, "x-iops-read-max": 9, "x-iops-size": 512}),
        ),
        group("both", json!({"x-iops-total": 10, "limits": {"bps-read": 3}})),
        group("odd", json!({"limits": {"iops-total": 1, "iops-size": -1}})),
        group("g", json!({})),
        limits("g", json!({"iops-total": -1})),
        group("g", json!({"x-iops-total": 10, "x-iops-read": 5})),
        set("x", "x-iops-read", json!(5)),
        set("x", "x-iops-read", json!("5")),
        set("x", "type", json!("5")),
        set("x", "colour", json!(5)),
        set("x", "limits", json!(5)),
        set("x", "limits", json!({"colour": 5})),
        set("x", "limits", json!({"iops-read": "5"})),
        set("x", "limits", json!({"iops-total": 5})),
        set("g", "limits", json!({"bps-total": 15})),
        set("g", "limits", json!({"iops-write-max-length": 7})),
        set("g", "limits", json!({})),
        ("qom-list-properties", json!({"typename": "throttle-group"})),
        ("qom-list", json!({"path": "x"})),
        get("x", "type"),
        get("x", "colour"),
        get("x", "x-iops-read"),
        get("x", "x-iops-read-max-length"),
        get("odd", "x-iops-size"),
    ];
    for id in ["g", "x", "both", "odd"] {
        let names = ["iops-total", "iops-read", "bps-total", "bps-read"];
        for name in names {
            for more in ["", "-max", "-max-length"] {
                commands.push((
                    "qom-get",
                    json!({"path": id, "property": format!("x-{name}{more}")}),
                ));
            }
        }
    }
    same_answers(&commands);
}

#[test]
fn the_limits_are_read_together() {
    let read = |program: &Program| {
        let mut daemon = daemon().program(program.clone()).start();
        daemon.qmp.ok(
            group("g", json!({"x-iops-read": 7})).0,
            group("g", json!({"x-iops-read": 7})).1,
        );
        let (command, arguments) = get("g", "limits");
        daemon.qmp.ok(command, arguments)
    };
    let ours = read(under_test());
    assert_eq!(ours["iops-read"], 7);
    assert_eq!(ours, read(&oracle()));
}

#[test]
fn nodes_join_and_leave_groups_as_with_qemu() {
    let null = json!({"driver": "null-co", "node-name": "n", "size": 65536, "read-zeroes": true});
    let reopen = |options: Value| ("blockdev-reopen", json!({ "options": [options] }));
    same_answers(&[
        limits("g", json!({"iops-total": 1000})),
        limits("h", json!({})),
        add(null),
        add(json!({"driver": "throttle", "node-name": "t", "file": "n"})),
        add(json!({"driver": "throttle", "node-name": "t", "throttle-group": "g"})),
        add(throttle("t", "n", "missing")),
        add(throttle("t", "n", "")),
        add(
            json!({"driver": "throttle", "node-name": "t", "file": "n", "throttle-group": "g", "limits": {}}),
        ),
        add(throttle("t", "n", "g")),
        ("query-named-block-nodes", json!({})),
        ("query-named-block-nodes", json!({"flat": true})),
        ("x-debug-query-block-graph", json!({})),
        del("g"),
        reopen(throttle("t", "n", "missing")),
        del("g"),
        reopen(json!({"driver": "throttle", "node-name": "t", "file": "n"})),
        reopen(throttle("t", "n", "h")),
        del("h"),
        del("g"),
        del("g"),
        ("query-named-block-nodes", json!({})),
        ("blockdev-del", json!({"node-name": "t"})),
        del("h"),
    ]);
}

#[test]
fn the_command_line_takes_groups_as_qemus_does() {
    for options in [
        "throttle-group,id=g,x-iops-total=-1",
        "throttle-group,id=g,x-iops-total=k",
        "throttle-group,id=g,limits.iops-total=1,limits.iops-read=3",
        "throttle-group,id=g,limits.iops=3",
        "throttle-group,id=g,limits=3",
        "throttle-group,limits.iops-total=3",
    ] {
        let refusal = |program: &Program| {
            let log = daemon()
                .program(program.clone())
                .option("--object", options)
                .refused();
            let said = log.lines().next().unwrap_or_default();
            said.split_once(": ").map(|(_, said)| said.to_owned())
        };
        assert_eq!(refusal(under_test()), refusal(&oracle()), "{options}");
    }
    for options in [
        "throttle-group,id=g,limits.bps-total=4096,limits.bps-total-max=8192",
        "throttle-group,id=g,x-bps-total=4096,x-bps-total-max=8192",
    ] {
        let read = |program: &Program| {
            let mut daemon = daemon()
                .program(program.clone())
                .option("--object", options)
                .start();
            let (command, arguments) = get("g", "limits");
            daemon.qmp.ok(command, arguments)
        };
        let ours = read(under_test());
        assert_eq!(ours["bps-total-max"], 8192);
        assert_eq!(ours, read(&oracle()));
    }
}

#[test]
fn the_help_lists_what_qemus_does() {
    let help = |program: &Program| {
        let mut command = program.command();
        let output = command.args(["--object", "throttle-group,help"]).output();
        let output = output.expect("the program can be run");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert_eq!(help(under_test()), help(&oracle()));
}

/// A daemon that exports `t`, a node that lets through one request a second.
fn held_back() -> Daemon {
    daemon()
        .nbd_unix()
        .option("--object", format!("throttle-group,id=g,x-iops-total={SLOW}"))
        .option("--object", "throttle-group,id=free")
        .blockdev(json!({"driver": "null-co", "node-name": "n", "size": 65536, "read-zeroes": true}))
        // Without it discards end before they come to the driver.
        .blockdev(json!({
            "driver": "throttle", "node-name": "t", "file": "n", "throttle-group": "g", "discard": "unmap",
        }))
        .export("t")
        .start()
}

/// Sends so many reads, of which all but the first have to wait for half a minute altogether.
fn crowd(daemon: &Daemon, count: usize) -> Session {
    let mut session = daemon.session("t").pipelined();
    for _ in 0..count {
        session
            .submit(&Request::read(0, 512))
            .expect("a request can be sent");
    }
    // The first goes at once, so all were received by then or are just behind it.
    session.complete().expect("the first request is let through");
    session
}

/// Waits for the answers to all requests, and tells how long that took.
fn all_answered(session: &mut Session) -> Duration {
    let begun = Instant::now();
    while session.in_flight() > 0 {
        session.complete().expect("an answer");
    }
    begun.elapsed()
}

const CROWD: usize = 30;

/// All but this many seconds' worth of a crowd cannot have been let through in time.
const SOON: Duration = Duration::from_secs(15);

#[test]
fn other_limits_hold_for_requests_that_wait() {
    let mut daemon = held_back();
    let mut session = crowd(&daemon, CROWD);
    daemon.qmp.ok(
        "qom-set",
        json!({"path": "g", "property": "limits", "value": {"iops-total": 0}}),
    );
    assert!(all_answered(&mut session) < SOON);
}

#[test]
fn a_drain_lets_requests_go_that_wait() {
    let mut daemon = held_back();
    let mut session = crowd(&daemon, CROWD);
    let begun = Instant::now();
    daemon.qmp.ok(
        "blockdev-reopen",
        json!({"options": [throttle("t", "n", "free")]}),
    );
    assert!(begun.elapsed() < SOON);
    assert!(all_answered(&mut session) < SOON);
    daemon.qmp.ok("object-del", json!({"id": "g"}));
}

#[test]
fn every_kind_of_request_is_held_back() {
    let requests = [
        Request::read(0, 512),
        Request::write(0, vec![1; 512]),
        Request::zero(0, 512),
        Request::trim(0, 512),
    ];
    for request in requests {
        let mut daemon = held_back();
        let mut session = daemon.session("t").pipelined();
        let begun = Instant::now();
        for _ in 0..3 {
            session.submit(&request).expect("a request can be sent");
        }
        all_answered(&mut session);
        // One at once, and one a second after it has leaked to the bucket's tenth of a second.
        assert!(begun.elapsed() >= Duration::from_millis(1_800), "{request:?}");
        // A flush is not.
        daemon.qmp.ok(
            "qom-set",
            json!({"path": "g", "property": "limits", "value": {"iops-total": 1}}),
        );
        let begun = Instant::now();
        for _ in 0..CROWD {
            session.submit(&Request::flush()).expect("a request can be sent");
        }
        all_answered(&mut session);
        assert!(begun.elapsed() < SOON);
    }
}
