//! `x-millpond-block-commit-plan` and `x-millpond-block-stream-plan` beside what the jobs do then.

use std::path::Path;

use millpond_tests::daemon::{Daemon, daemon};
use millpond_tests::layers::{self, LAYERS, SIZE};
use millpond_tests::{image, tool};
use serde_json::{Value, json};

/// A daemon with the chain open as `n0` to `n3`.
fn open_chain(read_only: bool) -> Daemon {
    let mut daemon = daemon().start();
    layers::make(daemon.dir());
    for number in 0..LAYERS {
        let path = layers::path(daemon.dir(), number);
        let read_only = read_only && number < LAYERS - 1;
        let file = json!({"driver": "file", "node-name": format!("f{number}"), "filename": path,
            "discard": "unmap"});
        daemon.qmp.ok("blockdev-add", file);
        let below = number.checked_sub(1).map(|below| format!("n{below}"));
        let mut node = image::over("qcow2", &format!("n{number}"), &format!("f{number}"));
        node["backing"] = json!(below);
        node["read-only"] = json!(read_only);
        daemon.qmp.ok("blockdev-add", node);
    }
    daemon
}

fn plan(daemon: &mut Daemon, command: &str, arguments: &Value) -> Value {
    let (graph, drains) = (graph(daemon), drains(daemon));
    let plan = daemon
        .qmp
        .ok(&format!("x-millpond-{command}-plan"), arguments.clone());
    assert!(graph == self::graph(daemon), "a plan leaves the graph as it was");
    assert_eq!(drains, self::drains(daemon), "a plan drains nothing");
    plan
}

/// The whole graph, with permissions, and what may be done with its nodes.
fn graph(daemon: &mut Daemon) -> [Value; 2] {
    let mut shown = daemon.qmp.ok("x-debug-query-block-graph", json!({}));
    let edges = shown["edges"].as_array_mut().expect("a list of edges");
    edges.sort_by_key(ToString::to_string);
    let nodes = daemon.qmp.ok("query-named-block-nodes", json!({"flat": true}));
    [shown, nodes]
}

/// How often what runs on iothreads has been held up so far.
fn drains(daemon: &mut Daemon) -> Value {
    daemon.qmp.ok("x-millpond-query-drains", json!({}))
}

/// The nodes of a chain from `top` on.
fn chain(daemon: &mut Daemon, top: &str) -> Vec<String> {
    let shown = daemon.qmp.ok("x-debug-query-block-graph", json!({}));
    let name = |id: &Value| {
        let nodes = shown["nodes"].as_array().expect("a list of nodes");
        let node = nodes.iter().find(|node| node["id"] == *id);
        node.expect("an edge has nodes")["name"].clone()
    };
    let edges = shown["edges"].as_array().expect("a list of edges");
    let mut chain = vec![top.to_owned()];
    while let Some(edge) = edges.iter().find(|edge| {
        edge["name"] == "backing" && chain.last().is_some_and(|last| name(&edge["parent"]) == *last)
    }) {
        chain.push(name(&edge["child"]).as_str().expect("a name").to_owned());
    }
    chain
}

/// Bytes that a node has been asked to write.
fn written(daemon: &mut Daemon, node: &str) -> u64 {
    let nodes = daemon.qmp.ok("query-blockstats", json!({"query-nodes": true}));
    let mut nodes = nodes.as_array().expect("a list of nodes").iter();
    let found = nodes.find(|each| each["node-name"] == node);
    found.expect("the node is there")["stats"]["wr_bytes"]
        .as_u64()
        .expect("a number")
}

/// Bytes for which an image has room of its own.
fn room(dir: &Path, node: &str) -> u64 {
    let number = node.trim_start_matches('n').parse().expect("a number");
    let path = layers::path(dir, number).display().to_string();
    let check = tool::run_json(
        "qemu-img",
        &["check", "-U", "--output=json", "-f", "qcow2", &path],
    );
    check["allocated-clusters"].as_u64().expect("a number") * 65_536
}

fn number(value: &Value) -> u64 {
    value.as_u64().expect("a number")
}

/// Runs a job to its end, and compares what it did with its plan.
fn as_planned(read_only: bool, command: &str, mut arguments: Value) -> Value {
    let mut daemon = open_chain(read_only);
    let dir = daemon.dir().to_path_buf();
    arguments["job-id"] = json!("j");
    arguments["auto-dismiss"] = json!(false);
    let top = arguments["device"].as_str().expect("a device").to_owned();
    let plan = plan(&mut daemon, command, &arguments);
    let target = plan["target"].as_str().expect("a node").to_owned();
    let before = (
        chain(&mut daemon, &top),
        written(&mut daemon, &target),
        room(&dir, &target),
    );
    daemon.qmp.ok(command, arguments);
    if plan["active"] == true {
        daemon.qmp.wait_event("BLOCK_JOB_READY");
        daemon.qmp.ok("job-complete", json!({"id": "j"}));
    }
    daemon
        .qmp
        .wait_event_where("JOB_STATUS_CHANGE", |data| data["status"] == "concluded");
    let job = daemon.qmp.ok("query-block-jobs", json!({}))[0].clone();
    assert_eq!(job["error"], Value::Null);
    assert_eq!(job["offset"], job["len"]);
    if plan["active"] == true {
        assert_eq!(
            number(&job["len"]),
            number(&plan["data"]) + number(&plan["zeroes"]),
            "{plan}"
        );
    } else {
        assert_eq!(job["len"], plan["len"], "{plan}");
    }
    assert_eq!(plan["seen"], plan["len"]);
    let top = if plan["active"] == true {
        target.clone()
    } else {
        top
    };
    let after = chain(&mut daemon, &top);
    let gone: Vec<&String> = before.0.iter().filter(|node| !after.contains(node)).collect();
    assert_eq!(json!(gone), plan["leaves"]);
    if let Some(overlay) = plan["overlay"].as_str() {
        let at = after.iter().position(|node| node == overlay).expect("it stays");
        assert_eq!(json!(after.get(at + 1)), plan["backing"], "{after:?}");
    }
    // What a stream stores in the image that it reads is no request of anybody's.
    if command == "block-commit" {
        let planned = number(&plan["data"]) + number(&plan["zeroes"]);
        assert_eq!(written(&mut daemon, &target) - before.1, planned, "{plan}");
    }
    daemon.qmp.quit();
    daemon.expect_clean_exit();
    assert_eq!(room(&dir, &target) - before.2, number(&plan["room"]), "{plan}");
    plan
}

#[test]
fn a_commit_does_what_its_plan_says() {
    let plan = as_planned(
        false,
        "block-commit",
        json!({"device": "n3", "top-node": "n2", "base-node": "n0"}),
    );
    let zeroes = 64 << 10;
    let expected = json!({"active": false, "target": "n0", "leaves": ["n2", "n1"], "overlay": "n3",
        "backing": "n0", "reopens": [], "len": SIZE, "seen": SIZE, "data": (3 << 20) - zeroes,
        "zeroes": zeroes, "room": (2 << 20) - zeroes});
    assert_eq!(plan, expected);
    let plan = as_planned(true, "block-commit", json!({"device": "n3", "top-node": "n1"}));
    assert_eq!(plan["reopens"], json!(["n0", "n2"]));
    let plan = as_planned(false, "block-commit", json!({"device": "n3"}));
    assert_eq!(plan["leaves"], json!(["n3", "n2", "n1"]));
    assert_eq!(plan["active"], true);
    let plan = as_planned(true, "block-commit", json!({"device": "n3", "base-node": "n2"}));
    assert_eq!(
        (&plan["reopens"], &plan["leaves"]),
        (&json!(["n2"]), &json!(["n3"]))
    );
}

#[test]
fn a_stream_does_what_its_plan_says() {
    let plan = as_planned(false, "block-stream", json!({"device": "n3", "base-node": "n0"}));
    assert_eq!(
        (&plan["leaves"], &plan["backing"]),
        (&json!(["n2", "n1"]), &json!("n0"))
    );
    let plan = as_planned(true, "block-stream", json!({"device": "n2", "bottom": "n1"}));
    assert_eq!(
        (&plan["leaves"], &plan["reopens"]),
        (&json!(["n1"]), &json!(["n2"]))
    );
    let plan = as_planned(false, "block-stream", json!({"device": "n3"}));
    assert_eq!((&plan["overlay"], &plan["backing"]), (&json!("n3"), &Value::Null));
    let nothing = as_planned(false, "block-stream", json!({"device": "n0"}));
    assert_eq!((&nothing["data"], &nothing["leaves"]), (&json!(0), &json!([])));
}

/// The base is shorter than what is merged into it.
#[test]
fn a_plan_says_how_far_a_base_grows() {
    let mut daemon = daemon().start();
    let (base, top) = (daemon.dir().join("base"), daemon.dir().join("top"));
    image::create(&base, "qcow2", "", SIZE);
    image::create_overlay(&top, "", &base, "qcow2", Some(2 * SIZE));
    let end = format!("write -P 9 {} 1M", 2 * SIZE - (1 << 20));
    tool::qemu_io(&["-f", "qcow2", &top.display().to_string()], &[&end]);
    for (name, path) in [("base", &base), ("top", &top)] {
        let mut node = image::over("qcow2", name, &format!("{name}-file"));
        node["backing"] = if name == "top" { json!("base") } else { Value::Null };
        daemon
            .qmp
            .ok("blockdev-add", image::file(&format!("{name}-file"), path));
        daemon.qmp.ok("blockdev-add", node);
    }
    let plan = plan(
        &mut daemon,
        "block-commit",
        &json!({"job-id": "j", "device": "top"}),
    );
    let counted = [&plan["grows-to"], &plan["data"], &plan["room"]];
    assert_eq!(counted, [&json!(2 * SIZE), &json!(1 << 20), &json!(1 << 20)]);
}

/// What is refused is refused in the same words, and of the same class, as by the command.
#[test]
fn a_plan_is_refused_as_the_job_is() {
    let mut daemon = open_chain(false);
    let alone = json!({"driver": "null-co", "node-name": "u", "read-zeroes": true});
    daemon.qmp.ok("blockdev-add", alone);
    let mut jobs = layers::refused_jobs(daemon.dir());
    for device in ["missing", "n3"] {
        jobs.push(("block-stream", json!({"device": device, "speed": -1})));
        jobs.push((
            "block-commit",
            json!({"device": device, "speed": -1, "filter-node-name": "n1"}),
        ));
    }
    for name in ["n1", "#1"] {
        let commit = json!({"device": "n3", "top-node": "n2", "filter-node-name": name});
        jobs.push(("block-commit", commit.clone()));
        jobs.push(("block-commit", json!({"device": "n3", "filter-node-name": name})));
        let mut fast = commit;
        fast["speed"] = json!(-1);
        jobs.push(("block-commit", fast));
    }
    for (command, mut arguments) in jobs {
        for id in ["j", "#"] {
            arguments["job-id"] = json!(id);
            let plan = format!("x-millpond-{command}-plan");
            let planned = daemon.qmp.refused(&plan, arguments.clone());
            let refused = daemon.qmp.refused(command, arguments.clone());
            let said = |error: millpond_tests::qmp::QmpError| (error.class, error.desc);
            assert_eq!(said(planned), said(refused), "{command} {arguments}");
        }
    }
    // Another job has to do with the chain.
    let slow = json!({"job-id": "k", "device": "n3", "speed": 1, "base-node": "n1"});
    daemon.qmp.ok("block-stream", slow);
    for (id, device) in [("k", "n3"), ("j", "n3"), ("j", "n2")] {
        for command in ["block-stream", "block-commit"] {
            let job = json!({"job-id": id, "device": device});
            let planned = daemon
                .qmp
                .refused(&format!("x-millpond-{command}-plan"), job.clone());
            let refused = daemon.qmp.refused(command, job);
            assert_eq!((planned.class, planned.desc), (refused.class, refused.desc));
        }
    }
}
