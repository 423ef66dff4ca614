//! Closing everything while others are at work: nothing holds it up but storage, and that not for ever.

use std::time::Duration;

use millpond_messages::graph::{CloseAll, FlushAll, GraphReply, ListDrains, Resize};
use millpond_messages::{ErrorKind, Token};
use serde_json::json;

use super::chains::image;
use super::*;

const GRACE: Duration = Duration::from_secs(30);

fn close_all() -> CloseAll {
    CloseAll { grace: Some(GRACE) }
}

/// A format on a file, and a raw image beside it.
fn disks() -> FakeWorld {
    let mut world = FakeWorld::new();
    world.ok(add(json!({"driver": "fmt", "node-name": "top", "backing": null,
        "file": {"driver": "file", "filename": "f", "node-name": "f"}})));
    world.ok(add(
        json!({"driver": "file", "node-name": "other", "filename": "o"}),
    ));
    world
}

fn is_closed(world: &mut FakeWorld, id: crate::RequestId) -> bool {
    let reply = world.replies.remove(&id);
    matches!(reply, Some(Err(error)) if error.kind() == ErrorKind::Closed)
}

#[test]
fn closing_overtakes_what_has_not_begun_and_ends_what_only_waits() {
    let mut world = disks();
    let busy = world.id("top");
    assert!(world.enter(busy));
    let waiting = world.send(reopen(
        json!({"driver": "fmt", "node-name": "top", "file": "other", "backing": null}),
    ));
    world.run();
    let queued = world.send(add(json!({"driver": "file", "node-name": "x", "filename": "x"})));
    let closing = world.send(close_all());
    world.run();
    assert!(
        is_closed(&mut world, waiting),
        "it would have waited for the request"
    );
    assert!(is_closed(&mut world, queued));
    assert!(
        !world.replies.contains_key(&closing),
        "a request in flight is not cut off"
    );
    assert!(
        world
            .facts()
            .edges
            .iter()
            .all(|edge| edge.child != world.id("other"))
    );
    world.leave(busy);
    world.run();
    assert!(world.replies.remove(&closing).is_some_and(|reply| reply.is_ok()));
    assert!(world.nodes.is_empty());
}

/// A resize holds its node before it waits for it to be still.
#[test]
fn what_a_change_did_before_it_was_given_up_is_undone() {
    let mut world = disks();
    let busy = world.id("other");
    assert!(world.enter(busy));
    let resize = world.send(Resize {
        node_name: "other".to_owned(),
        size: 1,
    });
    world.run();
    let holds = |world: &FakeWorld| world.policy.world.graph(|graph| graph.roots().count());
    assert_eq!(holds(&world), 1);
    let closing = world.send(close_all());
    world.run();
    assert!(is_closed(&mut world, resize));
    assert_eq!(holds(&world), 0);
    world.leave(busy);
    world.run();
    assert!(world.replies.remove(&closing).is_some_and(|reply| reply.is_ok()));
    assert!(world.nodes.is_empty());
}

#[test]
fn sections_of_users_do_not_hold_it_up() {
    let mut world = disks();
    world.root(attach("top", READ_WRITE, ALL));
    world.still(drain_node("top"));
    world.still(drain_all());
    world.ok(close_all());
    assert!(world.nodes.is_empty() && world.roots.is_empty());
}

#[test]
fn what_takes_too_long_is_told_once() {
    let mut world = disks();
    let busy = world.id("f");
    assert!(world.enter(busy));
    let closing = world.send(close_all());
    world.run();
    world.pass(GRACE / 2);
    world.run();
    assert!(!world.replies.contains_key(&closing));
    world.pass(GRACE);
    world.run();
    let error = world
        .replies
        .remove(&closing)
        .expect("an answer in time")
        .unwrap_err();
    let text = error.to_string();
    assert!(
        text.starts_with("The nodes could not be closed within 30 s"),
        "{text}"
    );
    assert!(
        text.contains("the drain by 'quit' waits for node 'f', a write of 512 bytes"),
        "{text}"
    );
    // Questions are answered as ever, and closing goes on if the storage wakes up.
    assert!(matches!(world.ok(ListDrains), GraphReply::Drains(drains) if drains.len() == 1));
    world.leave(busy);
    world.run();
    assert!(world.nodes.is_empty());
    assert!(!world.replies.contains_key(&closing), "it was answered already");
}

#[test]
fn a_change_that_waits_for_storage_is_named() {
    let mut world = disks();
    world.hold_flushes = true;
    let flushing = world.send(FlushAll);
    world.run();
    let closing = world.send(close_all());
    world.run();
    world.pass(GRACE);
    world.run();
    let error = world
        .replies
        .remove(&closing)
        .expect("an answer in time")
        .unwrap_err();
    assert!(error.to_string().contains("has not ended its flush"), "{error}");
    assert!(!world.replies.contains_key(&flushing));
    world.hold_flushes = false;
    world.run();
    assert!(world.replies.remove(&flushing).is_some_and(|reply| reply.is_ok()));
    assert!(world.nodes.is_empty());
}

/// The mail that asks a node what it waits for is never delivered.
#[test]
fn an_iothread_that_is_stuck_itself_does_not_hold_up_the_answer() {
    let mut world = disks();
    let busy = world.id("f");
    assert!(world.enter(busy));
    let closing = world.send(close_all());
    world.run();
    world.pass(GRACE);
    assert!(!world.replies.contains_key(&closing));
    world.pass(Duration::from_secs(2));
    let error = world
        .replies
        .remove(&closing)
        .expect("an answer in time")
        .unwrap_err();
    assert!(
        error.to_string().contains("an iothread does not answer"),
        "{error}"
    );
    world.leave(busy);
    world.run();
    assert!(world.nodes.is_empty());
}

#[test]
fn closing_that_ends_in_time_is_answered_once_however_late_the_alarm() {
    let mut world = disks();
    world.ok(close_all());
    world.pass(2 * GRACE);
    world.run();
    assert_eq!(world.replies.len(), 0);
    world.ok(close_all());
}

/// What comes after a snapshot, its lower node being made read-only, is left out, and the snapshot is told as done.
#[test]
fn a_snapshot_that_holds_is_told_as_done_whatever_is_left_of_it() {
    let mut world = disks();
    image(&mut world, "overlay", None);
    let overlay = world.id("overlay");
    let first = Token(world.policy.world.with(|state| state.sections.last()) + 1);
    let snapshot = world.send(snapshot("other", "overlay"));
    let is_in_force = |world: &FakeWorld| {
        world
            .policy
            .world
            .with(|state| state.sections.get(first).is_some())
    };
    while !is_in_force(&world) {
        world.round();
    }
    while is_in_force(&world) {
        world.round();
    }
    while !world.enter(overlay) {
        world.round();
    }
    world.run();
    assert!(
        !world.replies.contains_key(&snapshot),
        "the lower node cannot be still"
    );
    let closing = world.send(close_all());
    world.run();
    assert!(world.replies.remove(&snapshot).is_some_and(|reply| reply.is_ok()));
    world.leave(overlay);
    world.run();
    assert!(world.replies.remove(&closing).is_some_and(|reply| reply.is_ok()));
    assert!(world.nodes.is_empty());
}
