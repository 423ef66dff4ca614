//! Commits: what they hold while they go on, and that drained sections and questions need not wait for their end.

use millpond_messages::OpBlocker;
use millpond_messages::graph::{
    CloseAll, Commit, DetachRoot, DrainEnd, EdgeParent, GraphReply, ListOpBlockers, OpBlock, Resize,
    SetBacking,
};
use serde_json::json;

use super::chains::{chain, image};
use super::*;

/// `top` -> `base`; the base is read-only.
fn overlay() -> FakeWorld {
    overlay_of(1 << 20)
}

fn overlay_of(size: u64) -> FakeWorld {
    let mut world = FakeWorld::new();
    world.sizes = size;
    world.ok(add(
        json!({"driver": "fmt", "node-name": "base", "backing": null, "read-only": true,
        "file": {"driver": "file", "filename": "/base"}}),
    ));
    image(&mut world, "top", Some("base"));
    world
}

fn commit(name: &str) -> Commit {
    Commit {
        node_name: name.to_owned(),
    }
}

fn link(world: &mut FakeWorld) -> (Permissions, Permissions) {
    let top = EdgeParent::Node(world.id("top"));
    let facts = world.facts();
    let mut edges = facts.edges.into_iter();
    let edge = edges.find(|edge| edge.parent == top && edge.name == "backing");
    edge.map(|edge| (edge.permissions, edge.shared)).unwrap()
}

#[test]
fn a_commit_leaves_the_graph_as_it_was() {
    let mut world = overlay();
    world.root(attach("top", READ_WRITE, ALL));
    let before = world.facts();
    world.ok(commit("top"));
    assert_eq!(world.facts(), before);
    world.assert_settled(&[]);
}

#[test]
fn both_nodes_are_held_while_a_commit_goes_on() {
    let mut world = overlay();
    let root = world.root(attach("top", READ_WRITE, ALL));
    let before = world.facts();
    world.hold_creates = true;
    let id = world.send(commit("top"));
    world.run();
    let busy = |name: &str| format!("Node '{name}' is busy: block device is in use by block job: commit");
    for name in ["top", "base"] {
        let node_name = name.to_owned();
        assert_eq!(world.error(Resize { node_name, size: 1 }), busy(name));
        let node_name = name.to_owned();
        match world.ok(ListOpBlockers { node_name }) {
            GraphReply::Blockers(blockers) => {
                assert!(
                    blockers
                        .iter()
                        .all(|blocker| blocker.operation != OpBlocker::Dataplane
                            || blocker.reason.starts_with("node is used"))
                );
            }
            other => panic!("no blockers: {other:?}"),
        }
    }
    assert_eq!(world.error(commit("top")), busy("top"));
    assert_eq!(
        world.error(SetBacking {
            node_name: "top".to_owned(),
            backing: None
        }),
        "Cannot change frozen 'backing' link from 'top' to 'base'"
    );
    // The overlay relies on nothing below; nobody but the commit writes there.
    assert_eq!(link(&mut world), (Permissions::empty(), ALL));
    let error = world.error(attach("base", READ_WRITE, ALL));
    assert!(error.starts_with("Permission conflict on node 'base'"), "{error}");
    // Requests wait: what they wrote would be lost with what is forgotten.
    let top = world.roots[&root];
    assert!(!world.enter(top));
    world.hold_creates = false;
    world.run();
    assert!(world.replies.remove(&id).unwrap().is_ok());
    assert!(world.enter(top));
    world.leave(top);
    assert_eq!(world.facts(), before);
    world.assert_settled(&[]);
}

/// A section begun while a piece is under way is still once that has ended, and the next piece waits for its end.
#[test]
fn a_commit_pauses_for_drained_sections() {
    for scope in ["top", "base"] {
        let mut world = overlay_of(40 << 20);
        world.ok(add(
            json!({"driver": "file", "node-name": "other", "filename": "/other"}),
        ));
        world.hold_creates = true;
        let id = world.send(commit("top"));
        world.run();
        let drain = world.send(drain_node(scope));
        world.run();
        assert!(!world.replies.contains_key(&drain), "a piece is under way");
        world.end_held();
        world.run();
        let Some(Ok(GraphReply::Still(token))) = world.replies.remove(&drain) else {
            panic!("the section is still after the piece")
        };
        assert_eq!(world.held(), 0, "no other piece has begun");
        // Everything else goes on meanwhile.
        world.ok(del("other"));
        world.ok(DrainEnd(token));
        assert_eq!(world.held(), 1, "the next piece");
        world.hold_creates = false;
        world.run();
        assert!(world.replies.remove(&id).unwrap().is_ok());
        world.assert_settled(&[]);
    }
}

#[test]
fn closing_everything_ends_a_commit() {
    let mut world = overlay();
    world.hold_creates = true;
    let id = world.send(commit("top"));
    world.run();
    let close = world.send(CloseAll { grace: None });
    world.hold_creates = false;
    world.run();
    assert!(world.replies.remove(&close).unwrap().is_ok());
    assert!(world.replies.remove(&id).unwrap().is_err());
    assert!(world.nodes.is_empty());
}

#[test]
fn what_cannot_be_committed_is_told() {
    let mut world = overlay();
    assert_eq!(
        world.error(commit("base")),
        "Node 'base' does not have a backing file"
    );
    assert_eq!(world.error(commit("x")), "Failed to find node with node-name='x'");
    // Another overlay relies on what the base holds.
    image(&mut world, "second", Some("base"));
    let root = world.root(attach("second", READ, ALL - Permissions::WRITE));
    let before = world.facts();
    let error = world.error(commit("top"));
    assert!(error.starts_with("Permission conflict on node 'base'"), "{error}");
    assert_eq!(world.facts(), before);
    world.assert_settled(&[]);
    world.ok(DetachRoot(root));
    image(&mut world, "third", Some("top"));
    assert_eq!(
        world.error(commit("top")),
        "Node 'top' is busy: node is used as backing hd of 'third'"
    );
    world.ok(commit("third"));
}

/// A job that holds an image has a filter above it, through which nobody else writes.
#[test]
fn an_image_below_a_filter_that_is_in_use_takes_no_commit() {
    let mut world = chain();
    let reason = "in use by a job".to_owned();
    world.ok(OpBlock {
        node_name: "mid".to_owned(),
        operations: vec![OpBlocker::CommitTarget],
        reason,
        root: None,
    });
    let refused = world.error(commit("top"));
    assert_eq!(refused, "Node 'mid' is busy: in use by a job");
    world.ok(commit("mid"));
}
