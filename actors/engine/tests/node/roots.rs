//! Root edges: what their users may do, and what becomes of parked requests when an edge moves, ends or is given up.

use crossbeam_channel::Receiver;
use futures_executor::block_on;
use millpond_engine::node::{Client, NodeOrder, Order, Wiring};
use millpond_messages::io::{Operation, OperationKind, Preallocation};
use millpond_messages::{IoError, IoResult, NodeId, Permissions, RequestFlags, Token};
use millpond_ring::buffer::Buffers;

use super::world::{World, answer, bytes};
use super::{PLAIN, read, sent};

/// Reads on the iothread itself, as an export there does.
fn read_here(world: &World, client: &Client, offset: u64) -> Receiver<(IoResult<()>, Vec<u8>)> {
    let client = client.clone();
    world.task(0, move || {
        let here = client.here();
        async move {
            let (result, buffers) = here.read(offset, Buffers::zeroed(8)).await;
            (result, buffers.to_vec())
        }
    })
}

fn drained(world: &World, node: NodeId) -> Token {
    let token = world.quiesce(0, node);
    world.await_quiesced(node, token);
    token
}

fn resize(world: &World, client: &Client) -> IoResult<()> {
    let request = Operation::Truncate {
        size: 8192,
        exact: true,
        preallocation: Preallocation::Off,
        flags: PLAIN,
    };
    // Nothing else may be beside it, so a node that notes nothing has to begin to.
    let mut resized = Box::pin(client.request(request));
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match resized.as_mut().poll(&mut context) {
        std::task::Poll::Ready(outcome) => outcome.into_done(),
        std::task::Poll::Pending => {
            world.serialise(0);
            block_on(resized).into_done()
        }
    }
}

/// What a client with these permissions may do: write, write what reads the same, zero, discard, resize.
fn allowed(world: &World, node: NodeId, permissions: Permissions) -> [bool; 6] {
    let client = world.client_with(0, node, permissions, false);
    let unchanged = RequestFlags::WRITE_UNCHANGED;
    let results = [
        block_on(client.write(0, bytes(1, 8), PLAIN)).0,
        block_on(client.write(0, bytes(1, 8), unchanged)).0,
        block_on(client.write_zeroes(0, 8, PLAIN)),
        block_on(client.write_zeroes(0, 8, unchanged)),
        block_on(client.discard(0, 8)),
        resize(world, &client),
    ];
    assert_eq!(block_on(client.read(0, Buffers::zeroed(8))).0, Ok(()));
    assert_eq!(block_on(client.flush()), Ok(()));
    results.map(|result| result != Err(IoError::NotPermitted))
}

#[test]
fn each_permission_lets_its_requests_pass_and_no_others() {
    let world = World::new(1);
    let node = world.memory(0, 4096);
    let read = Permissions::CONSISTENT_READ;
    assert_eq!(allowed(&world, node, read), [false; 6]);
    assert_eq!(
        allowed(&world, node, read | Permissions::WRITE_UNCHANGED),
        [false, true, false, true, false, false]
    );
    assert_eq!(
        allowed(&world, node, read | Permissions::WRITE),
        [true, true, true, true, true, false]
    );
    assert_eq!(
        allowed(&world, node, read | Permissions::RESIZE),
        [false, false, false, false, false, true]
    );
}

#[test]
fn a_parked_request_that_is_given_up_lets_the_next_go_first() {
    let world = World::new(1);
    let node = world.memory(0, 4096);
    let client = world.client(0, node);
    let token = drained(&world, node);
    let given_up = {
        let client = client.clone();
        world.task(0, move || {
            let here = client.here();
            async move {
                let request = Box::pin(here.write(0, bytes(9, 8), PLAIN));
                let stop = Box::pin(here.wait_open());
                // The gate wakes both, and the request is dropped before it looks.
                drop(futures_util::future::select(stop, request).await);
            }
        })
    };
    world.settle(0);
    let (second, third) = (read_here(&world, &client, 0), read_here(&world, &client, 8));
    world.settle(0);
    world.send(0, NodeOrder::Resume(token).at(node));
    answer(&given_up);
    for parked in [second, third] {
        assert_eq!(
            answer(&parked),
            (Ok(()), vec![0; 8]),
            "what was given up never ran"
        );
    }
}

#[test]
fn requests_parked_on_their_own_iothread_run_in_the_order_they_came() {
    let world = World::new(1);
    let node = world.memory(0, 4096);
    let client = world.client(0, node);
    let token = drained(&world, node);
    let parked: Vec<_> = (0..4)
        .map(|i| {
            let request = read_here(&world, &client, i * 8);
            world.settle(0);
            request
        })
        .collect();
    world.hold(true);
    world.send(0, NodeOrder::Resume(token).at(node));
    let order: Vec<u64> = (0..4).map(|_| world.let_go(OperationKind::Read)).collect();
    assert_eq!(order, [0, 8, 16, 24]);
    for request in &parked {
        answer(request).0.unwrap();
    }
}

#[test]
fn an_edge_put_in_front_of_another_node_takes_what_is_parked_there() {
    let world = World::new(1);
    let (old, new) = (world.memory(0, 4096), world.memory(0, 4096));
    block_on(world.client(0, new).write(0, bytes(3, 8), PLAIN))
        .0
        .unwrap();
    let client = world.client(0, old);
    let token = drained(&world, old);
    let parked = read_here(&world, &client, 0);
    let opened = {
        let client = client.clone();
        world.task(0, move || {
            let here = client.here();
            async move { here.wait_open().await }
        })
    };
    world.settle(0);
    let target = world.address(0, new);
    world.done(
        0,
        Order::Wiring(Wiring::MoveRoot {
            root: client.root(),
            target,
        }),
    );
    // The new node is not drained, so nothing has to wait for the old one's section.
    assert_eq!(answer(&parked), (Ok(()), vec![3; 8]));
    answer(&opened);
    assert_eq!(read(&client, 0, 8), [3; 8]);
    world.send(0, NodeOrder::Resume(token).at(old));
    let token = drained(&world, new);
    let parked = read_here(&world, &client, 0);
    world.settle(0);
    assert!(parked.is_empty(), "the new node's gate is the edge's now");
    world.send(0, NodeOrder::Resume(token).at(new));
    answer(&parked).0.unwrap();
}

#[test]
fn a_node_that_moves_away_leaves_the_edges_that_no_longer_lead_to_it() {
    let world = World::new(2);
    let (old, new) = (world.memory(0, 4096), world.memory(0, 4096));
    block_on(world.client(0, new).write(0, bytes(3, 8), PLAIN))
        .0
        .unwrap();
    let client = world.client(0, old);
    let tokens = [drained(&world, old), drained(&world, new)];
    world.done(
        0,
        Order::Wiring(Wiring::MoveRoot {
            root: client.root(),
            target: world.address(0, new),
        }),
    );
    world.done(
        0,
        Order::Wiring(Wiring::Depart {
            node: old,
            to: world.iothreads[1].clone(),
        }),
    );
    world.send(1, NodeOrder::Resume(tokens[0]).at(old));
    world.send(0, NodeOrder::Resume(tokens[1]).at(new));
    assert_eq!(client.iothread(), world.iothreads[0].id());
    assert_eq!(read(&client, 0, 8), [3; 8]);
}

#[test]
fn an_edge_moves_to_a_node_of_another_iothread_with_what_is_parked_in_order() {
    let world = World::new(2);
    let (old, new) = (world.memory(0, 4096), world.memory(1, 4096));
    let client = world.client(0, old);
    drained(&world, old);
    let remote = sent(client.read(0, Buffers::zeroed(8)));
    world.settle(0);
    let here = read_here(&world, &client, 8);
    let opened = {
        let client = client.clone();
        world.task(0, move || {
            let here = client.here();
            async move { here.wait_open().await }
        })
    };
    world.settle(0);
    world.hold(true);
    world.done(
        0,
        Order::Wiring(Wiring::MoveRoot {
            root: client.root(),
            target: world.address(1, new),
        }),
    );
    assert_eq!(client.iothread(), world.iothreads[1].id());
    let order = [
        world.let_go(OperationKind::Read),
        world.let_go(OperationKind::Read),
    ];
    assert_eq!(order, [0, 8]);
    block_on(remote).0.unwrap();
    answer(&here).0.unwrap();
    answer(&opened);
}

#[test]
fn what_is_parked_when_its_edge_ends_gets_its_buffers_back() {
    let world = World::new(1);
    let node = world.memory(0, 4096);
    let client = world.client(0, node);
    let token = drained(&world, node);
    let parked = [read_here(&world, &client, 0), read_here(&world, &client, 8)];
    world.settle(0);
    world.done(0, Order::Wiring(Wiring::DetachRoot(client.root())));
    for request in &parked {
        assert_eq!(answer(request), (Err(IoError::NoMedium), vec![0; 8]));
    }
    world.send(0, NodeOrder::Resume(token).at(node));
    assert_eq!(read(&world.client(0, node), 0, 8), [0; 8]);
}

/// The first in line is woken as the gate opens, and the next only when that has left: what comes in between waits its
/// turn although the gate is open.
#[test]
fn what_comes_as_the_gate_opens_does_not_overtake_what_waited() {
    let world = World::new(1);
    let node = world.memory(0, 4096);
    let client = world.client(0, node);
    let token = drained(&world, node);
    let parked = sent(futures_util::future::join_all(
        (0..3).map(|i| client.write(i * 8, bytes(1, 8), PLAIN)),
    ));
    world.settle(0);
    world.hold(true);
    let late = world.while_busy(0, || {
        world.send(0, NodeOrder::Resume(token).at(node));
        sent(client.read(99, Buffers::zeroed(8)))
    });
    let order: Vec<_> = (0..3).map(|_| world.let_go(OperationKind::Write)).collect();
    assert_eq!(order, [0, 8, 16]);
    assert_eq!(world.let_go(OperationKind::Read), 99);
    for (result, _) in block_on(parked) {
        result.unwrap();
    }
    block_on(late).0.unwrap();
}
