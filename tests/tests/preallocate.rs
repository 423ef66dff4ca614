//! `preallocate` beside QEMU's own: the file's length after each step, and what is refused.

use std::fs;
use std::path::Path;

use millpond_tests::beside::{Command, GRAPH, beside_qemu, same_answers};
use millpond_tests::daemon::Daemon;
use millpond_tests::{image, tool};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

fn preallocate(more: &Value) -> Value {
    let mut options = json!({"driver": "preallocate", "node-name": "p", "file": "f"});
    for (name, value) in more.as_object().expect("an object") {
        options[name] = value.clone();
    }
    options
}

/// The file `image` behind a `preallocate` node.
fn open(daemon: &mut Daemon, more: &Value) {
    let file = json!({"driver": "file", "node-name": "f", "filename": daemon.path("image")});
    daemon.qmp.ok("blockdev-add", file);
    daemon.qmp.ok("blockdev-add", preallocate(more));
}

fn export(daemon: &mut Daemon, node: &str) {
    let export = json!({"type": "nbd", "id": "e", "node-name": node, "writable": true});
    daemon.qmp.ok("block-export-add", export);
}

fn end_export(daemon: &mut Daemon) {
    daemon
        .qmp
        .ok("block-export-del", json!({"id": "e", "mode": "hard"}));
    daemon.qmp.wait_event("BLOCK_EXPORT_DELETED");
}

fn qemu_io(daemon: &Daemon, node: &str, command: &str) {
    let uri = daemon.uri(node);
    let run = tool::try_run("qemu-io", &["-t", "writeback", "-f", "raw", &uri, "-c", command]);
    assert_eq!(run.code, Some(0), "{command}: {run:?}");
}

fn length(daemon: &Daemon) -> u64 {
    let metadata = fs::metadata(daemon.path("image")).expect("the file is there");
    metadata.len()
}

#[test]
fn options_are_refused_as_qemu_refuses_them() {
    let null = (
        "blockdev-add",
        json!({"driver": "null-co", "node-name": "f", "size": MIB}),
    );
    let add = |more: Value| -> Command { ("blockdev-add", preallocate(&more)) };
    let reopen = |more: Value| -> Command { ("blockdev-reopen", json!({"options": [preallocate(&more)]})) };
    let commands = [
        null,
        add(json!({"file": "missing"})),
        add(json!({"colour": 1})),
        add(json!({"prealloc-align": 100})),
        add(json!({"prealloc-align": -1})),
        add(json!({"prealloc-size": -1})),
        add(json!({"prealloc-size": "1M"})),
        (GRAPH, json!({})),
        add(json!({"prealloc-align": 4096, "prealloc-size": 700})),
        (GRAPH, json!({})),
        ("query-named-block-nodes", json!({"flat": true})),
        reopen(json!({"prealloc-align": 4096})),
        reopen(json!({"prealloc-align": 100, "prealloc-size": 1})),
        reopen(json!({"prealloc-align": 512, "prealloc-size": 1})),
        reopen(json!({"prealloc-align": 512, "prealloc-size": 1, "read-only": true})),
        (GRAPH, json!({})),
        ("query-named-block-nodes", json!({"flat": true})),
    ];
    same_answers(&commands);
}

/// The lengths of a qcow2 image's file through everything that makes it longer or shorter.
#[test]
fn the_file_is_as_long_as_qemus() {
    for more in [
        json!({}),
        json!({"prealloc-align": MIB, "prealloc-size": 8 * MIB}),
        json!({"prealloc-align": 65536, "prealloc-size": 0}),
    ] {
        beside_qemu(|mut daemon| {
            image::create(Path::new(&daemon.path("image")), "qcow2", "", 256 * MIB);
            let before = length(&daemon);
            open(&mut daemon, &more);
            let opened = length(&daemon);
            let format = json!({"driver": "qcow2", "node-name": "q", "file": "p"});
            daemon.qmp.ok("blockdev-add", format);
            export(&mut daemon, "q");
            let mut lengths = vec![before, opened, length(&daemon)];
            for command in [
                "write -P 1 0 64k",
                "write -P 2 1M 1M",
                "write -P 3 10M 20M",
                "flush",
            ] {
                qemu_io(&daemon, "q", command);
                lengths.push(length(&daemon));
            }
            end_export(&mut daemon);
            lengths.push(length(&daemon));
            daemon.qmp.ok("blockdev-del", json!({"node-name": "q"}));
            // QEMU takes it back in its own time.
            daemon.qmp.ok("blockdev-del", json!({"node-name": "p"}));
            lengths.push(length(&daemon));
            daemon.qmp.quit();
            daemon.expect_clean_exit();
            image::assert_clean(Path::new(&daemon.path("image")));
            lengths
        });
    }
}

/// A reopen takes new options and gives back what is set aside where the node becomes read-only.
#[test]
fn a_reopen_changes_how_far_the_file_grows() {
    beside_qemu(|mut daemon| {
        image::create(Path::new(&daemon.path("image")), "qcow2", "", 256 * MIB);
        open(
            &mut daemon,
            &json!({"prealloc-align": MIB, "prealloc-size": 4 * MIB}),
        );
        let format = |more: Value| {
            let mut options = json!({"driver": "qcow2", "node-name": "q", "file": "p"});
            for (name, value) in more.as_object().expect("an object") {
                options[name] = value.clone();
            }
            options
        };
        daemon.qmp.ok("blockdev-add", format(json!({})));
        export(&mut daemon, "q");
        qemu_io(&daemon, "q", "write -P 1 0 64k");
        let mut lengths = vec![length(&daemon)];
        let more = json!({"prealloc-align": 65536, "prealloc-size": 16 * MIB});
        daemon
            .qmp
            .ok("blockdev-reopen", json!({"options": [preallocate(&more)]}));
        qemu_io(&daemon, "q", "write -P 1 8M 8M");
        lengths.push(length(&daemon));
        end_export(&mut daemon);
        let read_only = |flag: bool| {
            let more = json!({"prealloc-align": 65536, "prealloc-size": MIB, "read-only": flag});
            json!({"options": [format(json!({"read-only": flag})), preallocate(&more)]})
        };
        daemon.qmp.ok("blockdev-reopen", read_only(true));
        lengths.push(length(&daemon));
        daemon.qmp.ok("blockdev-reopen", read_only(false));
        export(&mut daemon, "q");
        qemu_io(&daemon, "q", "write -P 1 32M 64k");
        lengths.push(length(&daemon));
        daemon.qmp.quit();
        daemon.expect_clean_exit();
        image::assert_clean(Path::new(&daemon.path("image")));
        lengths.push(length(&daemon));
        lengths
    });
}

/// Without the right to resize, nothing is set aside; and what was not written reads as zeroes from what was.
#[test]
fn a_user_that_may_not_resize_changes_no_length() {
    beside_qemu(|mut daemon| {
        fs::write(daemon.path("image"), vec![7; 1 << 20]).expect("a file can be made");
        open(&mut daemon, &json!({}));
        export(&mut daemon, "p");
        for command in [
            "write -P 1 1020k 4k",
            "write -z 0 4k",
            "discard 64k 64k",
            "read -P 0 0 4k",
        ] {
            qemu_io(&daemon, "p", command);
        }
        let exported = length(&daemon);
        let resize = daemon
            .qmp
            .execute("block_resize", json!({"node-name": "p", "size": 3 * MIB}));
        let resize = resize.map_err(|error| error.desc);
        let resized = length(&daemon);
        end_export(&mut daemon);
        daemon.qmp.quit();
        daemon.expect_clean_exit();
        (
            exported,
            resize,
            resized,
            fs::read(daemon.path("image")).expect("the file is there").len(),
        )
    });
}
