//! `blockdev-snapshot-sync` beside QEMU's daemon: the same answers, texts and files, and the same nodes with the same options.

use std::path::Path;

use millpond_tests::beside::{Command, GRAPH, beside_qemu, same_answers};
use millpond_tests::daemon::{Daemon, scratch};
use millpond_tests::nbd::Request;
use millpond_tests::{image, tool};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

/// The options of a node over a new image, its file by its whole path.
fn node(dir: &Path, name: &str, more: &Value) -> Value {
    let path = dir.join(name);
    image::create(&path, "qcow2", "", MIB);
    let mut node = json!({"driver": "qcow2", "node-name": name});
    node["file"] = json!({"driver": "file", "node-name": format!("{name}-file"), "filename": path});
    for (name, value) in more.as_object().expect("an object") {
        node[name] = value.clone();
    }
    node
}

#[test]
fn every_answer_and_the_graph_after_it_are_qemus() {
    let scratch = scratch();
    let dir = scratch.path();
    let path = |name: &str| dir.join(name).display().to_string();
    image::create(&dir.join("there"), "qcow2", "", MIB);
    let sync = |arguments: Value| -> Command {
        let mut arguments = arguments;
        if let Some(file) = arguments["snapshot-file"]
            .as_str()
            .filter(|file| !file.contains('/'))
        {
            arguments["snapshot-file"] = json!(path(file));
        }
        ("blockdev-snapshot-sync", arguments)
    };
    let mut commands: Vec<Command> = vec![
        ("blockdev-add", node(dir, "a", &json!({}))),
        ("blockdev-add", node(dir, "b", &json!({"read-only": true}))),
        ("blockdev-add", node(dir, "c", &json!({}))),
        (
            "block-export-add",
            json!({"type": "nbd", "id": "e", "node-name": "a", "writable": true}),
        ),
    ];
    let asked = [
        json!({}),
        json!({"snapshot-file": "o"}),
        json!({"device": "a", "snapshot-file": "o"}),
        json!({"node-name": "a", "snapshot-file": "o"}),
        json!({"device": "x", "node-name": "y", "snapshot-file": "o", "snapshot-node-name": "o"}),
        json!({"node-name": "a", "snapshot-file": "o", "snapshot-node-name": "b"}),
        json!({"node-name": "a", "snapshot-file": "o", "snapshot-node-name": "9"}),
        json!({"node-name": "a", "snapshot-file": "o", "snapshot-node-name": "o", "format": "raw"}),
        json!({"node-name": "a", "snapshot-file": "o", "snapshot-node-name": "o", "format": "none"}),
        json!({"node-name": "a", "snapshot-file": "o", "snapshot-node-name": "o", "mode": "some"}),
        json!({"node-name": "a", "snapshot-file": "/none/o", "snapshot-node-name": "o"}),
        json!({"node-name": "a", "snapshot-file": "no", "snapshot-node-name": "o", "mode": "existing"}),
        json!({"node-name": "a", "snapshot-file": "there", "snapshot-node-name": "o", "mode": "existing",
            "format": "raw"}),
        json!({"node-name": "a", "snapshot-file": "a", "snapshot-node-name": "o"}),
        json!({"node-name": "a", "snapshot-file": "o1", "snapshot-node-name": "o1"}),
        json!({"node-name": "a", "snapshot-file": "o2", "snapshot-node-name": "o2"}),
        json!({"device": "z", "node-name": "o1", "snapshot-file": "there", "snapshot-node-name": "o2",
            "mode": "existing"}),
        json!({"node-name": "b", "snapshot-file": "o3", "snapshot-node-name": "o3"}),
        json!({"node-name": "c-file", "snapshot-file": "o4", "snapshot-node-name": "o4"}),
    ];
    for arguments in asked {
        commands.extend([sync(arguments), (GRAPH, json!({}))]);
    }
    same_answers(&commands);
    for overlay in ["o1", "there", "o3"] {
        image::assert_clean(&dir.join(overlay));
    }
}

/// What is told of all nodes, but for how long their files are.
fn nodes(daemon: &mut Daemon) -> String {
    let nodes = daemon.qmp.ok("query-named-block-nodes", json!({"flat": true}));
    let mut nodes = nodes.as_array().expect("a list").clone();
    nodes.retain(|node| !node["node-name"].to_string().contains('#'));
    for node in &mut nodes {
        node.as_object_mut().expect("an object").remove("image");
    }
    nodes.sort_by_key(|node| node["node-name"].to_string());
    let dir = daemon.dir().display().to_string();
    Value::Array(nodes).to_string().replace(&dir, "")
}

/// The lines that are told of new images.
fn told(daemon: &Daemon) -> Vec<String> {
    let dir = daemon.dir().display().to_string();
    let log = daemon.log().replace(&dir, "");
    log.lines()
        .filter(|line| line.starts_with("Formatting"))
        .map(str::to_owned)
        .collect()
}

/// The overlay has its node's flags, takes what is written from now on, and names the image below as QEMU has it named.
#[test]
fn a_used_nodes_overlay_is_opened_and_written_as_qemus() {
    for more in [
        json!({}),
        json!({"cache": {"no-flush": true}, "discard": "unmap", "detect-zeroes": "on"}),
        json!({"cache": {"direct": true}}),
        json!({"auto-read-only": true}),
    ] {
        beside_qemu(|mut daemon: Daemon| {
            let dir = daemon.dir().to_owned();
            daemon.qmp.ok("blockdev-add", node(&dir, "a", &more));
            let export = json!({"type": "nbd", "id": "e", "node-name": "a", "name": "a", "writable": true});
            daemon.qmp.ok("block-export-add", export);
            let mut guest = daemon.session("a");
            guest.ok(&Request::write(0, vec![1; 65536]));
            for name in ["o", "p"] {
                let below = if name == "o" { "a" } else { "o" };
                let asked = json!({"node-name": below, "snapshot-node-name": name,
                    "snapshot-file": dir.join(name)});
                daemon.qmp.ok("blockdev-snapshot-sync", asked);
                guest.ok(&Request::write(131_072, vec![2; 65536]));
            }
            let bytes = guest.read_all();
            assert!(
                bytes[..65536].iter().all(|byte| *byte == 1)
                    && bytes[131_072..196_608].iter().all(|byte| *byte == 2)
            );
            let seen = nodes(&mut daemon);
            drop(guest);
            daemon.qmp.quit();
            daemon.expect_clean_exit();
            let info = tool::run_json("qemu-img", &["info", "--output=json", &daemon.path("p")]);
            let names = [
                "virtual-size",
                "format",
                "cluster-size",
                "backing-filename-format",
            ];
            let info: Vec<String> = names.map(|name| info[name].to_string()).into();
            let maps = ["a", "o", "p"].map(|name| image::map("qcow2", &daemon.path(name)));
            (seen, told(&daemon), info, maps)
        });
    }
}
