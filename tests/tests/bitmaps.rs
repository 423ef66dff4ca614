//! Dirty bitmaps beside QEMU's daemon: the same answers, the same bits after the same writes, and all undone where one
//! action of a transaction fails.

use millpond_tests::beside::{Command, beside_qemu};
use millpond_tests::bitmaps::{
    add, answer, clear, disable, enable, export, merge, named, ok, open, remove, shown, together, unexport,
};
use millpond_tests::daemon::{Daemon, daemon};
use millpond_tests::image;
use millpond_tests::nbd::Request;
use serde_json::{Value, json};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const ABORT: &str = "abort";

#[test]
fn every_answer_is_qemus() {
    let long = "n".repeat(1024);
    let mut commands: Vec<Command> = [("n", 1_000_000), ("m", 1_000_000), ("o", 2_000_000), ("z", 0)]
        .map(|(name, size)| {
            let node = json!({"driver": "null-co", "node-name": name, "size": size});
            ("blockdev-add", node)
        })
        .into();
    for granularity in [0, 1, 511, 512, 1000, 1 << 31] {
        commands.push(add("n", &format!("g{granularity}"), granularity));
    }
    let adding = |arguments| ("block-dirty-bitmap-add", arguments);
    commands.extend([
        adding(json!({"node": "", "name": "x"})),
        adding(json!({"node": "q", "name": "x"})),
        adding(json!({"node": "q", "name": ""})),
        adding(json!({"node": "n"})),
        adding(json!({"node": "n", "name": "x", "granularity": -1})),
        adding(json!({"node": "n", "name": "x", "granularity": 1_u64 << 32})),
        add("n", "", 1),
        add("n", "g512", 512),
        add("n", "g512", 5),
        add("n", &long, 1),
        add("n", &long, 512),
        add("n", &long[1..], 512),
        remove("n", &long[1..]),
        adding(json!({"node": "n", "name": "g512", "granularity": 1, "persistent": true})),
        adding(json!({"node": "n", "name": "g512", "persistent": true})),
        adding(json!({"node": "n", "name": "d"})),
        adding(json!({"node": "n", "name": "off", "disabled": true, "persistent": false})),
        adding(json!({"node": "z", "name": "z"})),
        adding(json!({"node": "m", "name": "x"})),
        adding(json!({"node": "o", "name": "x"})),
        ("x-debug-block-dirty-bitmap-sha256", named("n", "none")),
        ("x-debug-block-dirty-bitmap-sha256", named("q", "none")),
    ]);
    for change in [remove, clear, enable, disable] {
        for (node, name) in [("", "d"), ("q", "d"), ("n", ""), ("n", "none"), ("n", "d")] {
            commands.push(change(node, name));
        }
    }
    commands.push(add("n", "d", 65_536));
    for sources in [
        json!(["d"]),
        json!(["g512", "off", named("m", "x")]),
        json!(["none", named("o", "x")]),
        json!([named("o", "x"), "none"]),
        json!(["off", named("q", "x")]),
        json!([named("m", "none")]),
        json!([named("", "x")]),
        json!([""]),
        json!("d"),
        json!([5]),
    ] {
        commands.push(merge("n", "d", sources));
    }
    commands.extend([
        merge("n", "none", json!(["d"])),
        merge("q", "none", json!(["d"])),
        ("block-dirty-bitmap-merge", json!({"node": "n", "target": "d"})),
        ("blockdev-del", json!({"node-name": "o"})),
    ]);
    commands.extend(transactions());
    beside_qemu(|mut daemon| {
        let answers = commands.iter().flat_map(|command| answer(&mut daemon, command));
        let answers: Vec<String> = answers.collect();
        daemon.quit();
        answers
    });
}

/// What QEMU does not get right is left out: a bitmap that could not be enabled is disabled, or ends the daemon if it is not
/// there, and so does a merge of nothing.
fn transactions() -> Vec<Command> {
    let abort = (ABORT, json!({}));
    let mut transactions = vec![
        together(&[add("m", "a", 512), remove("m", "a"), add("m", "a", 512)]),
        together(&[remove("m", "x"), remove("m", "x")]),
        together(&[remove("m", "x"), clear("m", "x")]),
        together(&[remove("m", "x"), merge("m", "x", json!(["x"]))]),
        together(&[
            add("m", "b", 512),
            merge("m", "b", json!(["x"])),
            remove("m", "x"),
        ]),
        together(&[
            add("m", "x", 512),
            disable("m", "x"),
            clear("m", "b"),
            abort.clone(),
        ]),
        together(&[remove("m", "b"), disable("m", "x")]),
        together(&[
            add("m", "c", 512),
            merge("n", "d", json!([named("m", "c")])),
            remove("m", "c"),
        ]),
        together(&[add("m", "p", 3)]),
        together(&[(
            "block-dirty-bitmap-add",
            json!({"node": "m", "name": "p", "persistent": true}),
        )]),
    ];
    for command in [
        add("m", "e", 512),
        clear("m", "b"),
        enable("m", "b"),
        disable("m", "b"),
        merge("m", "b", json!(["b"])),
        remove("m", "b"),
    ] {
        let mut alone = together(&[command]);
        transactions.push(alone.clone());
        alone.1["properties"] = json!({"completion-mode": "grouped"});
        transactions.push(alone);
    }
    transactions
}

/// Where QEMU's daemon ends, ours goes on.
#[test]
fn a_merge_of_nothing_and_an_enabling_that_fails_change_nothing() {
    let mut daemon = daemon().start();
    let node = json!({"driver": "null-co", "node-name": "n", "size": MIB});
    daemon.qmp.ok("blockdev-add", node);
    ok(&mut daemon, add("n", "b", 512));
    ok(&mut daemon, merge("n", "b", json!([])));
    let before = shown(&mut daemon);
    for (list, text) in [
        (vec![enable("n", "none")], "Dirty bitmap 'none' not found"),
        (
            vec![remove("n", "b"), enable("n", "b")],
            "Bitmap 'b' is currently in use by another operation and cannot be used",
        ),
    ] {
        let (command, arguments) = together(&list);
        assert_eq!(daemon.qmp.refused(command, arguments).desc, text);
        assert_eq!(shown(&mut daemon), before);
    }
    daemon.quit();
}

/// Writes, zero writes and discards: whole bits, parts of bits, and across the ends of bits.
fn requests() -> Vec<Request> {
    let mut requests = Vec::new();
    for (offset, length) in [
        (0, 512),
        (64 * KIB, 64 * KIB),
        (200 * KIB, 4 * KIB),
        (255 * KIB, 2 * KIB),
        (MIB - 512, 512),
        (300 * KIB + 1, 511),
        (300 * KIB + 1, 70_000),
    ] {
        requests.push(Request::write(offset, vec![0xa5; length as usize]));
        requests.push(Request::zero(offset, length));
        requests.push(Request::trim(offset, length));
    }
    requests
}

#[test]
fn each_request_marks_what_it_marks_in_qemu() {
    beside_qemu(|mut daemon| {
        let mut seen = Vec::new();
        for format in ["raw", "qcow2"] {
            open(&mut daemon, format, format, MIB);
            ok(&mut daemon, add(format, "fine", 512));
            ok(&mut daemon, ("block-dirty-bitmap-add", named(format, "default")));
            if format == "raw" {
                ok(&mut daemon, add("raw-file", "below", 4096));
            }
            let mut session = daemon.session(format);
            for request in requests() {
                session.ok(&request);
                seen.push(format!(
                    "{} {} {}",
                    request.command, request.offset, request.length
                ));
                seen.extend(shown(&mut daemon));
                ok(&mut daemon, clear(format, "fine"));
            }
            session.disconnect().expect("the session ends");
            unexport(&mut daemon, format);
        }
        daemon.quit();
        seen
    });
}

/// A node that discards nothing is not changed by a discard; one that cannot be written to is not changed at all.
#[test]
fn a_discard_that_goes_nowhere_marks_nothing() {
    beside_qemu(|mut daemon| {
        let path = daemon.dir().join("disk");
        image::create(&path, "raw", "", MIB);
        daemon.qmp.ok("blockdev-add", image::file("file", &path));
        daemon.qmp.ok("blockdev-add", image::over("raw", "disk", "file"));
        export(&mut daemon, "disk");
        ok(&mut daemon, add("disk", "b", 512));
        ok(&mut daemon, add("file", "b", 512));
        let mut session = daemon.session("disk");
        session.ok(&Request::trim(0, 64 * KIB));
        let after_trim = shown(&mut daemon);
        session.ok(&Request::zero(64 * KIB, 64 * KIB));
        let after_zero = shown(&mut daemon);
        drop(session);
        daemon.quit();
        (after_trim, after_zero)
    });
}

/// A disk with bitmaps in every state, and other nodes for what else a transaction does.
fn prepared(daemon: &mut Daemon) {
    open(daemon, "qcow2", "disk", MIB);
    for name in ["recording", "stopped", "other"] {
        ok(daemon, add("disk", name, 4096));
    }
    let mut session = daemon.session("disk");
    session.write(0, &[1; 512]);
    ok(daemon, disable("disk", "stopped"));
    session.write(100 * KIB, &[2; 10_000]);
    drop(session);
    for name in ["overlay", "target"] {
        let path = daemon.dir().join(name);
        image::create(&path, "qcow2", "", MIB);
        let mut node = image::over("qcow2", name, "");
        node["file"] = image::file(&format!("{name}-file"), &path);
        node["backing"] = Value::Null;
        daemon.qmp.ok("blockdev-add", node);
    }
}

fn mixed() -> Vec<Command> {
    let backup = json!({"device": "disk", "target": "target", "sync": "full", "job-id": "backup"});
    let snapshot = json!({"node": "disk", "overlay": "overlay"});
    vec![
        disable("disk", "recording"),
        clear("disk", "recording"),
        merge("disk", "other", json!(["stopped", "recording"])),
        clear("disk", "stopped"),
        enable("disk", "stopped"),
        add("disk", "new", 512),
        merge("disk", "new", json!(["other"])),
        remove("disk", "other"),
        ("blockdev-backup", backup),
        ("blockdev-snapshot", snapshot),
    ]
}

#[test]
fn a_transaction_that_fails_leaves_all_bitmaps_as_they_were() {
    beside_qemu(|mut daemon| {
        prepared(&mut daemon);
        let before = shown(&mut daemon);
        for length in 1..=mixed().len() {
            let mut actions = mixed();
            actions.truncate(length);
            actions.push((ABORT, json!({})));
            let (command, arguments) = together(&actions);
            let error = daemon.qmp.refused(command, arguments);
            assert_eq!(error.desc, "Transaction aborted using Abort action");
            assert_eq!(shown(&mut daemon), before, "after {length} actions");
        }
        // What is still recorded is recorded as before.
        let mut session = daemon.session("disk");
        session.write(512 * KIB, &[3; 512]);
        let after = shown(&mut daemon);
        drop(session);
        daemon.quit();
        (before, after)
    });
}

#[test]
fn bitmaps_stay_with_their_node_when_a_snapshot_is_taken_in_the_same_transaction() {
    beside_qemu(|mut daemon| {
        prepared(&mut daemon);
        let (command, arguments) = together(&mixed());
        daemon.qmp.ok(command, arguments);
        daemon
            .qmp
            .wait_event_where("BLOCK_JOB_COMPLETED", |data| data["device"] == "backup");
        daemon
            .qmp
            .wait_event_where("JOB_STATUS_CHANGE", |data| data["status"] == "null");
        let then = shown(&mut daemon);
        let mut session = daemon.session("disk");
        session.write(700 * KIB, &[4; 512]);
        ok(&mut daemon, add("overlay", "above", 4096));
        session.write(800 * KIB, &[4; 512]);
        let now = shown(&mut daemon);
        drop(session);
        daemon.quit();
        (then, now)
    });
}
