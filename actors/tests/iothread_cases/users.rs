//! Users whose node moves, and what moves with a node.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use millpond::graph::GraphHandle;
use millpond::node::Client;
use millpond_messages::graph::{DelIothread, IothreadReports, MayMove, RootRequest, RootUser, SetIothread};
use millpond_messages::{ErrorKind, IoError, Permissions, RequestFlags};
use millpond_ring::buffer::Buffers;
use serde_json::json;

use super::{USE, add, add_null, attach, hold, home, move_to, places, with_graph};

/// A user that keeps a node busy from a thread of its own, as a job does.
pub struct Job {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    thread: std::thread::JoinHandle<Result<(), IoError>>,
}

impl Job {
    pub fn start(client: Client) -> Job {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&done));
        let thread = std::thread::spawn(move || {
            futures_executor::block_on(async {
                while !stopped.load(Ordering::SeqCst) {
                    client.read(0, Buffers::zeroed(4096)).await.0?;
                    client
                        .write(0, Buffers::zeroed(4096), RequestFlags::empty())
                        .await
                        .0?;
                    counted.fetch_add(1, Ordering::SeqCst);
                }
                Ok(())
            })
        });
        Job { stop, done, thread }
    }

    /// Waits until it has got further.
    pub async fn progresses(&self) {
        let before = self.done.load(Ordering::SeqCst);
        while self.done.load(Ordering::SeqCst) < before + 10 {
            assert!(!self.thread.is_finished(), "the job has failed");
            tokio::task::yield_now().await;
        }
    }

    pub fn complete(self) {
        self.stop.store(true, Ordering::SeqCst);
        self.thread
            .join()
            .expect("it ends")
            .expect("every request succeeds");
    }
}

async fn requests_at(graph: &GraphHandle, iothread: &str) -> u64 {
    let reports = graph.ask(IothreadReports).await.expect("an answer");
    let report = reports
        .iter()
        .find(|report| report.id == iothread)
        .expect("it is there");
    report.counters.requests
}

/// drain-cases: `/attach/blockjob`
#[test]
fn a_job_follows_its_node_from_iothread_to_iothread_and_runs_in_no_other() {
    with_graph(|graph| async move {
        add_null(&graph, "n").await;
        let request = RootRequest {
            user: RootUser::Job("job".to_owned()),
            ..hold("n", USE)
        };
        let client = graph.attach(request).await.expect("the node is free");
        let root = client.root();
        let job = Job::start(client.clone());
        let all = ["main", "io", "other"];
        for place in ["io", "main", "io", "main"] {
            job.progresses().await;
            move_to(&graph, "n", place).await;
            assert_eq!(client.iothread(), home(&graph, "n").await);
            let mut before = Vec::new();
            for iothread in all {
                before.push(requests_at(&graph, iothread).await);
            }
            job.progresses().await;
            for (iothread, before) in all.iter().zip(before) {
                let after = requests_at(&graph, iothread).await;
                assert_eq!(
                    after > before,
                    *iothread == place,
                    "{iothread} while the node is in {place}"
                );
            }
        }
        job.complete();
        graph.detach(root).await.expect("it was attached");
    });
}

/// drain-cases: `/attach/second_node`
#[test]
fn a_node_opened_on_top_is_placed_beside_what_it_is_on_and_both_go_back() {
    with_graph(|graph| async move {
        add_null(&graph, "below").await;
        move_to(&graph, "below", "io").await;
        add(
            &graph,
            json!({"driver": "raw", "node-name": "top", "file": "below"}),
        )
        .await;
        assert_eq!(places(&graph, &["below", "top"]).await, ["io", "io"]);
        let client = attach(&graph, "top", USE).await;
        move_to(&graph, "top", "main").await;
        assert_eq!(places(&graph, &["below", "top"]).await, ["main", "main"]);
        graph.detach(client.root()).await.expect("it was attached");
    });
}

/// drain-cases: `/attach/preserve_blk_ctx`. A hold without a node is not a thing that there is: who wants an iothread
/// says so each time it takes hold of a node.
#[test]
fn a_node_follows_its_user_into_an_iothread_and_falls_back_when_the_user_goes() {
    with_graph(|graph| async move {
        add_null(&graph, "n").await;
        move_to(&graph, "n", "io").await;
        let io = home(&graph, "n").await;
        move_to(&graph, "n", "main").await;
        for _ in 0..2 {
            let request = RootRequest {
                iothread: Some(io),
                iothread_required: true,
                ..hold("n", USE)
            };
            let client = graph.attach(request).await.expect("the node is free");
            assert_eq!((client.iothread(), home(&graph, "n").await), (io, io));
            graph.detach(client.root()).await.expect("it was attached");
            assert_eq!(places(&graph, &["n"]).await, ["main"]);
        }
        graph
            .ask(DelIothread { id: "io".to_owned() })
            .await
            .expect("nothing lives there");
    });
}

/// A node over two others, which passes every write to both.
pub async fn add_pair(graph: &GraphHandle, name: &str, children: [&str; 2]) {
    add(
        graph,
        json!({"driver": "quorum", "node-name": name, "children": children, "vote-threshold": 2}),
    )
    .await;
}

/// drain-cases: `/propagate/basic`
#[test]
fn all_that_is_joined_through_parents_and_children_moves_together() {
    with_graph(|graph| async move {
        add_null(&graph, "a").await;
        add_null(&graph, "b").await;
        add_pair(&graph, "pair", ["a", "b"]).await;
        let client = attach(&graph, "a", Permissions::CONSISTENT_READ).await;
        let all = ["a", "b", "pair"];
        for place in ["io", "main", "other", "io", "main"] {
            move_to(&graph, "a", place).await;
            assert_eq!(places(&graph, &all).await, [place; 3]);
            client.read(0, Buffers::zeroed(512)).await.0.expect("a read");
        }
        graph.detach(client.root()).await.expect("it was attached");
    });
}

/// drain-cases: `/propagate/diamond`
#[test]
fn a_diamond_moves_once_and_as_a_whole() {
    with_graph(|graph| async move {
        add_null(&graph, "base").await;
        for side in ["left", "right"] {
            add(
                &graph,
                json!({"driver": "raw", "node-name": side, "file": "base"}),
            )
            .await;
        }
        add_pair(&graph, "top", ["left", "right"]).await;
        let client = attach(&graph, "top", Permissions::CONSISTENT_READ).await;
        let all = ["base", "left", "right", "top"];
        for place in ["io", "main"] {
            move_to(&graph, "top", place).await;
            assert_eq!(places(&graph, &all).await, [place; 4]);
            client.read(0, Buffers::zeroed(512)).await.0.expect("a read");
        }
        graph.detach(client.root()).await.expect("it was attached");
    });
}

/// drain-cases: `/propagate/mirror`. A node over source and target stands for the mirror's filter, and a user that
/// drives both for the mirror.
#[test]
fn source_filter_target_and_job_move_together_or_not_at_all() {
    with_graph(|graph| async move {
        add_null(&graph, "source").await;
        add_null(&graph, "target").await;
        add_pair(&graph, "filter", ["source", "target"]).await;
        let all = ["source", "filter", "target"];
        let request = RootRequest {
            user: RootUser::Job("mirror".to_owned()),
            ..hold("filter", USE)
        };
        let client = graph.attach(request).await.expect("the filter is free");
        let root = client.root();
        let job = Job::start(client);
        move_to(&graph, "source", "io").await;
        assert_eq!(places(&graph, &all).await, ["io"; 3]);
        job.progresses().await;
        move_to(&graph, "target", "main").await;
        assert_eq!(places(&graph, &all).await, ["main"; 3]);
        job.progresses().await;
        // A user that needs its node where it is.
        let request = RootRequest {
            iothread: Some(home(&graph, "source").await),
            iothread_required: true,
            ..hold("source", Permissions::CONSISTENT_READ)
        };
        let staying = graph.attach(request).await.expect("the source is shared");
        let refused = graph
            .ask(SetIothread {
                node_name: "target".to_owned(),
                iothread: Some("io".to_owned()),
                force: true,
            })
            .await;
        let error = refused.expect_err("the source must stay");
        assert_eq!(error.kind(), ErrorKind::InUse);
        assert_eq!(
            error.to_string(),
            "Cannot change iothread of active block backend"
        );
        let may = graph
            .ask(MayMove {
                node_name: "target".to_owned(),
                iothread: Some("io".to_owned()),
                joined: true,
            })
            .await;
        assert_eq!(
            may.expect_err("as the move itself").to_string(),
            error.to_string()
        );
        assert_eq!(places(&graph, &all).await, ["main"; 3]);
        job.progresses().await;
        graph.detach(staying.root()).await.expect("it was attached");
        // One that does not mind goes along.
        let going = attach(&graph, "source", Permissions::CONSISTENT_READ).await;
        graph
            .ask(MayMove {
                node_name: "target".to_owned(),
                iothread: Some("io".to_owned()),
                joined: true,
            })
            .await
            .expect("nobody minds");
        move_to(&graph, "target", "io").await;
        assert_eq!(places(&graph, &all).await, ["io"; 3]);
        assert_eq!(going.iothread(), home(&graph, "target").await);
        going.read(0, Buffers::zeroed(512)).await.0.expect("a read");
        job.progresses().await;
        job.complete();
        for root in [going.root(), root] {
            graph.detach(root).await.expect("it was attached");
        }
    });
}
