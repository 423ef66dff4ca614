//! Every option of every driver, given to `blockdev-reopen`: which may be changed, which may be left out, and the words for
//! those that may not, beside QEMU's daemon.

use std::path::Path;

use millpond_tests::beside::{Command, same_answers};
use millpond_tests::daemon::{Daemon, daemon_in, scratch};
use millpond_tests::image;
use millpond_tests::program::oracle;
use serde_json::{Value, json};

/// A driver: the options that a node needs, and two values of each option there is.
struct Driver {
    name: &'static str,
    needs: Value,
    options: Vec<(&'static str, Value, Value)>,
}

/// What every node takes.
fn common() -> Vec<(&'static str, Value, Value)> {
    vec![
        ("discard", json!("unmap"), json!("ignore")),
        ("cache", json!({"direct": true}), json!({"direct": false})),
        ("cache", json!({"no-flush": true}), json!({"no-flush": false})),
        ("read-only", json!(true), json!(false)),
        ("auto-read-only", json!(true), json!(false)),
        ("force-share", json!(false), json!(true)),
        ("detect-zeroes", json!("on"), json!("off")),
        ("detect-zeroes", json!("unmap"), json!("on")),
    ]
}

fn drivers(dir: &Path) -> Vec<Driver> {
    let path = |name: &str| json!(dir.join(name));
    let (first, second) = (1 << 20, 2 << 20);
    let sizes = |name| (name, json!(4096), json!(8192));
    let switch = |name| (name, json!(true), json!(false));
    vec![
        Driver {
            name: "file",
            needs: json!({"filename": path("raw2")}),
            // Not here: `aio-max-batch`, which QEMU refuses also as it is; `pr-manager`, which ends QEMU.
            options: vec![
                ("filename", path("raw2"), path("raw3")),
                ("aio", json!("threads"), json!("native")),
                ("locking", json!("on"), json!("off")),
                ("drop-cache", json!(false), json!(true)),
                switch("x-check-cache-dropped"),
            ],
        },
        Driver {
            name: "null-co",
            needs: json!({}),
            options: vec![
                ("size", json!(first), json!(second)),
                ("latency-ns", json!(1000), json!(2000)),
                switch("read-zeroes"),
            ],
        },
        Driver {
            name: "raw",
            needs: json!({"file": "r0"}),
            options: vec![
                ("file", json!("r0"), json!("r1")),
                ("offset", json!(512), json!(1024)),
                ("size", json!(512), json!(1024)),
            ],
        },
        Driver {
            name: "qcow2",
            needs: json!({"file": "fx", "backing": null}),
            options: vec![
                ("file", json!("fx"), json!("fy")),
                ("backing", json!(null), json!("nul")),
                switch("lazy-refcounts"),
                switch("pass-discard-request"),
                switch("pass-discard-snapshot"),
                switch("pass-discard-other"),
                switch("discard-no-unref"),
                ("overlap-check", json!("all"), json!("none")),
                ("cache-size", json!(first), json!(second)),
                ("l2-cache-size", json!(first), json!(second)),
                sizes("l2-cache-entry-size"),
                ("refcount-cache-size", json!(first), json!(second)),
                ("cache-clean-interval", json!(10), json!(20)),
                ("data-file", json!("r0"), json!("r1")),
            ],
        },
        Driver {
            name: "quorum",
            needs: json!({"children": ["r0", "r1"], "vote-threshold": 1}),
            options: vec![
                ("vote-threshold", json!(1), json!(2)),
                switch("rewrite-corrupted"),
                ("read-pattern", json!("fifo"), json!("quorum")),
                switch("blkverify"),
                ("children", json!(["r0", "r1"]), json!(["r1", "r0"])),
                ("children", json!([""]), json!(["nope"])),
            ],
        },
        Driver {
            name: "copy-on-read",
            needs: json!({"file": "qq"}),
            options: vec![
                ("file", json!("qq"), json!("nul")),
                ("bottom", json!("qq"), json!("nul")),
            ],
        },
        Driver {
            name: "throttle",
            needs: json!({"file": "r0", "throttle-group": "tg0"}),
            options: vec![
                ("file", json!("r0"), json!("r1")),
                ("throttle-group", json!("tg0"), json!("tg1")),
            ],
        },
        Driver {
            name: "blkdebug",
            needs: json!({"image": "r0"}),
            options: vec![
                ("image", json!("r0"), json!("r1")),
                ("image", json!(""), json!("nope")),
                ("config", path("config"), path("config2")),
                ("align", json!(512), json!(1024)),
                sizes("max-transfer"),
                sizes("opt-write-zero"),
                sizes("max-write-zero"),
                sizes("opt-discard"),
                sizes("max-discard"),
            ],
        },
        Driver {
            name: "blkverify",
            needs: json!({"raw": "r0", "test": "qq"}),
            options: vec![
                ("raw", json!("r0"), json!("r1")),
                ("test", json!("qq"), json!("r1")),
            ],
        },
        Driver {
            name: "blklogwrites",
            needs: json!({"file": "r0", "log": "r1"}),
            options: vec![
                ("file", json!("r0"), json!("nul")),
                ("log", json!("r1"), json!("nul")),
                ("log-sector-size", json!(512), json!(1024)),
                ("log-super-update-interval", json!(1), json!(2)),
            ],
        },
        Driver {
            name: "compress",
            needs: json!({"file": "qq"}),
            options: vec![("file", json!("qq"), json!("r0"))],
        },
        Driver {
            name: "preallocate",
            needs: json!({"file": "r0"}),
            options: vec![
                ("file", json!("r0"), json!("r1")),
                ("prealloc-align", json!(first), json!(second)),
                ("prealloc-size", json!(first), json!(second)),
            ],
        },
    ]
}

fn file(name: &str, path: &Path) -> Command {
    let node = json!({"driver": "file", "node-name": name, "filename": path, "locking": "off"});
    ("blockdev-add", node)
}

/// The nodes that others stand on.
fn ground(dir: &Path) -> Vec<Command> {
    let group = |id: &str| ("object-add", json!({"qom-type": "throttle-group", "id": id}));
    let mut commands = vec![
        group("tg0"),
        group("tg1"),
        (
            "blockdev-add",
            json!({"driver": "null-co", "node-name": "nul", "size": 1 << 20, "read-zeroes": true}),
        ),
    ];
    let files = [
        ("r0", "raw0"),
        ("r1", "raw1"),
        ("fx", "x"),
        ("fy", "y"),
        ("fz", "z"),
    ];
    commands.extend(files.map(|(name, path)| file(name, &dir.join(path))));
    commands.push((
        "blockdev-add",
        json!({"driver": "qcow2", "node-name": "qq", "file": "fz", "backing": null}),
    ));
    commands
}

fn make_files(dir: &Path) {
    for name in ["raw0", "raw1", "raw2", "raw3"] {
        image::create(&dir.join(name), "raw", "", 1 << 20);
    }
    for name in ["x", "y", "z"] {
        image::create(&dir.join(name), "qcow2", "", 1 << 20);
    }
    for name in ["config", "config2"] {
        std::fs::write(dir.join(name), "").expect("a file can be made");
    }
}

/// Options with one of them changed; `None` leaves it out.
fn with(base: &Value, name: &str, value: Option<&Value>) -> Value {
    let mut options = base.clone();
    match value {
        Some(value) => options[name] = value.clone(),
        None => drop(options.as_object_mut().expect("an object").remove(name)),
    }
    options
}

fn reopen(options: Value) -> Command {
    ("blockdev-reopen", json!({ "options": [options] }))
}

/// A node's life: opened without the option or with it, then reopened with another value, without it, and so on.
fn lives(driver: &Driver, option: &(&'static str, Value, Value)) -> Vec<Vec<Command>> {
    let (name, first, second) = option;
    let mut plain = driver.needs.clone();
    plain["driver"] = json!(driver.name);
    plain["node-name"] = json!("n");
    let is_needed = plain.get(name).is_some();
    let mut starts = vec![plain.clone()];
    if !is_needed {
        starts.push(with(&plain, name, Some(first)));
    }
    let life = |start: Value| {
        let mut commands = vec![("blockdev-add", start)];
        for value in [Some(first), Some(second), None, Some(first)] {
            commands.push(reopen(with(&plain, name, value)));
        }
        commands
    };
    starts.into_iter().map(life).collect()
}

/// What can be seen of how a node is open.
fn mode(daemon: &mut Daemon) -> Value {
    let nodes = daemon.qmp.ok("query-named-block-nodes", json!({"flat": true}));
    let nodes = nodes.as_array().expect("a list").clone();
    let node = nodes.into_iter().find(|node| node["node-name"] == "n");
    node.map_or(Value::Null, |node| {
        let shown = ["ro", "detect_zeroes", "cache", "active"];
        shown.into_iter().map(|key| node[key].clone()).collect()
    })
}

fn replay(mut daemon: Daemon, dir: &Path) -> Vec<String> {
    for (command, arguments) in ground(dir) {
        daemon.qmp.ok(command, arguments);
    }
    let mut told = Vec::new();
    for driver in drivers(dir) {
        for option in driver.options.iter().chain(&common()) {
            for life in lives(&driver, option) {
                for (command, arguments) in life {
                    let answer = match daemon.qmp.execute(command, arguments.clone()) {
                        Ok(_) => mode(&mut daemon).to_string(),
                        Err(error) => error.desc,
                    };
                    told.push(format!("{} {command} {arguments}: {answer}", driver.name));
                }
                // It may not have been opened.
                drop(daemon.qmp.execute("blockdev-del", json!({"node-name": "n"})));
            }
        }
    }
    daemon.quit();
    told
}

#[test]
fn every_option_may_be_changed_or_not_as_in_qemu() {
    let dir = scratch();
    let run = |name: &str, is_theirs: bool| {
        let dir = dir.path().join(name);
        std::fs::create_dir(&dir).expect("a folder can be made");
        make_files(&dir);
        let builder = daemon_in(&dir);
        let builder = if is_theirs {
            builder.program(oracle())
        } else {
            builder
        };
        let told = replay(builder.start(), &dir);
        let place = format!("{}/", dir.display());
        told.into_iter().map(|told| told.replace(&place, "")).collect()
    };
    let (theirs, ours): (Vec<String>, Vec<String>) = (run("theirs", true), run("ours", false));
    assert_eq!(ours.len(), theirs.len());
    let pairs = ours.iter().zip(&theirs).filter(|(ours, theirs)| ours != theirs);
    let different: Vec<String> = pairs
        .map(|(ours, theirs)| format!("ours {ours}\nQEMU {theirs}"))
        .collect();
    assert!(
        different.is_empty(),
        "{} differ:\n{}",
        different.len(),
        different.join("\n")
    );
}

fn qcow2(name: &str, file: &str, backing: Option<Value>) -> Value {
    let mut options = json!({"driver": "qcow2", "node-name": name, "file": file});
    if let Some(backing) = backing {
        options["backing"] = backing;
    }
    options
}

/// An image that names a backing file is reopened with word of what is to be behind it, whatever is there now.
#[test]
fn a_backing_node_is_named_where_there_is_one_or_the_image_names_one() {
    let scratch = scratch();
    let dir = scratch.path();
    image::create(&dir.join("base"), "qcow2", "", 1 << 20);
    image::create_overlay(&dir.join("top"), "", &dir.join("base"), "qcow2", None);
    image::create(&dir.join("plain"), "qcow2", "", 1 << 20);
    let nul = || Some(json!("nul"));
    let none = || Some(Value::Null);
    let commands = [
        (
            "blockdev-add",
            json!({"driver": "null-co", "node-name": "nul", "size": 1 << 20, "read-zeroes": true}),
        ),
        file("tf", &dir.join("top")),
        file("pf", &dir.join("plain")),
        (
            "blockdev-add",
            json!({"driver": "qcow2", "node-name": "hd1", "file": "tf",
                "backing": {"driver": "qcow2", "file": {"driver": "file", "locking": "off", "filename": dir.join("base")}}}),
        ),
        ("blockdev-add", qcow2("hd2", "pf", None)),
        reopen(qcow2("hd1", "tf", None)),
        reopen(qcow2("hd1", "tf", none())),
        reopen(qcow2("hd1", "tf", None)),
        reopen(qcow2("hd1", "tf", nul())),
        reopen(qcow2("hd1", "tf", None)),
        reopen(qcow2("hd1", "tf", none())),
        reopen(qcow2("hd2", "pf", None)),
        reopen(qcow2("hd2", "pf", nul())),
        reopen(qcow2("hd2", "pf", None)),
        reopen(qcow2("hd2", "pf", none())),
        reopen(qcow2("hd2", "pf", None)),
    ];
    same_answers(&commands);
}

#[test]
fn what_others_may_do_to_a_file_is_settled_when_it_is_opened() {
    let scratch = scratch();
    let dir = scratch.path();
    image::create(&dir.join("disk"), "raw", "", 1 << 20);
    let node = |more: Value| {
        let mut options =
            json!({"driver": "file", "node-name": "n", "filename": dir.join("disk"), "locking": "off"});
        for (name, value) in more.as_object().expect("an object") {
            options[name] = value.clone();
        }
        options
    };
    let over = |more: Value, file: Value| {
        let mut options = json!({"driver": "raw", "node-name": "p", "read-only": true, "file": file});
        for (name, value) in more.as_object().expect("an object") {
            options[name] = value.clone();
        }
        options
    };
    let del = |name: &str| ("blockdev-del", json!({"node-name": name}));
    let shared = || json!({"force-share": true, "read-only": true});
    let commands = [
        ("blockdev-add", node(shared())),
        reopen(node(shared())),
        reopen(node(json!({"force-share": false, "read-only": true}))),
        reopen(node(json!({"read-only": true}))),
        reopen(node(json!({"force-share": true}))),
        reopen(node(json!({}))),
        del("n"),
        ("blockdev-add", node(json!({"read-only": true}))),
        reopen(node(shared())),
        reopen(node(json!({"force-share": false}))),
        reopen(node(json!({"read-only": true}))),
        del("n"),
        (
            "blockdev-add",
            over(json!({"force-share": true}), node(json!({}))),
        ),
        reopen(over(json!({"force-share": true}), json!("n"))),
        reopen(over(json!({}), json!("n"))),
        reopen(over(json!({"force-share": true}), node(json!({})))),
        reopen(node(json!({"read-only": true}))),
    ];
    same_answers(&commands);
}

/// An empty name is a name that nobody has, wherever a node can be named.
#[test]
fn an_empty_name_names_no_node() {
    let scratch = scratch();
    let dir = scratch.path();
    make_files(dir);
    let mut commands = ground(dir);
    let add = |options: Value| ("blockdev-add", options);
    commands.extend([
        add(qcow2("q", "fx", Some(Value::Null))),
        add(qcow2("n1", "", None)),
        add(qcow2("n2", "fy", Some(json!("")))),
        ("blockdev-del", json!({"node-name": "n2"})),
        add(json!({"driver": "copy-on-read", "node-name": "n5", "file": "q", "bottom": ""})),
        add(json!({"driver": "blkverify", "node-name": "n6", "raw": "", "test": "q"})),
        add(json!({"driver": "blkverify", "node-name": "n6", "raw": "r0", "test": ""})),
        add(json!({"driver": "blklogwrites", "node-name": "n7", "file": "r0", "log": ""})),
        add(json!({"driver": "blkdebug", "node-name": "n8", "image": ""})),
        add(json!({"driver": "quorum", "node-name": "n9", "vote-threshold": 1, "children": [""]})),
        add(json!({"driver": "throttle", "node-name": "n10", "throttle-group": "", "file": "r0"})),
        add(json!({"driver": "raw", "node-name": "", "file": "r0"})),
        add(json!({"driver": "qcow2", "node-name": "n11", "file": {"driver": "raw", "file": ""}})),
        reopen(qcow2("q", "", Some(Value::Null))),
        reopen(qcow2("q", "fx", Some(json!("")))),
        reopen(qcow2("q", "nope", Some(Value::Null))),
        reopen(qcow2("", "fx", Some(Value::Null))),
    ]);
    for driver in ["raw", "copy-on-read", "preallocate", "compress"] {
        commands.push(add(json!({"driver": driver, "node-name": "n", "file": ""})));
    }
    for driver in ["raw", "preallocate"] {
        commands.extend([
            add(json!({"driver": driver, "node-name": "n", "file": "r0"})),
            reopen(json!({"driver": driver, "node-name": "n", "file": ""})),
            ("blockdev-del", json!({"node-name": "n"})),
        ]);
    }
    commands.extend([
        ("blockdev-del", json!({"node-name": ""})),
        ("blockdev-snapshot", json!({"node": "", "overlay": "q"})),
        ("blockdev-snapshot", json!({"node": "q", "overlay": ""})),
        ("blockdev-set-active", json!({"node-name": "", "active": true})),
        ("x-blockdev-change", json!({"parent": "", "node": "q"})),
        ("x-blockdev-change", json!({"parent": "q", "node": ""})),
        ("x-blockdev-change", json!({"parent": "q", "child": ""})),
        (
            "x-blockdev-set-iothread",
            json!({"node-name": "", "iothread": null}),
        ),
        (
            "x-blockdev-set-iothread",
            json!({"node-name": "q", "iothread": ""}),
        ),
        ("block_resize", json!({"node-name": "", "size": 1 << 20})),
        ("block_resize", json!({"device": "", "size": 1 << 20})),
        (
            "change-backing-file",
            json!({"device": "", "image-node-name": "q", "backing-file": "a"}),
        ),
        (
            "change-backing-file",
            json!({"device": "q", "image-node-name": "", "backing-file": "a"}),
        ),
        (
            "block-export-add",
            json!({"type": "nbd", "id": "e", "node-name": ""}),
        ),
        ("nbd-server-add", json!({"device": ""})),
        (
            "x-blockdev-amend",
            json!({"job-id": "j", "node-name": "", "options": {"driver": "qcow2"}}),
        ),
    ]);
    same_answers(&commands);
}
