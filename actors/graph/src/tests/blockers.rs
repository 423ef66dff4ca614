//! Op blockers: who forbids what, in QEMU's words, and for how long.

use millpond_messages::graph::{
    Blocker, DetachRoot, ExtendOpBlock, GraphReply, GraphRequest, ListOpBlockers, MakeImage, OpBlock,
    OpUnblock, Resize,
};
use millpond_messages::{OpBlocker, RootId, Token};
use serde_json::json;

use super::*;

fn disks(names: &[&str]) -> FakeWorld {
    let mut world = FakeWorld::new();
    for name in names {
        world.ok(add(json!({"driver": "fmt", "node-name": name, "backing": null,
            "file": {"driver": "file", "filename": name}})));
    }
    world
}

fn overlay(world: &mut FakeWorld, name: &str, backing: &str) {
    world.ok(add(
        json!({"driver": "fmt", "node-name": name, "backing": backing,
        "file": {"driver": "file", "filename": name}}),
    ));
}

fn block(node: &str, operations: &[OpBlocker], (reason, root): (&str, Option<RootId>)) -> OpBlock {
    OpBlock {
        node_name: node.to_owned(),
        operations: operations.to_vec(),
        reason: reason.to_owned(),
        root,
    }
}

fn because(reason: &str, root: Option<RootId>) -> (&str, Option<RootId>) {
    (reason, root)
}

fn extend(token: Token, node: &str, operations: &[OpBlocker]) -> ExtendOpBlock {
    ExtendOpBlock {
        token,
        node_name: node.to_owned(),
        operations: operations.to_vec(),
    }
}

fn blocked(world: &mut FakeWorld, request: impl Into<GraphRequest>) -> Token {
    match world.ok(request) {
        GraphReply::Blocked(token) => token,
        other => panic!("no blocker: {other:?}"),
    }
}

fn unblock(token: Token, node: Option<&str>, operations: &[OpBlocker]) -> OpUnblock {
    OpUnblock {
        token,
        node_name: node.map(str::to_owned),
        operations: operations.to_vec(),
    }
}

fn blockers(world: &mut FakeWorld, node: &str) -> Vec<Blocker> {
    let node_name = node.to_owned();
    match world.ok(ListOpBlockers { node_name }) {
        GraphReply::Blockers(blockers) => blockers,
        other => panic!("no blockers: {other:?}"),
    }
}

fn kinds(blockers: &[Blocker]) -> Vec<OpBlocker> {
    blockers.iter().map(|blocker| blocker.operation).collect()
}

fn resize(node: &str) -> Resize {
    Resize {
        node_name: node.to_owned(),
        size: 1 << 20,
    }
}

#[test]
fn operations_are_blocked_by_kind_and_one_by_one_allowed_again() {
    let mut world = disks(&["a", "b"]);
    let all = [
        OpBlocker::Resize,
        OpBlocker::DriveDel,
        OpBlocker::ExternalSnapshot,
    ];
    let token = blocked(&mut world, block("a", &all, because("it is counted", None)));
    let mut kinds_blocked = kinds(&blockers(&mut world, "a"));
    kinds_blocked.sort_unstable();
    assert_eq!(
        kinds_blocked,
        [
            OpBlocker::DriveDel,
            OpBlocker::ExternalSnapshot,
            OpBlocker::Resize
        ]
    );
    let text = "Node 'a' is busy: it is counted";
    assert_eq!(world.error(resize("a")), text);
    assert_eq!(world.error(snapshot("a", "b")), text);
    assert_eq!(world.error(del("a")), text);
    world.ok(unblock(token, Some("a"), &[OpBlocker::Resize]));
    world.ok(resize("a"));
    assert_eq!(world.error(del("a")), text);
    world.ok(unblock(token, Some("a"), &OpBlocker::ALL));
    assert_eq!(blockers(&mut world, "a"), []);
    let gone = format!("There is no op blocker {token}");
    assert_eq!(world.error(unblock(token, None, &OpBlocker::ALL)), gone);
    assert_eq!(world.error(extend(token, "a", &OpBlocker::ALL)), gone);
    world.ok(snapshot("a", "b"));
}

/// One reason may stand on many nodes, and many reasons on one: each goes by itself, the newest is told.
#[test]
fn reasons_stand_side_by_side() {
    let mut world = disks(&["a", "b"]);
    let first = blocked(&mut world, block("a", &OpBlocker::ALL, because("first", None)));
    world.ok(extend(first, "b", &OpBlocker::ALL));
    let second = blocked(
        &mut world,
        block("a", &[OpBlocker::Resize], because("second", None)),
    );
    assert_eq!(blockers(&mut world, "a").len(), 17);
    assert_eq!(world.error(resize("a")), "Node 'a' is busy: second");
    assert_eq!(world.error(resize("b")), "Node 'b' is busy: first");
    world.ok(unblock(second, None, &OpBlocker::ALL));
    assert_eq!(world.error(resize("a")), "Node 'a' is busy: first");
    world.ok(unblock(first, None, &OpBlocker::ALL));
    world.ok(resize("a"));
    world.ok(resize("b"));
}

#[test]
fn a_user_that_lets_go_gives_back_what_it_blocked() {
    let mut world = disks(&["a", "b"]);
    let root = world.root(attach("a", READ, ALL));
    let by = because("block device is in use by block job: mirror", Some(root));
    let token = blocked(&mut world, block("a", &OpBlocker::ALL, by));
    world.ok(extend(token, "b", &[OpBlocker::Resize]));
    assert_eq!(
        world.error(resize("b")),
        "Node 'b' is busy: block device is in use by block job: mirror"
    );
    world.ok(DetachRoot(root));
    assert_eq!(blockers(&mut world, "a"), []);
    world.ok(resize("b"));
    assert_eq!(
        world.error(block("b", &OpBlocker::ALL, because("late", Some(root)))),
        format!("There is no root edge {root}")
    );
}

#[test]
fn blockers_go_with_their_node() {
    let mut world = disks(&["a"]);
    let token = blocked(&mut world, block("a", &[OpBlocker::Resize], because("x", None)));
    world.ok(del("a"));
    world.ok(add(json!({"driver": "file", "node-name": "a", "filename": "a"})));
    assert_eq!(blockers(&mut world, "a"), []);
    world.ok(unblock(token, None, &OpBlocker::ALL));
}

/// A backing node may be streamed from, committed to and backed up, and nothing else, for as long as it has an overlay.
#[test]
fn an_overlay_blocks_what_would_change_its_backing_node() {
    let mut world = disks(&["base"]);
    overlay(&mut world, "top", "base");
    let mut allowed: Vec<OpBlocker> = OpBlocker::ALL.to_vec();
    let found = blockers(&mut world, "base");
    allowed.retain(|kind| !kinds(&found).contains(kind));
    let expected = [
        OpBlocker::BackupSource,
        OpBlocker::BackupTarget,
        OpBlocker::CommitTarget,
        OpBlocker::Stream,
    ];
    assert_eq!(allowed, expected);
    assert!(
        found
            .iter()
            .all(|blocker| blocker.reason == "node is used as backing hd of 'top'")
    );
    assert_eq!(
        world.error(resize("base")),
        "Node 'base' is busy: node is used as backing hd of 'top'"
    );
    overlay(&mut world, "other", "base");
    assert_eq!(
        world.error(del("base")),
        "Node 'base' is busy: node is used as backing hd of 'other'"
    );
    world.ok(del("top"));
    world.ok(del("other"));
    assert_eq!(blockers(&mut world, "base"), []);
    world.ok(resize("base"));
}

#[test]
fn a_node_that_is_being_formatted_is_busy() {
    let mut world = disks(&["o"]);
    world.ok(add(json!({"driver": "file", "node-name": "f", "filename": "f"})));
    world.hold_creates = true;
    let create = world.send(MakeImage(options(json!({"driver": "fmt", "file": "f"}))));
    world.run();
    assert_eq!(
        world.error(snapshot("f", "o")),
        "Node 'f' is busy: block device is in use by block job: create"
    );
    world.hold_creates = false;
    world.run();
    assert!(world.replies.remove(&create).unwrap().is_ok());
    assert_eq!(blockers(&mut world, "f"), []);
    world.ok(snapshot("f", "o"));
}
