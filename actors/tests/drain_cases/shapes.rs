//! The shapes in which drains fail in the field, as far as they concern nodes, iothreads and jobs. Those of servers are
//! in the servers' tests.

use millpond_messages::RequestFlags;
use millpond_messages::graph::{CancelInFlight, DrainScope, NamedNodes, Resize};
use millpond_messages::io::OperationKind;
use serde_json::json;

use super::driver::Step;
use super::world::{
    World, bytes, finish, is_ready, node, on_home, read, reading, sent, wait, while_busy, writing,
};

/// contract: shape 1
///
/// A request is counted, or parked, in the step that takes it from its mailbox: one that came before the order to come
/// to rest is waited for.
#[test]
fn a_request_that_came_before_the_drain_is_waited_for() {
    let world = World::new(&["n"]);
    world.memory("n");
    let client = world.client("n");
    let n = world.node("n");
    n.hold(true);
    let (request, draining) = while_busy(&client, || {
        let request = writing(&client, 0, 1);
        let draining = world.draining(node("n"));
        // The graph has sent its order when it answers what comes after.
        wait(world.graph.facts()).unwrap();
        (request, draining)
    });
    assert_eq!(world.waiting(), 1);
    let held = n.held(Step::Request(OperationKind::Write));
    held.go.send(()).unwrap();
    drop(finish(draining).covers(&world, &["n"]));
    assert_eq!(wait(request), Ok(()));
}

/// contract: shape 2
///
/// Whatever the pieces are asked of: the node below on the same iothread, or on another.
#[test]
fn pieces_of_an_admitted_request_never_wait_at_a_gate() {
    for elsewhere in [false, true] {
        for scope in [DrainScope::All, node("below"), node("above")] {
            let world = World::new(&["below", "above"]);
            world.memory("below");
            if elsewhere {
                world.iothread("io");
                world.move_to("below", Some("io"));
            }
            world.add(json!({"driver": "test-overlay", "node-name": "above", "backing": null}));
            wait(
                world.reopening(json!({"driver": "test-overlay", "node-name": "above", "backing": "below"})),
            )
            .unwrap();
            let (above, below) = (world.node("above"), world.node("below"));
            above.pieces(3);
            below.hold(true);
            let client = world.client("above");
            let composite = reading(&client, 0);
            let first = below.held_read();
            let draining = world.draining(scope);
            assert_eq!(world.waiting(), 1);
            first.go.send(()).unwrap();
            for _ in 1..3 {
                let piece = below.held_read();
                assert_eq!(world.waiting(), 1);
                piece.go.send(()).unwrap();
            }
            drop(finish(draining).covers(&world, &["above"]));
            assert_eq!(wait(composite), Ok(vec![0; 512]));
        }
    }
}

/// contract: shape 3
#[test]
fn a_driver_that_has_not_finished_stopping_is_neither_started_nor_stopped_again() {
    let world = World::new(&["n"]);
    world.memory("n");
    let client = world.client("n");
    let n = world.node("n");
    n.hold_quiesce(true);
    let first = world.draining(node("n"));
    let stopping = n.held(Step::Quiesce);
    drop(first);
    world.settle();
    assert_eq!(n.callbacks(), (1, 0), "not started before it has stopped");
    read(&client, 0);
    let mut second = world.draining(node("n"));
    assert_eq!(world.waiting(), 1);
    assert_eq!(n.callbacks(), (1, 0), "not told to stop while it is stopping");
    assert!(!is_ready(&mut second));
    stopping.go.send(()).unwrap();
    let section = finish(second).covers(&world, &["n"]);
    assert_eq!(
        n.callbacks(),
        (1, 0),
        "it has stopped once, which serves the second as well"
    );
    drop(section);
    world.settle();
    assert_eq!(n.callbacks(), (1, 1));

    // Ended while it is stopping, and not begun again: it starts once it has stopped.
    let third = world.draining(node("n"));
    let stopping = n.held(Step::Quiesce);
    drop(third);
    world.settle();
    assert_eq!(n.callbacks(), (2, 1));
    stopping.go.send(()).unwrap();
    read(&client, 0);
    world.settle();
    assert_eq!(n.callbacks(), (2, 2));
}

/// contract: shape 4
///
/// For whoever has requests of its own at hand, as a server has in its socket: told to wait while the gate is closed, it
/// is told to go on when it opens, moves away or ends, each time.
#[test]
fn whoever_waits_for_a_gate_is_woken_whatever_becomes_of_it() {
    let world = World::new(&["n"]);
    world.memory("n");
    world.iothread("io");
    for becomes in [
        "opened",
        "moved",
        "detached",
        "opened with another section ending",
    ] {
        let client = world.client("n");
        let section = world.drain(node("n")).covers(&world, &["n"]);
        let other = (becomes == "opened with another section ending").then(|| world.drain(DrainScope::All));
        let mut waiting = on_home(&client, {
            let home = client.clone();
            move || async move {
                let home = home.here();
                home.wait_open().await;
            }
        });
        world.settle();
        assert!(!is_ready(&mut waiting), "the gate is closed");
        match becomes {
            "moved" => {
                world.move_to("n", Some("io"));
                wait(waiting);
                world.move_to("n", None);
            }
            "detached" => {
                wait(world.graph.detach(client.root())).unwrap();
                wait(waiting);
                continue;
            }
            _ => {
                drop(section);
                drop(other);
                wait(waiting);
            }
        }
        wait(world.graph.detach(client.root())).unwrap();
    }
}

/// contract: shape 5
#[test]
fn questions_are_answered_while_requests_jobs_and_changes_wait_for_storage() {
    let world = World::new(&["n", "other"]);
    world.memory("n");
    world.memory("other");
    let n = world.node("n");
    n.hold(true);
    let client = world.client("n");
    let job = super::job::Job::start(
        &world,
        "n",
        "other",
        super::job::Runs::AtHome,
        super::job::Fails::Never,
    );
    let request = writing(&client, 0, 1);
    let held = [
        n.held.recv_timeout(super::world::DEADLINE).unwrap(),
        n.held.recv_timeout(super::world::DEADLINE).unwrap(),
    ];
    let mut change = sent({
        let graph = world.graph.clone();
        async move {
            graph
                .ask(Resize {
                    node_name: "n".to_owned(),
                    size: 1 << 16,
                })
                .await
        }
    });
    let mut drain = world.draining(DrainScope::All);
    let other = world.client_asked("other");
    for _ in 0..100 {
        assert_eq!(wait(world.graph.facts()).unwrap().nodes.len(), 2);
        assert_eq!(
            wait(world.graph.ask(NamedNodes { flat: false })).unwrap().len(),
            2
        );
        assert!(world.waiting() >= 1);
    }
    assert!(!is_ready(&mut change) && !is_ready(&mut drain));
    drop(drain);
    n.hold(false);
    for held in held {
        held.go.send(()).unwrap();
    }
    assert_eq!(wait(request), Ok(()));
    drop(wait(other));
    wait(change).unwrap();
    assert_eq!(job.complete(), Ok(()));
}

/// A request of a detached user is still the node's to finish: a node is closed only when its driver is busy with nothing.
#[test]
fn a_node_is_closed_after_what_its_former_users_left_in_flight() {
    let world = World::new(&["n", "marker"]);
    world.memory("n");
    let client = world.client("n");
    let n = world.node("n");
    n.hold(true);
    let request = writing(&client, 0, 1);
    let held = n.held(Step::Request(OperationKind::Write));
    wait(world.graph.detach(client.root())).unwrap();
    let mut closing = sent({
        let graph = world.graph.clone();
        async move { graph.delete_node("n").await }
    });
    wait(world.graph.facts()).unwrap();
    assert!(!is_ready(&mut closing));
    assert_eq!(n.closed(), 0);
    n.hold(false);
    held.go.send(()).unwrap();
    wait(closing).unwrap();
    assert_eq!((n.closed(), n.transfers()), (1, 1));
    assert_eq!(wait(request), Ok(()));
}

/// A request that its asker gives up while it is in the middle of its pieces ends for the drain only with the last one.
#[test]
fn a_request_that_is_given_up_half_way_is_waited_for() {
    let world = World::new(&["n"]);
    world.memory("n");
    let client = world.client("n");
    let n = world.node("n");
    n.hold(true);
    let given_up = on_home(&client, {
        let home = client.clone();
        move || async move {
            let home = home.here();
            let mut request = Box::pin(home.write(0, bytes(1, 512), RequestFlags::FUA));
            assert!(futures_util::poll!(&mut request).is_pending());
        }
    });
    wait(given_up);
    let write = n.held(Step::Request(OperationKind::Write));
    let draining = world.draining(node("n"));
    assert_eq!(world.waiting(), 1);
    write.go.send(()).unwrap();
    let flush = n.held(Step::Request(OperationKind::Flush));
    assert_eq!(world.waiting(), 1);
    flush.go.send(()).unwrap();
    drop(finish(draining).covers(&world, &["n"]));
}

/// What a filter does at its target is waited for to its end, also after the filter has given the target up; whether the
/// target lives on the filter's thread or not.
#[test]
fn what_was_given_up_at_a_target_is_waited_for() {
    for iothread in [None, Some("io")] {
        let world = World::new(&["source", "target"]);
        world.memory("source");
        world.memory("target");
        if let Some(io) = iothread {
            world.iothread(io);
            world.move_to("target", iothread);
        }
        world.add(json!({
            "driver": "copy-before-write", "node-name": "filter", "file": "source", "target": "target",
        }));
        let client = world.client("filter");
        let target = world.node("target");
        target.hold(true);
        let request = writing(&client, 0, 1);
        let copied = target.held(Step::Request(OperationKind::Write));
        let given_up = CancelInFlight {
            node_name: "filter".to_owned(),
            alone: true,
        };
        wait(world.graph.ask(given_up)).unwrap();
        assert_eq!(wait(request), Ok(()), "the guest waits for the target no more");
        drop(world.drain(node("source")).covers(&world, &["source"]));
        let mut draining = world.draining(node("target"));
        world.settle();
        assert!(!is_ready(&mut draining));
        assert_eq!(world.waiting(), 1, "target on {iothread:?}");
        target.hold(false);
        copied.go.send(()).unwrap();
        drop(finish(draining).covers(&world, &["target"]));
    }
}
