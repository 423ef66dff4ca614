//! Moves of one node without its neighbours, iothreads that come and go, and refusals, under load.

use futures_util::future::join;
use millpond::graph::GraphHandle;
use millpond::node::Client;
use millpond_messages::graph::{
    DelIothread, IothreadOptions, IothreadReport, IothreadReports, MakeImage, MayMove, MoveNode, RootRequest,
    SetIothread,
};
use millpond_messages::{ErrorKind, Permissions, RequestFlags};
use millpond_ring::buffer::{Buffer, Buffers};
use serde_json::json;

use super::users::{Job, add_pair};
use super::{USE, add, add_null, attach, hold, home, move_to, places, with_graph};

/// How often the moves under load are made.
const ROUNDS: u8 = 20;

async fn move_alone(graph: &GraphHandle, node: &str, iothread: &str) {
    let iothread = (iothread != "main").then(|| iothread.to_owned());
    graph
        .ask(MoveNode {
            node_name: node.to_owned(),
            iothread,
        })
        .await
        .expect("nobody minds");
}

async fn report(graph: &GraphHandle, iothread: &str) -> IothreadReport {
    let reports = graph.ask(IothreadReports).await.expect("an answer");
    reports
        .into_iter()
        .find(|report| report.id == iothread)
        .expect("it is there")
}

/// Writes blocks of one value each, reads each back at once, and answers what must be there in the end.
async fn load(client: &Client, blocks: u64, round: u8) {
    for block in 0..blocks {
        let value = round
            .wrapping_mul(31)
            .wrapping_add(u8::try_from(block).expect("few blocks"));
        // Neither the offset nor the length is that of a sector: pieces are read, changed and written on the way.
        let offset = block * 4096 + 7;
        let data = Buffers::from(Buffer::from_slice(&[value; 3000]));
        let (written, _) = client.write(offset, data, RequestFlags::empty()).await;
        written.expect("a write");
        let (read, buffers) = client.read(offset, Buffers::zeroed(3000)).await;
        read.expect("a read");
        assert_eq!(buffers.to_vec(), [value; 3000], "block {block} of round {round}");
    }
}

#[test]
fn one_node_moves_alone_to_and_fro_under_load_and_every_byte_is_as_written() {
    with_graph(|graph| async move {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("image");
        std::fs::File::create(&path).expect("a file");
        add(
            &graph,
            json!({"driver": "file", "node-name": "f", "filename": path}),
        )
        .await;
        let image = json!({"driver": "qcow2", "file": "f", "size": 1 << 20});
        graph
            .ask(MakeImage(super::options(image)))
            .await
            .expect("an image");
        add(&graph, json!({"driver": "qcow2", "node-name": "q", "file": "f"})).await;
        let client = attach(&graph, "q", USE).await;
        // Each of the two goes its own way: now one iothread, now two.
        let ways = [
            ("f", "io"),
            ("q", "other"),
            ("f", "main"),
            ("q", "io"),
            ("f", "io"),
            ("q", "main"),
            ("f", "other"),
        ];
        for round in 0..ROUNDS {
            let (node, place) = ways[usize::from(round) % ways.len()];
            let neighbour = if node == "f" { "q" } else { "f" };
            let before = places(&graph, &[neighbour]).await;
            join(load(&client, 16, round), move_alone(&graph, node, place)).await;
            assert_eq!(places(&graph, &[node]).await, [place]);
            assert_eq!(places(&graph, &[neighbour]).await, before, "the other stays");
            assert_eq!(
                client.iothread(),
                home(&graph, "q").await,
                "the user follows its node"
            );
        }
        move_alone(&graph, "q", "main").await;
        move_alone(&graph, "f", "io").await;
        let before = report(&graph, "io").await.counters;
        load(&client, 4, 0).await;
        client.flush().await.expect("a flush");
        let after = report(&graph, "io").await.counters;
        assert_eq!(after.requests, before.requests, "no request enters there");
        assert!(
            after.requests_from_elsewhere > before.requests_from_elsewhere,
            "its pieces do"
        );
        move_to(&graph, "f", "main").await;
        assert_eq!(
            places(&graph, &["f", "q"]).await,
            ["main", "main"],
            "joined again"
        );
        graph.detach(client.root()).await.expect("it was attached");
    });
}

#[test]
fn a_node_in_the_middle_moves_alone_and_drains_pass_through_all_three_iothreads() {
    with_graph(|graph| async move {
        add_null(&graph, "bottom").await;
        add(
            &graph,
            json!({"driver": "raw", "node-name": "middle", "file": "bottom"}),
        )
        .await;
        add(
            &graph,
            json!({"driver": "raw", "node-name": "top", "file": "middle"}),
        )
        .await;
        move_alone(&graph, "middle", "io").await;
        move_alone(&graph, "bottom", "other").await;
        assert_eq!(
            places(&graph, &["top", "middle", "bottom"]).await,
            ["main", "io", "other"]
        );
        let client = attach(&graph, "top", USE).await;
        let root = client.root();
        let job = Job::start(client);
        for node in ["bottom", "middle", "top"] {
            job.progresses().await;
            let scope = millpond_messages::graph::DrainScope::Node(node.to_owned());
            let section = graph.drain(scope, "test").await.expect("it ends");
            let before = report(&graph, "other").await.counters.requests_from_elsewhere;
            let after = report(&graph, "other").await.counters.requests_from_elsewhere;
            assert_eq!(after, before, "nothing arrives in a still section");
            drop(section);
        }
        job.progresses().await;
        job.complete();
        graph.detach(root).await.expect("it was attached");
    });
}

#[test]
fn a_node_opened_over_children_in_two_iothreads_reaches_both() {
    with_graph(|graph| async move {
        for (name, place) in [("a", "io"), ("b", "other")] {
            add_null(&graph, name).await;
            move_alone(&graph, name, place).await;
        }
        add_pair(&graph, "pair", ["a", "b"]).await;
        assert_eq!(places(&graph, &["a", "b", "pair"]).await, ["io", "other", "io"]);
        let client = attach(&graph, "pair", Permissions::CONSISTENT_READ).await;
        client.read(0, Buffers::zeroed(512)).await.0.expect("both answer");
        assert!(report(&graph, "other").await.counters.requests_from_elsewhere > 0);
        graph.detach(client.root()).await.expect("it was attached");
    });
}

#[test]
fn whether_a_node_may_move_is_told_with_the_words_of_the_refusal_and_nothing_moves() {
    with_graph(|graph| async move {
        add_null(&graph, "below").await;
        add(
            &graph,
            json!({"driver": "raw", "node-name": "top", "file": "below"}),
        )
        .await;
        let io = || Some("io".to_owned());
        for (node, iothread, kind, text) in [
            (
                "none",
                io(),
                ErrorKind::NotFound,
                "Failed to find node with node-name='none'",
            ),
            (
                "top",
                Some("none".to_owned()),
                ErrorKind::NotFound,
                "Cannot find iothread none",
            ),
        ] {
            for joined in [false, true] {
                let refused = graph
                    .ask(MayMove {
                        node_name: node.to_owned(),
                        iothread: iothread.clone(),
                        joined,
                    })
                    .await;
                let error = refused.expect_err("there is none");
                assert_eq!((error.kind(), error.to_string().as_str()), (kind, text));
            }
        }
        let request = RootRequest {
            iothread: Some(home(&graph, "top").await),
            iothread_required: true,
            ..hold("top", USE)
        };
        let client = graph.attach(request).await.expect("it is free");
        let active = "Cannot change iothread of active block backend";
        for (node, joined, refused) in [
            ("top", false, true),
            ("top", true, true),
            ("below", false, false),
            ("below", true, true),
        ] {
            let may = graph
                .ask(MayMove {
                    node_name: node.to_owned(),
                    iothread: io(),
                    joined,
                })
                .await;
            let text = may.err().map(|error| error.to_string());
            assert_eq!(
                text.as_deref(),
                refused.then_some(active),
                "{node}, joined: {joined}"
            );
            assert_eq!(places(&graph, &["top", "below"]).await, ["main", "main"]);
        }
        let error = graph
            .ask(MoveNode {
                node_name: "top".to_owned(),
                iothread: io(),
            })
            .await
            .expect_err("as it was told");
        assert_eq!(error.to_string(), active);
        graph
            .ask(MayMove {
                node_name: "top".to_owned(),
                iothread: None,
                joined: true,
            })
            .await
            .expect("it is there already");
        move_alone(&graph, "below", "io").await;
        assert_eq!(places(&graph, &["top", "below"]).await, ["main", "io"]);
        graph.detach(client.root()).await.expect("it was attached");
    });
}

#[test]
fn iothreads_come_and_go_under_load_and_one_in_use_is_not_deleted() {
    with_graph(|graph| async move {
        add_null(&graph, "n").await;
        add_null(&graph, "other-node").await;
        let client = attach(&graph, "n", USE).await;
        let root = client.root();
        let job = Job::start(client);
        let mut threads = Vec::new();
        for round in 0..ROUNDS {
            let id = format!("new{round}");
            graph
                .add_iothread(IothreadOptions::named(&id))
                .await
                .expect("a thread");
            move_to(&graph, "n", &id).await;
            threads.push(report(&graph, &id).await.thread_id);
            job.progresses().await;
            let error = graph
                .ask(DelIothread { id: id.clone() })
                .await
                .expect_err("a node lives there");
            assert_eq!(error.kind(), ErrorKind::InUse);
            assert_eq!(
                error.to_string(),
                format!("object '{id}' is in use, can not be deleted")
            );
            move_to(&graph, "n", "main").await;
            graph
                .ask(DelIothread { id: id.clone() })
                .await
                .expect("nobody lives there any more");
            let gone = graph
                .ask(SetIothread {
                    node_name: "n".to_owned(),
                    iothread: Some(id.clone()),
                    force: true,
                })
                .await;
            assert_eq!(
                gone.expect_err("it is gone").to_string(),
                format!("Cannot find iothread {id}")
            );
        }
        // They end while the user that has been there is still at work.
        while threads
            .iter()
            .any(|thread| std::fs::exists(format!("/proc/self/task/{thread}")).expect("a path"))
        {
            job.progresses().await;
        }
        job.complete();
        graph.detach(root).await.expect("it was attached");
    });
}
