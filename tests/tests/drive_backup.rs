//! `drive-backup` beside QEMU's daemon: the same answers and texts, the same file made and opened in the same way, and the same
//! images in the end; alone, and as a part of a transaction.

use std::path::Path;

use millpond_tests::beside::{Command, GRAPH, beside_qemu, same_answers};
use millpond_tests::daemon::{Daemon, scratch};
use millpond_tests::{image, tool};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 4 * MIB;

/// A disk over a base, both with data, and the options of a node over it.
fn disk(dir: &Path) -> Value {
    let (base, top) = (dir.join("base"), dir.join("disk"));
    image::create(&base, "qcow2", "", SIZE);
    tool::qemu_io(
        &["-f", "qcow2", &base.display().to_string()],
        &["write -P 7 0 1M"],
    );
    image::create_overlay(&top, "", &base, "qcow2", None);
    tool::qemu_io(
        &["-f", "qcow2", &top.display().to_string()],
        &["write -P 9 2M 1M"],
    );
    let file = json!({"driver": "file", "node-name": "file", "filename": top});
    json!({"driver": "qcow2", "node-name": "disk", "file": file})
}

fn arguments(target: &Path, more: &Value) -> Value {
    let mut arguments = json!({"job-id": "j", "device": "disk", "target": target, "sync": "full"});
    for (name, value) in more.as_object().expect("an object") {
        arguments[name] = value.clone();
    }
    arguments
}

#[test]
fn what_cannot_be_backed_up_is_refused_as_in_qemu() {
    let scratch = scratch();
    let dir = scratch.path();
    image::create(&dir.join("short"), "qcow2", "", MIB);
    image::create(&dir.join("there"), "qcow2", "", SIZE);
    let mut commands: Vec<Command> = vec![("blockdev-add", disk(dir))];
    let asked = [
        json!({"device": "none"}),
        json!({"job-id": "7"}),
        json!({"speed": -1}),
        json!({"format": "none"}),
        json!({"mode": "some"}),
        json!({"target": dir.join("short"), "mode": "existing", "format": "qcow2"}),
        json!({"target": dir.join("no"), "mode": "existing", "format": "qcow2"}),
        json!({"target": "/none/file"}),
        json!({"bitmap": "m"}),
        json!({"sync": "bitmap"}),
        json!({"sync": "incremental", "bitmap": "m"}),
        json!({"x-perf": {"max-workers": 0}}),
        json!({"compress": true, "format": "raw"}),
        json!({"sync": "none", "format": "raw"}),
        json!({"filter-node-name": "disk"}),
        json!({"colour": 1}),
    ];
    for more in asked {
        let arguments = arguments(&dir.join("target"), &more);
        commands.extend([("drive-backup", arguments), (GRAPH, json!({}))]);
    }
    let asked = |more: Value| -> Command { ("drive-backup", arguments(&dir.join("target"), &more)) };
    commands.extend([asked(json!({"sync": "none"})), asked(json!({"job-id": "k"}))]);
    commands.push(("job-cancel", json!({"id": "j"})));
    same_answers(&commands);
}

/// What is told of the nodes that were made for the backup, while it waits for its user.
fn nodes(daemon: &mut Daemon) -> Vec<String> {
    let nodes = daemon.qmp.ok("query-named-block-nodes", json!({"flat": true}));
    let nodes = nodes.as_array().expect("a list").iter();
    let made = nodes.filter(|node| {
        let is_filter = node["drv"] == "copy-before-write";
        node["node-name"].to_string().contains('#') && !is_filter
    });
    let dir = daemon.dir().display().to_string();
    let shown = |node: &Value| {
        let names = ["drv", "file", "backing_file", "ro", "cache", "detect_zeroes"];
        let told = names.map(|name| node[name].to_string());
        told.join(" ").replace(&dir, "")
    };
    let mut made: Vec<_> = made.map(shown).collect();
    made.sort();
    made
}

#[test]
fn the_file_is_made_opened_and_filled_as_qemus() {
    for more in [
        json!({}),
        json!({"format": "raw"}),
        json!({"sync": "top"}),
        json!({"compress": true}),
        json!({"mode": "existing", "format": "qcow2"}),
        json!({"device": "alone", "sync": "top"}),
    ] {
        beside_qemu(|mut daemon: Daemon| {
            let dir = daemon.dir().to_owned();
            let alone = json!({"driver": "file", "filename": dir.join("base2")});
            image::create(&dir.join("base2"), "qcow2", "", SIZE);
            let added = [
                disk(&dir),
                json!({"driver": "qcow2", "node-name": "alone", "file": alone}),
            ];
            for node in added {
                daemon.qmp.ok("blockdev-add", node);
            }
            image::create(&dir.join("target"), "qcow2", "", SIZE);
            let mut asked = arguments(&dir.join("target"), &more);
            asked["auto-finalize"] = json!(false);
            daemon.qmp.ok("drive-backup", asked);
            let pending = daemon.qmp.wait_event("BLOCK_JOB_PENDING");
            let jobs = daemon.qmp.ok("query-jobs", json!({})).to_string();
            let made = nodes(&mut daemon);
            daemon.qmp.ok("job-finalize", json!({"id": "j"}));
            let ended = daemon.qmp.wait_event("BLOCK_JOB_COMPLETED");
            daemon
                .qmp
                .wait_event_where("JOB_STATUS_CHANGE", |data| data["status"] == "null");
            let left = nodes(&mut daemon).len();
            daemon.qmp.quit();
            daemon.expect_clean_exit();
            let format = more["format"].as_str().unwrap_or("qcow2");
            let target = daemon.path("target");
            let source = if more["device"] == "alone" {
                "base2"
            } else {
                "disk"
            };
            image::assert_identical((format, &target), ("qcow2", &daemon.path(source)));
            let info = tool::run_json("qemu-img", &["info", "--output=json", "-f", format, &target]);
            let names = ["virtual-size", "format", "backing-filename-format"];
            let info = names.map(|name| info[name].to_string());
            let log = daemon.log().replace(&dir.display().to_string(), "");
            let told = log.lines().filter(|line| line.starts_with("Formatting"));
            let told: Vec<_> = told.map(str::to_owned).collect();
            (
                pending.to_string(),
                jobs,
                made,
                ended.to_string(),
                left,
                info,
                told,
            )
        });
    }
}

/// One of two cannot be: the other's file stays, and nothing else of it does.
#[test]
fn files_are_backed_up_to_together_or_not_at_all() {
    beside_qemu(|mut daemon: Daemon| {
        let dir = daemon.dir().to_owned();
        daemon.qmp.ok("blockdev-add", disk(&dir));
        let start = |more: Value| json!({"type": "drive-backup", "data": arguments(&dir.join("one"), &more)});
        let other = |more: Value| {
            let mut other = start(more);
            other["data"]["job-id"] = json!("k");
            other["data"]["target"] = json!(dir.join("two"));
            other
        };
        let grouped = json!({"completion-mode": "grouped"});
        let failing = [start(json!({})), other(json!({"bitmap": "m"}))];
        let refused = daemon
            .qmp
            .refused("transaction", json!({"actions": failing, "properties": grouped}));
        let after = (
            daemon.qmp.ok("query-jobs", json!({})).to_string(),
            nodes(&mut daemon),
        );
        daemon.qmp.take_events();
        let both = [start(json!({})), other(json!({}))];
        daemon
            .qmp
            .ok("transaction", json!({"actions": both, "properties": grouped}));
        daemon.qmp.wait_event_where("JOB_STATUS_CHANGE", |data| {
            data["status"] == "null" && data["id"] == "j"
        });
        daemon.qmp.quit();
        daemon.expect_clean_exit();
        for target in ["one", "two"] {
            image::assert_identical(("qcow2", &daemon.path(target)), ("qcow2", &daemon.path("disk")));
        }
        (refused.desc, after)
    });
}
