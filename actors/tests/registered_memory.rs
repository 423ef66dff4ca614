//! Memory that is registered once, so that requests from it need no mapping.

use std::future::Future;
use std::sync::Arc;

use futures_channel::oneshot;
use millpond::graph::{Graph, GraphConfig, GraphHandle, ImplicitOpens, system_iothreads};
use millpond::iothread::Local;
use millpond::node::{Client, Mail};
use millpond_drivers::builtin::builtin;
use millpond_messages::graph::{IothreadOptions, Options, RootRequest, RootUser, SetIothread};
use millpond_messages::{ErrorKind, IoError, Permissions, RequestFlags};
use millpond_ring::Engine;
use millpond_ring::buffer::{Buffer, Buffers, PLACES, Region};
use serde_json::{Value, json};

const PIECE: usize = 4096;

fn options(json: Value) -> Options {
    let Value::Object(options) = json else {
        panic!("not an object: {json}")
    };
    options
}

/// Reads and writes of registered memory so far, on the ring of the client's node.
async fn fixed(client: &Client) -> u64 {
    let (send, answer) = oneshot::channel();
    let look = move || {
        let local = Local::current().expect("an iothread");
        send.send(local.ring().stats().fixed)
            .expect("the test waits for it");
    };
    assert!(client.home().send(Mail::Run(Box::new(look))).is_ok());
    answer.await.expect("the iothread answers")
}

/// Writes a piece and reads it back into another; gives both back.
async fn copy(client: &Client, value: u8, mut from: Buffer, to: Buffer) -> (Buffer, Buffer) {
    from.fill(value);
    let (written, mut from) = client.write(0, Buffers::from(from), RequestFlags::empty()).await;
    written.expect("a write");
    let (read, mut to) = client.read(0, Buffers::from(to)).await;
    read.expect("a read");
    assert_eq!(to.to_vec(), [value; PIECE]);
    let only = |buffers: &mut Buffers| std::mem::take(buffers.iter_mut().next().expect("one piece"));
    (only(&mut from), only(&mut to))
}

async fn test(graph: GraphHandle, engine: Engine) {
    let file = tempfile::NamedTempFile::new().expect("a file");
    file.as_file().set_len(1 << 20).expect("room");
    let aio = if engine == Engine::Uring {
        "io_uring"
    } else {
        "threads"
    };
    let node = json!({"driver": "file", "node-name": "f", "filename": file.path(), "aio": aio});
    graph.add_node(options(node)).await.expect("the file opens");
    let client = graph.attach(RootRequest::new(
        "f",
        RootUser::Embedder("test".to_owned()),
        Permissions::CONSISTENT_READ | Permissions::WRITE,
    ));
    let client = client.await.expect("it is free");
    let of_ring = |count| if engine == Engine::Uring { count } else { 0 };
    let mut from = Buffer::alloc(2 * PIECE);
    let region = Arc::new(Region::of(&mut from).expect("it is not empty"));
    let to = from.split_off(PIECE);
    let (from, to) = copy(&client, 1, from, to).await;
    assert_eq!(fixed(&client).await, 0, "nobody knows the memory");
    graph.register_memory(&region).await.expect("there is room");
    let (from, to) = copy(&client, 2, from, to).await;
    assert_eq!(fixed(&client).await, of_ring(2));
    copy(&client, 3, Buffer::alloc(PIECE), Buffer::alloc(PIECE)).await;
    assert_eq!(
        fixed(&client).await,
        of_ring(2),
        "memory from elsewhere is mapped"
    );
    let again = graph
        .register_memory(&region)
        .await
        .expect_err("it is registered");
    assert_eq!(again.kind(), ErrorKind::Exists);
    // An iothread that comes later knows it too; its ring counts from 0.
    graph
        .add_iothread(IothreadOptions::named("late"))
        .await
        .expect("a thread");
    graph
        .ask(SetIothread {
            node_name: "f".to_owned(),
            iothread: Some("late".to_owned()),
            force: true,
        })
        .await
        .expect("nobody minds");
    assert_eq!(fixed(&client).await, 0);
    let (from, to) = copy(&client, 4, from, to).await;
    assert_eq!(fixed(&client).await, of_ring(2));
    graph.unregister_memory(&region).await.expect("it is registered");
    assert_eq!(Arc::strong_count(&region), 1, "nobody keeps it any more");
    copy(&client, 5, from, to).await;
    assert_eq!(fixed(&client).await, of_ring(2), "it is forgotten");
    let gone = graph.unregister_memory(&region).await.expect_err("it is gone");
    assert_eq!(gone.kind(), ErrorKind::NotFound);
    graph.detach(client.root()).await.expect("it was attached");
}

#[test]
fn more_memory_than_there_are_places_for_is_refused() {
    with_graph(Engine::Threads, |graph| async move {
        let mut rest = Buffer::alloc(PIECE * (usize::from(PLACES) + 1));
        let mut region = || {
            let mut part = rest.split_to(PIECE);
            Arc::new(Region::of(&mut part).expect("it is not empty"))
        };
        let first = region();
        graph.register_memory(&first).await.expect("there is room");
        for _ in 1..PLACES {
            graph.register_memory(&region()).await.expect("there is room");
        }
        let last = region();
        let full = graph
            .register_memory(&last)
            .await
            .expect_err("there is none left");
        assert_eq!(full.kind(), ErrorKind::Io(IoError::NoSpace));
        graph.unregister_memory(&first).await.expect("it is registered");
        graph.register_memory(&last).await.expect("there is room again");
    });
}

fn with_graph<F: Future<Output = ()>>(engine: Engine, test: impl FnOnce(GraphHandle) -> F) {
    actix_rt::System::new().block_on(async {
        let config = GraphConfig {
            registry: builtin(),
            implicit: ImplicitOpens::Allow,
            iothreads: system_iothreads(engine),
            main: IothreadOptions::named("main"),
        };
        let (_, graph) = Graph::start(config).expect("an iothread can be started");
        test(graph.clone()).await;
        graph.close_all().await.expect("everything closes");
    });
}

#[test]
fn requests_from_registered_memory_need_no_mapping_and_others_go_on_as_before() {
    with_graph(Engine::Uring, |graph| test(graph, Engine::Uring));
}

#[test]
fn where_there_is_nothing_to_register_with_requests_go_on_without() {
    with_graph(Engine::Threads, |graph| test(graph, Engine::Threads));
}
