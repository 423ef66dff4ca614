//! What an iothread submits in one turn of its loop is one batch.

use std::sync::Arc;

use futures_executor::block_on;
use futures_util::future::join_all;
use millpond_drivers::protocol::file::FileKind;
use millpond_engine::iothread::Local;
use millpond_engine::node::{IothreadOrder, NodeSettings, OpenOrder, Order, OrderOutcome, Wiring};
use millpond_messages::graph::IothreadCounters;
use millpond_messages::{NodeId, OpenFlags};
use millpond_ring::Engine;
use millpond_ring::buffer::Buffers;

use super::world::{World, answer};

fn counters(world: &World) -> IothreadCounters {
    match world.order(0, Order::Iothread(IothreadOrder::Counters)) {
        OrderOutcome::Counters(counters) => *counters,
        _ => panic!("another answer than was asked for"),
    }
}

#[test]
fn many_requests_of_one_turn_are_few_system_calls() {
    let world = World::new(1);
    let engine = answer(&world.task(0, || async { Local::current().unwrap().ring().engine() }));
    assert_eq!(
        engine,
        Engine::Uring,
        "only io_uring takes batches: allow io_uring_setup"
    );
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 20).unwrap();
    let serde_json::Value::Object(options) = serde_json::json!({"filename": file.path()}) else {
        unreachable!("it is written as an object")
    };
    let node = NodeId(1 << 32);
    let open = OpenOrder {
        node,
        name: "file".to_owned(),
        kind: Arc::new(FileKind::FILE),
        options,
        flags: OpenFlags::RDWR,
        settings: NodeSettings::default(),
        children: Vec::new(),
    };
    world.done(0, Order::Wiring(Wiring::Open(Box::new(open))));
    let client = world.client(0, node);
    block_on(client.read(0, Buffers::zeroed(4096))).0.unwrap();
    let before = counters(&world);
    let results = answer(&world.task(0, move || {
        let home = client.here();
        async move {
            let reads = (0..32_u64).map(|block| home.read(block * 4096, Buffers::zeroed(4096)));
            let ended = join_all(reads).await;
            ended.into_iter().map(|(result, _)| result).collect::<Vec<_>>()
        }
    }));
    assert!(results.iter().all(Result::is_ok));
    let after = counters(&world);
    assert_eq!(after.operations - before.operations, 32);
    // Besides the batch there are the sleeps around it, and the two questions.
    let calls = after.system_calls - before.system_calls;
    assert!(calls <= 10, "{calls} system calls for 32 requests");
}
