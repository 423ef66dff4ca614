//! What filters and windows hand on to the node below them, beside QEMU: each is a few lines of its own, and what is left
//! must not differ from one to the next but where QEMU's do.

use std::fs;

use millpond_tests::beside::beside_qemu;
use millpond_tests::daemon::Daemon;
use millpond_tests::tool;
use serde_json::{Value, json};

const SIZE: usize = 1 << 20;

/// Drivers over the file `disk` that show it as it is. Where they need another, it is `other`.
const FILTERS: [&str; 7] = [
    "blkdebug",
    "blklogwrites",
    "blkverify",
    "copy-on-read",
    "preallocate",
    "raw",
    "throttle",
];

fn file(daemon: &Daemon, name: &str) -> Value {
    json!({"driver": "file", "filename": daemon.path(name), "discard": "unmap"})
}

/// A node `top` of one of the filters, over fresh files.
fn add(daemon: &mut Daemon, filter: &str) {
    fs::write(daemon.path("disk"), vec![9; SIZE]).expect("a file can be made");
    fs::write(daemon.path("other"), vec![9; SIZE]).expect("a file can be made");
    let (disk, other) = (file(daemon, "disk"), file(daemon, "other"));
    let mut options = json!({"driver": filter, "node-name": "top", "discard": "unmap"});
    let own = match filter {
        "blkdebug" => vec![("image", disk)],
        "blklogwrites" => vec![("file", disk), ("log", other)],
        "blkverify" => vec![("raw", disk), ("test", other)],
        "throttle" => {
            daemon.qmp.ok(
                "object-add",
                json!({"qom-type": "throttle-group", "id": "group", "limits": {"iops-total": 100_000}}),
            );
            vec![("file", disk), ("throttle-group", json!("group"))]
        }
        _ => vec![("file", disk)],
    };
    for (name, value) in own {
        options[name] = value;
    }
    daemon.qmp.ok("blockdev-add", options);
}

/// The size of the disk that `top` shows, and how much of the host it takes.
fn sizes(daemon: &mut Daemon) -> [Value; 2] {
    let nodes = daemon.qmp.ok("query-named-block-nodes", json!({}));
    let nodes = nodes.as_array().expect("a list");
    let top = nodes.iter().find(|node| node["node-name"] == "top");
    let image = &top.expect("it was added")["image"];
    ["virtual-size", "actual-size"].map(|name| image[name].clone())
}

#[test]
fn a_filters_size_on_the_host_is_that_of_what_it_filters() {
    for filter in FILTERS {
        beside_qemu(|mut daemon| {
            add(&mut daemon, filter);
            let shown = sizes(&mut daemon);
            daemon.qmp.quit();
            (filter, shown)
        });
    }
}

const REQUESTS: [&str; 8] = [
    "write -P 1 0 4k",
    "write -P 2 513 100",
    "write -z 8k 4k",
    "write -z -u 64k 64k",
    "discard 128k 64k",
    "write -f -P 3 16k 512",
    "write -z -f 32k 1k",
    "flush",
];

#[test]
fn requests_through_each_filter_leave_what_they_leave_in_qemu() {
    // QEMU's own ends at an assertion when zeroes are written through its blkverify.
    for filter in FILTERS.into_iter().filter(|filter| *filter != "blkverify") {
        beside_qemu(|mut daemon| {
            add(&mut daemon, filter);
            let export = json!({"type": "nbd", "id": "e", "node-name": "top", "writable": true});
            daemon.qmp.ok("block-export-add", export);
            let uri = daemon.uri("top");
            let mut arguments = vec!["-t", "writeback", "-d", "unmap", "-f", "raw", &uri];
            arguments.extend(REQUESTS.iter().flat_map(|request| ["-c", request]));
            let done = tool::try_run("qemu-io", &arguments).code;
            let map = tool::run_json("qemu-img", &["map", "-f", "raw", "--output=json", &uri]);
            daemon
                .qmp
                .ok("block-export-del", json!({"id": "e", "mode": "hard"}));
            daemon.qmp.wait_event("BLOCK_EXPORT_DELETED");
            daemon.qmp.quit();
            let left = fs::read(daemon.path("disk")).expect("the file is there");
            (filter, done, map, left)
        });
    }
}

/// The first bytes of `disk` that are a window, in which a qcow2 image has room for three more clusters.
const WINDOW: usize = 7 << 16;

#[test]
fn a_format_does_not_write_behind_its_window() {
    beside_qemu(|mut daemon| {
        let disk = daemon.path("disk");
        tool::qemu_img(&format!("create -q -f qcow2 {disk} 10M"));
        let mut bytes = fs::read(&disk).expect("it was made");
        bytes.resize(4 << 16, 0);
        bytes.resize(SIZE, b'X');
        fs::write(&disk, bytes).expect("it was made");
        let file = file(&daemon, "disk");
        let window = json!({"driver": "raw", "size": WINDOW, "discard": "unmap", "file": file});
        let image = json!({"driver": "qcow2", "node-name": "top", "discard": "unmap", "file": window});
        daemon.qmp.ok("blockdev-add", image);
        let export = json!({"type": "nbd", "id": "e", "node-name": "top", "writable": true});
        daemon.qmp.ok("block-export-add", export);
        let uri = daemon.uri("top");
        let done = ["write -P 1 0 64k", "write -P 2 1M 512k", "read -P 1 0 64k"].map(|request| {
            let arguments = ["-t", "writeback", "-f", "raw", &uri, "-c", request];
            tool::try_run("qemu-io", &arguments).code
        });
        daemon
            .qmp
            .ok("block-export-del", json!({"id": "e", "mode": "hard"}));
        daemon.qmp.wait_event("BLOCK_EXPORT_DELETED");
        daemon.qmp.quit();
        let left = fs::read(&disk).expect("the file is there");
        let behind = left.get(WINDOW..).expect("it is not shorter");
        assert!(behind.iter().all(|byte| *byte == b'X'), "the window was left");
        done
    });
}
