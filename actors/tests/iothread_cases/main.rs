//! The cases that QEMU's own unit tests have for iothreads (drain-cases.md), on the graph actor: requests to a node in
//! an iothread from elsewhere, users whose node moves, and moves that take everything joined along.

mod moves;
mod requests;
mod users;

use std::future::Future;

use millpond::graph::{Graph, GraphConfig, GraphHandle, ImplicitOpens, system_iothreads};
use millpond::node::Client;
use millpond_drivers::builtin::builtin;
use millpond_messages::graph::{DrawGraph, IothreadOptions, Options, RootRequest, RootUser, SetIothread};
use millpond_messages::{IoThreadId, Permissions};
use millpond_ring::Engine;
use serde_json::{Value, json};

/// Runs a test against a graph that has the iothreads `io` and `other`.
fn with_graph<F: Future<Output = ()>>(test: impl FnOnce(GraphHandle) -> F) {
    actix_rt::System::new().block_on(async {
        let config = GraphConfig {
            registry: builtin(),
            implicit: ImplicitOpens::Allow,
            iothreads: system_iothreads(Engine::Auto),
            main: IothreadOptions::named("main"),
        };
        let (_, graph) = Graph::start(config).expect("an iothread can be started");
        for id in ["io", "other"] {
            graph
                .add_iothread(IothreadOptions::named(id))
                .await
                .expect("a thread");
        }
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

async fn add(graph: &GraphHandle, json: Value) {
    graph.add_node(options(json)).await.expect("the node opens");
}

/// A null node of one mebibyte.
async fn add_null(graph: &GraphHandle, name: &str) {
    add(
        graph,
        json!({"driver": "null-co", "node-name": name, "size": 1 << 20, "read-zeroes": true}),
    )
    .await;
}

fn hold(node: &str, permissions: Permissions) -> RootRequest {
    RootRequest {
        node: node.to_owned(),
        user: RootUser::Embedder("backend".to_owned()),
        permissions,
        shared: Permissions::all(),
        iothread: None,
        iothread_required: false,
        writethrough: false,
    }
}

const USE: Permissions = Permissions::CONSISTENT_READ
    .union(Permissions::WRITE)
    .union(Permissions::RESIZE);

async fn attach(graph: &GraphHandle, node: &str, permissions: Permissions) -> Client {
    graph
        .attach(hold(node, permissions))
        .await
        .expect("the node is free")
}

async fn move_to(graph: &GraphHandle, node: &str, iothread: &str) {
    let iothread = (iothread != "main").then(|| iothread.to_owned());
    graph
        .ask(SetIothread {
            node_name: node.to_owned(),
            iothread,
            force: true,
        })
        .await
        .expect("nobody minds");
}

async fn home(graph: &GraphHandle, node: &str) -> IoThreadId {
    graph.node(node).await.expect("the node is there").iothread
}

/// Where nodes are, by the name of their iothread: as the drawn graph tells.
async fn places(graph: &GraphHandle, nodes: &[&str]) -> Vec<String> {
    let dot = graph.ask(DrawGraph).await.expect("an answer");
    let place = |node: &&str| {
        let label = format!("label=\"{node}\\n");
        let line = dot
            .lines()
            .find(|line| line.contains(&label))
            .expect("the node is drawn");
        let (_, place) = line.split_once("iothread ").expect("its iothread");
        place.trim_end_matches("\"];").to_owned()
    };
    nodes.iter().map(place).collect()
}
