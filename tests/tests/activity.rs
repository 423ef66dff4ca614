//! Images handed over and taken back: `active`, `blockdev-set-active`, `allow-inactive`, word for word as QEMU's.

use millpond_tests::daemon::{Builder, Daemon, daemon_in, scratch};
use millpond_tests::image;
use millpond_tests::nbd::Request;
use millpond_tests::program::oracle;
use millpond_tests::tool::{self, qemu_io};
use serde_json::{Value, json};

const EPERM: u32 = 1;

/// Which nodes are active, by name; what a reply or error says.
fn replay(builder: Builder, image: &str) -> Vec<Value> {
    let mut daemon = builder.nbd_unix().start();
    let mut told = Vec::new();
    for (command, arguments) in script(image) {
        let reply = match daemon.qmp.execute(command, arguments.clone()) {
            Ok(reply) => reply,
            Err(error) => json!(error.desc),
        };
        if command == "block-export-del" {
            daemon.qmp.wait_event("BLOCK_EXPORT_DELETED");
        }
        told.push(json!({ "command": command, "arguments": arguments, "reply": reply, "active": active(&mut daemon) }));
    }
    daemon.quit();
    told
}

fn active(daemon: &mut Daemon) -> Value {
    let nodes = daemon.qmp.ok("query-named-block-nodes", json!({ "flat": true }));
    let nodes = nodes.as_array().expect("a list");
    nodes
        .iter()
        .filter(|node| {
            !node["node-name"]
                .as_str()
                .is_some_and(|name| name.starts_with('#'))
        })
        .map(|node| json!([node["node-name"], node["active"]]))
        .collect()
}

fn script(image: &str) -> Vec<(&'static str, Value)> {
    let set = |name: &str, active: bool| {
        (
            "blockdev-set-active",
            json!({ "node-name": name, "active": active }),
        )
    };
    let all = |active: bool| ("blockdev-set-active", json!({ "active": active }));
    let export = |more: Value| {
        let mut export = json!({ "type": "nbd", "id": "e", "node-name": "a" });
        for (name, value) in more.as_object().expect("an object") {
            export[name] = value.clone();
        }
        ("block-export-add", export)
    };
    let delete = || ("block-export-del", json!({ "id": "e" }));
    let file = json!({ "driver": "file", "node-name": "f", "filename": image });
    vec![
        (
            "blockdev-add",
            json!({ "driver": "qcow2", "node-name": "a", "active": false, "file": file }),
        ),
        ("block_resize", json!({ "node-name": "a", "size": 2 << 20 })),
        (
            "blockdev-add",
            json!({ "driver": "raw", "node-name": "x", "file": "a" }),
        ),
        (
            "blockdev-add",
            json!({ "driver": "raw", "node-name": "x", "file": "a", "active": false }),
        ),
        set("x", true),
        set("a", false),
        set("x", false),
        ("blockdev-del", json!({ "node-name": "x" })),
        (
            "blockdev-reopen",
            json!({ "options": [{ "driver": "qcow2", "node-name": "a", "file": "f" }] }),
        ),
        set("a", true),
        set("f", false),
        set("a", false),
        set("a", false),
        set("f", true),
        set("nope", true),
        all(true),
        all(true),
        export(json!({ "writable": true })),
        set("a", false),
        all(false),
        delete(),
        export(json!({})),
        set("a", false),
        delete(),
        export(json!({})),
        delete(),
        set("a", false),
        export(json!({ "allow-inactive": true, "writable": true })),
        set("a", true),
        set("a", false),
        delete(),
        all(true),
        export(json!({ "allow-inactive": true, "writable": true })),
        set("a", false),
        all(true),
        delete(),
        // An overlay goes inactive with what it is put on.
        all(false),
        (
            "blockdev-add",
            json!({ "driver": "qcow2", "node-name": "o", "backing": null,
                "file": { "driver": "file", "node-name": "of", "filename": format!("{image}.overlay") } }),
        ),
        ("blockdev-snapshot", json!({ "node": "a", "overlay": "o" })),
        set("a", true),
        set("o", true),
        all(false),
    ]
}

#[test]
fn nodes_are_activated_and_inactivated_as_qemu_does_it() {
    let dir = scratch();
    let run = |name: &str| {
        let dir = dir.path().join(name);
        std::fs::create_dir(&dir).expect("a folder can be made");
        let image = dir.join("disk.qcow2");
        image::create(&image, "qcow2", "", 1 << 20);
        image::create(&dir.join("disk.qcow2.overlay"), "qcow2", "", 1 << 20);
        (daemon_in(&dir), image.display().to_string())
    };
    let (ours, image) = run("ours");
    let ours = replay(ours, &image);
    let (theirs, image) = run("theirs");
    let theirs = replay(theirs.program(oracle()), &image);
    let strip = |mut told: Value| {
        told["arguments"] = json!(null);
        told
    };
    for (ours, theirs) in ours.into_iter().zip(theirs) {
        let shown = ours.to_string();
        assert_eq!(strip(ours), strip(theirs), "{shown}");
    }
}

/// Between the two of them, QEMU's program writes to the image.
#[test]
fn an_image_comes_back_with_what_another_process_did_to_it() {
    let dir = scratch();
    let image = dir.path().join("disk.qcow2");
    image::create(&image, "qcow2", "", 1 << 20);
    let name = image.display().to_string();
    let mut daemon = daemon_in(dir.path())
        .nbd_unix()
        .blockdev(json!({
            "driver": "qcow2", "node-name": "disk", "file": { "driver": "file", "node-name": "f", "filename": name },
        }))
        .start();
    daemon.qmp.ok(
        "block-export-add",
        json!({ "type": "nbd", "id": "e", "node-name": "disk", "writable": true, "allow-inactive": true }),
    );
    let mut session = daemon.session("disk");
    session.write(0, &[1; 4096]);
    let set = |daemon: &mut Daemon, active: bool| {
        daemon.qmp.ok(
            "blockdev-set-active",
            json!({ "node-name": "disk", "active": active }),
        );
    };
    set(&mut daemon, false);
    assert_eq!(session.read(0, 4096), vec![1; 4096], "it can be read");
    // What it is made of may be changing.
    let map = tool::try_run("nbdinfo", &["--map", &daemon.uri("disk")]);
    assert!(map.stderr.contains("Operation not permitted"), "{}", map.stderr);
    for write in [
        Request::write(0, vec![5; 512]),
        Request::zero(0, 512),
        Request::trim(0, 512),
    ] {
        assert_eq!(session.refused(&write), EPERM);
    }
    qemu_io(
        &["-f", "qcow2", &name],
        &["read -P 1 0 4k", "write -P 2 0 4k", "write -P 3 512k 64k"],
    );
    set(&mut daemon, true);
    assert_eq!(session.read(0, 4096), vec![2; 4096]);
    assert_eq!(session.read(512 << 10, 4096), vec![3; 4096]);
    session.write(512 << 10, &[4; 4096]);
    daemon.quit();
    qemu_io(
        &["-f", "qcow2", &name],
        &["read -P 2 0 4k", "read -P 4 512k 4k", "read -P 3 516k 60k"],
    );
    image::assert_clean(&image);
}
