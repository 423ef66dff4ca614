//! Requests that have no other beside them, on nodes that note nothing of what is in flight until somebody needs it.

use std::collections::BTreeSet;

use futures_executor::block_on;
use millpond_engine::node::{NodeOrder, Order, Wiring};
use millpond_messages::io::OperationKind;
use millpond_messages::{IoError, RequestFlags};
use millpond_ring::buffer::Buffers;

use super::world::{World, bytes};
use super::{PLAIN, read, sent, start};

const SERIALISING: RequestFlags = RequestFlags::SERIALISING;

#[test]
fn a_serialising_write_waits_for_earlier_requests_and_holds_back_later_ones() {
    let world = World::new(1);
    let node = world.memory(0, 4096);
    let client = world.client(0, node);
    world.hold(true);
    let (early, other) = (client.clone(), client.clone());
    let earlier = start(async move { early.write(0, bytes(1, 8), PLAIN).await.0 });
    let in_flight = world.next_held();
    let alone = sent(Box::pin(other.write(4, bytes(2, 8), SERIALISING)));
    drop(world.order(0, NodeOrder::Pending.at(node)));
    assert!(world.held.is_empty(), "an earlier request is in flight");
    in_flight.go.send(()).unwrap();
    earlier.join().unwrap().unwrap();
    assert!(world.serialise(0), "the node did not note what it had in flight");
    let in_flight = world.next_held();
    assert_eq!(in_flight.offset, 4);

    let later = [
        sent(Box::pin(client.write(0, bytes(3, 5), PLAIN))),
        sent(Box::pin(client.write(11, bytes(4, 1), PLAIN))),
    ];
    let over = sent(client.read(6, Buffers::zeroed(2)));
    let zeroes = sent(client.write_zeroes(8, 2, PLAIN));
    let beside = sent(client.write(12, bytes(5, 4), PLAIN));
    assert_eq!(
        world.let_go(OperationKind::Write),
        12,
        "what does not overlap goes on"
    );
    block_on(beside).0.unwrap();
    assert!(world.held.is_empty(), "all others overlap");
    in_flight.go.send(()).unwrap();
    block_on(alone).0.unwrap();
    let begun: BTreeSet<u64> = (0..4)
        .map(|_| {
            let held = world.next_held();
            held.go.send(()).unwrap();
            held.offset
        })
        .collect();
    assert_eq!(begun, BTreeSet::from([0, 6, 8, 11]));
    for later in later {
        block_on(later).0.unwrap();
    }
    let (result, found) = block_on(over);
    result.unwrap();
    assert_eq!(found.to_vec(), [2, 2]);
    block_on(zeroes).unwrap();
    world.hold(false);
    assert_eq!(
        read(&client, 0, 16),
        [3, 3, 3, 3, 3, 2, 2, 2, 0, 0, 2, 4, 5, 5, 5, 5]
    );
}

#[test]
fn one_with_no_wait_fails_instead_of_waiting_and_writes_nothing() {
    let world = World::new(1);
    let node = world.memory(0, 4096);
    let client = world.client(0, node);
    let first = sent(client.write(0, bytes(9, 8), SERIALISING));
    assert!(world.serialise(0));
    block_on(first).0.unwrap();
    world.hold(true);
    let early = client.clone();
    let earlier = start(async move { early.read(0, Buffers::zeroed(8)).await.0 });
    let in_flight = world.next_held();
    let flags = SERIALISING | RequestFlags::NO_WAIT;
    let refused = block_on(client.write(7, bytes(2, 2), flags)).0;
    assert_eq!(refused, Err(IoError::WouldWait));
    let refused = block_on(client.write_zeroes(7, 2, flags));
    assert_eq!(refused, Err(IoError::WouldWait));
    in_flight.go.send(()).unwrap();
    earlier.join().unwrap().unwrap();
    world.hold(false);
    block_on(client.write(7, bytes(2, 2), flags)).0.unwrap();
    assert_eq!(read(&client, 6, 4), [9, 2, 2, 0]);
}

#[test]
fn a_node_notes_what_is_in_flight_only_while_a_root_edge_relies_on_it() {
    let world = World::new(1);
    let node = world.memory(0, 4096);
    let (one, two) = (world.client(0, node), world.client(0, node));
    block_on(one.write(0, bytes(1, 8), PLAIN)).0.unwrap();
    assert!(!world.serialise(0), "nobody has asked");
    let first = sent(one.write(0, bytes(2, 8), SERIALISING));
    assert!(world.serialise(0));
    block_on(first).0.unwrap();
    // Everything is noted already.
    block_on(two.write(0, bytes(3, 8), SERIALISING)).0.unwrap();
    assert!(!world.serialise(0));
    world.done(0, Order::Wiring(Wiring::DetachRoot(one.root())));
    // The second edge still relies on it.
    block_on(two.write_zeroes(0, 8, SERIALISING)).unwrap();
    assert!(!world.serialise(0));
    world.done(0, Order::Wiring(Wiring::DetachRoot(two.root())));
    let three = world.client(0, node);
    let again = sent(three.write(0, bytes(4, 8), SERIALISING));
    assert!(world.serialise(0), "it had stopped noting");
    block_on(again).0.unwrap();
}

#[test]
fn what_is_parked_behind_a_serialising_request_keeps_its_order() {
    let world = World::new(1);
    let node = world.memory(0, 4096);
    let client = world.client(0, node);
    let alone = sent(client.write(0, bytes(1, 16), SERIALISING));
    let behind = sent(client.write(8, bytes(2, 4), PLAIN));
    assert!(world.serialise(0));
    block_on(alone).0.unwrap();
    block_on(behind).0.unwrap();
    assert_eq!(read(&client, 4, 12), [[1; 4], [2; 4], [1; 4]].concat());
}

#[test]
fn a_serialising_write_through_a_filter_is_alone_in_the_filter() {
    let world = World::new(1);
    let below = world.memory(0, 4096);
    let above = world.filter(0, world.address(0, below));
    let client = world.client(0, above);
    let alone = sent(client.write(0, bytes(1, 16), SERIALISING));
    assert!(world.serialise(0));
    block_on(alone).0.unwrap();
    world.hold(true);
    let early = client.clone();
    let alone = start(async move { early.write(0, bytes(2, 16), SERIALISING).await.0 });
    let in_flight = world.next_held();
    let over = sent(client.read(8, Buffers::zeroed(8)));
    drop(world.order(0, NodeOrder::Pending.at(above)));
    assert!(world.held.is_empty(), "the read waits");
    in_flight.go.send(()).unwrap();
    alone.join().unwrap().unwrap();
    world.let_go(OperationKind::Read);
    assert_eq!(block_on(over).1.to_vec(), [2; 8]);
}
