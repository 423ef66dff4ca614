//! Commands to a daemon of ours and to QEMU's: the same answers, word for word, and the same graph in the same order.

use millpond_tests::beside::{Command, GRAPH, beside_qemu, same_answers};
use millpond_tests::daemon::{Daemon, scratch};
use millpond_tests::image;
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

fn add(options: Value) -> Command {
    ("blockdev-add", options)
}

fn del(name: &str) -> Command {
    ("blockdev-del", json!({"node-name": name}))
}

fn graph() -> Command {
    (GRAPH, json!({}))
}

/// Makes empty images and answers the options of nodes over them; their files are called `NAME-file`.
fn images<const COUNT: usize>(dir: &std::path::Path, names: [&str; COUNT]) -> [Value; COUNT] {
    names.map(|name| {
        let path = dir.join(name);
        image::create(&path, "qcow2", "", MIB);
        let mut node = image::over("qcow2", name, "");
        node["file"] = image::file(&format!("{name}-file"), &path);
        node["backing"] = Value::Null;
        node
    })
}

fn with(mut node: Value, name: &str, value: impl Into<Value>) -> Value {
    node[name] = value.into();
    node
}

#[test]
fn the_graph_is_numbered_and_listed_as_qemus_is() {
    let dir = scratch();
    let [top, base, other] = images(dir.path(), ["top", "base", "other"]);
    let export = |id: &str, node: &str| {
        let arguments = json!({"type": "nbd", "id": id, "node-name": node});
        ("block-export-add", arguments)
    };
    let image = image::file("deep", &dir.path().join("other"));
    let debug = json!({"driver": "blkdebug", "node-name": "debug", "read-only": true, "image": image});
    same_answers(&[
        add(with(top, "backing", base)),
        add(with(other, "read-only", true)),
        add(with(image::over("raw", "over", "other"), "read-only", true)),
        export("e1", "over"),
        export("e2", "top"),
        graph(),
        ("block-export-del", json!({"id": "e1"})),
        add(debug),
        graph(),
    ]);
}

#[test]
fn the_newest_user_of_a_backing_node_is_named() {
    let dir = scratch();
    let [base, one, two, three] = images(dir.path(), ["base", "one", "two", "three"]);
    let reopened = json!({"driver": "qcow2", "node-name": "one", "file": "one-file", "backing": "base"});
    let elsewhere = json!({"driver": "null-co", "node-name": "elsewhere", "read-only": true, "size": MIB});
    same_answers(&[
        add(with(base, "read-only", true)),
        add(elsewhere),
        add(with(one, "backing", "elsewhere")),
        add(with(two, "backing", "base")),
        del("base"),
        ("blockdev-reopen", json!({"options": [reopened]})),
        del("base"),
        add(with(three, "backing", "base")),
        del("base"),
        del("three"),
        del("base"),
        graph(),
    ]);
}

#[test]
fn lengths_and_devices_are_refused_in_qemus_order() {
    let dir = scratch();
    let [disk] = images(dir.path(), ["disk"]);
    let resize = |arguments: Value| ("block_resize", arguments);
    let mut commands = vec![add(disk)];
    for (device, node) in [
        ("disk", "disk"),
        ("", "disk"),
        ("nope", "disk"),
        ("", ""),
        ("disk", ""),
        ("disk", "nope"),
    ] {
        commands.push(resize(json!({"device": device, "node-name": node, "size": MIB})));
    }
    for node in ["disk", "disk-file"] {
        for size in [i64::MAX, i64::MAX - 511, 513, -5, -512, 1 << 62] {
            commands.push(resize(json!({"node-name": node, "size": size})));
        }
    }
    commands.push(resize(json!({"device": "disk", "size": MIB})));
    commands.push(resize(json!({"size": MIB})));
    same_answers(&commands);
}

#[test]
fn an_overlay_that_somebody_reads_is_in_use() {
    let dir = scratch();
    let [base, overlay] = images(dir.path(), ["base", "overlay"]);
    let snapshot = |node: &str, overlay: &str| {
        let arguments = json!({"node": node, "overlay": overlay});
        ("blockdev-snapshot", arguments)
    };
    same_answers(&[
        add(base),
        add(overlay),
        snapshot("base", "overlay-file"),
        snapshot("base", "base-file"),
        snapshot("base", "overlay"),
        snapshot("overlay", "base"),
        snapshot("base", "overlay"),
        snapshot("overlay", "overlay-file"),
        graph(),
    ]);
}

#[test]
fn objects_and_their_paths_are_as_qemus() {
    let get = |path: &str, property: &str| ("qom-get", json!({"path": path, "property": property}));
    let main_loop = |id: &str| ("object-add", json!({"qom-type": "main-loop", "id": id}));
    let delete = |id: &str| ("object-del", json!({"id": id}));
    same_answers(&[
        get("", "type"),
        get("", "nope"),
        get("/", "type"),
        get("x", "type"),
        ("qom-set", json!({"path": "", "property": "type", "value": "x"})),
        ("qom-list", json!({"path": ""})),
        delete("main-loop"),
        main_loop("loop"),
        delete("loop"),
        main_loop("other"),
        ("qom-list", json!({"path": "/objects"})),
    ]);
}

/// What becomes of jobs that make images with these options.
fn created(daemon: &mut Daemon, images: &[Value]) -> Vec<Value> {
    let qmp = &mut daemon.qmp;
    let mut seen = Vec::new();
    for image in images {
        qmp.ok("blockdev-create", json!({"job-id": "j", "options": image}));
        while qmp.wait_event("JOB_STATUS_CHANGE")["status"] != "concluded" {}
        seen.push(qmp.ok("query-jobs", json!({}))[0]["error"].clone());
        qmp.ok("job-dismiss", json!({"id": "j"}));
        qmp.wait_event("JOB_STATUS_CHANGE");
    }
    seen
}

#[test]
fn the_newest_job_is_listed_first() {
    beside_qemu(|mut daemon: Daemon| {
        let path = daemon.dir().join("new.raw");
        let image = json!({"driver": "file", "filename": path, "size": 512});
        for id in ["one", "two"] {
            let job = json!({"job-id": id, "options": image});
            daemon.qmp.ok("blockdev-create", job);
            while daemon.qmp.wait_event("JOB_STATUS_CHANGE")["status"] != "concluded" {}
        }
        daemon.qmp.ok("query-jobs", json!({}))
    });
}

#[test]
fn images_of_sizes_that_cannot_be_are_refused_as_qemu_refuses_them() {
    beside_qemu(|mut daemon: Daemon| {
        let path = daemon.dir().join("new.raw");
        let file = |size: u64| json!({"driver": "file", "filename": path, "size": size});
        let qcow2 = |more: Value| {
            let mut options = json!({"driver": "qcow2", "file": "file", "size": MIB});
            for (name, value) in more.as_object().expect("an object") {
                options[name] = value.clone();
            }
            options
        };
        created(&mut daemon, &[file(0)]);
        daemon.qmp.ok("blockdev-add", image::file("file", &path));
        let mut images = Vec::new();
        for size in [
            1 << 63,
            (1 << 63) - 1,
            (1 << 63) - 512,
            u64::MAX,
            u64::MAX - 511,
            513,
            1 << 62,
        ] {
            images.push(qcow2(json!({"size": size})));
        }
        images.extend([
            qcow2(json!({"preallocation": "metadata", "backing-file": "x", "backing-fmt": "raw"})),
            qcow2(json!({"extended-l2": true, "cluster-size": 8192})),
            qcow2(json!({"extended-l2": true, "version": "v2"})),
            qcow2(json!({"data-file-raw": true})),
        ]);
        let other = daemon.dir().join("other.raw");
        for size in [1 << 63, i64::MAX as u64, u64::MAX - 4] {
            images.push(json!({"driver": "file", "filename": other, "size": size}));
        }
        created(&mut daemon, &images)
    });
}

/// A name with `json:` as what it says: QEMU's order of its members is that of a hash table, also where two share a place.
fn members(name: &Value) -> Value {
    let json = name.as_str().and_then(|name| name.strip_prefix("json:"));
    json.map_or_else(
        || name.clone(),
        |json| serde_json::from_str(json).expect("it is JSON"),
    )
}

/// What a daemon shows of the nodes' names, those that it made up left out.
fn names(daemon: &mut Daemon) -> Vec<Value> {
    let nodes = daemon.qmp.ok("query-named-block-nodes", json!({"flat": true}));
    let nodes = nodes.as_array().expect("a list").iter();
    let shown = nodes.map(|node| {
        let made_up = node["node-name"]
            .as_str()
            .is_some_and(|name| name.starts_with('#'));
        let name = if made_up {
            Value::Null
        } else {
            node["node-name"].clone()
        };
        let image = &node["image"];
        json!([
            name,
            members(&node["file"]),
            node["backing_file"],
            image["full-backing-filename"],
            image["backing-filename-format"]
        ])
    });
    shown.collect()
}

#[test]
fn nodes_are_shown_by_the_names_that_qemu_gives_them() {
    let dir = scratch();
    let (raw, copy) = (dir.path().join("disk.raw"), dir.path().join("copy.qcow2"));
    image::create(&raw, "raw", "", MIB);
    image::create(&copy, "qcow2", "", MIB);
    let file = json!({"driver": "file", "filename": raw});
    let qcow2 = json!({"driver": "qcow2", "file": {"driver": "file", "filename": copy}});
    let shifted = json!({"driver": "raw", "offset": 512, "file": file});
    let verify = |raw: &Value, test: &Value| json!({"driver": "blkverify", "raw": raw, "test": test});
    let errors = json!([{"event": "read_aio", "errno": 5, "once": true}, {"event": "write_aio"}]);
    let states = json!([{"event": "flush_to_os", "new_state": 2}]);
    let debug = json!({"driver": "blkdebug", "inject-error": errors, "set-state": states, "image": file});
    let plain_debug = json!({"driver": "blkdebug", "image": qcow2});
    beside_qemu(|mut daemon: Daemon| {
        let mut seen = Vec::new();
        for node in [
            verify(&file, &file),
            verify(&file, &qcow2),
            verify(&file, &shifted),
            debug.clone(),
            json!({"driver": "raw", "file": debug}),
            plain_debug.clone(),
        ] {
            let options = with(with(node, "node-name", "node"), "read-only", true);
            daemon.qmp.ok("blockdev-add", options);
            seen.extend(names(&mut daemon));
            daemon.qmp.ok("blockdev-del", json!({"node-name": "node"}));
        }
        seen
    });
}

#[test]
fn backing_names_are_read_as_qemu_reads_them() {
    let dir = scratch();
    let path = |name: &str| dir.path().join(name);
    let raw = path("disk.raw").display().to_string();
    let copy = path("copy.qcow2").display().to_string();
    image::create(&path("disk.raw"), "raw", "", MIB);
    image::create(&path("copy.qcow2"), "qcow2", "", MIB);
    let list = r#"{"driver":"blkdebug","inject-error.0.event":"read_aio","image.driver":"null-co"}"#;
    let stored = [
        (format!("{raw}\0garbage"), Some("raw")),
        ("\0garbage".to_owned(), Some("raw")),
        (raw.clone(), Some("raw\0x")),
        (format!("blkverify:{raw}:{copy}"), Some("raw")),
        ("blkverify:x".to_owned(), Some("raw")),
        (format!("json:{list}"), None),
        (r#"json:{"driver":"raw"}"#.to_owned(), None),
        (r#"json:{"driver":"raw"}"#.to_owned(), Some("raw")),
        (r#"json:{"driver":"nonsense"}"#.to_owned(), None),
        (
            r#"json:{"driver":"blkverify","raw.driver":"null-co"}"#.to_owned(),
            None,
        ),
        ("json:{'driver':'null-co'}".to_owned(), None),
        (r#"json:{"driver":"raw"}x"#.to_owned(), None),
        (r#"json:{"driver":"raw" "x":1}"#.to_owned(), None),
        (r#"json:{"driver":"raw","driver":"qcow2"}"#.to_owned(), None),
        (r#"json:{"driver":"#.to_owned(), None),
        ("json:".to_owned(), None),
        ("json:[1]".to_owned(), None),
        ("json:\u{1}".to_owned(), None),
        (
            r#"json:{"driver":"null-co","read-only":"maybe"}"#.to_owned(),
            None,
        ),
    ];
    for (number, (name, format)) in stored.iter().enumerate() {
        image::backed_by(&path(&format!("{number}.qcow2")), name, *format);
    }
    beside_qemu(|mut daemon: Daemon| {
        let mut seen = Vec::new();
        for number in 0..stored.len() {
            let mut node = image::over("qcow2", "node", "");
            node["file"] = json!({"driver": "file", "filename": path(&format!("{number}.qcow2"))});
            node["read-only"] = json!(true);
            match daemon.qmp.execute("blockdev-add", node) {
                Ok(_) => {
                    seen.extend(names(&mut daemon));
                    daemon.qmp.ok("blockdev-del", json!({"node-name": "node"}));
                }
                Err(error) => seen.push(json!(error.desc)),
            }
        }
        seen
    });
}
