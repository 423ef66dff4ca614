//! Nodes that fail and hold requests by rules, below real formats, in a graph with real iothreads.
#![allow(clippy::unwrap_used, reason = "a test ends where something fails")]

mod support;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::Command;

use millpond::graph::GraphHandle;
use millpond::node::Client;
use millpond_messages::error::errno::{EIO, ENOENT};
use millpond_messages::graph::{
    DebugNode, DrainScope, IothreadOptions, IsSuspended, ListDrains, NamedNodes, NodeReports, OpenImage,
    Options, Resize, RootRequest, RootUser, SetIothread,
};
use millpond_messages::io::OperationKind;
use millpond_messages::{ErrorKind, IoError, NodeStatistics, OpenFlags, Permissions, RequestFlags};
use millpond_ring::buffer::{Buffer, Buffers};
use serde_json::{Value, json};
use support::with_graph;

const PLAIN: RequestFlags = RequestFlags::empty();
const BROKEN: IoError = IoError::Os(EIO);

fn options(json: Value) -> Options {
    json.as_object().expect("options are an object").clone()
}

async fn add(graph: &GraphHandle, json: Value) {
    graph.add_node(options(json)).await.unwrap();
}

async fn refusal(graph: &GraphHandle, json: Value) -> String {
    graph.add_node(options(json)).await.unwrap_err().to_string()
}

async fn attach_with(
    graph: &GraphHandle,
    node: &str,
    permissions: Permissions,
) -> millpond_messages::Result<Client> {
    let request = RootRequest {
        node: node.to_owned(),
        user: RootUser::Embedder("test".to_owned()),
        permissions,
        shared: Permissions::all(),
        iothread: None,
        iothread_required: false,
        writethrough: false,
    };
    graph.attach(request).await
}

async fn attach(graph: &GraphHandle, node: &str) -> Client {
    let permissions = Permissions::CONSISTENT_READ | Permissions::WRITE | Permissions::RESIZE;
    attach_with(graph, node, permissions).await.unwrap()
}

async fn write(client: &Client, offset: u64, fill: u8, len: usize) -> Result<(), IoError> {
    let buffers = Buffers::from(Buffer::from_slice(&vec![fill; len]));
    client.write(offset, buffers, PLAIN).await.0
}

async fn read(client: &Client, offset: u64, len: usize) -> Result<Vec<u8>, IoError> {
    let (result, buffers) = client.read(offset, Buffers::zeroed(len)).await;
    result.map(|()| buffers.to_vec())
}

fn raw_image(directory: &tempfile::TempDir, len: usize) -> PathBuf {
    let path = directory.path().join("disk.raw");
    std::fs::write(&path, vec![0x5a; len]).unwrap();
    path
}

fn qcow2_image(directory: &tempfile::TempDir, name: &str) -> PathBuf {
    let path = directory.path().join(name);
    let made = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", path.to_str().unwrap(), "4M"])
        .status();
    assert!(made.expect("qemu-img must be installed").success());
    path
}

/// What has passed a node so far.
async fn counted(graph: &GraphHandle, node: &str) -> NodeStatistics {
    let nodes = graph.ask(NodeReports).await.unwrap();
    let found = nodes.into_iter().find(|report| report.node_name == node);
    found.unwrap().statistics
}

/// A memory-like node below a blkdebug node with these options.
async fn debugged(graph: &GraphHandle, path: &Path, mut debug: Value) -> Client {
    let file = json!({"driver": "file", "node-name": "file", "filename": path, "discard": "unmap"});
    add(graph, file).await;
    debug["driver"] = json!("blkdebug");
    debug["node-name"] = json!("debug");
    debug["image"] = json!("file");
    debug["discard"] = json!("unmap");
    add(graph, debug).await;
    attach(graph, "debug").await
}

#[test]
fn each_kind_of_request_fails_by_its_rule_alone() {
    for failing in [
        "read",
        "write",
        "write-zeroes",
        "discard",
        "flush",
        "block-status",
    ] {
        let directory = tempfile::tempdir().unwrap();
        let path = raw_image(&directory, 1 << 20);
        with_graph(|graph| async move {
            let rule = json!({"event": "none", "iotype": failing, "errno": 61, "once": true});
            let client = debugged(&graph, &path, json!({ "inject-error": [rule] })).await;
            let mut failed = Vec::new();
            let mut note = |name, result: Result<(), IoError>| match result {
                Ok(()) => {}
                Err(error) => {
                    assert_eq!(error, IoError::Os(61));
                    failed.push(name);
                }
            };
            note("read", read(&client, 0, 512).await.map(drop));
            note("write", write(&client, 4096, 1, 512).await);
            note("write-zeroes", client.write_zeroes(8192, 4096, PLAIN).await);
            note("discard", client.discard(16384, 4096).await);
            note("flush", client.flush().await);
            let status = client.block_status(0, 512, true, true).await;
            note("block-status", status.map(drop));
            assert_eq!(failed, [failing]);
            graph.detach(client.root()).await.unwrap();
        });
    }
}

#[test]
fn an_error_at_a_sector_happens_once_to_what_holds_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = raw_image(&directory, 1 << 20);
    with_graph(|graph| async move {
        let rule = json!({"event": "none", "sector": 8, "once": true, "immediately": true});
        let client = debugged(&graph, &path, json!({ "inject-error": [rule] })).await;
        assert_eq!(read(&client, 0, 4096).await, Ok(vec![0x5a; 4096]));
        assert_eq!(read(&client, 0, 4097).await, Err(BROKEN));
        assert_eq!(read(&client, 0, 4097).await, Ok(vec![0x5a; 4097]));
        graph.detach(client.root()).await.unwrap();
    });
}

#[test]
fn states_lead_from_one_event_to_another() {
    let directory = tempfile::tempdir().unwrap();
    let path = raw_image(&directory, 1 << 20);
    with_graph(|graph| async move {
        let debug = json!({
            "set-state": [{"event": "pwritev", "state": 1, "new_state": 2}],
            "inject-error": [{"event": "pwritev", "state": 2, "iotype": "write"}],
        });
        let client = debugged(&graph, &path, debug).await;
        assert_eq!(write(&client, 0, 1, 512).await, Ok(()));
        assert_eq!(write(&client, 0, 2, 512).await, Err(BROKEN));
        assert_eq!(read(&client, 0, 512).await, Ok(vec![1; 512]));
        graph.detach(client.root()).await.unwrap();
    });
}

#[test]
fn requests_are_cut_and_widened_to_the_limits_that_options_give() {
    let directory = tempfile::tempdir().unwrap();
    let path = raw_image(&directory, 1 << 20);
    with_graph(|graph| async move {
        let debug = json!({"align": 4096, "max-transfer": 16384, "opt-write-zero": 65536});
        let client = debugged(&graph, &path, debug).await;
        read(&client, 0, 65536).await.unwrap();
        assert_eq!(counted(&graph, "file").await.read.operations, 4);
        write(&client, 4000, 7, 200).await.unwrap();
        assert_eq!(
            counted(&graph, "file").await.write.bytes,
            8192,
            "whole blocks are written"
        );
        let around = read(&client, 3999, 202).await.unwrap();
        assert_eq!(around, [&[0x5a][..], &[7; 200], &[0x5a]].concat());
        client
            .write_zeroes(65536 - 4096, 65536 + 4096, PLAIN)
            .await
            .unwrap();
        assert_eq!(
            counted(&graph, "file").await.write.bytes,
            8192 + 4096,
            "only the part of a zero write that is shorter than it had better be is written"
        );
        assert_eq!(
            read(&client, 65536 - 4096, 65536 + 4096).await,
            Ok(vec![0; 65536 + 4096])
        );
        graph.detach(client.root()).await.unwrap();
    });
}

#[test]
fn what_the_options_take_and_do_not_share_holds_for_the_child() {
    let directory = tempfile::tempdir().unwrap();
    let path = raw_image(&directory, 1 << 20);
    with_graph(|graph| async move {
        add(
            &graph,
            json!({"driver": "file", "node-name": "file", "filename": path}),
        )
        .await;
        let debug = json!({
            "driver": "blkdebug", "node-name": "debug", "image": "file",
            "take-child-perms": ["write"], "unshare-child-perms": ["resize", "consistent-read"],
        });
        add(&graph, debug).await;
        let facts = graph.facts().await.unwrap();
        let edge = &facts.edges[0];
        assert_eq!(
            (edge.name.as_str(), edge.permissions),
            ("image", Permissions::WRITE)
        );
        assert_eq!(
            edge.shared,
            Permissions::all() - Permissions::RESIZE - Permissions::CONSISTENT_READ
        );
        let refused = attach_with(&graph, "file", Permissions::CONSISTENT_READ).await;
        let text = refused.err().unwrap().to_string();
        assert!(
            text.contains("unshared by node 'debug' (uses node 'file' as 'image' child)"),
            "{text}"
        );
    });
}

#[test]
fn options_and_files_that_are_wrong_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = raw_image(&directory, 1 << 20);
    let config = directory.path().join("rules.conf");
    with_graph(|graph| async move {
        let file = json!({"driver": "file", "filename": path});
        let with = |more: Value| {
            let mut debug = json!({"driver": "blkdebug", "node-name": "debug", "image": file.clone()});
            debug
                .as_object_mut()
                .unwrap()
                .extend(more.as_object().unwrap().clone());
            debug
        };
        assert_eq!(
            refusal(&graph, with(json!({"align": 3}))).await,
            "Cannot meet constraints with align 3"
        );
        assert_eq!(
            refusal(&graph, with(json!({"config": config}))).await,
            "Could not read blkdebug config file: No such file or directory"
        );
        std::fs::write(&config, "[inject-error]\nerrno = \"5\"\n").unwrap();
        assert_eq!(
            refusal(&graph, with(json!({"config": config}))).await,
            "Missing event name for rule"
        );
        let rule = "[inject-error]\nevent = \"none\"\nerrno = \"28\"\niotype = \"write\"\n";
        std::fs::write(&config, rule).unwrap();
        add(&graph, with(json!({"config": config}))).await;
        let client = attach(&graph, "debug").await;
        assert_eq!(write(&client, 0, 1, 512).await, Err(IoError::NoSpace));
        graph.detach(client.root()).await.unwrap();
    });
}

/// A qcow2 image over a blkdebug node.
async fn qcow2_over(graph: &GraphHandle, path: &Path, more: Value) -> Client {
    let mut debug = json!({"driver": "blkdebug", "node-name": "debug",
        "image": {"driver": "file", "filename": path}});
    debug
        .as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    add(
        graph,
        json!({"driver": "qcow2", "node-name": "disk", "file": debug}),
    )
    .await;
    attach(graph, "disk").await
}

/// Polls a request once, so that it is on its way.
fn begun<F: Future + 'static>(future: F) -> actix_rt::task::JoinHandle<F::Output> {
    actix_rt::spawn(future)
}

#[test]
fn a_request_held_at_an_event_is_seen_by_a_drain_which_waits_until_it_is_resumed() {
    let directory = tempfile::tempdir().unwrap();
    let path = qcow2_image(&directory, "disk.qcow2");
    with_graph(|graph| async move {
        let client = qcow2_over(&graph, &path, json!({})).await;
        graph
            .ask(DebugNode::breakpoint("disk", "write_aio", "A"))
            .await
            .unwrap();
        assert!(!graph.ask(IsSuspended::under("disk", "A")).await.unwrap());
        let writing = begun({
            let client = client.clone();
            async move { write(&client, 65536, 9, 4096).await }
        });
        while !graph.ask(IsSuspended::under("disk", "A")).await.unwrap() {
            actix_rt::task::yield_now().await;
        }
        let drained = begun({
            let graph = graph.clone();
            async move { graph.drain(DrainScope::Node("disk".to_owned()), "test").await }
        });
        let pending = loop {
            let drains = graph.ask(ListDrains).await.unwrap();
            let waiting = drains.first().and_then(|drain| drain.waiting_for.first());
            if let Some(request) = waiting.and_then(|node| node.requests.first()) {
                break request.clone();
            }
            actix_rt::task::yield_now().await;
        };
        assert_eq!(
            (pending.operation, pending.offset, pending.len),
            (OperationKind::Write, 65536, 4096)
        );
        assert!(!drained.is_finished() && !writing.is_finished());
        graph.ask(DebugNode::resume("disk", "A")).await.unwrap();
        assert_eq!(writing.await.unwrap(), Ok(()));
        drop(drained.await.unwrap().unwrap());
        assert!(!graph.ask(IsSuspended::under("disk", "A")).await.unwrap());
        assert_eq!(read(&client, 65536, 4096).await, Ok(vec![9; 4096]));
        graph.detach(client.root()).await.unwrap();
    });
}

#[test]
fn a_breakpoint_that_is_removed_lets_go_and_holds_no_more() {
    let directory = tempfile::tempdir().unwrap();
    let path = qcow2_image(&directory, "disk.qcow2");
    with_graph(|graph| async move {
        let client = qcow2_over(&graph, &path, json!({})).await;
        graph
            .ask(DebugNode::breakpoint("disk", "flush_to_disk", "A"))
            .await
            .unwrap();
        write(&client, 0, 1, 512).await.unwrap();
        let flushing = begun({
            let client = client.clone();
            async move { client.flush().await }
        });
        while !graph.ask(IsSuspended::under("debug", "A")).await.unwrap() {
            actix_rt::task::yield_now().await;
        }
        graph
            .ask(DebugNode::remove_breakpoint("disk", "A"))
            .await
            .unwrap();
        assert_eq!(flushing.await.unwrap(), Ok(()));
        write(&client, 0, 1, 512).await.unwrap();
        client.flush().await.unwrap();
        graph.detach(client.root()).await.unwrap();
    });
}

#[test]
fn breakpoints_need_a_node_that_listens_an_event_and_a_tag() {
    let directory = tempfile::tempdir().unwrap();
    let path = qcow2_image(&directory, "disk.qcow2");
    with_graph(|graph| async move {
        add(&graph, json!({"driver": "null-co", "node-name": "null"})).await;
        let error = graph
            .ask(DebugNode::breakpoint("null", "read_aio", "A"))
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        let error = graph.ask(DebugNode::resume("null", "A")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(!graph.ask(IsSuspended::under("null", "A")).await.unwrap());
        assert_eq!(
            graph
                .ask(IsSuspended::under("nothing", "A"))
                .await
                .unwrap_err()
                .kind(),
            ErrorKind::NotFound
        );
        let client = qcow2_over(&graph, &path, json!({})).await;
        let not_there = ErrorKind::Io(IoError::Os(ENOENT));
        let error = graph
            .ask(DebugNode::breakpoint("disk", "read_oai", "A"))
            .await
            .unwrap_err();
        assert_eq!(error.kind(), not_there);
        let error = graph.ask(DebugNode::resume("disk", "A")).await.unwrap_err();
        assert_eq!(error.kind(), not_there);
        let error = graph
            .ask(DebugNode::remove_breakpoint("disk", "A"))
            .await
            .unwrap_err();
        assert_eq!(error.kind(), not_there);
        graph.detach(client.root()).await.unwrap();
    });
}

#[test]
fn rules_and_breakpoints_move_along_to_another_iothread() {
    let directory = tempfile::tempdir().unwrap();
    let path = qcow2_image(&directory, "disk.qcow2");
    with_graph(|graph| async move {
        let rule = json!({"event": "flush_to_disk", "once": true, "iotype": "flush"});
        let client = qcow2_over(&graph, &path, json!({ "inject-error": [rule] })).await;
        graph
            .ask(DebugNode::breakpoint("disk", "pwritev", "A"))
            .await
            .unwrap();
        graph.add_iothread(IothreadOptions::named("other")).await.unwrap();
        graph
            .ask(SetIothread {
                node_name: "disk".to_owned(),
                iothread: Some("other".to_owned()),
                force: true,
            })
            .await
            .unwrap();
        let writing = begun({
            let client = client.clone();
            async move { write(&client, 0, 1, 512).await }
        });
        while !graph.ask(IsSuspended::under("disk", "A")).await.unwrap() {
            actix_rt::task::yield_now().await;
        }
        graph.ask(DebugNode::resume("disk", "A")).await.unwrap();
        assert_eq!(writing.await.unwrap(), Ok(()));
        assert_eq!(client.flush().await, Err(BROKEN));
        assert_eq!(client.flush().await, Ok(()));
        graph.detach(client.root()).await.unwrap();
        graph
            .ask(SetIothread {
                node_name: "disk".to_owned(),
                iothread: None,
                force: true,
            })
            .await
            .expect("an iothread that is empty can go");
    });
}

/// Which of some commands fail in `qemu-io`.
fn failures_in_qemu(image: &Path, rule: &Value, commands: &[&str]) -> Vec<bool> {
    let options = json!({"driver": "qcow2", "file": {"driver": "blkdebug", "inject-error": [rule],
        "image": {"driver": "file", "filename": image}}});
    let mut program = Command::new("qemu-io");
    for command in commands {
        program.args(["-c", command]);
    }
    let output = program.arg(format!("json:{options}")).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
    let mut answers = said
        .lines()
        .filter(|line| line.contains(" failed: ") || line.starts_with("wrote ") || line.starts_with("read "));
    // `flush` says nothing when it succeeds, so it is told apart by what is missing.
    let (mut failures, mut next) = (Vec::new(), answers.next());
    for command in commands {
        let word = command.split(' ').next().unwrap();
        match next {
            Some(line) if line.starts_with(&format!("{word} failed")) => {
                failures.push(true);
                next = answers.next();
            }
            Some(line) if word != "flush" => {
                assert!(line.starts_with("wrote ") || line.starts_with("read "), "{said}");
                failures.push(false);
                next = answers.next();
            }
            _ => failures.push(false),
        }
    }
    failures
}

#[test]
fn requests_to_a_format_fail_at_the_events_at_which_they_fail_in_qemu() {
    let directory = tempfile::tempdir().unwrap();
    let commands = [
        "write -P 1 0 64k",
        "write -P 2 4k 4k",
        "read 0 64k",
        "read 1M 64k",
        "flush",
    ];
    for (event, iotype) in [
        ("write_aio", "write"),
        ("read_aio", "read"),
        ("l2_alloc_write", "write"),
        ("cluster_alloc", "write"),
        ("pwritev", "write"),
        ("read_compressed", "read"),
        ("vmstate_load", "read"),
    ] {
        let ours = qcow2_image(&directory, &format!("{event}-ours.qcow2"));
        let theirs = qcow2_image(&directory, &format!("{event}-theirs.qcow2"));
        let rule = json!({"event": event, "iotype": iotype, "once": true});
        let expected = failures_in_qemu(&theirs, &rule, &commands);
        with_graph(|graph| async move {
            let client = qcow2_over(&graph, &ours, json!({ "inject-error": [rule] })).await;
            let failures = vec![
                write(&client, 0, 1, 65536).await.is_err(),
                write(&client, 4096, 2, 4096).await.is_err(),
                read(&client, 0, 65536).await.is_err(),
                read(&client, 1 << 20, 65536).await.is_err(),
                client.flush().await.is_err(),
            ];
            assert_eq!(failures, expected, "{event}: {commands:?}");
            graph.detach(client.root()).await.unwrap();
        });
    }
}

/// What `qemu-io` says of a change of an image's length.
fn resize_in_qemu(image: &Path, rule: &Value, size: u64) -> String {
    let options = json!({"driver": "qcow2", "file": {"driver": "blkdebug", "inject-error": [rule],
        "image": {"driver": "file", "filename": image}}});
    let output = Command::new("qemu-io")
        .args(["-c", &format!("truncate {size}"), &format!("json:{options}")])
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap() + &String::from_utf8(output.stdout).unwrap();
    let said = said.trim_end();
    said.strip_prefix("qemu-io: ").unwrap_or(said).to_owned()
}

#[test]
fn a_resize_fails_at_the_events_at_which_it_fails_in_qemu_and_says_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let (smaller, larger) = (64 << 10, 32 << 20);
    for (event, size) in [
        ("l2_load", smaller),
        ("l1_shrink_write_table", smaller),
        ("l1_grow_alloc_table", larger),
        ("l1_grow_write_table", larger),
        ("l1_grow_activate_table", larger),
        ("cluster_alloc", larger),
        ("l1_update", larger),
    ] {
        let ours = small_clusters(&directory, &format!("{event}-ours.qcow2"));
        let theirs = small_clusters(&directory, &format!("{event}-theirs.qcow2"));
        let rule = json!({"event": event, "once": true});
        let expected = resize_in_qemu(&theirs, &rule, size);
        with_graph(|graph| async move {
            let client = qcow2_over(&graph, &ours, json!({ "inject-error": [rule] })).await;
            let resized = graph
                .ask(Resize {
                    node_name: "disk".to_owned(),
                    size,
                })
                .await;
            let said = resized.err().map_or_else(String::new, |error| error.to_string());
            assert_eq!(said, expected, "{event}");
            graph.detach(client.root()).await.unwrap();
        });
    }
}

/// An image half full, of so small clusters that a change of its length changes the L1 table.
fn small_clusters(directory: &tempfile::TempDir, name: &str) -> PathBuf {
    let path = directory.path().join(name);
    let text = path.to_str().unwrap();
    let made = Command::new("qemu-img")
        .args([
            "create",
            "-q",
            "-f",
            "qcow2",
            "-o",
            "cluster_size=512",
            text,
            "4M",
        ])
        .status();
    assert!(made.expect("qemu-img must be installed").success());
    let filled = Command::new("qemu-io").args(["-c", "write 0 2M", text]).output();
    assert!(filled.unwrap().status.success());
    path
}

#[test]
fn tables_behind_a_shorter_disks_end_are_freed_after_the_l1_table_was_written() {
    let directory = tempfile::tempdir().unwrap();
    let path = small_clusters(&directory, "disk.qcow2");
    with_graph(|graph| async move {
        let client = qcow2_over(&graph, &path, json!({})).await;
        let events = ["l1_shrink_write_table", "l1_update", "l1_shrink_free_l2_clusters"];
        for event in events {
            graph
                .ask(DebugNode::breakpoint("disk", event, event))
                .await
                .unwrap();
        }
        let handle = graph.clone();
        let running = begun(async move {
            handle
                .ask(Resize {
                    node_name: "disk".to_owned(),
                    size: 64 << 10,
                })
                .await
        });
        for (index, event) in events.iter().enumerate() {
            while !graph.ask(IsSuspended::under("disk", *event)).await.unwrap() {
                assert!(!running.is_finished(), "{event} did not happen");
            }
            for later in events.iter().skip(index + 1) {
                assert!(
                    !graph.ask(IsSuspended::under("disk", *later)).await.unwrap(),
                    "{later}"
                );
            }
            graph.ask(DebugNode::resume("disk", *event)).await.unwrap();
        }
        running.await.unwrap().unwrap();
        graph.detach(client.root()).await.unwrap();
    });
}

#[test]
fn formats_tell_of_their_events_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let base = qcow2_image(&directory, "base.qcow2");
    let path = qcow2_image(&directory, "disk.qcow2");
    let filled = Command::new("qemu-io")
        .args(["-c", "write 0 1M", base.to_str().unwrap()])
        .output();
    assert!(filled.unwrap().status.success());
    with_graph(|graph| async move {
        let image = json!({"driver": "blkdebug", "node-name": "debug",
            "image": {"driver": "file", "filename": path}});
        let backing = json!({"driver": "qcow2", "file": {"driver": "file", "filename": base}});
        let disk = json!({"driver": "qcow2", "node-name": "disk", "discard": "unmap", "file": image,
            "backing": backing});
        add(&graph, disk).await;
        let client = attach(&graph, "disk").await;
        let steps: [(&[&str], Step); 6] = [
            (&["read_backing_aio"], Step::Read(0)),
            (
                &[
                    "l2_alloc_write",
                    "l2_load",
                    "refblock_load",
                    "cluster_alloc",
                    "cow_read",
                    "cow_write",
                ],
                Step::Write(4096),
            ),
            (&["read_aio"], Step::Read(4096)),
            (
                &[
                    "flush_to_os",
                    "refblock_update_part",
                    "l2_update",
                    "l1_update",
                    "flush_to_disk",
                ],
                Step::Flush,
            ),
            (&["write_aio", "pwritev", "pwritev_done"], Step::Write(4096)),
            (&["cluster_free"], Step::Forget),
        ];
        for (events, step) in steps {
            for event in events {
                graph
                    .ask(DebugNode::breakpoint("disk", *event, *event))
                    .await
                    .unwrap();
            }
            let client = client.clone();
            let running = begun(async move { step.run(&client).await });
            let mut left: Vec<&str> = events.to_vec();
            while !left.is_empty() {
                assert!(!running.is_finished(), "{left:?} did not happen in {step:?}");
                for event in left.clone() {
                    if graph.ask(IsSuspended::under("disk", event)).await.unwrap() {
                        graph.ask(DebugNode::resume("disk", event)).await.unwrap();
                        left.retain(|other| *other != event);
                    }
                }
            }
            running.await.unwrap().unwrap();
        }
        graph.detach(client.root()).await.unwrap();
    });
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Read(u64),
    Write(u64),
    Flush,
    Forget,
}

impl Step {
    async fn run(self, client: &Client) -> Result<(), IoError> {
        match self {
            Self::Read(offset) => read(client, offset, 4096).await.map(drop),
            Self::Write(offset) => write(client, offset, 1, 4096).await,
            Self::Flush => client.flush().await,
            Self::Forget => {
                client.discard(0, 65536).await?;
                client.flush().await
            }
        }
    }
}

#[test]
fn a_filename_stands_for_a_node_and_its_image() {
    let directory = tempfile::tempdir().unwrap();
    let path = qcow2_image(&directory, "disk.qcow2");
    let config = directory.path().join("rules.conf");
    std::fs::write(&config, "[inject-error]\nevent = \"read_aio\"\nonce = \"on\"\n").unwrap();
    with_graph(|graph| async move {
        let filename = format!("blkdebug:{}:{}", config.display(), path.display());
        let image = OpenImage {
            filename: Some(filename.clone()),
            options: options(json!({"driver": "qcow2", "node-name": "disk"})),
            flags: OpenFlags::RDWR,
            ..OpenImage::default()
        };
        assert_eq!(graph.open(image).await.unwrap(), "disk");
        let nodes = graph.ask(NamedNodes { flat: true }).await.unwrap();
        let disk = nodes
            .iter()
            .find(|node| node.node_name.as_deref() == Some("disk"));
        assert_eq!(disk.unwrap().file, filename);
        let client = attach(&graph, "disk").await;
        write(&client, 0, 1, 512).await.unwrap();
        assert_eq!(read(&client, 0, 512).await, Err(BROKEN));
        assert_eq!(read(&client, 0, 512).await, Ok(vec![1; 512]));
        graph.detach(client.root()).await.unwrap();
        let nameless = OpenImage {
            filename: Some("blkdebug:nothing".to_owned()),
            options: options(json!({"driver": "raw"})),
            ..OpenImage::default()
        };
        assert_eq!(
            graph.open(nameless).await.unwrap_err().to_string(),
            "blkdebug requires both config file and image path"
        );
    });
}

#[test]
fn a_write_that_asks_to_be_alone_does_not_wait_for_itself() {
    with_graph(|graph| async move {
        let directory = tempfile::tempdir().unwrap();
        let path = raw_image(&directory, 1 << 20);
        let client = debugged(&graph, &path, json!({"align": 4096})).await;
        // The node tracks the blocks that its driver writes, and this write asks to be tracked besides.
        for (offset, len) in [(0, 4096), (100, 5000)] {
            let buffers = Buffers::from(Buffer::from_slice(&vec![7; len]));
            let (result, _) = client.write(offset, buffers, RequestFlags::SERIALISING).await;
            assert_eq!(result, Ok(()), "{len} bytes at {offset}");
            assert_eq!(read(&client, offset, len).await, Ok(vec![7; len]));
        }
        graph.detach(client.root()).await.unwrap();
    });
}
