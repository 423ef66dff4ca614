//! Users: what they are told they may do, how they let go, and the end of everything.

use millpond_messages::graph::{CloseAll, DetachRoot, FlushAll, Mutation, SetRootPermissions};
use millpond_messages::{Permissions, RootId};
use serde_json::json;

use super::world::Told;
use super::*;

fn set(root: RootId, permissions: Permissions) -> SetRootPermissions {
    SetRootPermissions {
        root,
        permissions,
        shared: ALL,
    }
}

/// `top` over `file`.
fn image() -> FakeWorld {
    let mut world = FakeWorld::new();
    world.ok(add(json!({"driver": "raw", "node-name": "top",
        "file": {"driver": "file", "filename": "f", "node-name": "file"}})));
    world
}

#[test]
fn a_permission_is_given_up_before_others_rely_on_that_and_used_after_it_was_granted() {
    let mut world = image();
    let root = world.root(attach("top", READ_WRITE, ALL));
    world.told.clear();
    let wanted = READ | Permissions::RESIZE;
    world.ok(set(root, wanted));
    assert_eq!(world.told, [Told::MayDo(root, READ), Told::MayDo(root, wanted)]);
    // What it cannot get leaves it with what it had.
    let strict = world.root(attach("top", READ, ALL - Permissions::WRITE));
    world.told.clear();
    assert!(world.error(set(root, READ_WRITE)).contains("Permission conflict"));
    assert_eq!(world.told, [Told::MayDo(root, READ), Told::MayDo(root, wanted)]);
    world.assert_settled(&[]);
    world.ok(DetachRoot(strict));
    world.ok(set(root, READ_WRITE));
    world.assert_settled(&[]);
}

#[test]
fn a_user_that_let_go_is_gone_and_nobody_else() {
    let mut world = image();
    let (one, two) = (
        world.root(attach("top", READ, ALL)),
        world.root(attach("top", READ_WRITE, ALL)),
    );
    world.ok(DetachRoot(two));
    assert_eq!(world.told, [Told::Gone(two)]);
    for request in [Mutation::from(DetachRoot(two)), set(two, READ).into()] {
        assert_eq!(world.error(request), format!("There is no root edge {two}"));
    }
    assert_eq!(world.error(del("top")), "Node top is in use");
    world.ok(DetachRoot(one));
    world.assert_settled(&[]);
    world.ok(del("top"));
    assert!(world.nodes.is_empty());
}

#[test]
fn a_node_that_is_being_closed_is_not_found_any_more() {
    let mut world = image();
    let deleting = world.send(del("top"));
    assert!(!world.facts().nodes.iter().any(|node| node.name == "top"));
    assert_eq!(world.nodes.len(), 2, "its cell has not been told yet");
    world.run();
    assert!(world.replies[&deleting].is_ok() && world.nodes.is_empty());
}

#[test]
fn everything_is_flushed_parents_before_children() {
    let mut world = image();
    let (top, file) = (world.id("top"), world.id("file"));
    world.ok(FlushAll);
    assert_eq!(world.flushed, [top], "whose flush goes on to its file");
    world.fail_flush = Some(top);
    assert_eq!(world.error(FlushAll), "flush failed");
    assert_eq!(
        world.flushed,
        [top, top, file],
        "one failure does not spare the rest"
    );
}

#[test]
fn everything_is_closed_even_if_a_flush_fails_and_its_failure_is_told() {
    let mut world = image();
    let root = world.root(attach("top", READ_WRITE, ALL));
    world.fail_flush = Some(world.id("top"));
    assert_eq!(world.error(CloseAll { grace: None }), "flush failed");
    assert_eq!(world.flushed.len(), 2);
    assert!(world.nodes.is_empty() && world.roots.is_empty());
    assert_eq!(world.told, [Told::Gone(root)]);
}

/// A node that goes is told two things at once, so that one answer is waited for and not two: to be quiet, and to close.
#[test]
fn a_node_that_nobody_holds_is_told_to_be_quiet_and_to_close_at_once() {
    let mut world = FakeWorld::new();
    world.ok(add(
        json!({"driver": "file", "filename": "f", "node-name": "disk"}),
    ));
    let added = world.send(add(
        json!({"driver": "file", "filename": "g", "node-name": "other"}),
    ));
    assert_eq!(world.burst(), 1, "opening it is one order");
    assert!(world.replies.remove(&added).is_some_and(|reply| reply.is_ok()));
    let deleted = world.send(del("disk"));
    assert_eq!(world.burst(), 2, "told to be quiet and to close");
    assert!(world.replies.remove(&deleted).is_some_and(|reply| reply.is_ok()));
    world.run();
    world.assert_settled(&[]);
}

/// What a user that let go has left in flight is waited for, by the node itself.
#[test]
fn a_node_that_was_told_to_close_closes_after_what_it_has_in_flight() {
    let mut world = image();
    let disk = world.id("top");
    let root = world.root(attach("top", READ_WRITE, ALL));
    assert!(world.enter(disk));
    world.ok(DetachRoot(root));
    let deleted = world.send(del("top"));
    world.run();
    assert!(!world.replies.contains_key(&deleted), "a request is in flight");
    assert!(world.nodes.contains_key(&disk));
    assert!(!world.enter(disk), "its gate is closed");
    world.leave(disk);
    world.run();
    assert!(world.replies.remove(&deleted).is_some_and(|reply| reply.is_ok()));
    assert!(!world.nodes.contains_key(&disk));
    world.assert_settled(&[]);
}
