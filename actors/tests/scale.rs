//! Graphs with many nodes: deep ones are served on an ordinary stack, and questions about them take one step a node.

mod support;

use millpond::graph::GraphHandle;
use millpond_messages::graph::{DrawGraph, IothreadReports, NamedNodes, Options, RootRequest, RootUser};
use millpond_messages::io::{Operation, Preallocation, Value as Answer};
use millpond_messages::{Permissions, RequestFlags, StatusFlags};
use millpond_ring::buffer::{Buffer, Buffers};
use serde_json::{Value, json};
use support::with_graph;

fn options(json: Value) -> Options {
    let Value::Object(options) = json else {
        panic!("not an object: {json}")
    };
    options
}

/// Raw nodes on top of each other, `n0` at the bottom being a file of one mebibyte.
async fn raw_chain(graph: &GraphHandle, path: &str, length: usize) {
    let bottom = json!({"driver": "file", "node-name": "n0", "filename": path});
    graph.add_node(options(bottom)).await.expect("the file opens");
    for at in 1..length {
        let node = json!({"driver": "raw", "node-name": format!("n{at}"), "file": format!("n{}", at - 1)});
        graph.add_node(options(node)).await.expect("raw opens over raw");
    }
}

/// Deeper than polls within polls could go on a thread's stack.
const DEEP: usize = 300;

#[test]
fn every_kind_of_request_goes_through_a_chain_of_hundreds_of_nodes() {
    with_graph(|graph| async move {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("image");
        std::fs::write(&path, vec![1; 1 << 20]).expect("an image");
        raw_chain(&graph, path.to_str().expect("a name in text"), DEEP).await;
        let client = graph.attach(RootRequest {
            node: format!("n{}", DEEP - 1),
            user: RootUser::Embedder("test".to_owned()),
            permissions: Permissions::CONSISTENT_READ | Permissions::WRITE | Permissions::RESIZE,
            shared: Permissions::all(),
            iothread: None,
            iothread_required: false,
            writethrough: true,
        });
        let client = client.await.expect("the top is free");
        let plain = RequestFlags::empty();
        let data = Buffers::from(Buffer::from_slice(&[7; 1000]));
        let (written, _) = client.write(100, data, plain).await;
        written.expect("a write, unaligned and made durable");
        client.write_zeroes(8192, 4096, plain).await.expect("zeroes");
        client.discard(65536, 65536).await.expect("a discard");
        client.flush().await.expect("a flush");
        let (read, buffers) = client.read(99, Buffers::zeroed(1002)).await;
        read.expect("a read");
        assert_eq!(buffers.to_vec(), [&[1][..], &[7; 1000], &[1]].concat());
        let status = client.block_status(0, 4096, true, true).await.expect("a status");
        assert!(status.flags.contains(StatusFlags::DATA));
        let allocated = client.request(Operation::AllocatedSize).await;
        assert!(matches!(allocated.result, Ok(Answer::Bytes(bytes)) if bytes > 0));
        let grow = Operation::Truncate {
            size: 2 << 20,
            exact: false,
            preallocation: Preallocation::Off,
            flags: plain,
        };
        client.request(grow).await.result.expect("room on the host");
        assert_eq!(client.length().await, Ok(2 << 20));
        graph.detach(client.root()).await.expect("it was attached");
    });
}

/// How many nodes one message asks.
const AT_ONCE: u64 = 32;

/// Messages that the main iothread has handled for a question, without those by which this is found out.
async fn messages_for<T>(graph: &GraphHandle, ask: impl AsyncFnOnce() -> T) -> (u64, T) {
    let handled = async || {
        let reports = graph.ask(IothreadReports).await.expect("an answer");
        reports[0].counters.messages
    };
    let before = handled().await;
    let answer = ask().await;
    (handled().await - before - 1, answer)
}

/// contract.md, shape 12.
#[test]
fn questions_about_all_nodes_ask_many_at_once_and_each_once_however_deep_the_chain() {
    for length in [50, 200] {
        with_graph(|graph| async move {
            let dir = tempfile::tempdir().expect("a directory");
            let path = dir.path().join("image");
            std::fs::write(&path, vec![1; 4096]).expect("an image");
            raw_chain(&graph, path.to_str().expect("a name in text"), length).await;
            let nodes = length as u64;
            for flat in [true, false] {
                let (messages, named) =
                    messages_for(&graph, async || graph.ask(NamedNodes { flat }).await).await;
                assert_eq!(messages, nodes.div_ceil(AT_ONCE), "flat: {flat}");
                let named = named.expect("an answer");
                let sizes: Vec<Option<i64>> = named.iter().map(|node| node.image.actual_size).collect();
                assert_eq!(sizes.len(), length);
                assert!(sizes.iter().all(|size| *size == Some(4096)), "{sizes:?}");
            }
            let (messages, dot) = messages_for(&graph, async || graph.ask(DrawGraph).await).await;
            assert_eq!(messages, 0, "the graph itself is the actor's own");
            // Two lines of defaults, one a node and one an edge, and two around them.
            assert_eq!(dot.expect("an answer").lines().count(), 2 * length + 3);
        });
    }
}

#[test]
fn the_answer_about_ten_times_the_nodes_is_ten_times_as_long() {
    with_graph(|graph| async move {
        let mut lengths = Vec::new();
        for nodes in [100, 1000] {
            let have = lengths.len() * 100;
            for at in have..nodes {
                let node = json!({"driver": "null-co", "node-name": format!("node{at:04}")});
                graph.add_node(options(node)).await.expect("null opens");
            }
            let (messages, named) =
                messages_for(&graph, async || graph.ask(NamedNodes { flat: true }).await).await;
            assert_eq!(messages, (nodes as u64).div_ceil(AT_ONCE));
            lengths.push(json!(named.expect("an answer")).to_string().len() - "[]".len());
        }
        // Each entry but the last has a comma.
        assert_eq!(lengths[1] + 1, (lengths[0] + 1) * 10);
    });
}
