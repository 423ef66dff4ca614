//! Snapshots inside images beside QEMU's daemon: the same answers, and images that either's tools take for sound.

use std::path::Path;

use millpond_tests::beside::{Command, beside_qemu};
use millpond_tests::daemon::{Daemon, daemon, scratch};
use millpond_tests::nbd::Request;
use millpond_tests::{image, tool};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;
const TAKE: &str = "blockdev-snapshot-internal-sync";
const DELETE: &str = "blockdev-snapshot-delete-internal-sync";

/// The options of a node over a new image.
fn node(dir: &Path, name: &str, format: &str) -> Value {
    let path = dir.join(name);
    image::create(&path, format, "", MIB);
    let mut node = image::over(format, name, "");
    node["file"] = image::file(&format!("{name}-file"), &path);
    node
}

fn take(device: &str, name: &str) -> Command {
    (TAKE, json!({"device": device, "name": name}))
}

fn together(actions: Value) -> Command {
    ("transaction", json!({ "actions": actions }))
}

#[test]
fn every_refusal_is_qemus() {
    beside_qemu(|mut daemon| {
        let scratch = scratch();
        let dir = scratch.path();
        let mut old = node(dir, "old", "qcow2");
        old["read-only"] = json!(true);
        let name = dir.join("old").display().to_string();
        tool::run("qemu-img", &["snapshot", "-c", "there", &name]);
        let group = json!({"qom-type": "throttle-group", "id": "g"});
        let filter = json!({"driver": "throttle", "node-name": "t", "file": "d", "throttle-group": "g"});
        let action = |name: &str| json!({"type": TAKE, "data": {"device": "t", "name": name}});
        let abort = json!({"type": "abort", "data": {}});
        let delete = |arguments: Value| -> Command { (DELETE, arguments) };
        let commands = [
            ("blockdev-add", node(dir, "d", "qcow2")),
            ("blockdev-add", node(dir, "r", "raw")),
            ("blockdev-add", old),
            take("d", "one"),
            take("d", "one"),
            take("d", ""),
            take("d-file", "x"),
            take("none", "x"),
            take("r", "x"),
            take("old", "x"),
            ("object-add", group),
            ("blockdev-add", filter),
            take("d", "two"),
            take("t", "two"),
            take("t", "two"),
            delete(json!({"device": "d", "name": "one"})),
            delete(json!({"device": "t"})),
            delete(json!({"device": "t", "name": "none"})),
            delete(json!({"device": "t", "id": "7"})),
            delete(json!({"device": "t", "id": "1", "name": "two"})),
            delete(json!({"device": "t", "id": "1", "name": "one"})),
            delete(json!({"device": "r", "id": "1"})),
            delete(json!({"device": "none", "id": "1"})),
            together(json!([action("a"), abort])),
            together(json!([action("a"), action("a")])),
            together(json!([action("a"), action("b")])),
            together(json!([action("a")])),
        ];
        let mut answers = Vec::new();
        for (command, arguments) in commands {
            let answer = daemon.qmp.execute(command, arguments);
            answers.push(answer.map_or_else(|error| error.desc, |_| "done".to_owned()));
        }
        daemon.quit();
        image::assert_clean(&dir.join("d"));
        answers
    });
}

/// The names and ids of a node's snapshots as they are shown.
fn shown(daemon: &mut Daemon, name: &str) -> Vec<(String, String)> {
    let nodes = daemon.qmp.ok("query-named-block-nodes", json!({"flat": true}));
    let nodes = nodes.as_array().expect("a list").clone();
    let node = nodes.iter().find(|node| node["node-name"] == name);
    let snapshots = node.expect("the node")["image"]["snapshots"].clone();
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let shown = snapshots.as_array().into_iter().flatten();
    shown
        .map(|snapshot| (text(&snapshot["id"]), text(&snapshot["name"])))
        .collect()
}

/// A snapshot that is shown: without what tells when it was made, of which the date and the clock say the same.
fn without_dates(mut snapshot: Value) -> Value {
    let seconds = snapshot["date-sec"].as_i64().expect("a number");
    assert!(seconds > 1_600_000_000, "{snapshot}");
    assert!((snapshot["vm-clock-sec"].as_i64().expect("a number") - seconds).abs() <= 1);
    for name in ["date-sec", "date-nsec", "vm-clock-sec", "vm-clock-nsec"] {
        assert!(snapshot[name].is_i64(), "{name} is missing");
        snapshot.as_object_mut().expect("an object").remove(name);
    }
    snapshot
}

#[test]
fn snapshots_are_shown_told_and_taken_back_as_by_qemu() {
    beside_qemu(|mut daemon| {
        let scratch = scratch();
        let dir = scratch.path();
        daemon.qmp.ok("blockdev-add", node(dir, "d", "qcow2"));
        let filter = json!({"driver": "copy-on-read", "node-name": "f", "file": "d"});
        daemon.qmp.ok("blockdev-add", filter);
        let mut seen = vec![shown(&mut daemon, "d")];
        for name in ["one", "two", "three"] {
            daemon.qmp.ok(TAKE, json!({"device": "f", "name": name}));
        }
        seen.extend([shown(&mut daemon, "d"), shown(&mut daemon, "f")]);
        let failing = json!([
            {"type": TAKE, "data": {"device": "f", "name": "four"}},
            {"type": "abort", "data": {}}
        ]);
        let failed = daemon.qmp.execute("transaction", json!({ "actions": failing }));
        assert!(failed.is_err(), "the transaction was aborted");
        seen.push(shown(&mut daemon, "d"));
        let deleted = daemon.qmp.ok(DELETE, json!({"device": "f", "name": "two"}));
        seen.push(shown(&mut daemon, "d"));
        daemon.quit();
        image::assert_clean(&dir.join("d"));
        (seen, without_dates(deleted).to_string())
    });
}

/// What an image stores besides its snapshots stays as it is when they come and go.
#[test]
fn a_stored_bitmap_outlives_snapshots() {
    beside_qemu(|mut daemon| {
        let scratch = scratch();
        daemon.qmp.ok("blockdev-add", node(scratch.path(), "d", "qcow2"));
        let bitmap = json!({"node": "d", "name": "b", "persistent": true});
        daemon.qmp.ok("block-dirty-bitmap-add", bitmap);
        daemon.qmp.ok(TAKE, json!({"device": "d", "name": "one"}));
        daemon.qmp.ok(TAKE, json!({"device": "d", "name": "two"}));
        daemon.qmp.ok(DELETE, json!({"device": "d", "name": "one"}));
        daemon.quit();
        let path = scratch.path().join("d");
        image::assert_clean(&path);
        let name = path.display().to_string();
        let name = name.as_str();
        let info = tool::run_json("qemu-img", &["info", "--output=json", name]);
        let snapshots = info["snapshots"].as_array().map(Vec::len);
        (snapshots, info["format-specific"]["data"]["bitmaps"].to_string())
    });
}

/// A write that is under way as a snapshot is taken is in it as a whole, or not at all; what was answered is in it.
#[test]
fn a_snapshot_beside_writes_is_of_one_moment() {
    let mut daemon = daemon().nbd_unix().start();
    let scratch = scratch();
    let path = scratch.path().join("d");
    let options = node(scratch.path(), "d", "qcow2");
    daemon.qmp.ok("blockdev-add", options);
    let export = json!({"type": "nbd", "id": "e", "node-name": "d", "writable": true});
    daemon.qmp.ok("block-export-add", export);
    let mut client = daemon.session("d").pipelined();
    for number in 1..=3_u8 {
        let writes = (0..MIB).step_by(65536);
        for (offset, place) in writes.zip(0..) {
            let write = Request::write(offset, vec![number; 65536]);
            client.submit(&write).expect("the write is sent");
            if place < 4 {
                client.complete().expect("the write is answered");
            }
        }
        let arguments = json!({"device": "d", "name": format!("s{number}")});
        daemon.qmp.ok(TAKE, arguments);
        while client.in_flight() > 0 {
            client.complete().expect("the write is answered");
        }
        client.write(0, &[0xee; 4096]);
    }
    daemon.quit();
    image::assert_clean(&path);
    let name = path.display().to_string();
    for number in 1..=3_u8 {
        let raw = path.with_extension("raw");
        let (which, to) = (format!("snapshot.name=s{number}"), raw.display().to_string());
        let arguments = ["convert", "-l", &which, "-f", "qcow2", "-O", "raw", &name, &to];
        tool::run("qemu-img", &arguments);
        let bytes = std::fs::read(&raw).expect("the snapshot's contents");
        for (cluster, place) in bytes.chunks(65536).zip(0..) {
            let whole = cluster[4096..].iter().all(|byte| *byte == cluster[65535]);
            assert!(whole, "s{number}: a part of a write at cluster {place}");
            let newest = cluster[65535] == number;
            assert!(
                newest || place >= 4 && cluster[65535] == number - 1,
                "s{number}, cluster {place}"
            );
        }
        assert_eq!(bytes[0], number, "what was answered before is not in s{number}");
    }
}
