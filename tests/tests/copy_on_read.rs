//! `copy-on-read` beside QEMU's own: which nodes may be its bottom, and what that keeps from changing.

use std::path::Path;

use millpond_tests::beside::{Command, GRAPH, same_answers};
use millpond_tests::image;
use serde_json::{Value, json};

fn file(name: &str, dir: &Path) -> Value {
    let filename = dir.join(name);
    json!({"driver": "file", "node-name": format!("{name}-file"), "filename": filename, "locking": "off"})
}

/// The options of a qcow2 node over one of the images.
fn qcow2(name: &str, dir: &Path, backing: Value) -> Value {
    json!({"driver": "qcow2", "node-name": name, "file": file(name, dir), "backing": backing})
}

fn cor(more: Value) -> Command {
    let mut options = json!({"driver": "copy-on-read", "node-name": "cor", "file": "c"});
    for (name, value) in more.as_object().expect("an object") {
        options[name] = value.clone();
    }
    ("blockdev-add", options)
}

fn del(name: &str) -> Command {
    ("blockdev-del", json!({"node-name": name}))
}

/// The chain down to the bottom may be opened together with the filter.
#[test]
fn a_bottom_may_be_a_node_that_is_opened_with_the_filter() {
    let scratch = millpond_tests::daemon::scratch();
    let dir = scratch.path();
    for name in ["a", "b", "c"] {
        image::create(&dir.join(name), "qcow2", "", 1 << 20);
    }
    let chain = qcow2("c", dir, qcow2("b", dir, qcow2("a", dir, Value::Null)));
    let commands = [
        cor(json!({"file": chain, "bottom": "b"})),
        (GRAPH, json!({})),
        (
            "blockdev-reopen",
            json!({"options": [{"driver": "qcow2", "node-name": "c", "file": "c-file", "backing": "a"}]}),
        ),
        del("cor"),
        (GRAPH, json!({})),
    ];
    same_answers(&commands);
}

#[test]
fn a_bottom_is_in_the_chain_and_stays_there_as_in_qemu() {
    let scratch = millpond_tests::daemon::scratch();
    let dir = scratch.path();
    for name in ["a", "b", "c"] {
        image::create(&dir.join(name), "qcow2", "", 1 << 20);
    }
    let add = |name: &str, backing: Value| ("blockdev-add", qcow2(name, dir, backing));
    let reopen = |options: Value| ("blockdev-reopen", json!({"options": [options]}));
    let relink = |name: &str, backing: Value| {
        let mut options = qcow2(name, dir, backing);
        options["file"] = json!(format!("{name}-file"));
        reopen(options)
    };
    let commands = [
        add("a", Value::Null),
        add("b", json!("a")),
        add("c", json!("b")),
        cor(json!({"bottom": "missing"})),
        cor(json!({"bottom": ""})),
        cor(json!({"bottom": 1})),
        cor(json!({"colour": 1})),
        (
            "blockdev-add",
            json!({"driver": "copy-on-read", "node-name": "filter", "file": "c"}),
        ),
        cor(json!({"file": "filter", "bottom": "filter"})),
        del("filter"),
        (GRAPH, json!({})),
        cor(json!({"bottom": "b"})),
        (GRAPH, json!({})),
        ("query-named-block-nodes", json!({"flat": true})),
        relink("c", json!("a")),
        relink("c", Value::Null),
        del("c"),
        cor(json!({"node-name": "second", "bottom": "c"})),
        cor(json!({"node-name": "third", "bottom": "a"})),
        reopen(json!({"driver": "copy-on-read", "node-name": "cor", "file": "c"})),
        reopen(json!({"driver": "copy-on-read", "node-name": "cor", "file": "c", "bottom": "b"})),
        del("cor"),
        relink("c", json!("a")),
        (GRAPH, json!({})),
    ];
    same_answers(&commands);
}
