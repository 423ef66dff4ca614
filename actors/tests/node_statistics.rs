//! What nodes count of the requests that pass them, whichever way those take, and when.

mod support;

use std::path::Path;

use futures_channel::oneshot;
use millpond::graph::GraphHandle;
use millpond::iothread::Local;
use millpond::node::{Client, HomeClient};
use millpond_messages::graph::{
    IothreadOptions, NodeReports, Options, RootRequest, RootUser, SetHistograms, SetIothread,
};
use millpond_messages::io::{Operation, Value as IoValue};
use millpond_messages::{
    IoError, IoResult, LatencyHistogram, LatencyHistograms, NodeStatistics, OperationCount, Permissions,
    Range, RequestFlags,
};
use millpond_ring::buffer::Buffers;
use proptest::prelude::*;
use serde_json::{Value, json};
use support::with_graph;

const MIB: u64 = 1 << 20;
const PLAIN: RequestFlags = RequestFlags::empty();

async fn add(graph: &GraphHandle, json: Value) {
    let Value::Object(options) = json else {
        panic!("not an object: {json}")
    };
    let options: Options = options;
    graph.add_node(options).await.expect("the node opens");
}

async fn attach(graph: &GraphHandle, node: &str) -> Client {
    let request = RootRequest::new(
        node,
        RootUser::Embedder("test".to_owned()),
        Permissions::CONSISTENT_READ | Permissions::WRITE,
    );
    graph.attach(request).await.expect("the node is free")
}

async fn counted(graph: &GraphHandle, node: &str) -> NodeStatistics {
    let reports = graph.ask(NodeReports).await.expect("the actor answers");
    let found = reports.into_iter().find(|report| report.node_name == node);
    found.expect("the node is there").statistics
}

fn count(operations: u64, bytes: u64) -> OperationCount {
    OperationCount {
        operations,
        bytes,
        ..OperationCount::default()
    }
}

/// The counters without what depends on time.
fn timeless(statistics: NodeStatistics) -> NodeStatistics {
    let strip = |count: OperationCount| OperationCount {
        total_time_ns: 0,
        ..count
    };
    NodeStatistics {
        read: strip(statistics.read),
        write: strip(statistics.write),
        write_zeroes: strip(statistics.write_zeroes),
        discard: strip(statistics.discard),
        flush: strip(statistics.flush),
        block_status: strip(statistics.block_status),
        idle_ns: statistics.idle_ns.map(|_| 0),
        ..statistics
    }
}

/// How a request goes to its node.
#[derive(Debug, Clone, Copy)]
enum Way {
    /// From the node's own iothread, as far as it goes in one step.
    AtOnce,
    /// From the node's own iothread, in steps.
    InSteps,
    /// Through its mailbox.
    FromElsewhere,
}

#[derive(Debug, Clone, Copy)]
enum Request {
    Read(u64, usize),
    Write(u64, usize),
    WriteZeroes(u64, u64),
    Discard(u64, u64),
    Flush,
    BlockStatus(u64, u64),
}

impl Request {
    fn operation(self) -> Operation<Buffers> {
        let flags = PLAIN;
        match self {
            Self::Read(offset, len) => Operation::Read {
                offset,
                buffers: Buffers::zeroed(len),
                flags,
            },
            Self::Write(offset, len) => Operation::Write {
                offset,
                buffers: Buffers::from(millpond_ring::buffer::Buffer::from_slice(&vec![0x5a; len])),
                flags,
            },
            Self::WriteZeroes(offset, len) => Operation::WriteZeroes {
                range: range(offset, len),
                flags,
            },
            Self::Discard(offset, len) => Operation::Discard {
                range: range(offset, len),
            },
            Self::Flush => Operation::Flush,
            Self::BlockStatus(offset, len) => Operation::BlockStatus {
                range: range(offset, len),
                want_zero: true,
                whole_chain: true,
                base: None,
            },
        }
    }
}

/// An answer and the bytes that came with it.
type Answered = (IoResult<()>, Option<Vec<u8>>);

/// Makes requests one after the other.
async fn run(client: &Client, way: Way, requests: &[Request]) -> Vec<Answered> {
    let requests = requests.to_vec();
    if let Way::FromElsewhere = way {
        let mut answers = Vec::new();
        for request in requests {
            answers.push(answered(client.request(request.operation()).await));
        }
        return answers;
    }
    let (tell, told) = oneshot::channel();
    let asking = client.clone();
    let sent = client.run_at_home(move || {
        let local = Local::current().expect("it runs on an iothread");
        local.spawn(async move {
            let home: HomeClient = asking.here();
            let mut answers = Vec::new();
            for request in requests {
                let outcome = match way {
                    Way::InSteps => home.start(request.operation()).await,
                    _ => home.request(request.operation()).await,
                };
                answers.push(answered(outcome));
            }
            tell.send(answers).expect("the test waits");
        });
    });
    assert!(sent, "the iothread runs");
    told.await.expect("the requests end")
}

fn answered(outcome: millpond_messages::io::Outcome<Buffers>) -> Answered {
    let bytes = outcome.buffers.map(|buffers| buffers.to_vec());
    (outcome.result.map(|_: IoValue| ()), bytes)
}

/// Two raw nodes over a file, named with a suffix.
async fn add_chain(graph: &GraphHandle, directory: &Path, suffix: &str) -> [String; 3] {
    let path = directory.join(format!("disk{suffix}"));
    std::fs::write(&path, vec![1; 4 << 20]).expect("there is room");
    let names = ["file", "mid", "top"].map(|name| format!("{name}{suffix}"));
    let [file, mid, top] = &names;
    add(
        graph,
        json!({"driver": "file", "node-name": file, "filename": path, "discard": "unmap"}),
    )
    .await;
    add(
        graph,
        json!({"driver": "raw", "node-name": mid, "file": file, "offset": MIB, "discard": "unmap"}),
    )
    .await;
    add(
        graph,
        json!({"driver": "raw", "node-name": top, "file": mid, "discard": "unmap"}),
    )
    .await;
    names
}

#[test]
fn each_node_counts_all_that_passes_it_whichever_way_it_comes() {
    let requests = [
        Request::Read(0, 4096),
        Request::Read(4096, 4096),
        Request::Write(8192, 8192),
        Request::WriteZeroes(65536, 4096),
        Request::Discard(131_072, 65536),
        Request::Flush,
        Request::BlockStatus(0, 4096),
    ];
    for way in [Way::AtOnce, Way::InSteps, Way::FromElsewhere] {
        let directory = tempfile::tempdir().expect("a directory");
        with_graph(|graph| async move {
            let names = add_chain(&graph, directory.path(), "").await;
            let client = attach(&graph, "top").await;
            for (answer, _) in run(&client, way, &requests).await {
                answer.expect("the request succeeds");
            }
            for name in names {
                let seen = counted(&graph, &name).await;
                assert!(seen.idle_ns.is_some());
                let shift = if name == "file" { MIB } else { 0 };
                let discards = seen.driver_discard;
                let expected = NodeStatistics {
                    read: count(2, 8192),
                    write: count(1, 8192),
                    write_zeroes: count(1, 4096),
                    discard: count(1, 65536),
                    flush: count(1, 0),
                    block_status: count(1, 4096),
                    highest_write: shift + 65536 + 4096,
                    idle_ns: Some(0),
                    driver_discard: count(1, 65536),
                    ..NodeStatistics::default()
                };
                assert_eq!(timeless(seen), expected, "{name}, {way:?}");
                assert_eq!(discards.failed, 0);
            }
            graph.detach(client.root()).await.expect("it was attached");
        });
    }
}

fn any_request() -> impl Strategy<Value = Request> {
    // Whole sectors and parts of them, also past the end of the node.
    let place = prop_oneof![
        0..3 * MIB,
        Just(3 * MIB - 512),
        (0..6144_u64).prop_map(|sector| sector * 512)
    ];
    let len = prop_oneof![1..20_000_usize, Just(4096), Just(65536)];
    (place, len, 0..8).prop_map(|(at, len, kind)| match kind {
        0 | 1 => Request::Read(at, len),
        2 | 3 => Request::Write(at, len),
        4 => Request::WriteZeroes(at, len as u64),
        5 => Request::Discard(at, len as u64),
        6 => Request::BlockStatus(at, len as u64),
        _ => Request::Flush,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// What a request comes to in one step, and in several, is the same: answers, bytes and counters of every node.
    #[test]
    fn both_ways_come_to_the_same(requests in proptest::collection::vec(any_request(), 1..24)) {
        let directory = tempfile::tempdir().expect("a directory");
        with_graph(|graph| async move {
            let one = add_chain(&graph, directory.path(), "-one").await;
            let two = add_chain(&graph, directory.path(), "-two").await;
            let clients = [attach(&graph, &one[2]).await, attach(&graph, &two[2]).await];
            let at_once = run(&clients[0], Way::AtOnce, &requests).await;
            let in_steps = run(&clients[1], Way::InSteps, &requests).await;
            assert_eq!(at_once, in_steps);
            for (one, two) in one.iter().zip(&two) {
                let (one, two) = (counted(&graph, one).await, counted(&graph, two).await);
                assert_eq!(timeless(one), timeless(two));
            }
            for client in clients {
                graph.detach(client.root()).await.expect("it was attached");
            }
        });
    }
}

/// A read that finds its data in a backing image passes the overlay and all that is below it there, and not the overlay's
/// own file.
#[test]
fn a_read_is_counted_along_its_way_down_a_backing_chain() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("overlay.qcow2");
    let made = std::process::Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2"])
        .arg(&path)
        .arg("1M")
        .status();
    assert!(made.expect("qemu-img of the package qemu-utils").success());
    with_graph(|graph| async move {
        add_chain(&graph, directory.path(), "").await;
        add(
            &graph,
            json!({"driver": "file", "node-name": "own", "filename": path}),
        )
        .await;
        let overlay = json!({"driver": "qcow2", "node-name": "over", "file": "own", "backing": "top"});
        add(&graph, overlay).await;
        let client = attach(&graph, "over").await;
        // The tables are read by the first.
        for (answer, _) in run(&client, Way::AtOnce, &[Request::Read(0, 512)]).await {
            answer.expect("the request succeeds");
        }
        let tables = counted(&graph, "own").await.read;
        for way in [Way::AtOnce, Way::InSteps] {
            for (answer, bytes) in run(&client, way, &[Request::Read(4096, 4096)]).await {
                answer.expect("the request succeeds");
                assert_eq!(bytes, Some(vec![1; 4096]));
            }
        }
        for name in ["over", "top", "mid", "file"] {
            let read = counted(&graph, name).await.read;
            assert_eq!((read.operations, read.bytes), (3, 512 + 2 * 4096), "{name}");
        }
        assert_eq!(counted(&graph, "own").await.read, tables);
        graph.detach(client.root()).await.expect("it was attached");
    });
}

#[test]
fn time_is_counted_from_arrival_to_end_at_every_node() {
    const LATENCY: u64 = 20_000_000;
    with_graph(|graph| async move {
        let null = json!({"driver": "null-co", "node-name": "null", "size": MIB, "latency-ns": LATENCY});
        add(&graph, null).await;
        add(
            &graph,
            json!({"driver": "raw", "node-name": "top", "file": "null"}),
        )
        .await;
        let client = attach(&graph, "top").await;
        for way in [Way::AtOnce, Way::InSteps, Way::FromElsewhere] {
            let before = [counted(&graph, "top").await, counted(&graph, "null").await];
            let requests = [
                Request::Read(0, 4096),
                Request::Write(0, 4096),
                Request::WriteZeroes(0, 4096),
                Request::Flush,
            ];
            for (answer, _) in run(&client, way, &requests).await {
                answer.expect("the request succeeds");
            }
            let after = [counted(&graph, "top").await, counted(&graph, "null").await];
            for (before, after) in before.iter().zip(&after) {
                for (kind, before, after) in [
                    ("read", before.read, after.read),
                    ("write", before.write, after.write),
                    ("write-zeroes", before.write_zeroes, after.write_zeroes),
                    ("flush", before.flush, after.flush),
                ] {
                    let took = after.total_time_ns - before.total_time_ns;
                    assert!(took >= LATENCY, "{kind}, {way:?}: {took} ns");
                    assert_eq!(after.operations - before.operations, 1);
                }
            }
            // What was answered before the question is idle for less than the whole test.
            let idle = after[0].idle_ns.expect("it has answered");
            assert!(idle < 4 * LATENCY * 1000, "{idle} ns");
        }
        graph.detach(client.root()).await.expect("it was attached");
    });
}

#[test]
fn what_failed_is_told_from_what_was_refused() {
    with_graph(|graph| async move {
        add(
            &graph,
            json!({"driver": "null-co", "node-name": "null", "size": MIB}),
        )
        .await;
        let debug = json!({
            "driver": "blkdebug", "node-name": "debug", "image": "null",
            "inject-error": [{"event": "none", "iotype": "read", "errno": 5}],
        });
        add(&graph, debug).await;
        add(
            &graph,
            json!({"driver": "raw", "node-name": "top", "file": "debug"}),
        )
        .await;
        let client = attach(&graph, "top").await;
        for way in [Way::AtOnce, Way::InSteps, Way::FromElsewhere] {
            let before = [
                counted(&graph, "top").await.read,
                counted(&graph, "debug").await.read,
                counted(&graph, "null").await.read,
            ];
            let requests = [Request::Read(0, 512), Request::Read(MIB, 512)];
            let answers: Vec<_> = run(&client, way, &requests).await;
            let answers: Vec<_> = answers.into_iter().map(|(answer, _)| answer).collect();
            assert_eq!(answers, [Err(IoError::Os(5)), Err(IoError::OutOfRange)]);
            let after = [
                counted(&graph, "top").await.read,
                counted(&graph, "debug").await.read,
                counted(&graph, "null").await.read,
            ];
            let grown: Vec<_> = before
                .iter()
                .zip(&after)
                .map(|(before, after)| (after.failed - before.failed, after.invalid - before.invalid))
                .collect();
            assert_eq!(grown, [(1, 1), (1, 0), (0, 0)], "{way:?}");
            assert_eq!(after[0].operations, 0);
        }
        graph.detach(client.root()).await.expect("it was attached");
        let reader = RootRequest::new(
            "top",
            RootUser::Embedder("reader".to_owned()),
            Permissions::CONSISTENT_READ,
        );
        let client = graph.attach(reader).await.expect("the node is free");
        let (refused, _) = client.write(0, Buffers::zeroed(512), PLAIN).await;
        assert_eq!(refused, Err(IoError::NotPermitted));
        let write = counted(&graph, "top").await.write;
        assert_eq!((write.invalid, write.failed), (1, 0));
        graph.detach(client.root()).await.expect("it was attached");
    });
}

fn histogram(boundaries: &[u64]) -> Option<LatencyHistogram> {
    Some(LatencyHistogram::new(boundaries.to_vec()).expect("they ascend"))
}

fn bins(histogram: &Option<LatencyHistogram>) -> Vec<u64> {
    histogram.as_ref().expect("it was asked for").bins().to_vec()
}

#[test]
fn histograms_count_from_when_they_are_asked_for_and_go_along_to_another_iothread() {
    const LATENCY: u64 = 10_000_000;
    with_graph(|graph| async move {
        graph
            .add_iothread(IothreadOptions::named("io"))
            .await
            .expect("a thread");
        let null = json!({"driver": "null-co", "node-name": "null", "size": MIB, "latency-ns": LATENCY});
        add(&graph, null).await;
        let client = attach(&graph, "null").await;
        let requests = [
            Request::Read(0, 512),
            Request::Write(0, 512),
            Request::WriteZeroes(0, 512),
        ];
        run(&client, Way::AtOnce, &requests).await;
        let histograms = LatencyHistograms {
            read: histogram(&[LATENCY, 3_600_000_000_000]),
            write: histogram(&[LATENCY / 2]),
            flush: None,
        };
        graph
            .ask(SetHistograms {
                node_name: "null".to_owned(),
                histograms,
            })
            .await
            .expect("the node is there");
        run(&client, Way::AtOnce, &requests).await;
        run(&client, Way::InSteps, &requests).await;
        graph.detach(client.root()).await.expect("it was attached");
        let moved = graph
            .ask(SetIothread {
                node_name: "null".to_owned(),
                iothread: Some("io".to_owned()),
                force: false,
            })
            .await;
        moved.expect("nobody holds it in place");
        let client = attach(&graph, "null").await;
        run(&client, Way::AtOnce, &requests).await;
        let seen = counted(&graph, "null").await;
        assert_eq!(bins(&seen.histograms.read), [0, 3, 0]);
        assert_eq!(bins(&seen.histograms.write), [0, 6], "zero writes are writes");
        assert_eq!(seen.histograms.flush, None);
        assert_eq!((seen.read.operations, seen.write.operations), (4, 4));
        // One kind begins anew, the others go on.
        let again = LatencyHistograms {
            read: histogram(&[]),
            ..LatencyHistograms::default()
        };
        graph
            .ask(SetHistograms {
                node_name: "null".to_owned(),
                histograms: again,
            })
            .await
            .expect("the node is there");
        let seen = counted(&graph, "null").await;
        assert_eq!(
            (bins(&seen.histograms.read), bins(&seen.histograms.write)),
            (vec![0], vec![0, 6])
        );
        let ended = graph
            .ask(SetHistograms {
                node_name: "null".to_owned(),
                histograms: LatencyHistograms::default(),
            })
            .await;
        ended.expect("the node is there");
        assert!(counted(&graph, "null").await.histograms.is_empty());
        let missing = graph
            .ask(SetHistograms {
                node_name: "none".to_owned(),
                histograms: LatencyHistograms::default(),
            })
            .await;
        assert!(missing.is_err());
        graph.detach(client.root()).await.expect("it was attached");
    });
}

fn range(offset: u64, len: u64) -> Range {
    Range::new(offset, len).expect("an end that fits")
}
