//! The graph actor with real iothreads, nodes and files.

use std::collections::HashSet;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use millpond::graph::{
    Graph, GraphConfig, GraphHandle, ImplicitOpens, Starting, graph_json, system_iothreads,
};
use millpond_drivers::builtin::builtin;
use millpond_messages::graph::{
    ChainContains, ChainUnfrozen, DelIothread, DrainScope, FindBackingImage, FindOverlay, IothreadOptions,
    ListDrains, ListOpBlockers, MakeImage, NamedNodes, NextOwned, NodeFacts, Options, Reopen, RootRequest,
    RootUser, SetIothread,
};
use millpond_messages::{ErrorKind, OpBlocker, Permissions, RequestFlags};
use millpond_ring::Engine;
use millpond_ring::buffer::Buffers;
use serde_json::{Value, json};

fn iothread(id: &str) -> IothreadOptions {
    serde_json::from_value(json!({"id": id})).expect("an id is enough")
}

/// Runs a test against a graph of its own.
fn with_graph<F: Future<Output = ()>>(test: impl FnOnce(GraphHandle) -> F) {
    actix_rt::System::new().block_on(async {
        let config = GraphConfig {
            registry: builtin(),
            implicit: ImplicitOpens::Allow,
            iothreads: system_iothreads(Engine::Auto),
            main: iothread("main"),
        };
        let (_, graph) = Graph::start(config).expect("an iothread can be started");
        test(graph.clone()).await;
        graph.close_all().await.expect("everything closes");
    });
}

fn options(json: Value) -> Options {
    let Value::Object(options) = json else {
        panic!("not an object: {json}")
    };
    options
}

fn export(node: &str, permissions: Permissions) -> RootRequest {
    RootRequest {
        node: node.to_owned(),
        user: RootUser::Export("e".to_owned()),
        permissions,
        shared: Permissions::all(),
        iothread: None,
        iothread_required: false,
        writethrough: false,
    }
}

const READ_WRITE: Permissions = Permissions::CONSISTENT_READ.union(Permissions::WRITE);

async fn write(client: &millpond::node::Client, offset: u64, bytes: &[u8]) {
    let mut buffers = Buffers::zeroed(bytes.len());
    buffers.copy_from_slice(0, bytes);
    let (result, _) = client.write(offset, buffers, RequestFlags::empty()).await;
    result.expect("the request succeeds");
}

async fn read(client: &millpond::node::Client, offset: u64, len: usize) -> Vec<u8> {
    let (result, buffers) = client.read(offset, Buffers::zeroed(len)).await;
    result.expect("the request succeeds");
    buffers.to_vec()
}

#[test]
fn a_raw_image_is_added_used_and_deleted() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk.raw");
    std::fs::write(&path, vec![0; 1 << 20]).unwrap();
    with_graph(|graph| async move {
        let file = json!({"driver": "file", "filename": path});
        graph
            .add_node(options(
                json!({"driver": "raw", "node-name": "disk", "file": file}),
            ))
            .await
            .unwrap();
        let client = graph.attach(export("disk", READ_WRITE)).await.unwrap();
        write(&client, 4096, b"hello").await;
        assert_eq!(read(&client, 4096, 5).await, b"hello");
        let error = graph.delete_node("disk").await.unwrap_err();
        assert_eq!(error.to_string(), "Node disk is in use");
        graph.detach(client.root()).await.unwrap();
        graph.delete_node("disk").await.unwrap();
        assert_eq!(graph.facts().await.unwrap().nodes, []);
    });
}

#[test]
fn requests_wait_while_their_node_is_drained_and_then_run() {
    with_graph(|graph| async move {
        let null = json!({"driver": "null-co", "node-name": "n", "size": 65536, "read-zeroes": true});
        graph.add_node(options(null)).await.unwrap();
        let client = graph.attach(export("n", READ_WRITE)).await.unwrap();
        let guard = graph
            .drain(DrainScope::Node("n".to_owned()), "test")
            .await
            .unwrap();
        let mut parked = Box::pin(read(&client, 0, 512));
        // A request of the same thread that came after it has been answered: the parked one had its turn.
        assert!(futures_util::poll!(&mut parked).is_pending());
        let facts = graph.node("n").await.unwrap();
        assert_eq!(facts.size, 65536);
        graph.ask(NamedNodes { flat: true }).await.unwrap();
        assert!(futures_util::poll!(&mut parked).is_pending());
        drop(guard);
        assert_eq!(parked.await, vec![0; 512]);
    });
}

#[test]
fn a_node_moves_between_iothreads_under_its_client() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk.raw");
    std::fs::write(&path, vec![7; 1 << 16]).unwrap();
    with_graph(|graph| async move {
        graph.add_iothread(iothread("io0")).await.unwrap();
        let file = json!({"driver": "file", "filename": path, "node-name": "f"});
        graph
            .add_node(options(
                json!({"driver": "raw", "node-name": "disk", "file": file}),
            ))
            .await
            .unwrap();
        let client = graph.attach(export("disk", READ_WRITE)).await.unwrap();
        let home = client.iothread();
        let error = graph
            .ask(SetIothread {
                node_name: "f".to_owned(),
                iothread: Some("io0".to_owned()),
                force: false,
            })
            .await;
        error.unwrap();
        assert_ne!(client.iothread(), home);
        assert_eq!(graph.node("f").await.unwrap().iothread, client.iothread());
        assert_eq!(read(&client, 512, 512).await, vec![7; 512]);
        let error = graph
            .ask(SetIothread {
                node_name: "disk".to_owned(),
                iothread: None,
                force: false,
            })
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains("is associated with a BlockBackend"), "{error}");
        let error = graph
            .ask(DelIothread { id: "io0".to_owned() })
            .await
            .unwrap_err()
            .to_string();
        assert_eq!(error, "object 'io0' is in use, can not be deleted");
        graph
            .ask(SetIothread {
                node_name: "disk".to_owned(),
                iothread: None,
                force: true,
            })
            .await
            .unwrap();
        assert_eq!(client.iothread(), home);
        write(&client, 0, b"back").await;
        assert_eq!(read(&client, 0, 4).await, b"back");
        graph.ask(DelIothread { id: "io0".to_owned() }).await.unwrap();
    });
}

#[test]
fn a_node_longer_than_any_range_is_refused() {
    with_graph(|graph| async move {
        let null = json!({"driver": "null-co", "node-name": "n", "size": i64::MAX});
        let error = graph.add_node(options(null)).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "Could not refresh total sector count: File too large"
        );
        assert_eq!(graph.ask(NamedNodes { flat: true }).await.unwrap(), []);
    });
}

#[test]
fn the_graph_is_shown_as_qemu_shows_it() {
    with_graph(|graph| async move {
        graph
            .add_node(options(
                json!({"driver": "null-co", "node-name": "n", "size": 1024}),
            ))
            .await
            .unwrap();
        graph
            .add_node(options(json!({"driver": "raw", "node-name": "r", "file": "n"})))
            .await
            .unwrap();
        let shown = serde_json::to_value(graph_json(&graph.facts().await.unwrap())).unwrap();
        assert_eq!(shown["nodes"][0]["name"], "r");
        assert_eq!(shown["edges"][0]["name"], "file");
        let nodes = graph.ask(NamedNodes { flat: true }).await.unwrap();
        assert_eq!(nodes[1].file, r#"json:{"driver": "null-co", "size": 1024}"#);
    });
}

#[test]
fn iothreads_end_with_their_graph() {
    let (started, iothreads) = std::sync::mpsc::channel();
    actix_rt::System::new().block_on(async move {
        let mut factory = system_iothreads(Engine::Auto);
        let config = GraphConfig {
            registry: builtin(),
            implicit: ImplicitOpens::Allow,
            iothreads: Box::new(move |options, events| {
                let (starting, started) = (factory(options, events), started.clone());
                Box::pin(async move {
                    let (iothread, thread) = starting.await?;
                    started.send(iothread.clone()).expect("the test listens");
                    Ok((iothread, thread))
                })
            }),
            main: iothread("main"),
        };
        let (_, graph) = Graph::start(config).unwrap();
        graph.add_iothread(iothread("io0")).await.unwrap();
    });
    let started: Vec<_> = iothreads.iter().collect();
    assert_eq!(started.len(), 2);
    // Returns only if they were stopped.
    started.iter().for_each(millpond::iothread::IoThread::join);
}

/// A graph whose iothreads `begin` starts after the main one.
fn with_iothreads<F: Future<Output = ()>>(
    mut begin: impl FnMut(Starting) -> Starting + Send + 'static,
    test: impl FnOnce(GraphHandle) -> F,
) {
    actix_rt::System::new().block_on(async {
        let mut factory = system_iothreads(Engine::Auto);
        let config = GraphConfig {
            registry: builtin(),
            implicit: ImplicitOpens::Allow,
            iothreads: Box::new(move |options, events| {
                let starting = factory(options, events);
                if options.id == "main" {
                    starting
                } else {
                    begin(starting)
                }
            }),
            main: iothread("main"),
        };
        let (_, graph) = Graph::start(config).expect("an iothread can be started");
        test(graph.clone()).await;
        graph.close_all().await.expect("everything closes");
    });
}

#[test]
fn an_iothread_that_cannot_be_started_is_an_error_and_its_name_is_free() {
    let mut fails = true;
    let begin = move |starting| -> Starting {
        if !std::mem::replace(&mut fails, false) {
            return starting;
        }
        // As where there may be no more threads, or descriptors for a ring.
        Box::pin(async { Err(std::io::Error::from_raw_os_error(11)) })
    };
    with_iothreads(begin, |graph| async move {
        let error = graph.add_iothread(iothread("io")).await.unwrap_err();
        let text = "Could not start iothread 'io': Resource temporarily unavailable (os error 11)";
        assert_eq!((error.to_string().as_str(), error.errno()), (text, 11));
        graph.add_iothread(iothread("io")).await.unwrap();
    });
}

#[test]
fn the_graph_goes_on_while_an_iothread_starts() {
    let (go, may_go) = futures_channel::oneshot::channel::<()>();
    let mut may_go = Some(may_go);
    let begin = move |starting: Starting| -> Starting {
        let may_go = may_go.take();
        Box::pin(async move {
            if let Some(may_go) = may_go {
                may_go.await.unwrap();
            }
            starting.await
        })
    };
    with_iothreads(begin, |graph| async move {
        let mut adding = Box::pin(graph.add_iothread(iothread("io")));
        assert!(futures_util::poll!(&mut adding).is_pending());
        // Asked after it, and answered before.
        assert_eq!(graph.facts().await.unwrap().nodes.len(), 0);
        let section = graph.drain(DrainScope::All, "test").await.unwrap();
        drop(section);
        assert!(futures_util::poll!(&mut adding).is_pending());
        go.send(()).unwrap();
        adding.await.unwrap();
    });
}

#[test]
fn a_section_ends_with_the_future_that_waited_for_it() {
    with_graph(|graph| async move {
        let null = json!({"driver": "null-co", "node-name": "n", "size": 65536, "latency-ns": 1_000_000_000});
        graph.add_node(options(null)).await.unwrap();
        let client = graph.attach(export("n", READ_WRITE)).await.unwrap();
        let mut slow = Box::pin(read(&client, 0, 512));
        assert!(futures_util::poll!(&mut slow).is_pending());
        let mut drain = Box::pin(graph.drain(DrainScope::All, "impatient"));
        assert!(futures_util::poll!(&mut drain).is_pending());
        let pending = graph.ask(ListDrains).await.unwrap();
        assert_eq!(pending[0].user, "impatient");
        assert_eq!(pending[0].waiting_for[0].node_name, "n");
        drop(drain);
        assert!(graph.ask(ListDrains).await.unwrap().is_empty());
        slow.await;
        // Not parked: the gate is open again.
        read(&client, 0, 512).await;
    });
}

#[test]
fn operations_are_blocked_while_a_guard_lives() {
    with_graph(|graph| async move {
        for name in ["a", "b"] {
            let null = json!({"driver": "null-co", "node-name": name, "size": 65536});
            graph.add_node(options(null)).await.unwrap();
        }
        let guard = graph.op_block("a", &OpBlocker::ALL, "it is moved").await.unwrap();
        guard.block("b", &[OpBlocker::DriveDel]).await.unwrap();
        guard.unblock("a", &[OpBlocker::Resize]).await.unwrap();
        graph.check_operation("a", OpBlocker::Resize).await.unwrap();
        for name in ["a", "b"] {
            let text = format!("Node '{name}' is busy: it is moved");
            let asked = graph.check_operation(name, OpBlocker::DriveDel).await;
            assert_eq!(asked.unwrap_err().to_string(), text);
            let error = graph.delete_node(name).await.unwrap_err();
            assert_eq!((error.to_string(), error.kind()), (text, ErrorKind::InUse));
        }
        assert_eq!(
            graph
                .ask(ListOpBlockers {
                    node_name: "b".to_owned()
                })
                .await
                .unwrap()
                .len(),
            1
        );
        drop(guard);
        assert_eq!(
            graph
                .ask(ListOpBlockers {
                    node_name: "a".to_owned()
                })
                .await
                .unwrap(),
            []
        );
        graph.delete_node("a").await.unwrap();
        graph.delete_node("b").await.unwrap();
    });
}

#[test]
fn a_chain_is_asked_about_and_frozen_while_a_guard_lives() {
    let directory = tempfile::tempdir().unwrap();
    let base = directory.path().join("base");
    let top = directory.path().join("top");
    std::fs::write(&base, vec![0; 1 << 16]).unwrap();
    std::fs::write(&top, []).unwrap();
    with_graph(|graph| async move {
        let file = |path: &std::path::Path, name: &str| {
            options(json!({"driver": "file", "filename": path, "node-name": name}))
        };
        graph.add_node(file(&base, "base")).await.unwrap();
        graph.add_node(file(&top, "file")).await.unwrap();
        let create = json!({"driver": "qcow2", "file": "file", "size": 65536, "backing-file": base, "backing-fmt": "raw"});
        graph.ask(MakeImage(options(create))).await.unwrap();
        let qcow2 = json!({"driver": "qcow2", "node-name": "top", "file": "file", "backing": "base"});
        graph.add_node(options(qcow2)).await.unwrap();
        let named = |node: Option<NodeFacts>| node.map(|node| node.name);
        assert_eq!(
            named(
                graph
                    .ask(FindOverlay {
                        active: "top".to_owned(),
                        node_name: Some("base".to_owned())
                    })
                    .await
                    .unwrap()
            )
            .as_deref(),
            Some("top")
        );
        assert_eq!(
            named(
                graph
                    .ask(FindOverlay {
                        active: "top".to_owned(),
                        node_name: None
                    })
                    .await
                    .unwrap()
            )
            .as_deref(),
            Some("base")
        );
        let filename = base.to_str().unwrap();
        let image = graph
            .ask(FindBackingImage {
                top: "top".to_owned(),
                filename: filename.to_owned(),
            })
            .await
            .unwrap();
        assert_eq!(named(image).as_deref(), Some("base"));
        assert!(
            graph
                .ask(ChainContains {
                    top: "top".to_owned(),
                    base: "base".to_owned()
                })
                .await
                .unwrap()
        );
        assert!(
            !graph
                .ask(ChainContains {
                    top: "base".to_owned(),
                    base: "top".to_owned()
                })
                .await
                .unwrap()
        );
        let next = graph
            .ask(NextOwned {
                after: Some("file".to_owned()),
            })
            .await
            .unwrap();
        assert_eq!(named(next).as_deref(), Some("top"));
        let guard = graph.freeze_chain("top", None).await.unwrap();
        let reopen = json!({"driver": "qcow2", "node-name": "top", "file": "file", "backing": null});
        let error = graph
            .ask(Reopen(vec![options(reopen.clone())]))
            .await
            .unwrap_err();
        let text = "Cannot change frozen 'backing' link from 'top' to 'base'";
        assert_eq!(error.to_string(), text);
        let error = graph
            .ask(ChainUnfrozen {
                top: "top".to_owned(),
                base: None,
            })
            .await
            .unwrap_err();
        // QEMU says it in other words where nobody wants to change the link.
        assert_eq!(
            error.to_string(),
            "Cannot change 'backing' link from 'top' to 'base'"
        );
        drop(guard);
        graph
            .ask(ChainUnfrozen {
                top: "top".to_owned(),
                base: None,
            })
            .await
            .unwrap();
        graph.ask(Reopen(vec![options(reopen)])).await.unwrap();
    });
}

#[test]
fn any_thread_finds_nodes_by_name_as_they_come_and_go() {
    with_graph(|graph| async move {
        let stop = Arc::new(AtomicBool::new(false));
        let readers: Vec<_> = (0..3)
            .map(|_| {
                let (graph, stop) = (graph.clone(), Arc::clone(&stop));
                thread::spawn(move || {
                    let mut found = 0_u64;
                    while !stop.load(Ordering::Relaxed) {
                        for number in 0..4 {
                            let name = format!("n{number}");
                            if let Some(node) = graph.find(&name) {
                                assert_eq!((node.name(), node.driver()), (name.as_str(), "null-co"));
                                found += 1;
                            }
                        }
                    }
                    found
                })
            })
            .collect();
        let mut ids = HashSet::new();
        for round in 0..400 {
            let name = format!("n{}", round % 4);
            let node = json!({"driver": "null-co", "node-name": name, "size": 4096});
            assert!(graph.find(&name).is_none(), "it is not there yet");
            graph
                .add_node(options(node.clone()))
                .await
                .expect("a node is added");
            let found = graph.find(&name).expect("whoever has the reply finds it");
            assert!(ids.insert(found.id()), "no two nodes have one number");
            graph
                .add_node(options(node))
                .await
                .expect_err("the name is taken");
            assert_eq!(graph.find(&name).map(|node| node.id()), Some(found.id()));
            if round % 50 == 0 {
                let client = found
                    .attach(export("", READ_WRITE))
                    .await
                    .expect("it can be held");
                write(&client, 0, b"data").await;
                graph.detach(client.root()).await.expect("it is held");
                assert_eq!(found.facts().await.expect("it is there").id, found.id());
            }
            graph.delete_node(&name).await.expect("nobody uses it");
            assert!(graph.find(&name).is_none(), "nobody finds what is deleted");
            assert!(found.facts().await.is_err());
        }
        stop.store(true, Ordering::Relaxed);
        let found: u64 = readers
            .into_iter()
            .map(|reader| reader.join().expect("a reader ends well"))
            .sum();
        assert!(found > 0, "the readers found nodes");
        // What a failed change has opened is never seen.
        let broken = json!({"driver": "raw", "node-name": "top",
            "file": {"driver": "raw", "node-name": "below", "file": "missing"}});
        graph
            .add_node(options(broken))
            .await
            .expect_err("a child is missing");
        assert!(graph.find("top").is_none() && graph.find("below").is_none());
    });
}
