//! Clients that stay on their iothread while the node lives on another: what they see of sections, and what becomes of requests
//! that they want no more.

use crossbeam_channel::Receiver;
use futures_executor::block_on;
use millpond_drivers::api::Withdrawal;
use millpond_engine::node::{Client, NodeOrder, Order, Wiring};
use millpond_messages::io::{Operation, OperationKind};
use millpond_messages::{IoError, IoResult, NodeId, Token};
use millpond_ring::buffer::Buffers;

use super::PLAIN;
use super::world::{World, answer};

/// Whether the node takes requests, as a client says that stays on an iothread.
fn is_open(world: &World, iothread: usize, client: &Client) -> bool {
    let client = client.clone();
    answer(&world.task(iothread, move || {
        let here = client.staying_here();
        async move { here.is_open() && !here.has_moved() }
    }))
}

/// Waits on an iothread until the node takes requests.
fn wait_open(world: &World, iothread: usize, client: &Client) -> Receiver<bool> {
    let client = client.clone();
    world.task(iothread, move || {
        let here = client.staying_here();
        async move {
            here.wait_open().await;
            here.is_open()
        }
    })
}

fn drained(world: &World, iothread: usize, node: NodeId) -> Token {
    let token = world.quiesce(iothread, node);
    world.await_quiesced(node, token);
    token
}

fn resume(world: &World, iothread: usize, node: NodeId, token: Token) {
    world.send(iothread, NodeOrder::Resume(token).at(node));
}

/// Reads on an iothread; what is sent over the channel withdraws it.
fn read_until_withdrawn(
    world: &World,
    iothread: usize,
    client: &Client,
) -> (futures_channel::oneshot::Sender<()>, Receiver<IoResult<()>>) {
    let (withdraw, withdrawn) = futures_channel::oneshot::channel();
    let client = client.clone();
    let result = world.task(iothread, move || async move {
        let withdrawal = Withdrawal::default();
        let says = withdrawal.clone();
        let local = millpond_engine::iothread::Local::current().unwrap();
        local.spawn(async move {
            if withdrawn.await.is_ok() {
                says.withdraw();
            }
        });
        let read = Operation::Read {
            offset: 0,
            buffers: Buffers::zeroed(8),
            flags: PLAIN,
        };
        let begun = client.staying_here().begin(read);
        let (result, _) = withdrawal.scoped(begun.end()).await.into_parts();
        result.map(drop)
    });
    (withdraw, result)
}

#[test]
fn a_section_is_seen_from_another_iothread_from_its_beginning_to_its_end() {
    let world = World::new(2);
    let node = world.memory(0, 4096);
    let client = world.client(0, node);
    assert!(is_open(&world, 1, &client) && is_open(&world, 0, &client));
    assert!(
        answer(&wait_open(&world, 1, &client)),
        "an open gate is not waited for"
    );
    let (one, two) = (drained(&world, 0, node), drained(&world, 0, node));
    assert!(!is_open(&world, 1, &client) && !is_open(&world, 0, &client));
    let waiting: Vec<_> = (0..3).map(|_| wait_open(&world, 1, &client)).collect();
    resume(&world, 0, node, one);
    world.settle(0);
    world.settle(1);
    assert!(waiting.iter().all(Receiver::is_empty));
    resume(&world, 0, node, two);
    assert!(waiting.iter().all(answer));
    // The next section is waited for anew.
    let three = drained(&world, 0, node);
    let waiting = wait_open(&world, 1, &client);
    resume(&world, 0, node, three);
    assert!(answer(&waiting));
}

#[test]
fn who_waits_elsewhere_is_told_wherever_the_node_has_gone_meanwhile() {
    for to in [1, 2] {
        let world = World::new(3);
        let node = world.memory(0, 4096);
        let client = world.client(0, node);
        let token = drained(&world, 0, node);
        let waiting = wait_open(&world, 1, &client);
        world.settle(1);
        world.settle(0);
        let to_there = world.iothreads[to].clone();
        world.done(0, Order::Wiring(Wiring::Depart { node, to: to_there }));
        world.settle(to);
        assert!(waiting.is_empty(), "it is as still as before");
        assert!(!is_open(&world, 1, &client));
        resume(&world, to, node, token);
        assert!(answer(&waiting));
        assert!(is_open(&world, 1, &client));
    }
}

#[test]
fn who_waits_elsewhere_goes_on_when_the_edge_ends() {
    let world = World::new(2);
    let node = world.memory(0, 4096);
    let client = world.client(0, node);
    drained(&world, 0, node);
    let waiting = wait_open(&world, 1, &client);
    world.settle(1);
    world.done(0, Order::Wiring(Wiring::DetachRoot(client.root())));
    assert!(answer(&waiting));
    let (result, _) = block_on(client.read(0, Buffers::zeroed(8)));
    assert_eq!(result, Err(IoError::NoMedium));
}

#[test]
fn a_request_from_elsewhere_that_only_waits_ends_when_it_is_withdrawn() {
    let world = World::new(2);
    let node = world.memory(0, 4096);
    let client = world.client(0, node);
    let token = drained(&world, 0, node);
    let (withdraw, withdrawn) = read_until_withdrawn(&world, 1, &client);
    let (_kept, other) = read_until_withdrawn(&world, 1, &client);
    world.settle(1);
    world.settle(0);
    withdraw.send(()).unwrap();
    assert_eq!(answer(&withdrawn), Err(IoError::Cancelled));
    assert!(other.is_empty(), "another goes on waiting");
    resume(&world, 0, node, token);
    assert_eq!(answer(&other), Ok(()));
}

#[test]
fn a_request_from_elsewhere_that_a_driver_has_begun_runs_to_its_end() {
    let world = World::new(2);
    let node = world.memory(0, 4096);
    let client = world.client(0, node);
    world.hold(true);
    let (withdraw, read) = read_until_withdrawn(&world, 1, &client);
    let held = world.next_held();
    withdraw.send(()).unwrap();
    world.settle(1);
    world.settle(0);
    assert!(read.is_empty(), "no driver is left half-way");
    assert_eq!(held.step, super::driver::Step::Request(OperationKind::Read));
    held.go.send(()).unwrap();
    assert_eq!(answer(&read), Ok(()));
}

#[test]
fn the_iothreads_that_a_user_works_on_are_told_by_its_clients() {
    let world = World::new(2);
    let node = world.memory(0, 4096);
    let home = world.iothreads[0].clone();
    let root = millpond_engine::node::RootHandle::new(
        millpond_messages::RootId(77),
        millpond_messages::Permissions::all(),
        false,
        home,
    );
    let client = Client::new(&root);
    world.done(
        0,
        Order::Wiring(Wiring::AttachRoot {
            root: root.clone(),
            node,
        }),
    );
    assert!(client.threads().is_empty());
    root.set_threads(world.iothreads.clone());
    let ids = |threads: &[millpond_engine::iothread::IoThread<_>]| {
        threads.iter().map(|thread| thread.id()).collect::<Vec<_>>()
    };
    assert_eq!(ids(&client.threads()), ids(&world.iothreads));
}
