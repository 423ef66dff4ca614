//! The node cell, its gate and its choke point, driven as the graph actor and clients drive them.
#![allow(clippy::unwrap_used, reason = "a test ends where something fails")]
#![allow(clippy::cast_possible_truncation, reason = "the tests' sizes are small")]

mod batch;
mod blocks;
#[path = "../support/driver.rs"]
#[allow(dead_code, reason = "other tests use other parts of it")]
mod driver;
mod gate;
mod map;
mod roots;
mod serialised;
mod staying;
mod world;

use std::sync::atomic::Ordering;

use futures_executor::block_on;
use futures_util::future::{join, join_all};
use millpond_engine::node::{Mail, NodeOrder, NodeSettings, OpenOrder, Order, OrderOutcome, Wiring};
use millpond_messages::io::OperationKind;
use millpond_messages::{IoError, NodeId, OpenFlags, Permissions, RequestFlags};
use millpond_ring::buffer::Buffers;
use world::{World, bytes};

const PLAIN: RequestFlags = RequestFlags::empty();

/// Runs a request on a thread of its own; what it returns is its end.
fn start<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> std::thread::JoinHandle<T> {
    std::thread::spawn(move || block_on(future))
}

/// Sends a request, so that it is in the mailbox when this returns; awaiting the rest gives its end.
fn sent<F: Future>(future: F) -> std::pin::Pin<Box<F>> {
    let mut future = Box::pin(future);
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(
        future.as_mut().poll(&mut context).is_pending(),
        "an answer takes a while"
    );
    future
}

fn read(client: &millpond_engine::node::Client, offset: u64, len: usize) -> Vec<u8> {
    let (result, buffers) = block_on(client.read(offset, Buffers::zeroed(len)));
    result.unwrap();
    buffers.to_vec()
}

#[test]
fn what_was_written_is_read_back_and_buffers_come_back() {
    let world = World::new(1);
    let node = world.memory(0, 4096);
    let client = world.client(0, node);
    let (result, buffers) = block_on(client.write(100, bytes(7, 50), PLAIN));
    result.unwrap();
    assert_eq!(buffers.to_vec(), vec![7; 50]);
    assert_eq!(read(&client, 99, 52), [&[0][..], &[7; 50], &[0]].concat());
    assert_eq!(block_on(client.length()), Ok(4096));
}

#[test]
fn a_client_may_do_what_it_was_granted_within_the_node() {
    let world = World::new(1);
    let node = world.memory(0, 4096);
    let reader = world.client_with(0, node, Permissions::CONSISTENT_READ, false);
    assert_eq!(
        block_on(reader.write(0, bytes(1, 1), PLAIN)).0,
        Err(IoError::NotPermitted)
    );
    assert_eq!(
        block_on(reader.write_zeroes(0, 1, PLAIN)),
        Err(IoError::NotPermitted)
    );
    assert_eq!(block_on(reader.discard(0, 1)), Err(IoError::NotPermitted));
    let writer = world.client(0, node);
    assert_eq!(
        block_on(writer.write(4090, bytes(1, 7), PLAIN)).0,
        Err(IoError::OutOfRange)
    );
    assert_eq!(
        block_on(writer.read(u64::MAX, bytes(0, 7))).0,
        Err(IoError::OutOfRange)
    );
    assert_eq!(
        block_on(writer.write_zeroes(1, u64::MAX, PLAIN)),
        Err(IoError::OutOfRange)
    );
}

#[test]
fn a_drain_waits_for_what_is_in_flight_and_parks_what_comes_later_in_order() {
    let world = World::new(1);
    let node = world.memory(0, 4096);
    let client = world.client(0, node);
    world.hold(true);
    let first = start({
        let client = client.clone();
        async move { client.write(0, bytes(1, 8), PLAIN).await.0 }
    });
    let in_flight = world.next_held();
    let token = world.quiesce(0, node);
    assert!(!world.is_quiesced(0, node, token), "a request is in flight");

    let parked = sent(join_all(
        (1..=5_u8).map(|i| client.write(u64::from(i) * 8, bytes(i, 8), PLAIN)),
    ));
    in_flight.go.send(()).unwrap();
    first.join().unwrap().unwrap();
    world.await_quiesced(node, token);
    assert!(
        world.held.is_empty(),
        "nothing reaches a driver within a still section"
    );

    world.send(0, NodeOrder::Resume(token).at(node));
    let order: Vec<u64> = (0..5).map(|_| world.let_go(OperationKind::Write)).collect();
    assert_eq!(order, [8, 16, 24, 32, 40]);
    for (result, _) in block_on(parked) {
        result.unwrap();
    }
}

#[test]
fn sections_nest_and_end_in_any_order_and_the_driver_hears_the_first_and_the_last() {
    let world = World::new(1);
    let node = world.memory(0, 4096);
    let client = world.client(0, node);
    let (one, two) = (world.quiesce(0, node), world.quiesce(0, node));
    world.await_quiesced(node, one);
    world.await_quiesced(node, two);
    let waiting = sent(client.read(0, Buffers::zeroed(8)));
    world.send(0, NodeOrder::Resume(one).at(node));
    world.hold(true);
    assert!(world.is_quiesced(0, node, two));
    assert!(world.held.is_empty(), "the second section is still in force");
    world.send(0, NodeOrder::Resume(two).at(node));
    world.let_go(OperationKind::Read);
    block_on(waiting).0.unwrap();
    let control = &world.control;
    assert_eq!(
        (
            control.quiesced.load(Ordering::SeqCst),
            control.resumed.load(Ordering::SeqCst)
        ),
        (1, 1)
    );
}

#[test]
fn a_section_that_ends_before_it_is_still_is_never_answered() {
    let world = World::new(1);
    let node = world.memory(0, 4096);
    let client = world.client(0, node);
    world.hold(true);
    let under_way = start(async move { client.read(0, Buffers::zeroed(8)).await.0 });
    let held = world.next_held();
    let token = world.quiesce(0, node);
    world.send(0, NodeOrder::Resume(token).at(node));
    held.go.send(()).unwrap();
    under_way.join().unwrap().unwrap();
    assert!(!world.is_quiesced(0, node, token));
}

#[test]
fn a_request_whose_asker_is_gone_runs_to_its_end_and_is_waited_for() {
    let world = World::new(1);
    let node = world.memory(0, 4096);
    let client = world.client(0, node);
    world.hold(true);
    let (here, ran) = (client.clone(), crossbeam_channel::bounded(1));
    world.iothreads[0]
        .send(Mail::Run(Box::new(move || {
            let home = here.here();
            let mut request = Box::pin(async move { home.write(0, bytes(9, 8), PLAIN).await });
            assert!(futures_util::FutureExt::now_or_never(&mut request).is_none());
            drop(request);
            ran.0.send(()).unwrap();
        })))
        .map_err(|_| "stopped")
        .unwrap();
    ran.1.recv().unwrap();
    let held = world.next_held();
    let token = world.quiesce(0, node);
    assert!(!world.is_quiesced(0, node, token));
    held.go.send(()).unwrap();
    world.await_quiesced(node, token);
    world.send(0, NodeOrder::Resume(token).at(node));
    world.hold(false);
    assert_eq!(read(&client, 0, 8), [9; 8]);
}

#[test]
fn a_node_moves_between_iothreads_with_what_is_parked_at_it() {
    let world = World::new(2);
    let node = world.memory(0, 4096);
    let client = world.client(0, node);
    block_on(client.write(0, bytes(5, 16), PLAIN)).0.unwrap();
    let token = world.quiesce(0, node);
    world.await_quiesced(node, token);
    world.hold(true);
    let parked = sent(join(
        client.write(8, bytes(6, 8), PLAIN),
        client.write(16, bytes(7, 8), PLAIN),
    ));
    let pending_seen = world.is_quiesced(0, node, token);
    assert!(pending_seen);
    world.done(
        0,
        Order::Wiring(Wiring::Depart {
            node,
            to: world.iothreads[1].clone(),
        }),
    );
    assert_eq!(client.iothread(), world.iothreads[1].id());
    assert!(world.held.is_empty(), "the section moved along");
    world.send(1, NodeOrder::Resume(token).at(node));
    let order = [
        world.let_go(OperationKind::Write),
        world.let_go(OperationKind::Write),
    ];
    assert_eq!(order, [8, 16]);
    let ((first, _), (second, _)) = block_on(parked);
    first.and(second).unwrap();
    world.hold(false);
    assert_eq!(read(&client, 0, 24), [[5; 8], [6; 8], [7; 8]].concat());
}

#[test]
fn an_edge_may_join_nodes_of_two_iothreads() {
    let world = World::new(2);
    let below = world.memory(1, 4096);
    let above = world.filter(0, world.address(1, below));
    let client = world.client(0, above);
    block_on(client.write(100, bytes(3, 100), PLAIN)).0.unwrap();
    block_on(client.write_zeroes(150, 10, PLAIN)).unwrap();
    block_on(client.flush()).unwrap();
    let expected = [vec![3; 50], vec![0; 10], vec![3; 40]].concat();
    assert_eq!(read(&client, 100, 100), expected);
    let status = block_on(client.block_status(0, 4096, true, true)).unwrap();
    assert_eq!((status.len, status.depth), (4096, 1));
}

#[test]
fn unaligned_writes_to_one_block_do_not_lose_each_other() {
    let world = World::new(1);
    world.control.alignment.store(512, Ordering::SeqCst);
    let node = world.memory(0, 4096);
    let client = world.client(0, node);
    let writes = (0..512_u64).map(|i| client.write(i * 8, bytes((i % 251) as u8 + 1, 8), PLAIN));
    for (result, _) in block_on(join_all(writes)) {
        result.unwrap();
    }
    let expected: Vec<u8> = (0..512_u64).flat_map(|i| [(i % 251) as u8 + 1; 8]).collect();
    assert_eq!(read(&client, 0, 4096), expected);
    assert_eq!(read(&client, 3, 1000), expected[3..1003]);
}

#[test]
fn a_driver_that_requires_an_alignment_that_cannot_be_is_not_opened() {
    let world = World::new(1);
    let opened = |alignment: u32| {
        world.control.alignment.store(alignment, Ordering::SeqCst);
        let order = Order::Wiring(Wiring::Open(Box::new(OpenOrder {
            node: NodeId(u64::from(alignment)),
            name: "n".to_owned(),
            kind: world.kind(driver::Shape::Memory, 4096),
            options: millpond_messages::graph::Options::new(),
            flags: OpenFlags::RDWR,
            settings: NodeSettings::default(),
            children: Vec::new(),
        })));
        let OrderOutcome::Opened(opened) = world.order(0, order) else {
            panic!("another answer than was asked for")
        };
        opened.map(|facts| facts.limits.request_alignment)
    };
    let most = u32::try_from(millpond_messages::MAX_ALIGNMENT).unwrap();
    assert_eq!(opened(512).unwrap(), 512);
    assert_eq!(opened(most).unwrap(), most);
    let closed = world.control.closed.load(Ordering::SeqCst);
    let refused = opened(2 * most).unwrap_err();
    assert_eq!(refused.to_string(), "Driver requires too large request alignment");
    let refused = opened(3).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "Driver requires an alignment of 3 bytes, which is no power of two"
    );
    assert_eq!(world.control.closed.load(Ordering::SeqCst), closed + 2);
}

#[test]
fn zeroes_are_written_where_the_driver_has_no_better_way_unless_that_is_forbidden() {
    let world = World::new(1);
    let node = world.memory(0, 4096);
    let client = world.client(0, node);
    block_on(client.write(0, bytes(1, 4096), PLAIN)).0.unwrap();
    assert_eq!(
        block_on(client.write_zeroes(0, 100, RequestFlags::NO_FALLBACK)),
        Err(IoError::NotSupported)
    );
    block_on(client.write_zeroes(10, 100, PLAIN)).unwrap();
    assert_eq!(
        read(&client, 0, 120),
        [vec![1; 10], vec![0; 100], vec![1; 10]].concat()
    );
}

#[test]
fn fua_and_writethrough_flush_after_the_write() {
    let world = World::new(1);
    let node = world.memory(0, 4096);
    world.hold(true);
    for (writethrough, flags) in [(false, RequestFlags::FUA), (true, PLAIN)] {
        let client = world.client_with(0, node, Permissions::all(), writethrough);
        let write = start(async move { client.write(0, bytes(1, 8), flags).await.0 });
        world.let_go(OperationKind::Write);
        world.let_go(OperationKind::Flush);
        write.join().unwrap().unwrap();
    }
}

#[test]
fn a_detached_client_gets_errors_and_what_it_had_parked_fails() {
    let world = World::new(1);
    let node = world.memory(0, 4096);
    let client = world.client(0, node);
    let token = world.quiesce(0, node);
    world.await_quiesced(node, token);
    let parked = sent(client.read(0, Buffers::zeroed(8)));
    drop(world.order(0, NodeOrder::Pending.at(node)));
    world.done(0, Order::Wiring(Wiring::DetachRoot(client.root())));
    assert_eq!(block_on(parked).0, Err(IoError::NoMedium));
    assert_eq!(
        block_on(client.read(0, Buffers::zeroed(8))).0,
        Err(IoError::NoMedium)
    );
}

#[test]
fn a_slow_drain_names_what_it_waits_for() {
    let world = World::new(1);
    let node = world.memory(0, 4096);
    let client = world.client(0, node);
    world.hold(true);
    let write = start(async move { client.write(64, bytes(1, 32), PLAIN).await.0 });
    let held = world.next_held();
    let millpond_engine::node::OrderOutcome::Pending(pending) = world.order(0, NodeOrder::Pending.at(node))
    else {
        panic!("another answer");
    };
    assert_eq!(pending.len(), 1);
    assert_eq!(
        (pending[0].operation, pending[0].offset, pending[0].len),
        (OperationKind::Write, 64, 32)
    );
    assert_eq!(pending[0].stands_at, format!("node{}", node.0));
    held.go.send(()).unwrap();
    write.join().unwrap().unwrap();
}

#[test]
fn flushes_that_wait_together_are_one() {
    let world = World::new(1);
    let node = world.memory(0, 4096);
    let client = world.client(0, node);
    block_on(client.write(0, bytes(1, 8), PLAIN)).0.unwrap();
    world.hold(true);
    let flushes = start({
        let client = client.clone();
        async move { join_all((0..8).map(|_| client.flush())).await }
    });
    let first = world.next_held();
    drop(world.order(0, NodeOrder::Pending.at(node)));
    first.go.send(()).unwrap();
    assert!(flushes.join().unwrap().into_iter().all(|result| result.is_ok()));
    assert!(world.held.is_empty(), "nothing was written since the first began");
}

#[test]
fn a_request_that_comes_with_the_order_that_moves_or_ends_its_edge_is_answered() {
    let world = World::new(2);
    let node = world.memory(0, 4096);
    let client = world.client(0, node);
    block_on(client.write(0, bytes(4, 8), PLAIN)).0.unwrap();
    let token = world.quiesce(0, node);
    world.await_quiesced(node, token);

    // The request and the order are both in the mailbox before the iothread looks at either.
    let read = world.while_busy(0, || {
        let read = sent(client.read(0, Buffers::zeroed(8)));
        world.send(
            0,
            Order::Wiring(Wiring::Depart {
                node,
                to: world.iothreads[1].clone(),
            }),
        );
        world.send(0, NodeOrder::Resume(token).at(node));
        read
    });
    drop(world.order(0, NodeOrder::Pending.at(node)));
    world.send(1, NodeOrder::Resume(token).at(node));
    let (result, buffers) = block_on(read);
    result.unwrap();
    assert_eq!(buffers.to_vec(), [4; 8]);

    let token = world.quiesce(1, node);
    world.await_quiesced(node, token);
    let read = world.while_busy(1, || {
        let read = sent(client.read(0, Buffers::zeroed(8)));
        world.send(1, Order::Wiring(Wiring::DetachRoot(client.root())));
        read
    });
    assert_eq!(block_on(read).0, Err(IoError::NoMedium));
}
