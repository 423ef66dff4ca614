//! The gate: when a section is answered, when the driver hears of it, and who is told that the gate is open.

use std::sync::atomic::Ordering;

use futures_executor::block_on;
use futures_util::future::join_all;
use millpond_engine::node::{Client, NodeOrder, NodeTask, Order, OrderOutcome, Wiring};
use millpond_messages::io::OperationKind;
use millpond_messages::{NodeId, Token};
use millpond_ring::buffer::Buffers;

use super::world::{World, answer, bytes};
use super::{PLAIN, sent, start};

fn times(world: &World) -> (u32, u32) {
    let control = &world.control;
    (
        control.quiesced.load(Ordering::SeqCst),
        control.resumed.load(Ordering::SeqCst),
    )
}

fn pending(world: &World, node: NodeId) -> Vec<millpond_messages::handshake::PendingRequest> {
    match world.order(0, NodeOrder::Pending.at(node)) {
        OrderOutcome::Pending(pending) => pending,
        _ => panic!("another answer"),
    }
}

#[test]
fn the_driver_is_told_by_the_first_section_and_not_by_one_within_it() {
    let world = World::new(1);
    let node = world.memory(0, 4096);
    let outer = world.quiesce(0, node);
    world.await_quiesced(node, outer);
    assert_eq!(times(&world), (1, 0));
    let inner = world.quiesce(0, node);
    world.await_quiesced(node, inner);
    world.send(0, NodeOrder::Resume(inner).at(node));
    world.settle(0);
    assert_eq!(times(&world), (1, 0));
}

#[test]
fn no_section_is_answered_before_the_driver_has_stopped_its_background_work() {
    let world = World::new(1);
    let node = world.memory(0, 4096);
    let client = world.client(0, node);
    world.control.hold_quiesce.store(true, Ordering::SeqCst);
    world.hold(true);
    let read = start(async move { client.read(0, Buffers::zeroed(8)).await.0 });
    let in_flight = world.next_held();
    let one = world.quiesce(0, node);
    let stopped = world.next_stop();
    in_flight.go.send(()).unwrap();
    read.join().unwrap().unwrap();
    let two = world.quiesce(0, node);
    world.settle(0);
    assert!(!world.is_quiesced(0, node, one) && !world.is_quiesced(0, node, two));
    stopped.send(()).unwrap();
    world.await_quiesced(node, one);
    world.await_quiesced(node, two);
}

/// A section ends while the driver is still stopping, and the next one begins: that waits for the stop as well, and the
/// driver is neither told to go on nor to stop again before it has stopped.
#[test]
fn a_section_that_begins_while_the_driver_stops_for_the_one_before_waits_for_that_stop() {
    let world = World::new(1);
    let node = world.memory(0, 4096);
    world.control.hold_quiesce.store(true, Ordering::SeqCst);
    let one = world.quiesce(0, node);
    let stop = world.next_stop();
    world.send(0, NodeOrder::Resume(one).at(node));
    let two = world.quiesce(0, node);
    world.settle(0);
    assert!(!world.is_quiesced(0, node, two));
    assert_eq!(times(&world), (1, 0));
    stop.send(()).unwrap();
    world.await_quiesced(node, two);
    assert!(!world.is_quiesced(0, node, one));
    world.send(0, NodeOrder::Resume(two).at(node));
    world.settle(0);
    assert_eq!(times(&world), (1, 1));
}

#[test]
fn a_node_that_moves_while_it_is_still_is_not_stopped_again_where_it_arrives() {
    let world = World::new(2);
    let node = world.memory(0, 4096);
    let one = world.quiesce(0, node);
    world.await_quiesced(node, one);
    world.done(
        0,
        Order::Wiring(Wiring::Depart {
            node,
            to: world.iothreads[1].clone(),
        }),
    );
    let two = world.quiesce(1, node);
    world.await_quiesced(node, two);
    assert_eq!(times(&world), (1, 0));
    world.send(1, NodeOrder::Resume(one).at(node));
    world.send(1, NodeOrder::Resume(two).at(node));
    world.settle(1);
    assert_eq!(times(&world), (1, 1));
}

#[test]
fn of_two_sections_that_wait_the_one_that_is_left_is_answered() {
    let world = World::new(1);
    let node = world.memory(0, 4096);
    let client = world.client(0, node);
    world.hold(true);
    let read = start(async move { client.read(0, Buffers::zeroed(8)).await.0 });
    let in_flight = world.next_held();
    let (one, two) = (world.quiesce(0, node), world.quiesce(0, node));
    world.send(0, NodeOrder::Resume(one).at(node));
    in_flight.go.send(()).unwrap();
    read.join().unwrap().unwrap();
    world.await_quiesced(node, two);
    assert!(!world.is_quiesced(0, node, one));
}

/// The orders for a chain come at once. What is below a busy node stays open to it, and is quiesced when its turn comes; or
/// never, where the section ends before.
#[test]
fn a_node_behind_another_is_quiesced_in_its_turn() {
    for ends_early in [false, true] {
        let world = World::new(1);
        let (top, base) = (world.memory(0, 4096), world.memory(0, 4096));
        let client = world.client(0, top);
        world.hold(true);
        let read = start(async move { client.read(0, Buffers::zeroed(8)).await.0 });
        let in_flight = world.next_held();
        let token = world.quiesce(0, top);
        let after = vec![top];
        world.send(0, NodeOrder::Quiesce { token, after }.at(base));
        assert!(!world.is_quiesced(0, base, token), "its turn has not come");
        if ends_early {
            world.send(0, NodeOrder::Resume(token).at(base));
            world.send(0, NodeOrder::Resume(token).at(top));
        }
        in_flight.go.send(()).unwrap();
        read.join().unwrap().unwrap();
        if ends_early {
            assert!(!world.is_quiesced(0, base, token));
            continue;
        }
        world.await_quiesced(base, token);
        let order = |node| {
            let quiesced = world.quiesced.borrow();
            quiesced.iter().position(|answer| *answer == (node, token))
        };
        assert!(order(top).is_some() && order(top) < order(base));
        world.send(0, NodeOrder::Resume(token).at(base));
        world.send(0, NodeOrder::Resume(token).at(top));
    }
}

#[test]
fn a_section_is_answered_once_however_many_requests_come_after_it() {
    let world = World::new(1);
    let node = world.memory(0, 4096);
    let client = world.client(0, node);
    let one = world.quiesce(0, node);
    world.await_quiesced(node, one);
    let parked = sent(client.read(0, Buffers::zeroed(8)));
    let two = world.quiesce(0, node);
    world.await_quiesced(node, two);
    world.send(0, NodeOrder::Resume(two).at(node));
    world.send(0, NodeOrder::Resume(one).at(node));
    block_on(parked).0.unwrap();
    world.settle(0);
    assert_eq!(world.times_quiesced(0, node, one), 1);
    assert_eq!(world.times_quiesced(0, node, two), 1);
}

#[test]
fn the_end_of_a_section_that_the_node_never_heard_of_changes_nothing() {
    let world = World::new(1);
    let node = world.memory(0, 4096);
    let nobodys = Token(u64::MAX);
    world.send(0, NodeOrder::Resume(nobodys).at(node));
    world.settle(0);
    assert_eq!(times(&world), (0, 0), "an open gate does not open again");
    let token = world.quiesce(0, node);
    world.await_quiesced(node, token);
    world.send(0, NodeOrder::Resume(nobodys).at(node));
    world.settle(0);
    assert_eq!(times(&world), (1, 0));
    world.send(0, NodeOrder::Resume(token).at(node));
    world.send(0, NodeOrder::Resume(token).at(node));
    world.settle(0);
    assert_eq!(times(&world), (1, 1));
}

fn wait_open(world: &World, client: &Client) -> crossbeam_channel::Receiver<bool> {
    let client = client.clone();
    world.task(0, move || {
        let here = client.here();
        async move {
            here.wait_open().await;
            here.is_open()
        }
    })
}

#[test]
fn whoever_waits_for_the_gate_goes_on_when_the_last_section_ends() {
    let world = World::new(1);
    let node = world.memory(0, 4096);
    let client = world.client(0, node);
    assert!(
        answer(&wait_open(&world, &client)),
        "an open gate is not waited for"
    );
    let (one, two) = (world.quiesce(0, node), world.quiesce(0, node));
    let waiting: Vec<_> = (0..3).map(|_| wait_open(&world, &client)).collect();
    world.settle(0);
    world.send(0, NodeOrder::Resume(one).at(node));
    world.settle(0);
    assert!(waiting.iter().all(crossbeam_channel::Receiver::is_empty));
    world.send(0, NodeOrder::Resume(two).at(node));
    assert!(waiting.iter().all(answer));
}

#[test]
fn a_slow_drain_names_the_oldest_requests_first_and_not_all_of_many() {
    let world = World::new(1);
    let node = world.memory(0, 4096);
    let client = world.client(0, node);
    world.hold(true);
    let reads = sent(join_all((0..20).map(|i| client.read(i * 8, Buffers::zeroed(8)))));
    let held: Vec<_> = (0..20).map(|_| world.next_held()).collect();
    let shown = pending(&world, node);
    let offsets: Vec<u64> = shown.iter().map(|request| request.offset).collect();
    assert_eq!(offsets, (0..16).map(|i| i * 8).collect::<Vec<_>>());
    assert!(
        shown
            .iter()
            .all(|request| request.operation == OperationKind::Read)
    );
    for request in held {
        request.go.send(()).unwrap();
    }
    for (result, _) in block_on(reads) {
        result.unwrap();
    }
    assert_eq!(pending(&world, node), []);
}

#[test]
fn a_slow_drain_tells_where_in_the_chain_a_request_stands() {
    let world = World::new(1);
    let below = world.memory(0, 4096);
    let above = world.filter(0, world.address(0, below));
    let client = world.client(0, above);
    world.hold(true);
    let write = start(async move { client.write(0, bytes(1, 8), PLAIN).await.0 });
    let held = world.next_held();
    let shown = pending(&world, above);
    assert_eq!(shown[0].stands_at, format!("node{}", below.0));
    assert_eq!(pending(&world, below), [], "it is counted where it entered");
    held.go.send(()).unwrap();
    write.join().unwrap().unwrap();
}

/// Told to be quiet and to close in one go, a node closes behind what it has in flight and the work of its driver.
#[test]
fn a_node_that_is_to_be_quiet_closes_when_it_is() {
    let world = World::new(1);
    let node = world.memory(0, 4096);
    let client = world.client(0, node);
    world.control.hold_quiesce.store(true, Ordering::SeqCst);
    world.hold(true);
    let read = start(async move { client.read(0, Buffers::zeroed(8)).await.0 });
    let in_flight = world.next_held();
    let token = world.quiesce(0, node);
    let stopped = world.next_stop();
    world.send(0, Order::Task(node, NodeTask::Close));
    world.settle(0);
    assert_eq!(pending(&world, node).len(), 1, "what it waits for can be asked");
    in_flight.go.send(()).unwrap();
    read.join().unwrap().unwrap();
    world.settle(0);
    assert!(!world.is_quiesced(0, node, token));
    let closed = || world.control.closed.load(Ordering::SeqCst);
    assert_eq!(closed(), 0, "its driver has not stopped yet");
    stopped.send(()).unwrap();
    world.await_quiesced(node, token);
    world.done(0, Order::Task(node, NodeTask::Close));
    world.settle(0);
    assert_eq!(closed(), 1, "it is closed once");
}
