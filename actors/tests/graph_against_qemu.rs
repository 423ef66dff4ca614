//! The same commands to QEMU's storage daemon and to the graph actor: the same answers, word for word, and the same
//! graph afterwards.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use millpond::graph::{Graph, GraphConfig, GraphHandle, ImplicitOpens, graph_json, system_iothreads};
use millpond_drivers::builtin::builtin;
use millpond_messages::Error;
use millpond_messages::graph::{
    BlockStatistics, IothreadOptions, NamedNodes, Options, RecordBackingFile, Reopen, Resize, SetIothread,
};
use millpond_ring::Engine;
use serde_json::{Value, json};

/// What stands behind every expectation here: files are made, and programs speak the protocol.
const WELL_FORMED: &str = "the test's own input and QEMU's output are well-formed";

fn run(program: &str, arguments: &[&str], input: &str) -> String {
    let child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn();
    let mut child =
        child.unwrap_or_else(|error| panic!("{program}: {error}: install the package qemu-utils"));
    child
        .stdin
        .take()
        .expect(WELL_FORMED)
        .write_all(input.as_bytes())
        .expect(WELL_FORMED);
    let output = child.wait_with_output().expect(WELL_FORMED);
    assert!(output.status.success(), "{program} {arguments:?} failed");
    String::from_utf8(output.stdout).expect(WELL_FORMED)
}

/// What QEMU answers to each command: the return value, or the error's text.
fn ask_qemu(commands: &[(&str, Value)]) -> Vec<Result<Value, String>> {
    let mut input = String::from("{\"execute\": \"qmp_capabilities\"}\n");
    for (command, arguments) in commands {
        input += &json!({"execute": command, "arguments": arguments}).to_string();
        input.push('\n');
    }
    input += "{\"execute\": \"quit\"}\n";
    let output = run(
        "qemu-storage-daemon",
        &["--chardev", "stdio,id=c", "--monitor", "chardev=c"],
        &input,
    );
    let lines = output
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect(WELL_FORMED));
    let replies = lines.skip(2).filter_map(|mut reply| match reply.get("error") {
        Some(error) => Some(Err(error["desc"].as_str().expect(WELL_FORMED).to_owned())),
        None => reply.get_mut("return").map(|value| Ok(value.take())),
    });
    replies.take(commands.len()).collect()
}

fn object(value: &Value) -> Options {
    value.as_object().expect(WELL_FORMED).clone()
}

fn text(value: &Value, name: &str) -> String {
    value[name].as_str().expect(WELL_FORMED).to_owned()
}

/// Gives a command to the graph; answers what QMP would return.
async fn give(graph: &GraphHandle, command: &str, arguments: &Value) -> Result<Value, Error> {
    let done = |()| json!({});
    match command {
        "blockdev-add" => graph.add_node(object(arguments)).await.map(done),
        "blockdev-del" => graph.delete_node(text(arguments, "node-name")).await.map(done),
        "blockdev-reopen" => {
            let nodes = arguments["options"].as_array().expect(WELL_FORMED);
            let reopen = Reopen(nodes.iter().map(object).collect());
            graph.ask(reopen).await.map(done)
        }
        "blockdev-snapshot" => {
            let (node, overlay) = (text(arguments, "node"), text(arguments, "overlay"));
            graph.snapshot(node, overlay).await.map(done)
        }
        "change-backing-file" => {
            let record = RecordBackingFile {
                device: text(arguments, "device"),
                image_node_name: text(arguments, "image-node-name"),
                backing_file: text(arguments, "backing-file"),
            };
            graph.ask(record).await.map(done)
        }
        "block_resize" => {
            let resize = Resize {
                node_name: text(arguments, "node-name"),
                size: arguments["size"].as_u64().expect(WELL_FORMED),
            };
            graph.ask(resize).await.map(done)
        }
        "object-add" => {
            let mut options = object(arguments);
            options.remove("qom-type");
            let options = serde_json::from_value(Value::Object(options)).expect(WELL_FORMED);
            graph.add_iothread(options).await.map(done)
        }
        "x-blockdev-set-iothread" => {
            let set = SetIothread {
                node_name: text(arguments, "node-name"),
                iothread: arguments["iothread"].as_str().map(str::to_owned),
                force: false,
            };
            graph.ask(set).await.map(done)
        }
        "query-named-block-nodes" => {
            let flat = arguments["flat"] == json!(true);
            graph.ask(NamedNodes { flat }).await.map(|nodes| json!(nodes))
        }
        "query-blockstats" => graph
            .ask(BlockStatistics)
            .await
            .map(|statistics| json!(statistics)),
        "x-debug-query-block-graph" => {
            let facts = graph.facts().await?;
            Ok(serde_json::to_value(graph_json(&facts)).expect(WELL_FORMED))
        }
        other => panic!("no request for {other}"),
    }
}

async fn ask_graph(graph: &GraphHandle, commands: &[(&str, Value)]) -> Vec<Result<Value, String>> {
    let mut replies = Vec::new();
    for (command, arguments) in commands {
        let reply = give(graph, command, arguments).await;
        replies.push(reply.map_err(|error| error.to_string()));
    }
    replies
}

fn ask_millpond(commands: &[(&str, Value)]) -> Vec<Result<Value, String>> {
    actix_rt::System::new().block_on(async {
        let main: IothreadOptions = serde_json::from_value(json!({"id": "main"})).expect(WELL_FORMED);
        let (_, graph) = Graph::start(GraphConfig {
            registry: builtin(),
            implicit: ImplicitOpens::Allow,
            iothreads: system_iothreads(Engine::Auto),
            main,
        })
        .expect(WELL_FORMED);
        let replies = ask_graph(&graph, commands).await;
        graph.close_all().await.expect(WELL_FORMED);
        replies
    })
}

/// Names that a machine gave differ, so each becomes the number of its place in the reply.
fn name_generated(value: &mut Value, names: &mut BTreeMap<String, usize>) {
    match value {
        Value::String(text) if text.starts_with("#block") => {
            let next = names.len();
            *value = json!(format!("generated {}", names.entry(text.clone()).or_insert(next)));
        }
        Value::Array(items) => items.iter_mut().for_each(|item| name_generated(item, names)),
        Value::Object(members) => members
            .values_mut()
            .for_each(|member| name_generated(member, names)),
        _ => {}
    }
}

/// Values that may differ: what is on disk depends on how space was allocated.
fn normalize(command: &str, mut reply: Value) -> Value {
    if command == "query-blockstats" {
        zero_numbers(&mut reply);
    }
    name_generated(&mut reply, &mut BTreeMap::new());
    reply
}

/// QEMU's daemon counts nothing but what devices ask, and has none: nothing is idle, failed or invalid there.
fn zero_numbers(value: &mut Value) {
    match value {
        Value::Number(_) => *value = json!(0),
        Value::Array(items) => items.iter_mut().for_each(zero_numbers),
        Value::Object(members) => {
            members.remove("idle_time_ns");
            for name in ["account_failed", "account_invalid"] {
                members.entry(name).and_modify(|counted| *counted = json!(false));
            }
            members.values_mut().for_each(zero_numbers);
        }
        _ => {}
    }
}

/// Where two replies differ, a line a place.
fn difference(place: &str, seen: &Value, expected: &Value, lines: &mut Vec<String>) {
    match (seen, expected) {
        (Value::Object(one), Value::Object(two)) => {
            let keys: BTreeSet<_> = one.keys().chain(two.keys()).collect();
            for key in keys {
                let at = format!("{place}.{key}");
                let absent = json!("(absent)");
                difference(
                    &at,
                    one.get(key).unwrap_or(&absent),
                    two.get(key).unwrap_or(&absent),
                    lines,
                );
            }
        }
        (Value::Array(one), Value::Array(two)) if one.len() == two.len() => {
            for (at, (one, two)) in one.iter().zip(two).enumerate() {
                difference(&format!("{place}[{at}]"), one, two, lines);
            }
        }
        _ if seen == expected => {}
        _ => lines.push(format!("{place}\n    millpond: {seen}\n    qemu:     {expected}")),
    }
}

fn copy_all(from: &Path, to: &Path) {
    // Holes stay holes: how much space files take is compared.
    let source = format!("{}/.", from.display());
    run(
        "cp",
        &["-a", "--sparse=always", &source, to.to_str().expect(WELL_FORMED)],
        "",
    );
}

fn compare(directory: &Path, commands: &[(&str, Value)]) {
    let copy = tempfile::tempdir().expect(WELL_FORMED);
    copy_all(directory, copy.path());
    copy_all(copy.path(), directory);
    let expected = ask_qemu(commands);
    copy_all(copy.path(), directory);
    let seen = ask_millpond(commands);
    assert_eq!(seen.len(), expected.len());
    let mut lines = Vec::new();
    for (((command, arguments), seen), expected) in commands.iter().zip(seen).zip(expected) {
        let show = |reply: Result<Value, String>| match reply {
            Ok(value) => normalize(command, value),
            Err(text) => json!(format!("error: {text}")),
        };
        difference(
            &format!("{command} {arguments}: "),
            &show(seen),
            &show(expected),
            &mut lines,
        );
    }
    assert!(lines.is_empty(), "\n{}", lines.join("\n"));
}

struct Images(tempfile::TempDir);

impl Images {
    fn new() -> Self {
        let images = Self(tempfile::tempdir().expect(WELL_FORMED));
        images.create(&["raw"], "r.raw");
        images.create(&["qcow2"], "b.qcow2");
        images.create(&["qcow2"], "o.qcow2");
        images.create(&["qcow2", "-b", "b.qcow2", "-F", "qcow2"], "t.qcow2");
        images.create(&["qcow2", "-u", "-b", "nope.qcow2", "-F", "qcow2"], "m.qcow2");
        images
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().expect(WELL_FORMED).to_owned()
    }

    fn create(&self, options: &[&str], name: &str) {
        let path = self.path(name);
        let mut arguments = vec!["create", "-q", "-f"];
        arguments.extend(options);
        arguments.extend([path.as_str(), "1M"]);
        run("qemu-img", &arguments, "");
    }

    fn file(&self, name: &str) -> Value {
        json!({"driver": "file", "filename": self.path(name)})
    }

    fn named(&self, file: &str, node: &str) -> Value {
        json!({"driver": "file", "filename": self.path(file), "node-name": node})
    }
}

fn add(options: Value) -> (&'static str, Value) {
    ("blockdev-add", options)
}

fn del(name: &str) -> (&'static str, Value) {
    ("blockdev-del", json!({"node-name": name}))
}

fn reopen(options: Value) -> (&'static str, Value) {
    ("blockdev-reopen", json!({"options": [options]}))
}

fn snapshot(node: &str, overlay: &str) -> (&'static str, Value) {
    ("blockdev-snapshot", json!({"node": node, "overlay": overlay}))
}

fn resize(name: &str, size: u64) -> (&'static str, Value) {
    ("block_resize", json!({"node-name": name, "size": size}))
}

fn questions() -> [(&'static str, Value); 3] {
    [
        ("query-named-block-nodes", json!({"flat": true})),
        ("query-named-block-nodes", json!({"flat": false})),
        ("x-debug-query-block-graph", json!({})),
    ]
}

#[test]
fn names_and_missing_things() {
    let images = Images::new();
    let mut commands = vec![
        add(json!({"driver": "null-co"})),
        add(json!({"driver": "null-co", "node-name": "1x"})),
        add(json!({"driver": "null-co", "node-name": "a".repeat(32)})),
        add(json!({"driver": "null-co", "node-name": "a".repeat(31)})),
        add(json!({"driver": "null-co", "node-name": "a".repeat(31)})),
        add(json!({"driver": "null-co", "node-name": "a#b"})),
        add(json!({"driver": "raw", "node-name": "x", "file": "nope"})),
        add(json!({"driver": "raw", "node-name": "x", "file": images.file("nope.raw")})),
        add(json!({"driver": "qcow2", "node-name": "x", "file": images.file("r.raw")})),
        add(json!({"driver": "qcow2", "node-name": "m", "file": images.file("m.qcow2")})),
        add(json!({"driver": "null-co", "node-name": "x", "detect-zeroes": "unmap"})),
        add(json!({"driver": "null-co", "node-name": "x", "detect-zeroes": "unmap", "discard": "unmap"})),
        add(json!({"driver": "raw", "node-name": "y", "file": {"driver": "null-co", "node-name": "x"}})),
        add(json!({"driver": "raw", "node-name": "y", "file": "x"})),
        add(json!({"driver": "null-co", "node-name": "fs", "force-share": true})),
        add(json!({"driver": "null-co", "node-name": "fs", "force-share": true, "read-only": true})),
        del("nope"),
        del("x"),
        del("y"),
        del("x"),
    ];
    commands.extend(questions());
    compare(images.0.path(), &commands);
}

#[test]
fn what_nodes_inherit_and_how_they_are_shown() {
    let images = Images::new();
    let mut commands = vec![
        add(
            json!({"driver": "qcow2", "node-name": "t", "file": images.file("t.qcow2"), "read-only": true,
            "cache": {"no-flush": true}, "detect-zeroes": "on"}),
        ),
        add(
            json!({"driver": "qcow2", "node-name": "t2", "file": images.file("t.qcow2"), "read-only": true,
            "backing": null}),
        ),
        add(json!({"driver": "null-co", "node-name": "n", "size": 65536})),
        add(json!({"driver": "null-co", "node-name": "n0", "latency-ns": 5})),
        add(json!({"driver": "raw", "node-name": "rn", "file": {"driver": "null-co", "read-zeroes": true}})),
        add(
            json!({"driver": "qcow2", "node-name": "t3", "file": images.file("t.qcow2"), "read-only": true,
            "backing": "n"}),
        ),
        add(
            json!({"driver": "raw", "node-name": "part", "offset": 512, "size": 1024,
            "file": images.file("r.raw")}),
        ),
        add(json!({"driver": "raw", "node-name": "whole", "file": "n"})),
        add(json!({"driver": "qcow2", "node-name": "b", "file": images.file("b.qcow2"), "read-only": true})),
        add(
            json!({"driver": "qcow2", "node-name": "t4", "file": images.file("t.qcow2"), "read-only": true,
            "backing": "b"}),
        ),
        add(json!({"driver": "qcow2", "node-name": "t5",
            "file": {"driver": "file", "filename": images.path("o.qcow2"), "read-only": true}})),
    ];
    commands.push(("query-blockstats", json!({"query-nodes": true})));
    commands.extend(questions());
    compare(images.0.path(), &commands);
}

#[test]
fn permissions_and_locks() {
    let images = Images::new();
    let mut commands = vec![
        add(json!({"driver": "qcow2", "node-name": "q", "file": images.named("t.qcow2", "tf")})),
        add(json!({"driver": "qcow2", "node-name": "q2", "file": "tf"})),
        add(json!({"driver": "qcow2", "node-name": "q3", "file": images.file("b.qcow2"), "backing": null})),
        add(json!({"driver": "qcow2", "node-name": "q4", "file": images.file("t.qcow2")})),
        del("tf"),
        resize("tf", 1 << 21),
        resize("nope", 1),
        resize("q", 1 << 21),
        resize("q", (1 << 21) + 1),
        resize("q", i64::MAX as u64),
    ];
    commands.extend(questions());
    compare(images.0.path(), &commands);
}

#[test]
fn snapshots() {
    let images = Images::new();
    let mut commands = vec![
        add(json!({"driver": "qcow2", "node-name": "b", "file": images.file("b.qcow2")})),
        add(json!({"driver": "qcow2", "node-name": "o", "file": images.file("o.qcow2"), "backing": null})),
        add(json!({"driver": "qcow2", "node-name": "t", "file": images.file("t.qcow2"), "backing": "b"})),
        add(json!({"driver": "null-co", "node-name": "n"})),
        snapshot("x", "o"),
        snapshot("b", "x"),
        snapshot("n", "t"),
        snapshot("t", "n"),
        snapshot("b", "n"),
        snapshot("t", "b"),
        snapshot("b", "b"),
        snapshot("t", "t"),
        snapshot("t", "o"),
        del("b"),
        del("t"),
        resize("t", 1 << 21),
    ];
    commands.extend(questions());
    commands.extend([del("o"), del("t"), del("b"), del("n")]);
    commands.extend(questions());
    compare(images.0.path(), &commands);
}

#[test]
fn reopens() {
    let images = Images::new();
    let mut commands = vec![
        add(json!({"driver": "qcow2", "node-name": "b", "file": images.named("b.qcow2", "bf")})),
        add(
            json!({"driver": "qcow2", "node-name": "o", "file": images.named("o.qcow2", "of"), "backing": null}),
        ),
        add(json!({"driver": "raw", "node-name": "r", "file": images.named("r.raw", "rf")})),
        reopen(json!({"driver": "qcow2", "node-name": "nope", "file": "bf"})),
        reopen(json!({"driver": "raw", "node-name": "b", "file": "bf"})),
        reopen(json!({"driver": "qcow2", "node-name": "b", "file": images.file("b.qcow2")})),
        reopen(json!({"driver": "qcow2", "node-name": "b", "file": "of"})),
        reopen(json!({"driver": "qcow2", "node-name": "b", "file": "bf", "read-only": true})),
        reopen(json!({"driver": "qcow2", "node-name": "o", "file": "of", "backing": "b"})),
        reopen(json!({"driver": "qcow2", "node-name": "b", "file": "bf", "backing": "o"})),
    ];
    commands.extend(questions());
    commands.extend([
        reopen(json!({"driver": "qcow2", "node-name": "o", "file": "of"})),
        reopen(json!({"driver": "qcow2", "node-name": "o", "file": "of", "backing": null})),
        reopen(json!({"driver": "qcow2", "node-name": "o", "file": "of"})),
        reopen(json!({"driver": "qcow2", "node-name": "o", "file": "of", "backing": "o"})),
        reopen(json!({"driver": "raw", "node-name": "r", "file": "rf", "offset": 512})),
        reopen(json!({"driver": "file", "node-name": "rf", "filename": images.path("b.qcow2")})),
        reopen(
            json!({"driver": "file", "node-name": "rf", "filename": images.path("r.raw"), "read-only": true}),
        ),
        reopen(
            json!({"driver": "file", "node-name": "rf", "filename": images.path("r.raw"), "locking": "off"}),
        ),
        reopen(json!({"driver": "raw", "node-name": "r", "file": "nonode"})),
        reopen(json!({"driver": "raw", "node-name": "r", "file": "r"})),
        reopen(json!({"driver": "raw", "node-name": "r", "file": "rf", "detect-zeroes": "on"})),
        reopen(json!({"driver": "file", "filename": images.path("r.raw")})),
    ]);
    commands.extend(questions());
    compare(images.0.path(), &commands);
}

#[test]
fn iothreads() {
    let images = Images::new();
    let iothread = |name: &str, io: Value| {
        (
            "x-blockdev-set-iothread",
            json!({"node-name": name, "iothread": io}),
        )
    };
    let object = |options: Value| ("object-add", options);
    let commands = [
        object(json!({"qom-type": "iothread", "id": "io0"})),
        object(json!({"qom-type": "iothread", "id": "io0"})),
        object(json!({"qom-type": "iothread", "id": "io1", "poll-max-ns": -1})),
        object(json!({"qom-type": "iothread", "id": "io1", "thread-pool-min": 10, "thread-pool-max": 5})),
        add(json!({"driver": "qcow2", "node-name": "b", "file": images.file("b.qcow2")})),
        iothread("b", json!("io0")),
        iothread("x", json!("io0")),
        iothread("b", json!("nope")),
        iothread("b", json!(null)),
        del("b"),
    ];
    compare(images.0.path(), &commands);
}

#[test]
fn whole_trees_are_reopened() {
    let images = Images::new();
    images.create(&["qcow2", "-b", "t.qcow2", "-F", "qcow2"], "u.qcow2");
    images.create(&["qcow2", "-b", "r.raw", "-F", "raw"], "v.qcow2");
    let tree = |name: &str, extra: Value| {
        let mut options = object(&json!({"driver": "qcow2", "node-name": name,
            "file": images.file(&format!("{name}.qcow2"))}));
        options.extend(object(&extra));
        Value::Object(options)
    };
    let backing = json!({"driver": "qcow2", "file": images.file("t.qcow2"),
        "backing": {"driver": "qcow2", "file": images.file("b.qcow2")}});
    let mut commands = vec![
        add(tree("u", json!({"node-name": "u", "cache": {"no-flush": true}}))),
        add(tree("v", json!({}))),
        add(json!({"driver": "raw", "node-name": "over", "file": "v"})),
    ];
    commands.extend(questions());
    commands.extend([
        reopen(tree("u", json!({"backing": backing}))),
        reopen(tree("u", json!({"backing": backing, "read-only": true}))),
        reopen(tree(
            "u",
            json!({"backing": backing, "discard": "unmap", "detect-zeroes": "unmap"}),
        )),
        reopen(tree("u", json!({"backing": null}))),
    ]);
    commands.extend(questions());
    commands.extend([
        reopen(tree("u", json!({"backing": "v"}))),
        reopen(tree("v", json!({"backing": null}))),
        reopen(json!({"driver": "raw", "node-name": "over", "file": "u"})),
    ]);
    commands.extend(questions());
    let both = [
        tree("v", json!({"backing": null})),
        tree("u", json!({"backing": "v", "read-only": true})),
    ];
    commands.extend([
        ("blockdev-reopen", json!({"options": both})),
        (
            "blockdev-reopen",
            json!({"options": [both[0], {"driver": "raw", "node-name": "nope", "file": "u"}]}),
        ),
        del("u"),
        del("v"),
        del("over"),
        del("u"),
        del("v"),
    ]);
    commands.extend(questions());
    compare(images.0.path(), &commands);
}

#[test]
fn filters_that_fail_requests() {
    let images = Images::new();
    let debug = |more: Value| {
        let mut options = json!({"driver": "blkdebug", "node-name": "d", "image": "f"});
        options.as_object_mut().expect(WELL_FORMED).extend(object(&more));
        add(options)
    };
    let mut commands = vec![add(images.named("r.raw", "f"))];
    for wrong in [
        json!({"align": 3}),
        json!({"align": 1_u64 << 31}),
        json!({"align": 512, "max-transfer": 513}),
        json!({"max-transfer": -1}),
        json!({"align": 512, "opt-write-zero": 513}),
        json!({"align": 512, "opt-write-zero": 1024, "max-write-zero": 1536}),
        json!({"align": 512, "opt-discard": 100}),
        json!({"align": 512, "opt-discard": 1024, "max-discard": 1536}),
        json!({"config": "/nonexistent"}),
        json!({"image": "nope"}),
    ] {
        commands.push(debug(wrong));
    }
    for right in [
        json!({}),
        json!({"align": 4096}),
        json!({"take-child-perms": ["write"], "unshare-child-perms": ["resize", "write"]}),
        json!({"unshare-child-perms": ["consistent-read"], "read-only": true}),
    ] {
        commands.push(debug(right));
        commands.push(add(json!({"driver": "raw", "node-name": "r", "file": "d"})));
        commands.push(add(json!({"driver": "raw", "node-name": "s", "file": "f"})));
        commands.extend(questions());
        commands.extend([del("s"), del("d"), del("r"), del("d")]);
    }
    commands.push(add(images.named("t.qcow2", "t")));
    let image = json!({"driver": "blkdebug", "node-name": "d", "image": "t"});
    commands.push(add(json!({"driver": "qcow2", "node-name": "q", "file": image})));
    commands.push(reopen(
        json!({"driver": "blkdebug", "node-name": "d", "image": "t", "align": 512}),
    ));
    commands.push(reopen(
        json!({"driver": "blkdebug", "node-name": "d", "image": "t"}),
    ));
    commands.push(resize("d", 2 << 20));
    commands.push(resize("q", 2 << 20));
    commands.extend(questions());
    compare(images.0.path(), &commands);
}

fn change_backing_file(device: &str, image: &str, name: &str) -> (&'static str, Value) {
    let arguments = json!({"device": device, "image-node-name": image, "backing-file": name});
    ("change-backing-file", arguments)
}

#[test]
fn backing_files_get_other_names() {
    let images = Images::new();
    images.create(&["qcow2", "-b", "t.qcow2", "-F", "qcow2"], "s.qcow2");
    let mut commands = vec![
        add(json!({"driver": "qcow2", "node-name": "b", "file": images.file("b.qcow2")})),
        add(json!({"driver": "qcow2", "node-name": "t", "read-only": true,
            "file": images.named("t.qcow2", "tf"), "backing": "b"})),
        add(json!({"driver": "qcow2", "node-name": "s", "file": images.file("s.qcow2"), "backing": "t"})),
        add(json!({"driver": "raw", "node-name": "r", "file": images.file("r.raw")})),
        change_backing_file("s", "t", &images.path("b.qcow2")),
    ];
    commands.extend(questions());
    commands.extend([
        change_backing_file("s", "t", "elsewhere"),
        change_backing_file("s", "s", ""),
    ]);
    commands.extend(questions());
    commands.extend([
        change_backing_file("s", "s", "t.qcow2"),
        change_backing_file("s", "t", &"x".repeat(1023)),
        change_backing_file("s", "t", "b.qcow2"),
    ]);
    commands.extend(questions());
    commands.extend([
        change_backing_file("nope", "t", "x"),
        change_backing_file("s", "nope", "x"),
        change_backing_file("s", "b", "x"),
        change_backing_file("t", "t", "x"),
        change_backing_file("r", "t", "x"),
        change_backing_file("r", "r", "x"),
        change_backing_file("s", "tf", "x"),
        change_backing_file("", "t", "x"),
        change_backing_file("s", "", "x"),
    ]);
    // The name that QEMU shows after this is the one that it could not store.
    commands.push(change_backing_file("s", "t", &"x".repeat(1024)));
    compare(images.0.path(), &commands);
}

#[test]
fn filters_that_copy_on_read() {
    let images = Images::new();
    let top = json!({"driver": "qcow2", "node-name": "t", "file": images.file("t.qcow2")});
    let cor = |more: Value| {
        let mut options = json!({"driver": "copy-on-read", "node-name": "c", "file": "t"});
        options.as_object_mut().expect(WELL_FORMED).extend(object(&more));
        add(options)
    };
    let mut commands = vec![add(top)];
    commands.push(cor(json!({"bottom": "nope"})));
    for right in [json!({}), json!({"read-only": true}), json!({"bottom": "t"})] {
        commands.push(cor(right));
        commands.push(add(json!({"driver": "raw", "node-name": "r", "file": "c"})));
        commands.extend(questions());
        commands.extend([del("c"), del("r"), del("c")]);
    }
    commands.push(add(
        json!({"driver": "null-co", "node-name": "n", "read-only": true}),
    ));
    commands.push(cor(json!({"file": "n"})));
    compare(images.0.path(), &commands);
}
