//! Chains of thousands of nodes in a daemon: a node on top costs the same however much is below it, a request takes one step
//! a node, nothing runs out of stack, and the daemon ends.

use std::path::Path;

use millpond_tests::daemon::{Daemon, daemon};
use millpond_tests::image::{file, over};
use millpond_tests::nbd::Request;
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;
const EIO: u32 = 5;

fn name(at: usize) -> String {
    format!("n{at}")
}

fn null(name: &str, size: u64) -> Value {
    json!({"driver": "null-co", "node-name": name, "size": size, "read-zeroes": true})
}

fn add(daemon: &mut Daemon, node: Value) {
    daemon.qmp.ok("blockdev-add", node);
}

/// How often the main iothread has run a task: as often as a question passes another stack of nodes.
fn task_runs(daemon: &mut Daemon) -> u64 {
    let iothreads = daemon.qmp.ok("x-millpond-query-iothreads", json!({}));
    iothreads[0]["task-runs"].as_u64().expect("a count")
}

/// Adds nodes until there are `length`; answers how many tasks the last ten took.
fn grow(daemon: &mut Daemon, have: usize, length: usize) -> u64 {
    let mut before = 0;
    for at in have..length {
        if at == length - 10 {
            before = task_runs(daemon);
        }
        add(daemon, over("raw", &name(at), &name(at - 1)));
    }
    task_runs(daemon) - before
}

#[test]
fn a_node_on_top_of_thousands_costs_no_more_and_all_of_them_serve_and_close() {
    const LAYERS: usize = 2200;
    let mut daemon = daemon().nbd_unix().start();
    add(&mut daemon, null(&name(0), MIB));
    let shallow = grow(&mut daemon, 1, 100);
    let deep = grow(&mut daemon, 100, LAYERS);
    assert!(
        deep <= 2 * shallow,
        "ten nodes on top of 90 took {shallow} task runs, on top of {LAYERS} {deep}"
    );
    let top = name(LAYERS - 1);
    let graph = daemon.qmp.ok("x-debug-query-block-graph", json!({}));
    assert_eq!(graph["nodes"].as_array().map(Vec::len), Some(LAYERS));
    let statistics = daemon.qmp.ok("query-blockstats", json!({"query-nodes": true}));
    assert_eq!(statistics.as_array().map(Vec::len), Some(LAYERS));
    assert_eq!(daemon.qmp.ok("query-block", json!({})), json!([]));
    let add_export = json!({"type": "nbd", "id": "e", "node-name": top, "name": "disk", "writable": true});
    daemon.qmp.ok("block-export-add", add_export);
    let mut session = daemon.session("disk");
    let before = task_runs(&mut daemon);
    session.write(4096, &[1; 4096]);
    session.ok(&Request::zero(0, 65536));
    session.ok(&Request::trim(0, 65536));
    session.flush();
    assert_eq!(session.read(MIB - 4096, 4096), [0; 4096]);
    let took = task_runs(&mut daemon) - before;
    assert!(took <= 5 * LAYERS as u64, "five requests took {took} task runs");
    session.disconnect().expect("a farewell");
    let mut changed = over("raw", &top, &name(LAYERS - 2));
    changed["read-only"] = json!(false);
    changed["detect-zeroes"] = json!("on");
    daemon.qmp.ok("blockdev-reopen", json!({"options": [changed]}));
    daemon
        .qmp
        .ok("block-export-del", json!({"id": "e", "mode": "hard"}));
    daemon.quit();
}

/// An answer in which every image is told of once for each image above it is refused before it is built.
#[test]
fn an_answer_that_would_tell_of_too_many_images_is_refused() {
    // 724 * 725 / 2 is the first such number above 2^18.
    const LAYERS: usize = 724;
    let mut daemon = daemon()
        .option("--object", "throttle-group,id=group")
        .blockdev(null(&name(0), MIB))
        .start();
    for at in 1..LAYERS {
        let mut node = over("throttle", &name(at), &name(at - 1));
        node["throttle-group"] = json!("group");
        add(&mut daemon, node);
    }
    let refused = daemon.qmp.refused("query-named-block-nodes", json!({}));
    assert_eq!(refused.class, "GenericError");
    assert_eq!(
        refused.desc,
        "The answer would describe 262450 images: ask with 'flat': true"
    );
    let flat = daemon.qmp.ok("query-named-block-nodes", json!({"flat": true}));
    assert_eq!(flat.as_array().map(Vec::len), Some(LAYERS));
    daemon.quit();
}

/// The length that a node has which is put on top of `below` now.
fn length_on(daemon: &mut Daemon, below: &str) -> u64 {
    add(daemon, over("raw", "probe", below));
    let nodes = daemon.qmp.ok("query-named-block-nodes", json!({"flat": true}));
    let nodes = nodes.as_array().expect("a list");
    let probe = nodes.iter().find(|node| node["node-name"] == "probe");
    let length = probe.expect("it was added")["image"]["virtual-size"].as_u64();
    daemon.qmp.ok("blockdev-del", json!({"node-name": "probe"}));
    length.expect("a length")
}

fn reopen(daemon: &mut Daemon, node: Value) {
    daemon.qmp.ok("blockdev-reopen", json!({ "options": [node] }));
}

/// A file of a mebibyte with thirty raw nodes on top, and another file of three.
fn over_a_file(dir: &Path) -> Vec<Value> {
    for (name, mebibytes) in [("f", 1), ("g", 3)] {
        std::fs::write(dir.join(name), vec![0; mebibytes << 20]).expect("a file");
    }
    let mut nodes = vec![file("f", &dir.join("f")), file("g", &dir.join("g"))];
    nodes.push(over("raw", "n1", "f"));
    nodes.extend((2..=30).map(|at| over("raw", &name(at), &name(at - 1))));
    nodes
}

fn start(nodes: impl FnOnce(&Path) -> Vec<Value>) -> Daemon {
    let daemon = daemon().nbd_unix();
    let nodes = nodes(daemon.dir());
    nodes
        .into_iter()
        .fold(daemon, |daemon, node| daemon.blockdev(node))
        .start()
}

#[test]
fn a_length_that_changes_far_below_is_seen_on_top() {
    let mut daemon = start(over_a_file);
    assert_eq!(length_on(&mut daemon, "n30"), MIB);
    assert_eq!(length_on(&mut daemon, "n30"), MIB);
    daemon
        .qmp
        .ok("block_resize", json!({"node-name": "f", "size": 2 * MIB}));
    assert_eq!(
        length_on(&mut daemon, "n30"),
        2 * MIB,
        "the file at the bottom is longer"
    );
    assert_eq!(length_on(&mut daemon, "n15"), 2 * MIB);
    reopen(&mut daemon, over("raw", "n5", "g"));
    assert_eq!(
        length_on(&mut daemon, "n30"),
        3 * MIB,
        "another file is at the bottom"
    );
    assert_eq!(
        length_on(&mut daemon, "n4"),
        2 * MIB,
        "the old one is where it was"
    );
    daemon
        .qmp
        .ok("block_resize", json!({"node-name": "n10", "size": MIB}));
    assert_eq!(
        length_on(&mut daemon, "n30"),
        MIB,
        "the chain was cut in the middle"
    );
    assert_eq!(length_on(&mut daemon, "g"), MIB);
    reopen(&mut daemon, over("raw", "n5", "n4"));
    assert_eq!(length_on(&mut daemon, "n30"), 2 * MIB, "the first file is back");
    daemon.quit();
}

#[test]
fn a_length_that_grows_with_what_another_parent_writes_is_seen_on_top() {
    let mut daemon = start(|dir| {
        let image = dir.join("image");
        millpond_tests::image::create(&image, "qcow2", "", 16 * MIB);
        let mut nodes = vec![file("f", &image)];
        nodes.push(json!({"driver": "qcow2", "node-name": "disk", "file": "f", "backing": null}));
        nodes.push(over("raw", "n1", "f"));
        nodes.extend((2..=30).map(|at| over("raw", &name(at), &name(at - 1))));
        nodes
    });
    daemon.qmp.ok(
        "block-export-add",
        json!({"type": "nbd", "id": "e", "node-name": "disk", "writable": true}),
    );
    let mut session = daemon.session("disk");
    for mebibytes in [1, 2, 5] {
        session.write(mebibytes * MIB, &vec![7; 1 << 20]);
        session.flush();
        let length = std::fs::metadata(daemon.path("image"))
            .expect("it is there")
            .len();
        assert_eq!(length_on(&mut daemon, "n30"), length.next_multiple_of(512));
    }
    session.disconnect().expect("a farewell");
    daemon.quit();
}

#[test]
fn a_listener_that_comes_far_below_hears_of_requests_on_top_until_it_goes() {
    let mut daemon = start(|dir| {
        let mut nodes = over_a_file(dir);
        let fails = |name: &str, image: &str| {
            json!({"driver": "blkdebug", "node-name": name, "image": image,
                "inject-error": [{"event": "read_aio", "errno": EIO}]})
        };
        // One that hears of nothing here, so that there is somebody to be looked for.
        nodes.extend([
            null("aside", MIB),
            fails("elsewhere", "aside"),
            fails("listener", "g"),
        ]);
        nodes
    });
    daemon.qmp.ok(
        "block-export-add",
        json!({"type": "nbd", "id": "e", "node-name": "n30", "name": "disk"}),
    );
    let mut session = daemon.session("disk");
    let fails = |session: &mut millpond_tests::nbd::Session| session.refused(&Request::read(0, 512));
    for _ in 0..2 {
        assert_eq!(session.read(0, 512), [0; 512]);
        assert_eq!(session.read(0, 512), [0; 512], "what was found is kept");
        reopen(&mut daemon, over("raw", "n5", "listener"));
        assert_eq!(fails(&mut session), EIO);
        assert_eq!(fails(&mut session), EIO);
        reopen(&mut daemon, over("raw", "n5", "n4"));
    }
    assert_eq!(session.read(0, 512), [0; 512]);
    session.disconnect().expect("a farewell");
    daemon.quit();
}
