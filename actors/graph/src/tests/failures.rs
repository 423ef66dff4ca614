//! Whole or not at all: whichever step of a change fails, the graph is what it was.

use millpond_drivers::api::BackingLink;
use millpond_messages::ErrorKind;
use millpond_messages::graph::{
    Amend, Append, AttachChild, ChildOf, Commit, DetachChild, DetachRoot, DropFilter, DropIntermediate,
    InsertNode, MakeEmpty, Mutation, NodeFacts, OpenHeld, RecordBackingFile, Reopen, ReplaceChild,
    ReplaceNode, Resize, SetActive, SetBacking,
};
use serde_json::json;

use super::*;

/// Fails every step of a request in turn, until it gets through.
pub(super) fn each_step_fails(make: impl Fn() -> (FakeWorld, Mutation)) {
    for steps in 0..100 {
        let (mut world, request) = make();
        let seen = |of: &mut FakeWorld| (of.facts(), of.stored(), of.links.clone(), snapshots::all(of));
        let before = seen(&mut world);
        world.fail_after = Some(steps);
        let result = world.request(request);
        let failed = world.fail_after.take().is_none();
        if result.is_ok() {
            assert!(!failed || steps > 0, "a failure was passed over");
            world.assert_settled(&[]);
            assert!(steps >= 2, "the request has steps that can fail");
            return;
        }
        assert!(failed, "only the failure made fails: {:?}", result.err());
        assert_eq!(seen(&mut world), before, "after {steps} steps");
        world.assert_settled(&[]);
        assert!(world.nodes.values().all(|node| node.tokens.is_empty()));
    }
    panic!("the request never got through");
}

pub(super) fn two_disks() -> FakeWorld {
    let mut world = FakeWorld::new();
    for name in ["a", "b"] {
        world.ok(add(json!({"driver": "fmt", "node-name": name, "backing": null,
            "file": {"driver": "file", "filename": name, "node-name": format!("{name}f")}})));
    }
    world
}

#[test]
fn of_blockdev_add() {
    each_step_fails(|| {
        let world = two_disks();
        let request = add(json!({"driver": "fmt", "node-name": "top", "backing": "a",
            "file": {"driver": "raw", "file": {"driver": "file", "filename": "t"}}}));
        (world, request.into())
    });
}

#[test]
fn of_blockdev_reopen() {
    each_step_fails(|| {
        let mut world = two_disks();
        world.root(attach("a", READ, ALL));
        world.ok(add(json!({"driver": "file", "node-name": "x", "filename": "x"})));
        let request = Reopen(vec![
            options(json!({"driver": "fmt", "node-name": "a", "file": "x", "backing": "b"})),
            options(json!({"driver": "fmt", "node-name": "b", "file": "bf", "read-only": true})),
        ]);
        (world, request.into())
    });
}

#[test]
fn of_attach() {
    each_step_fails(|| (two_disks(), attach("a", READ_WRITE, ALL).into()));
}

/// What the filter's edge takes is what its users take, so it changes with them, and back.
#[test]
fn of_attach_to_a_filter() {
    each_step_fails(|| {
        let mut world = two_disks();
        world.ok(add(json!({"driver": "filter", "node-name": "x", "file": "a"})));
        (world, attach("x", READ_WRITE, ALL - Permissions::WRITE).into())
    });
}

#[test]
fn of_a_resize() {
    each_step_fails(|| {
        (
            two_disks(),
            Resize {
                node_name: "a".to_owned(),
                size: 4 << 20,
            }
            .into(),
        )
    });
}

/// Two children, and a third node that could be one, all used by a reader of the parent.
fn two_children() -> FakeWorld {
    let mut world = FakeWorld::new();
    for name in ["a", "b", "c"] {
        world.ok(add(
            json!({"driver": "file", "node-name": name, "filename": name}),
        ));
    }
    world.ok(add(
        json!({"driver": "many", "node-name": "m", "children": ["a", "b"]}),
    ));
    world.root(attach("m", READ, ALL));
    world
}

#[test]
fn of_a_child_that_is_added() {
    each_step_fails(|| (two_children(), add_child("m", "c").into()));
}

#[test]
fn of_a_child_that_is_removed() {
    each_step_fails(|| (two_children(), del_child("m", "children.0").into()));
}

/// The number of the next child is no part of the graph's dump.
#[test]
fn a_number_that_was_not_used_after_all_is_used_next() {
    for steps in 0..2 {
        let mut world = two_children();
        world.fail_after = Some(steps);
        world.request(add_child("m", "c")).unwrap_err();
        world.request(add_child("m", "c")).unwrap();
        world.fail_after = Some(steps);
        world.request(del_child("m", "children.2")).unwrap_err();
        world.request(del_child("m", "children.2")).unwrap();
        world.request(add_child("m", "c")).unwrap();
        assert!(world.facts().edges.iter().any(|edge| edge.name == "children.2"));
    }
}

/// A snapshot's last step, making the node below read-only, is an attempt: its failure is no failure of the snapshot.
#[test]
fn of_blockdev_snapshot() {
    for steps in 0..100 {
        let mut world = two_disks();
        world.root(attach("a", READ_WRITE, ALL));
        world.root(attach("a", READ, ALL));
        let before = world.facts();
        world.fail_after = Some(steps);
        let result = world.request(snapshot("a", "b"));
        let failed = world.fail_after.take().is_none();
        world.assert_settled(&[]);
        assert!(world.nodes.values().all(|node| node.tokens.is_empty()));
        match result {
            Err(_) => assert_eq!(world.facts(), before, "after {steps} steps"),
            Ok(_) if failed => assert!(
                world
                    .facts()
                    .nodes
                    .iter()
                    .any(|node| node.name == "a" && !node.read_only)
            ),
            Ok(_) => {
                assert!(steps > 4);
                return;
            }
        }
    }
    panic!("the snapshot never got through");
}

/// `x` filters `a`, `b` filters nothing of it; a user writes to `x`.
fn filtered() -> FakeWorld {
    let mut world = two_disks();
    world.ok(add(json!({"driver": "filter", "node-name": "x", "file": "a"})));
    world.ok(add(json!({"driver": "filter", "node-name": "y", "file": "x"})));
    world.root(attach("y", READ_WRITE, ALL));
    world.root(attach("x", READ, ALL));
    world
}

fn named(name: &str) -> String {
    name.to_owned()
}

#[test]
fn of_replacing_a_node() {
    each_step_fails(|| {
        let (from, to) = (named("x"), named("b"));
        (filtered(), ReplaceNode { from, to }.into())
    });
}

#[test]
fn of_replacing_a_child() {
    each_step_fails(|| {
        let of = ChildOf::Node {
            node_name: named("x"),
            child: named("file"),
        };
        let node = named("b");
        (filtered(), ReplaceChild { of, node }.into())
    });
}

#[test]
fn of_replacing_what_a_user_holds() {
    each_step_fails(|| {
        let mut world = filtered();
        let of = ChildOf::Root(world.root(attach("y", READ, ALL)));
        let node = named("b");
        (world, ReplaceChild { of, node }.into())
    });
}

#[test]
fn of_inserting_a_filter() {
    each_step_fails(|| {
        let options = options(json!({"driver": "filter", "node-name": "z", "file": "x"}));
        let node = named("x");
        (filtered(), InsertNode { node, options }.into())
    });
}

#[test]
fn of_appending() {
    each_step_fails(|| {
        let mut world = filtered();
        world.ok(add(json!({"driver": "greedy", "node-name": "z"})));
        let (node, new) = (named("x"), named("z"));
        (world, Append { node, new }.into())
    });
}

#[test]
fn of_dropping_a_filter() {
    each_step_fails(|| {
        let node_name = named("x");
        (filtered(), DropFilter { node_name }.into())
    });
}

#[test]
fn of_setting_and_clearing_the_backing_node() {
    for backing in [Some("a"), None] {
        each_step_fails(|| {
            let mut world = two_disks();
            world.ok(add(json!({"driver": "fmt", "node-name": "t", "backing": "b",
                "file": {"driver": "file", "filename": "t"}})));
            world.root(attach("t", READ_WRITE, ALL));
            let (node_name, backing) = (named("t"), backing.map(named));
            (world, SetBacking { node_name, backing }.into())
        });
    }
}

#[test]
fn of_attaching_and_detaching_a_child() {
    let two = || {
        let mut world = two_disks();
        world.ok(add(json!({"driver": "two", "node-name": "t", "file": "a"})));
        world.root(attach("t", READ, ALL));
        world
    };
    let (parent, child) = (|| named("t"), || named("other"));
    let attach = || AttachChild {
        parent: parent(),
        child: child(),
        node: named("b"),
    };
    each_step_fails(|| (two(), attach().into()));
    each_step_fails(|| {
        let mut world = two();
        world.ok(attach());
        let request = DetachChild {
            parent: parent(),
            child: child(),
        };
        (world, request.into())
    });
}

/// The hold of a resize is given back at its end, and one node will not: the others give theirs back all the same.
#[test]
fn a_node_that_could_not_give_up_is_asked_again() {
    let mut refusals = 0;
    for steps in 0..20 {
        let mut world = two_disks();
        world.fail_after = Some(steps);
        let result = world.request(Resize {
            node_name: "a".to_owned(),
            size: 4 << 20,
        });
        world.fail_after = None;
        world.assert_settled(&[]);
        if result.is_ok() && world.node("a").promises.has_refused() {
            let root = world.root(attach("a", READ, ALL));
            world.ok(DetachRoot(root));
            assert!(!world.node("a").promises.has_refused());
            world.assert_settled(&[]);
            refusals += 1;
        }
    }
    assert_eq!(refusals, 1, "the node is asked to give up once");
}

#[test]
fn of_an_open_with_a_temporary_overlay() {
    each_step_fails(|| {
        let image = millpond_messages::graph::OpenImage {
            filename: Some("/d".to_owned()),
            flags: millpond_messages::OpenFlags::RDWR | millpond_messages::OpenFlags::SNAPSHOT,
            ..millpond_messages::graph::OpenImage::default()
        };
        let open = OpenHeld {
            image: Box::new(image),
            holder: RootUser::Embedder("e".to_owned()),
        };
        (two_disks(), open.into())
    });
}

#[test]
fn of_an_inactivation() {
    each_step_fails(|| {
        let mut world = two_disks();
        world.root(attach("a", READ, ALL));
        let node_name = Some("a".to_owned());
        (
            world,
            SetActive {
                node_name,
                active: false,
            }
            .into(),
        )
    });
}

#[test]
fn of_an_activation() {
    each_step_fails(|| {
        let mut world = two_disks();
        world.root(attach("a", READ, ALL));
        for name in ["a", "b"] {
            let node_name = Some(name.to_owned());
            world.ok(SetActive {
                node_name,
                active: false,
            });
        }
        // A node without children, since what was activated below one that cannot be stays so.
        let node_name = Some("af".to_owned());
        (
            world,
            SetActive {
                node_name,
                active: true,
            }
            .into(),
        )
    });
}

/// `top` and `other` -> `mid` -> `low` -> `base`; the images' headers say so.
fn long_chain(read_only: bool) -> FakeWorld {
    let mut world = FakeWorld::new();
    for (name, backing) in [
        ("base", None),
        ("low", Some("base")),
        ("mid", Some("low")),
        ("top", Some("mid")),
        ("other", Some("mid")),
    ] {
        let is_overlay = matches!(name, "top" | "other");
        if let Some(backing) = backing {
            let format = Some("fmt".to_owned());
            let filename = named(backing);
            world
                .links
                .insert(format!("/{name}"), BackingLink { filename, format });
        }
        world.ok(add(
            json!({"driver": "fmt", "node-name": name, "backing": backing,
            "read-only": read_only && is_overlay,
            "file": {"driver": "file", "filename": format!("/{name}")}}),
        ));
    }
    world.root(attach("top", READ, ALL));
    world
}

fn drop_intermediate() -> DropIntermediate {
    DropIntermediate {
        top: named("mid"),
        base: named("base"),
        backing_file: None,
    }
}

fn change_backing_file() -> RecordBackingFile {
    RecordBackingFile {
        device: named("top"),
        image_node_name: named("top"),
        backing_file: named("elsewhere"),
    }
}

#[test]
fn of_dropping_intermediate_images() {
    each_step_fails(|| (long_chain(false), drop_intermediate().into()));
}

/// Overlays that are read-only are written to all the same, and read-only again afterwards. That last step may fail by
/// itself: the images are what they should be then, and only the way in which they are open is not.
#[test]
fn of_edits_of_read_only_images() {
    let edits: [fn() -> Mutation; 2] = [|| drop_intermediate().into(), || change_backing_file().into()];
    for make in edits {
        let mut late = 0;
        for steps in 0.. {
            let mut world = long_chain(true);
            let before = (world.facts(), world.stored(), world.links.clone());
            world.fail_after = Some(steps);
            let result = world.request(make());
            let failed = world.fail_after.take().is_none();
            world.assert_settled(&[]);
            assert!(world.nodes.values().all(|node| node.tokens.is_empty()));
            let after = (world.facts(), world.stored(), world.links.clone());
            if after.2 == before.2 {
                assert!(failed && result.is_err(), "nothing was done");
                assert_eq!(after, before, "after {steps} steps");
                assert_eq!(late, 0, "undone after it was done");
                continue;
            }
            let is_open = |node: &NodeFacts| matches!(&*node.name, "top" | "other") && !node.read_only;
            let left_open = after.0.nodes.iter().any(is_open);
            assert_eq!(left_open, failed, "after {steps} steps");
            late += 1;
            if !failed {
                assert!(result.is_ok());
                break;
            }
        }
        assert!(late > 1, "making it read-only again failed at least once");
    }
}

fn to_commit(taken: millpond_messages::Permissions) -> FakeWorld {
    let mut world = FakeWorld::new();
    for (name, backing) in [("base", None), ("top", Some("base"))] {
        world.ok(add(
            json!({"driver": "fmt", "node-name": name, "backing": backing,
            "file": {"driver": "file", "filename": format!("/{name}")}}),
        ));
    }
    world.root(attach("top", taken, ALL));
    world
}

#[test]
fn of_a_commit() {
    each_step_fails(|| {
        let node_name = named("top");
        (to_commit(READ_WRITE), Commit { node_name }.into())
    });
}

fn amend(node: &str) -> Amend {
    Amend {
        force: false,
        node_name: named(node),
        options: options(json!({"lazy_refcounts": "on"})),
    }
}

#[test]
fn of_an_amendment() {
    each_step_fails(|| (two_disks(), amend("a").into()));
    // What cannot be amended, and what somebody relies on.
    let mut world = two_disks();
    let error = world.request(amend("af")).unwrap_err();
    let text = "Format driver 'file' does not support option amendment";
    assert_eq!(
        (error.kind(), &*error.to_string()),
        (ErrorKind::Unsupported, text)
    );
    world.root(attach("a", READ, ALL - Permissions::RESIZE));
    assert!(world.request(amend("a")).is_err());
    world.assert_settled(&[]);
}

#[test]
fn of_emptying_an_image() {
    each_step_fails(|| {
        let node_name = named("top");
        (to_commit(READ), MakeEmpty { node_name }.into())
    });
}
