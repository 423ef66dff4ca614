//! What iothreads tell of themselves, where they may run, and the graph drawn.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use millpond::graph::GraphHandle;
use millpond_messages::graph::{
    DrawGraph, IothreadOptions, IothreadReport, IothreadReports, Options, RootRequest, RootUser, SetIothread,
};
use millpond_messages::{ErrorKind, Permissions};
use millpond_ring::buffer::Buffers;
use serde_json::{Value, json};
use support::with_graph;

fn options(json: Value) -> Options {
    let Value::Object(options) = json else {
        panic!("not an object: {json}")
    };
    options
}

async fn add(graph: &GraphHandle, json: Value) {
    graph.add_node(options(json)).await.expect("the node opens");
}

fn user(node: &str, user: RootUser) -> RootRequest {
    RootRequest {
        node: node.to_owned(),
        user,
        permissions: Permissions::CONSISTENT_READ,
        shared: Permissions::all(),
        iothread: None,
        iothread_required: false,
        writethrough: false,
    }
}

async fn report(graph: &GraphHandle, id: &str) -> IothreadReport {
    let all = graph.ask(IothreadReports).await.expect("the actor answers");
    all.into_iter()
        .find(|report| report.id == id)
        .expect("the iothread is there")
}

/// Nanoseconds that a thread of this process has run.
fn run_time(thread: u32) -> u64 {
    let text =
        std::fs::read_to_string(format!("/proc/self/task/{thread}/schedstat")).expect("a thread of ours");
    let first = text.split_whitespace().next().expect("three numbers");
    first.parse().expect("a number")
}

/// contract.md, shape 11.
#[test]
fn an_idle_iothread_is_shown_to_sleep_and_uses_no_processor() {
    with_graph(|graph| async move {
        graph
            .add_iothread(IothreadOptions::named("io"))
            .await
            .expect("a thread");
        add(
            &graph,
            json!({"driver": "null-co", "node-name": "n", "read-zeroes": true}),
        )
        .await;
        graph
            .ask(SetIothread {
                node_name: "n".to_owned(),
                iothread: Some("io".to_owned()),
                force: false,
            })
            .await
            .expect("it moves");
        let client = graph.attach(user("n", RootUser::Embedder("test".to_owned())));
        let client = client.await.expect("it is free");
        client.read(0, Buffers::zeroed(4096)).await.0.expect("a read");
        let before = report(&graph, "io").await;
        let ran = run_time(before.thread_id);
        // The time watched, not a wait for something.
        pass(Duration::from_millis(300)).await;
        let ran = run_time(before.thread_id) - ran;
        let after = report(&graph, "io").await;
        let (before, after) = (before.counters, after.counters);
        let age = after.age_ns - before.age_ns;
        assert!(age >= 300_000_000, "{age}");
        let slept = after.slept_ns - before.slept_ns;
        assert!(slept > age / 10 * 9, "slept {slept} of {age} ns");
        assert!(after.busy_ns - before.busy_ns < age / 10);
        // What there was to do were two questions: each may be found by a busy wait, or end a sleep.
        assert!(after.turns - before.turns < 10, "{before:?} {after:?}");
        assert!(after.sleeps - before.sleeps <= 3, "{before:?} {after:?}");
        assert_eq!(after.requests, before.requests);
        assert!(ran < 30_000_000, "an idle thread ran for {ran} ns");
        graph.detach(client.root()).await.expect("it was attached");
    });
}

async fn pass(time: Duration) {
    actix_rt::time::sleep(time).await;
}

#[test]
fn counters_go_with_the_work() {
    with_graph(|graph| async move {
        graph
            .add_iothread(IothreadOptions::named("io"))
            .await
            .expect("a thread");
        let file = tempfile::NamedTempFile::new().expect("a file");
        file.as_file().set_len(1 << 20).expect("room");
        add(
            &graph,
            json!({"driver": "file", "node-name": "f", "filename": file.path()}),
        )
        .await;
        graph
            .ask(SetIothread {
                node_name: "f".to_owned(),
                iothread: Some("io".to_owned()),
                force: false,
            })
            .await
            .expect("it moves");
        let client = graph.attach(user("f", RootUser::Embedder("test".to_owned())));
        let client = client.await.expect("it is free");
        let (before, main) = (report(&graph, "io").await, report(&graph, "main").await);
        assert_eq!((before.nodes, main.nodes), (1, 0));
        for _ in 0..100 {
            client.read(0, Buffers::zeroed(4096)).await.0.expect("a read");
        }
        let after = report(&graph, "io").await.counters;
        let before = before.counters;
        assert_eq!(after.requests - before.requests, 100);
        assert!(
            after.operations - before.operations >= 100,
            "{before:?} {after:?}"
        );
        assert_eq!(after.operations_in_flight, before.operations_in_flight);
        assert!(after.messages - before.messages >= 100);
        assert!(after.task_runs - before.task_runs >= 100);
        assert!(after.polls_paid <= after.polls);
        assert!(after.wake_ups <= after.sleeps + after.turns);
        let known = after.slept_ns + after.polled_ns + after.busy_ns;
        assert_eq!(known, after.age_ns, "all its time is accounted for");
        assert_eq!(
            report(&graph, "main").await.counters.requests,
            main.counters.requests
        );
        graph.detach(client.root()).await.expect("it was attached");
    });
}

#[test]
fn an_iothread_runs_on_the_processors_it_is_given_and_on_no_others() {
    with_graph(|graph| async move {
        let allowed = rustix::thread::sched_getaffinity(None).expect("our own");
        let cpu = (0..1024)
            .find(|cpu| allowed.is_set(*cpu))
            .expect("we run somewhere");
        let pinned = IothreadOptions {
            cpu_affinity: vec![u16::try_from(cpu).expect("below 1024")],
            ..IothreadOptions::named("pinned")
        };
        graph.add_iothread(pinned.clone()).await.expect("a thread");
        let report = report(&graph, "pinned").await;
        assert_eq!(report.cpu_affinity, pinned.cpu_affinity);
        let status = std::fs::read_to_string(format!("/proc/self/task/{}/status", report.thread_id));
        let status = status.expect("a thread of ours");
        let list = status
            .lines()
            .find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        assert_eq!(list.map(str::trim), Some(cpu.to_string().as_str()));
    });
}

#[test]
fn a_processor_that_is_not_there_is_refused_by_name_also_beside_one_that_is() {
    with_graph(|graph| async move {
        let allowed = rustix::thread::sched_getaffinity(None).expect("our own");
        let cpu = (0..1024_u16)
            .find(|cpu| allowed.is_set(usize::from(*cpu)))
            .expect("we run somewhere");
        for cpus in [vec![1023], vec![cpu, 1023], vec![65535]] {
            let missing = cpus[cpus.len() - 1];
            let options = IothreadOptions {
                cpu_affinity: cpus,
                ..IothreadOptions::named("lost")
            };
            let error = graph
                .add_iothread(options)
                .await
                .expect_err("there is no such processor");
            assert!(matches!(error.kind(), ErrorKind::Io(_)));
            assert_eq!(
                error.to_string(),
                format!(
                    "Could not start iothread 'lost': there is no processor {missing} that it may run on"
                )
            );
        }
        assert_eq!(graph.ask(IothreadReports).await.expect("an answer").len(), 1);
        graph
            .add_iothread(IothreadOptions::named("lost"))
            .await
            .expect("the id is free");
    });
}

/// A statement of a DOT file: its subject (`n1` or `r1 -> n2`), and its attributes.
type Statement = (String, BTreeMap<String, String>);

/// Reads as much of the DOT language as is needed here, and fails on anything else.
fn parse_dot(text: &str) -> Vec<Statement> {
    let body = text.strip_prefix("digraph millpond {\n").expect("a digraph");
    let body = body.strip_suffix("}\n").expect("its end");
    body.lines().map(parse_statement).collect()
}

fn parse_statement(line: &str) -> Statement {
    let line = line.strip_prefix("    ").and_then(|line| line.strip_suffix("];"));
    let (subject, mut rest) = line.and_then(|line| line.split_once(" [")).expect("attributes");
    let mut attributes = BTreeMap::new();
    while !rest.is_empty() {
        let (name, after) = rest.split_once('=').expect("a value");
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => parse_quoted(quoted),
            None => {
                let end = after.find(',').unwrap_or(after.len());
                (after[..end].to_owned(), &after[end..])
            }
        };
        attributes.insert(name.trim().to_owned(), value);
        rest = after.strip_prefix(',').unwrap_or(after);
    }
    (subject.to_owned(), attributes)
}

fn parse_quoted(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return (value, &text[at + 1..]),
            '\\' => match characters.next().expect("an escaped character").1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    panic!("a string without an end: {text}")
}

#[test]
fn the_graph_is_drawn_with_drivers_iothreads_roles_permissions_and_users() {
    with_graph(|graph| async move {
        graph
            .add_iothread(IothreadOptions::named("io"))
            .await
            .expect("a thread");
        add(&graph, json!({"driver": "null-co", "node-name": "below"})).await;
        add(
            &graph,
            json!({"driver": "raw", "node-name": "top", "file": "below", "read-only": true}),
        )
        .await;
        graph
            .ask(SetIothread {
                node_name: "top".to_owned(),
                iothread: Some("io".to_owned()),
                force: false,
            })
            .await
            .expect("it moves");
        let odd = RootUser::Embedder("a \"quoted\" \\name\\\nand more".to_owned());
        let client = graph.attach(user("top", odd)).await.expect("it is free");
        let drawn = parse_dot(&graph.ask(DrawGraph).await.expect("an answer"));
        let facts = graph.facts().await.expect("an answer");
        let id = |name: &str| {
            let node = facts.nodes.iter().find(|node| node.name == name);
            format!("n{}", node.expect("it is there").id.0)
        };
        let root = format!("r{}", client.root().0);
        let label = |subject: &str| {
            let found = drawn.iter().find(|(known, _)| known == subject);
            found.unwrap_or_else(|| panic!("no {subject} in {drawn:?}")).1["label"].clone()
        };
        assert_eq!(label(&id("below")), "below\nnull-co\niothread io");
        assert_eq!(label(&id("top")), "top\nraw, read-only\niothread io");
        assert_eq!(label(&root), "embedder a \"quoted\" \\name\\\nand more");
        assert_eq!(
            label(&format!("{root} -> {}", id("top"))),
            "root\ndata, primary\ntakes consistent-read\nshares consistent-read, write, write-unchanged, resize"
        );
        let edge = label(&format!("{} -> {}", id("top"), id("below")));
        assert!(
            edge.starts_with("file\nfiltered, primary\ntakes consistent-read\n"),
            "{edge}"
        );
        let subjects: BTreeSet<&String> = drawn.iter().map(|(subject, _)| subject).collect();
        assert_eq!(
            (drawn.len(), subjects.len()),
            (7, 7),
            "two defaults, three boxes, two edges, each once"
        );
        graph.detach(client.root()).await.expect("it was attached");
    });
}
