//! What ranges are made of, held against `qemu-img map`.
#![allow(clippy::unwrap_used, reason = "a test ends where something fails")]

mod support;

use std::path::Path;
use std::process::Command;

use millpond::graph::GraphHandle;
use millpond::node::Client;
use millpond_messages::graph::{RootRequest, RootUser};
use millpond_messages::io::Operation;
use millpond_messages::{BlockStatus, Permissions, Range, StatusFlags};
use serde_json::{Value, json};
use support::with_graph;

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}: install the package qemu-utils"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}: {text}");
    text
}

async fn open(graph: &GraphHandle, format: &str, path: &Path) -> Client {
    let file = json!({"driver": "file", "filename": path});
    let node = json!({"driver": format, "node-name": "disk", "read-only": true, "file": file});
    graph.add_node(node.as_object().unwrap().clone()).await.unwrap();
    let request = RootRequest::new(
        "disk",
        RootUser::Embedder("test".to_owned()),
        Permissions::CONSISTENT_READ,
    );
    graph.attach(request).await.unwrap()
}

/// One line of a map: start, length, data, zero, compressed, and where it lies if that is known.
type Line = (u64, u64, bool, bool, bool, Option<u64>);

/// A line that goes on as the one before it is part of it.
fn add(lines: &mut Vec<Line>, line: Line) {
    if let Some(last) = lines.last_mut() {
        let follows = last.5.map(|offset| offset + last.1) == line.5;
        if follows && (last.2, last.3, last.4) == (line.2, line.3, line.4) {
            last.1 += line.1;
            return;
        }
    }
    lines.push(line);
}

fn map_of_qemu(format: &str, path: &Path) -> Vec<Line> {
    let text = run(
        "qemu-img",
        &["map", "--output=json", "-f", format, path.to_str().unwrap()],
    );
    let list: Vec<Value> = serde_json::from_str(&text).unwrap();
    let mut lines = Vec::new();
    for entry in list {
        let number = |name: &str| entry[name].as_u64();
        let flag = |name: &str| entry[name].as_bool().unwrap();
        let (start, len) = (number("start").unwrap(), number("length").unwrap());
        let line = (
            start,
            len,
            flag("data"),
            flag("zero"),
            flag("compressed"),
            number("offset"),
        );
        add(&mut lines, line);
    }
    lines
}

async fn map_of(client: &Client) -> Vec<Line> {
    let size = client.length().await.unwrap();
    let (mut lines, mut at) = (Vec::new(), 0);
    while at < size {
        let status = client.block_status(at, size - at, true, true).await.unwrap();
        let has = |flag| status.flags.contains(flag);
        assert!(status.len > 0 && status.len <= size - at);
        assert_eq!(
            has(StatusFlags::EOF),
            at + status.len == size,
            "the end is told where it is"
        );
        assert_eq!(has(StatusFlags::OFFSET_VALID), status.map.is_some());
        assert!(
            !has(StatusFlags::RAW),
            "whoever passes a question on is not heard of"
        );
        add(&mut lines, line(at, &status));
        at += status.len;
    }
    assert_eq!(
        lines,
        map_in_one_go(client, size).await,
        "asked for together, they are the same"
    );
    lines
}

/// What an extent at an offset is, as a line of a map.
fn line(at: u64, status: &BlockStatus) -> Line {
    let has = |flag| status.flags.contains(flag);
    (
        at,
        status.len,
        has(StatusFlags::DATA),
        has(StatusFlags::ZERO),
        has(StatusFlags::COMPRESSED),
        status.map.map(|(_, offset)| offset),
    )
}

async fn map_in_one_go(client: &Client, size: u64) -> Vec<Line> {
    let (mut lines, mut at) = (Vec::new(), 0);
    while at < size {
        let operation = Operation::Map {
            range: Range::new(at, size - at).unwrap(),
            want_zero: true,
            whole_chain: true,
        };
        for status in client.request(operation).await.into_map().unwrap() {
            add(&mut lines, line(at, &status));
            at += status.len;
        }
    }
    lines
}

#[test]
fn maps_of_images_are_those_of_qemu() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let make = |name: &str, options: &str, commands: &[&str]| {
        let path = path(name);
        let name = path.to_str().unwrap();
        run(
            "qemu-img",
            &["create", "-q", "-f", "qcow2", "-o", options, name, "4M"],
        );
        for command in commands {
            run("qemu-io", &["-c", command, name]);
        }
    };
    let holes = path("holes.raw");
    run(
        "qemu-img",
        &["create", "-q", "-f", "raw", holes.to_str().unwrap(), "3M"],
    );
    run(
        "qemu-io",
        &[
            "-f",
            "raw",
            "-c",
            "write 1M 64k",
            "-c",
            "write 2M 4k",
            holes.to_str().unwrap(),
        ],
    );
    let writes = [
        "write 0 128k",
        "write -z 1M 64k",
        "write -c 2M 64k",
        "write 3M 512",
    ];
    make("plain.qcow2", "cluster_size=64k", &writes);
    make(
        "small.qcow2",
        "cluster_size=4k",
        &["write 0 12k", "write -z 64k 8k"],
    );
    make(
        "reserved.qcow2",
        "preallocation=metadata",
        &["write 1M 64k", "write -z 2M 64k"],
    );
    make("full.qcow2", "preallocation=falloc", &[]);
    let over = |name: &str| format!("backing_file={name},backing_fmt=qcow2");
    make(
        "over.qcow2",
        &over("plain.qcow2"),
        &["write 64k 64k", "write 3M 128k"],
    );
    make(
        "top.qcow2",
        &over("over.qcow2"),
        &["write -z 0 64k", "write 2M 4k"],
    );
    for (format, name) in [
        ("raw", "holes.raw"),
        ("qcow2", "plain.qcow2"),
        ("qcow2", "small.qcow2"),
        ("qcow2", "reserved.qcow2"),
        ("qcow2", "full.qcow2"),
        ("raw", "plain.qcow2"),
        ("qcow2", "top.qcow2"),
    ] {
        let path = path(name);
        let expected = map_of_qemu(format, &path);
        with_graph(|graph| async move {
            let client = open(&graph, format, &path).await;
            assert_eq!(map_of(&client).await, expected, "{format} {name}");
            graph.detach(client.root()).await.unwrap();
        });
    }
}

#[test]
fn clusters_that_were_allocated_in_advance_are_looked_up_in_the_file() {
    let directory = tempfile::tempdir().unwrap();
    for (options, recurses) in [("preallocation=metadata", true), ("preallocation=off", false)] {
        let path = directory.path().join(options);
        let name = path.to_str().unwrap();
        run(
            "qemu-img",
            &["create", "-q", "-f", "qcow2", "-o", options, name, "4M"],
        );
        run("qemu-io", &["-c", "write 1M 64k", name]);
        with_graph(|graph| async move {
            let client = open(&graph, "qcow2", &path).await;
            let status = client.block_status(1 << 20, 65536, true, false).await.unwrap();
            assert!(status.flags.contains(StatusFlags::DATA) && !status.flags.contains(StatusFlags::ZERO));
            assert_eq!(status.flags.contains(StatusFlags::RECURSE), recurses, "{options}");
            let unused = client.block_status(0, 65536, true, false).await.unwrap();
            assert!(unused.flags.contains(StatusFlags::ZERO), "{options}");
            graph.detach(client.root()).await.unwrap();
        });
    }
}
