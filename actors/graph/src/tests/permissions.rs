//! Permissions: checked over the whole graph as it will be, and told as QEMU tells them.

use millpond_messages::graph::{
    Append, DetachRoot, EdgeParent, ReplaceNode, Resize, SetRootPermissions, Truncate,
};
use millpond_messages::io::Preallocation;
use millpond_messages::{Permissions, RequestFlags, RootId};
use serde_json::json;

use super::*;

fn base() -> FakeWorld {
    let mut world = FakeWorld::new();
    world.ok(add(
        json!({"driver": "file", "node-name": "base", "filename": "b"}),
    ));
    world
}

fn filter(world: &mut FakeWorld, name: &str, file: &str) {
    world.ok(add(json!({"driver": "filter", "node-name": name, "file": file})));
}

fn taken(world: &mut FakeWorld, parent: &str, child: &str) -> Permissions {
    let (parent, child) = (world.id(parent), world.id(child));
    let edges = world.facts().edges;
    let edge = edges
        .iter()
        .find(|edge| edge.parent == EdgeParent::Node(parent) && edge.child == child);
    edge.expect("the edge exists").permissions
}

const NO_WRITERS: Permissions = Permissions::all().difference(Permissions::WRITE);

#[test]
fn conflicts_are_told_in_qemus_words() {
    let mut world = FakeWorld::new();
    world.ok(add(json!({"driver": "fmt", "node-name": "q",
        "file": {"driver": "file", "filename": "t", "node-name": "tf"}})));
    assert_eq!(
        world.error(attach("tf", READ_WRITE, ALL - Permissions::RESIZE)),
        "Permission conflict on node 'tf': permissions 'write' are both required by an unnamed block device (uses \
         node 'tf' as 'root' child) and unshared by node 'q' (uses node 'tf' as 'file' child)."
    );
    assert_eq!(
        world.error(attach("tf", READ, ALL - Permissions::RESIZE)),
        "Permission conflict on node 'tf': permissions 'resize' are both required by node 'q' (uses node 'tf' as \
         'file' child) and unshared by an unnamed block device (uses node 'tf' as 'root' child)."
    );
    assert_eq!(
        world.error(add(json!({"driver": "fmt", "node-name": "q2", "file": "tf"}))),
        "Permission conflict on node 'tf': permissions 'write, resize' are both required by node 'q' (uses node 'tf' \
         as 'file' child) and unshared by node 'q2' (uses node 'tf' as 'file' child)."
    );
    world.assert_settled(&[]);
}

#[test]
fn read_only_nodes_have_no_writers() {
    let mut world = FakeWorld::new();
    let file = json!({"driver": "file", "filename": "t", "node-name": "f"});
    world.ok(add(
        json!({"driver": "raw", "node-name": "ro", "read-only": true, "file": file}),
    ));
    assert_eq!(
        world.error(attach("ro", READ_WRITE, ALL)),
        "Block node is read-only"
    );
    // The file inherited that.
    assert_eq!(
        world.error(attach("f", READ_WRITE, ALL)),
        "Block node is read-only"
    );
    let root = world.root(attach("ro", READ, ALL));
    let request = SetRootPermissions {
        root,
        permissions: READ_WRITE,
        shared: ALL,
    };
    assert_eq!(world.error(request), "Block node is read-only");
    world.ok(DetachRoot(root));
}

#[test]
fn a_node_with_a_writer_does_not_become_read_only() {
    let mut world = base();
    world.root(attach("base", READ_WRITE, ALL));
    assert_eq!(
        world.error(reopen(
            json!({"driver": "file", "node-name": "base", "filename": "b", "read-only": true})
        )),
        "Read-only block node 'base' cannot support read-write users"
    );
    assert!(!world.facts().nodes[0].read_only);
}

/// "update-perm-tree": a filter with two edges to one node cannot be under a root that writes and lets no one else write,
/// since both edges would take it. The new permissions of the whole subtree are looked at together.
#[test]
fn the_whole_subtree_is_checked_together() {
    let mut world = base();
    world.ok(add(
        json!({"driver": "two", "node-name": "pass", "file": "base", "other": "base"}),
    ));
    let error = world.error(attach("pass", READ_WRITE, NO_WRITERS));
    assert!(error.starts_with("Permission conflict on node 'base'"), "{error}");
    let root = world.root(attach("base", READ_WRITE, NO_WRITERS));
    let before = world.facts();
    let (from, to) = ("base".to_owned(), "pass".to_owned());
    let error = world.error(ReplaceNode { from, to });
    assert!(error.starts_with("Permission conflict on node 'base'"), "{error}");
    assert_eq!(world.facts(), before);
    world.assert_settled(&[]);
    world.ok(DetachRoot(root));
    world.root(attach("pass", READ_WRITE, ALL));
}

/// "parallel-perm-update": an exclusive writer moves from one branch of a diamond to the other, and back: never both at
/// once, never in conflict with itself, since parents are looked at before their children.
#[test]
fn an_exclusive_writer_changes_branches() {
    let mut world = base();
    filter(&mut world, "left", "base");
    filter(&mut world, "right", "base");
    filter(&mut world, "top", "left");
    world.root(attach("top", READ_WRITE, NO_WRITERS));
    for (new, old) in [("right", "left"), ("left", "right")] {
        world.ok(reopen(
            json!({"driver": "filter", "node-name": "top", "file": new}),
        ));
        assert!(taken(&mut world, new, "base").contains(Permissions::WRITE));
        assert_eq!(taken(&mut world, old, "base"), Permissions::empty());
    }
    world.assert_settled(&[]);
}

/// "parallel-exclusive-write": an exclusive writer moves from one filter to another over the same base. What the first
/// one held there does not stand in the way, since it is no longer used when permissions are looked at.
#[test]
fn a_replaced_filters_permissions_do_not_stand_in_the_way() {
    let mut world = base();
    for name in ["first", "second"] {
        filter(&mut world, name, "base");
    }
    filter(&mut world, "top", "first");
    world.root(attach("top", READ_WRITE, NO_WRITERS));
    for (from, to) in [("first", "second"), ("second", "first")] {
        world.ok(ReplaceNode {
            from: from.to_owned(),
            to: to.to_owned(),
        });
        assert_eq!(taken(&mut world, "top", to), READ_WRITE);
        assert!(taken(&mut world, to, "base").contains(Permissions::WRITE));
        assert_eq!(taken(&mut world, from, "base"), Permissions::empty());
    }
    world.assert_settled(&[]);
}

/// "append-greedy-filter": a filter that itself takes exclusive write comes between an exclusive writer and what that
/// writes. All edges change before permissions are looked at, and only the final graph counts.
#[test]
fn a_greedy_filter_is_appended_below_an_exclusive_writer() {
    let mut world = base();
    filter(&mut world, "top", "base");
    world.root(attach("top", READ_WRITE, NO_WRITERS));
    // Beside the writer it cannot be.
    let error = world.error(add(
        json!({"driver": "greedy", "node-name": "greedy", "file": "base"}),
    ));
    assert!(error.starts_with("Permission conflict on node 'base'"), "{error}");
    world.ok(add(json!({"driver": "greedy", "node-name": "greedy"})));
    let (node, new) = ("base".to_owned(), "greedy".to_owned());
    world.ok(Append { node, new });
    assert_eq!(taken(&mut world, "top", "greedy"), READ_WRITE);
    assert!(taken(&mut world, "greedy", "base").contains(Permissions::WRITE));
    world.assert_settled(&[]);
}

/// A filter comes between an exclusive writer and what it writes: only the final graph counts.
#[test]
fn a_filter_is_inserted_below_an_exclusive_writer() {
    let mut world = base();
    filter(&mut world, "top", "base");
    world.root(attach("top", READ_WRITE, NO_WRITERS));
    filter(&mut world, "between", "base");
    world.ok(reopen(
        json!({"driver": "filter", "node-name": "top", "file": "between"}),
    ));
    assert!(taken(&mut world, "between", "base").contains(Permissions::WRITE));
    assert_eq!(taken(&mut world, "top", "between"), READ_WRITE);
}

/// "should-update-child": parents that the new overlay itself stands on keep their edge, else there would be a circle.
#[test]
fn parents_below_an_overlay_keep_their_edges() {
    let mut world = base();
    filter(&mut world, "target", "base");
    world.ok(add(
        json!({"driver": "fmt", "node-name": "over", "read-only": true, "file": "target"}),
    ));
    let root = world.root(attach("base", READ, ALL));
    world.ok(snapshot("base", "over"));
    let (base, over) = (world.id("base"), world.id("over"));
    assert_eq!(world.roots[&root], over);
    let target = world.id("target");
    let edges = world.facts().edges;
    let child = edges
        .iter()
        .find(|edge| edge.parent == EdgeParent::Node(target))
        .unwrap()
        .child;
    assert_eq!(child, base);
    world.assert_settled(&[]);
}

#[test]
fn permissions_end_with_their_user() {
    let mut world = base();
    let writer = world.root(attach("base", READ_WRITE, NO_WRITERS));
    let refused = attach("base", READ_WRITE, ALL);
    assert!(world.error(refused).contains("Permission conflict"));
    world.ok(SetRootPermissions {
        root: writer,
        permissions: READ,
        shared: ALL,
    });
    let second = world.root(attach("base", READ_WRITE, ALL));
    world.ok(DetachRoot(second));
    world.ok(DetachRoot(writer));
    assert!(world.error(DetachRoot(RootId(9999))).contains("no root edge"));
    world.ok(del("base"));
}

#[test]
fn a_change_of_length_says_all_of_how_it_is_to_be_done() {
    let mut world = base();
    let truncate = |exact, preallocation, flags| Truncate {
        node_name: "base".to_owned(),
        size: 2 << 20,
        exact,
        preallocation,
        flags,
    };
    let (off, full) = (Preallocation::Off, Preallocation::Full);
    let (plain, zero) = (RequestFlags::empty(), RequestFlags::ZERO_WRITE);
    world.ok(truncate(true, full, plain));
    world.ok(truncate(false, off, zero));
    world.ok(Resize {
        node_name: "base".to_owned(),
        size: 3 << 20,
    });
    let expected = [
        (2 << 20, true, full, plain),
        (2 << 20, false, off, zero),
        (3 << 20, false, off, plain),
    ];
    assert_eq!(world.truncated, expected);
    let refused = world.error(truncate(true, off, zero | RequestFlags::MAY_UNMAP));
    assert!(refused.contains("no flags but ZERO_WRITE"), "{refused}");
    assert_eq!(world.truncated.len(), 3);
}

#[test]
fn a_resize_needs_everybody_to_share_it() {
    let mut world = base();
    let resize = || Resize {
        node_name: "base".to_owned(),
        size: 2 << 20,
    };
    world.ok(resize());
    let root = world.root(attach("base", READ, ALL - Permissions::RESIZE));
    assert_eq!(
        world.error(resize()),
        "Permission conflict on node 'base': permissions 'resize' are both required by an unnamed block device (uses \
         node 'base' as 'root' child) and unshared by an unnamed block device (uses node 'base' as 'root' child)."
    );
    world.ok(DetachRoot(root));
    let too_big = Resize {
        node_name: "base".to_owned(),
        size: i64::MAX as u64,
    };
    assert_eq!(
        world.error(too_big),
        "offset(9223372036854775807) exceeds maximum(9223372035781033984)"
    );
}
