//! `copy-before-write` and `snapshot-access`: a moment of a disk, shown while the disk goes on; beside QEMU's own.

use std::path::Path;

use millpond_tests::beside::{Command, GRAPH, beside_qemu, same_answers};
use millpond_tests::daemon::{Daemon, daemon};
use millpond_tests::image;
use millpond_tests::model::Model;
use millpond_tests::nbd::Request;
use millpond_tests::tool;
use millpond_tests::workload::{Load, Mix, one_by_one, random_bytes, seeded};
use serde_json::{Value, json};

const SIZE: u64 = 8 << 20;

/// A disk with data, zeroes and holes.
fn disk(path: &Path, format: &str) {
    image::create(path, format, "", SIZE);
    let name = path.display().to_string();
    let write = "write -P 7 0 2M";
    let zero = "write -z 1M 64k";
    let more = "write -P 9 5M 1M";
    tool::qemu_io(&["-f", format, &name], &[write, zero, more]);
}

/// Opens `disk` and `target` in the directory, each by its format, and the two filters over them, exported both.
fn fleece(daemon: &mut Daemon, format: &str, more: Value) {
    let dir = daemon.dir().to_owned();
    disk(&dir.join("disk"), format);
    image::create(&dir.join("target"), "qcow2", "", SIZE);
    daemon
        .qmp
        .ok("blockdev-add", image::file("file", &dir.join("disk")));
    let mut options = image::over(format, "disk", "file");
    options["discard"] = json!("unmap");
    daemon.qmp.ok("blockdev-add", options);
    daemon
        .qmp
        .ok("blockdev-add", image::file("tfile", &dir.join("target")));
    daemon
        .qmp
        .ok("blockdev-add", image::over("qcow2", "target", "tfile"));
    keep(daemon, "target", more);
}

/// Keeps the moment of `disk` in the node `target`, and exports both.
fn keep(daemon: &mut Daemon, target: &str, more: Value) {
    let mut options = image::over("copy-before-write", "cbw", "disk");
    options["target"] = json!(target);
    options["discard"] = json!("unmap");
    for (name, value) in more.as_object().expect("an object") {
        options[name] = value.clone();
    }
    daemon.qmp.ok("blockdev-add", options);
    let mut view = image::over("snapshot-access", "view", "cbw");
    view["discard"] = json!("unmap");
    daemon.qmp.ok("blockdev-add", view);
    for (node, writable) in [("cbw", true), ("view", true)] {
        let export = json!({"type": "nbd", "id": node, "node-name": node, "writable": writable});
        daemon.qmp.ok("block-export-add", export);
    }
}

/// Has the daemon end, and its files stay.
#[track_caller]
fn ended(daemon: &mut Daemon) {
    daemon.qmp.quit();
    daemon.expect_clean_exit();
}

#[track_caller]
fn the_moment_stays(format: &str) {
    let mut daemon = daemon().nbd_unix().start();
    fleece(&mut daemon, format, json!({}));
    let mut rng = seeded("fleecing");
    let mut view = daemon.session("view");
    let mut guest = daemon.session("cbw");
    let then = Model::of(view.read_all());
    assert_eq!(guest.read_all(), then.bytes());
    let mut now = then.clone();
    one_by_one(&mut guest, &mut now, &mut rng, Mix::ALL, 60, 200_000);
    let mut load = Load::new(guest, now, 0..SIZE, rng.fork(), Mix::NO_TRIM, 16);
    for _ in 0..150 {
        for _ in 0..4 {
            load.step().expect("the guest's requests are answered");
        }
        let offset = rng.u64(0..SIZE);
        let length = rng.u64(1..=300_000.min(SIZE - offset));
        then.check(offset, &view.read(offset, length));
    }
    let (now, mut guest) = load.finish().expect("the guest's requests are answered");
    now.check(0, &guest.read_all());
    then.check(0, &view.read_all());
    drop((guest, view));
    let (disk, target) = (daemon.path("disk"), daemon.path("target"));
    ended(&mut daemon);
    image::assert_clean(Path::new(&target));
    if format == "qcow2" {
        image::assert_clean(Path::new(&disk));
    }
}

#[test]
fn the_moment_of_a_qcow2_disk_stays_while_the_disk_is_written() {
    the_moment_stays("qcow2");
}

#[test]
fn the_moment_of_a_raw_disk_stays_while_the_disk_is_written() {
    the_moment_stays("raw");
}

/// The moment stays where the disk goes, to another iothread and back, and a snapshot is put above the disk.
#[test]
fn the_moment_follows_its_disk_to_other_iothreads_and_stays_below_an_overlay() {
    let mut daemon = daemon().nbd_unix().start();
    fleece(&mut daemon, "qcow2", json!({}));
    daemon
        .qmp
        .ok("object-add", json!({"qom-type": "iothread", "id": "thread"}));
    let mut rng = seeded("fleecing");
    let then = Model::of(daemon.session("view").read_all());
    let mut now = then.clone();
    let mut guest = daemon.session("cbw");
    let overlay = daemon.dir().join("overlay");
    image::create(&overlay, "qcow2", "", SIZE);
    daemon.qmp.ok("blockdev-add", image::file("ofile", &overlay));
    let mut options = image::over("qcow2", "overlay", "ofile");
    options["backing"] = Value::Null;
    daemon.qmp.ok("blockdev-add", options);
    for step in 0..4 {
        one_by_one(&mut guest, &mut now, &mut rng, Mix::ALL, 15, 100_000);
        then.check(0, &daemon.session("view").read_all());
        let iothread = if step % 2 == 0 {
            json!("thread")
        } else {
            Value::Null
        };
        let moved = json!({"node-name": "disk", "iothread": iothread, "force": true});
        daemon.qmp.ok("x-blockdev-set-iothread", moved);
        if step == 1 {
            let snapshot = json!({"node": "disk", "overlay": "overlay"});
            daemon.qmp.ok("blockdev-snapshot", snapshot);
        }
    }
    now.check(0, &guest.read_all());
    then.check(0, &daemon.session("view").read_all());
}

/// What was discarded of the moment cannot be read any more, and is not copied before it is written.
#[test]
fn what_is_discarded_of_the_moment_is_forgotten_as_in_qemu() {
    let chunk = 65_536;
    beside_qemu(|mut daemon: Daemon| {
        fleece(&mut daemon, "qcow2", json!({}));
        let mut view = daemon.session("view");
        let mut guest = daemon.session("cbw");
        view.ok(&Request::trim(2 * chunk, 3 * chunk + 5));
        guest.write(0, &vec![1; 6 * chunk as usize]);
        let mut seen = Vec::new();
        for at in 0..6 {
            seen.push(view.call(&Request::read(at * chunk, 1)).expect("an answer").error);
        }
        seen.push(view.refused(&Request::write(0, vec![1; 512])));
        seen.push(view.refused(&Request::zero(0, 512)));
        let (target, seen_view) = (daemon.path("target"), view.read(0, 2 * chunk));
        drop((view, guest));
        ended(&mut daemon);
        (seen, seen_view, image::map("qcow2", &target))
    });
}

/// A target that fails, by each of the two policies: which request fails, and whether the moment can be read afterwards.
#[test]
fn a_target_that_fails_breaks_what_the_policy_says_as_in_qemu() {
    for policy in ["break-guest-write", "break-snapshot"] {
        beside_qemu(|mut daemon: Daemon| {
            let dir = daemon.dir().to_owned();
            disk(&dir.join("disk"), "qcow2");
            image::create(&dir.join("target"), "raw", "", SIZE);
            daemon
                .qmp
                .ok("blockdev-add", image::file("file", &dir.join("disk")));
            daemon
                .qmp
                .ok("blockdev-add", image::over("qcow2", "disk", "file"));
            let rule = json!({"event": "write_aio", "errno": 5, "once": true});
            let target = json!({
                "driver": "blkdebug", "node-name": "target", "inject-error": [rule],
                "image": image::file("tfile", &dir.join("target")),
            });
            daemon.qmp.ok("blockdev-add", target);
            keep(&mut daemon, "target", json!({"on-cbw-error": policy}));
            let (mut view, mut guest) = (daemon.session("view"), daemon.session("cbw"));
            let mut seen = Vec::new();
            for _ in 0..2 {
                seen.push(
                    guest
                        .call(&Request::write(0, vec![1; 512]))
                        .expect("an answer")
                        .error,
                );
                let read = view.call(&Request::read(0, 2)).expect("an answer");
                seen.push(read.error);
                seen.extend(read.data.iter().map(|byte| u32::from(*byte)));
            }
            let elsewhere = view.call(&Request::read(4 << 20, 2)).expect("an answer");
            seen.push(elsewhere.error);
            (seen, guest.read(0, 3))
        });
    }
}

/// A target that takes longer than the user allows.
#[test]
fn a_write_waits_for_a_slow_target_no_longer_than_it_is_told() {
    let mut daemon = daemon().nbd_unix().start();
    let dir = daemon.dir().to_owned();
    disk(&dir.join("disk"), "raw");
    daemon
        .qmp
        .ok("blockdev-add", image::file("file", &dir.join("disk")));
    daemon.qmp.ok("blockdev-add", image::over("raw", "disk", "file"));
    let slow = json!({
        "driver": "null-co", "node-name": "target", "size": SIZE, "latency-ns": 3_600_000_000_000_u64,
        "read-zeroes": true,
    });
    daemon.qmp.ok("blockdev-add", slow);
    keep(
        &mut daemon,
        "target",
        json!({"on-cbw-error": "break-snapshot", "cbw-timeout": 1}),
    );
    let (mut view, mut guest) = (daemon.session("view"), daemon.session("cbw"));
    assert_eq!(view.read(0, 2), [7, 7]);
    guest.write(0, &random_bytes(&mut seeded("timeout"), 512));
    assert_ne!(view.call(&Request::read(0, 2)).expect("an answer").error, 0);
    // The moment is lost: no write waits for the target any more.
    guest.write(1 << 20, &[1; 512]);
    daemon.kill();
}

#[test]
fn what_the_moment_is_made_of_is_shown_as_in_qemu() {
    beside_qemu(|mut daemon: Daemon| {
        fleece(&mut daemon, "qcow2", json!({}));
        let mut guest = daemon.session("cbw");
        guest.ok(&Request::write(0, vec![1; 70_000]));
        guest.ok(&Request::write(1 << 20, vec![1; 70_000]));
        guest.ok(&Request::zero(5 << 20, 1 << 19));
        guest.ok(&Request::write(7 << 20, vec![1; 512]));
        drop(guest);
        let nodes = daemon.qmp.ok("query-named-block-nodes", json!({"flat": true}));
        let shown = |node: &Value| {
            let name = node["file"].as_str().expect("a node has a filename");
            (
                node["node-name"].clone(),
                Path::new(name).file_name().map(ToOwned::to_owned),
            )
        };
        let mut names: Vec<_> = nodes.as_array().expect("a list").iter().map(shown).collect();
        names.sort_by_key(|(node, _)| node.to_string());
        (image::map("raw", &daemon.uri("view")), names)
    });
}

#[test]
fn the_two_filters_take_options_and_permissions_as_in_qemu() {
    let scratch = millpond_tests::daemon::scratch();
    let dir = scratch.path();
    disk(&dir.join("disk"), "qcow2");
    image::create(&dir.join("target"), "qcow2", "", SIZE);
    let add = |options: Value| -> Command { ("blockdev-add", options) };
    let cbw = |more: Value| -> Command {
        let mut options =
            json!({"driver": "copy-before-write", "node-name": "cbw", "file": "disk", "target": "target"});
        for (name, value) in more.as_object().expect("an object") {
            options[name] = value.clone();
        }
        ("blockdev-add", options)
    };
    let export = |node: &str, writable: bool| -> Command {
        let options = json!({"type": "nbd", "id": node, "node-name": node, "writable": writable});
        ("block-export-add", options)
    };
    let file = |name: &str| {
        let filename = dir.join(name);
        json!({"driver": "file", "node-name": format!("{name}-file"), "filename": filename, "locking": "off"})
    };
    let commands = [
        add(json!({"driver": "qcow2", "node-name": "disk", "file": file("disk")})),
        add(json!({"driver": "qcow2", "node-name": "target", "file": file("target")})),
        cbw(json!({"min-cluster-size": 3000})),
        cbw(json!({"min-cluster-size": -1})),
        cbw(json!({"min-cluster-size": 1_u64 << 63})),
        cbw(json!({"on-cbw-error": "explode"})),
        cbw(json!({"cbw-timeout": -1})),
        cbw(json!({"colour": 1})),
        cbw(json!({"bitmap": {"node": "disk", "name": "none"}})),
        cbw(json!({"bitmap": {"node": "disk"}})),
        cbw(json!({"target": null})),
        add(json!({"driver": "copy-before-write", "node-name": "cbw", "file": "disk"})),
        export("disk", true),
        cbw(json!({"min-cluster-size": 131_072, "on-cbw-error": "break-snapshot", "cbw-timeout": 45})),
        (GRAPH, json!({})),
        export("cbw", true),
        ("block-export-del", json!({"id": "disk"})),
        export("cbw", true),
        export("disk", true),
        (GRAPH, json!({})),
        add(json!({"driver": "snapshot-access", "node-name": "view", "file": "cbw", "colour": 1})),
        add(json!({"driver": "snapshot-access", "node-name": "view", "file": "cbw"})),
        export("view", false),
        (GRAPH, json!({})),
        (
            "blockdev-reopen",
            json!({"options": [{"driver": "snapshot-access", "node-name": "view", "file": "cbw"}]}),
        ),
        (
            "blockdev-reopen",
            json!({"options": [
            {"driver": "copy-before-write", "node-name": "cbw", "file": "disk", "target": "target"}]}),
        ),
        ("block_resize", json!({"node-name": "view", "size": SIZE * 2})),
        ("block_resize", json!({"node-name": "cbw", "size": SIZE * 2})),
        ("blockdev-del", json!({"node-name": "target"})),
        ("blockdev-del", json!({"node-name": "cbw"})),
        ("block-export-del", json!({"id": "view"})),
        ("blockdev-del", json!({"node-name": "view"})),
        ("block-export-del", json!({"id": "cbw"})),
        ("blockdev-del", json!({"node-name": "cbw"})),
        (GRAPH, json!({})),
    ];
    same_answers(&commands);
}
