//! `compress` beside QEMU's own: the same nodes refused, and the same clusters compressed.

use std::path::Path;

use millpond_tests::beside::{Command, GRAPH, beside_qemu, same_answers};
use millpond_tests::daemon::Daemon;
use millpond_tests::{image, tool};
use serde_json::{Value, json};

fn add(options: Value) -> Command {
    ("blockdev-add", options)
}

fn compress(file: Value) -> Command {
    add(json!({"driver": "compress", "node-name": "c", "file": file}))
}

#[test]
fn it_is_opened_shown_and_refused_as_qemu_does_it() {
    let dir = millpond_tests::daemon::scratch();
    let [whole, odd] = ["whole", "odd"].map(|name| dir.path().join(name));
    image::create(&whole, "qcow2", "cluster_size=4096", 1 << 20);
    image::create(&odd, "qcow2", "", 1000 << 10);
    let qcow2 = |name: &str, path: &Path| {
        let file = json!({"driver": "file", "node-name": format!("{name}-file"), "filename": path,
            "locking": "off"});
        add(json!({"driver": "qcow2", "node-name": name, "file": file}))
    };
    let over = |driver: &str, name: &str, below: &str| {
        let child = if driver == "blkdebug" { "image" } else { "file" };
        let mut options = json!({"driver": driver, "node-name": name});
        options[child] = json!(below);
        add(options)
    };
    let export = |id: &str, node: &str| {
        let arguments = json!({"type": "nbd", "id": id, "node-name": node, "writable": true});
        ("block-export-add", arguments)
    };
    let reopen = json!({"options": [{"driver": "compress", "node-name": "c", "file": "q"}]});
    let commands = [
        add(json!({"driver": "null-co", "node-name": "n", "size": 1 << 20})),
        qcow2("q", &whole),
        qcow2("odd", &odd),
        over("raw", "r", "q"),
        over("blkdebug", "b", "q"),
        over("copy-on-read", "cor", "q"),
        compress(json!("n")),
        compress(json!("r")),
        compress(json!("b")),
        compress(json!("missing")),
        add(json!({"driver": "compress", "node-name": "c"})),
        add(json!({"driver": "compress", "node-name": "c", "file": "q", "colour": 1})),
        ("blockdev-del", json!({"node-name": "b"})),
        (GRAPH, json!({})),
        over("compress", "over-cor", "cor"),
        compress(json!("q")),
        over("compress", "d", "c"),
        over("compress", "o", "odd"),
        (GRAPH, json!({})),
        ("query-named-block-nodes", json!({"flat": true})),
        ("blockdev-reopen", reopen),
        export("e0", "o"),
        export("e1", "c"),
        (GRAPH, json!({})),
    ];
    same_answers(&commands);
}

/// Which parts of an image read as data, as zeroes, and which are compressed.
fn map(path: &str) -> Vec<Value> {
    let parts = tool::run_json("qemu-img", &["map", "--output=json", path]);
    parts.as_array().expect("a list").clone()
}

fn export(daemon: &mut Daemon, cluster_size: u64) -> String {
    let path = daemon.path("image");
    let options = format!("cluster_size={cluster_size}");
    image::create(Path::new(&path), "qcow2", &options, 1 << 20);
    let file = json!({"driver": "file", "filename": path});
    let qcow2 = json!({"driver": "qcow2", "node-name": "q", "file": file, "discard": "unmap"});
    let node = json!({"driver": "compress", "node-name": "c", "file": qcow2, "discard": "unmap"});
    daemon.qmp.ok("blockdev-add", node);
    let export = json!({"type": "nbd", "id": "e", "node-name": "c", "writable": true});
    daemon.qmp.ok("block-export-add", export);
    path
}

#[test]
fn writes_are_compressed_as_qemus_are() {
    for cluster_size in [4096, 65536] {
        beside_qemu(|mut daemon| {
            let path = export(&mut daemon, cluster_size);
            let uri = daemon.uri("c");
            let requests = [
                "write -P 1 0 512",
                "write -P 2 100k 200k",
                "write -P 3 513 3000",
                "write -P 4 960k 64k",
                "write -z 512k 64k",
                "write -z 513k 3k",
                "discard 128k 64k",
                "read -P 1 0 512",
                "read -P 3 513 3000",
                "read -P 2 200k 100k",
            ];
            // What is stored already is not compressed over, so some fail.
            let done = requests.map(|request| {
                let arguments = ["-d", "unmap", "-f", "raw", &uri, "-c", request];
                let run = tool::try_run("qemu-io", &arguments);
                (request, run.code == Some(0))
            });
            daemon.qmp.quit();
            daemon.expect_clean_exit();
            image::assert_clean(Path::new(&path));
            let map = map(&path);
            assert!(map.iter().any(|part| part["compressed"] == true), "{map:?}");
            // Where clusters lie is no one's business.
            let shown = |part: &Value| {
                let mut part = part.clone();
                part.as_object_mut().expect("an object").remove("offset");
                part.to_string()
            };
            (done, map.iter().map(shown).collect::<Vec<_>>())
        });
    }
}
