//! Numbered children: listed at open, added to and taken from an open node.

use millpond_drivers::api::{Notice, Notices};
use millpond_messages::graph::{
    AddIothread, DrainBegin, DrainEnd, EdgeParent, GraphReply, GraphRequest, SetIothread,
};
use millpond_messages::qapi::{self, QuorumOpType};
use millpond_messages::{IoError, Role};
use serde_json::json;

use super::*;
use crate::Announcement;
use millpond_engine::node::Event;

/// Files of these names, and a parent of those listed.
fn world(files: &[&str], children: &[&str]) -> FakeWorld {
    let mut world = FakeWorld::new();
    for name in files {
        world.ok(add(
            json!({"driver": "file", "node-name": name, "filename": name}),
        ));
    }
    world.ok(add(
        json!({"driver": "many", "node-name": "m", "children": children}),
    ));
    world
}

/// The parent's edges by name, with the names of the nodes behind them.
fn children(world: &mut FakeWorld) -> Vec<(String, String)> {
    let parent = world.id("m");
    let facts = world.facts();
    let edges = facts
        .edges
        .iter()
        .filter(|edge| edge.parent == EdgeParent::Node(parent));
    let mut named: Vec<_> = edges
        .map(|edge| {
            assert_eq!(edge.role, Role::DATA);
            let child = facts.nodes.iter().find(|node| node.id == edge.child);
            (edge.name.clone(), child.unwrap().name.clone())
        })
        .collect();
    named.sort();
    named
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    let owned = expected
        .iter()
        .map(|(edge, node)| ((*edge).to_owned(), (*node).to_owned()));
    owned.collect()
}

#[test]
fn children_are_numbered_as_they_are_listed_whether_named_or_nested() {
    let mut world = FakeWorld::new();
    world.ok(add(json!({"driver": "file", "node-name": "a", "filename": "a"})));
    world.ok(add(json!({"driver": "many", "node-name": "m",
        "children": ["a", {"driver": "file", "node-name": "b", "filename": "b"}]})));
    assert_eq!(
        children(&mut world),
        pairs(&[("children.0", "a"), ("children.1", "b")])
    );
    world.ok(del("m"));
    let dotted = json!({"1": "a", "0": {"driver": "file", "node-name": "c", "filename": "c"}});
    world.ok(add(
        json!({"driver": "many", "node-name": "m", "children": dotted}),
    ));
    assert_eq!(
        children(&mut world),
        pairs(&[("children.0", "c"), ("children.1", "a")])
    );
    world.assert_settled(&[]);
}

#[test]
fn a_list_with_a_gap_is_refused() {
    let mut world = FakeWorld::new();
    let options = json!({"driver": "many", "node-name": "m", "children": {"0": "a", "2": "b"}});
    assert_eq!(world.error(add(options)), "Option children is not a valid array");
    let options = json!({"driver": "many", "node-name": "m", "children": "a"});
    assert_eq!(world.error(add(options)), "Option children is not a valid array");
}

#[test]
fn only_the_last_number_is_used_again() {
    let mut world = world(&["a", "b", "c"], &["a", "b"]);
    world.ok(add_child("m", "c"));
    world.ok(del_child("m", "children.1"));
    world.ok(add_child("m", "b"));
    let expected = [("children.0", "a"), ("children.2", "c"), ("children.3", "b")];
    assert_eq!(children(&mut world), pairs(&expected));
    world.ok(del_child("m", "children.3"));
    world.ok(add_child("m", "b"));
    assert_eq!(children(&mut world), pairs(&expected));
    world.assert_settled(&[]);
}

#[test]
fn what_cannot_be_a_child_is_refused() {
    let mut world = world(&["a", "b"], &["a"]);
    world.ok(add(
        json!({"driver": "many", "node-name": "top", "children": ["m"]}),
    ));
    let mut error = |request: GraphRequest| world.error(request);
    assert_eq!(
        error(add_child("a", "b").into()),
        "The node a does not support adding a child"
    );
    assert_eq!(
        error(add_child("m", "a").into()),
        "The node a already has a parent"
    );
    assert_eq!(error(add_child("m", "x").into()), "Node 'x' not found");
    assert_eq!(
        error(add_child("x", "b").into()),
        "Cannot find device='x' nor node-name='x'"
    );
    assert_eq!(
        error(add_child("m", "top").into()),
        "Making 'top' a children.1 child of 'm' would create a cycle"
    );
    assert_eq!(
        error(del_child("m", "children.1").into()),
        "Node 'm' does not have child 'children.1'"
    );
    assert_eq!(
        error(del_child("m", "children.00").into()),
        "Node 'm' does not have child 'children.00'"
    );
    assert_eq!(error(del_child("m", "children.0").into()), "The last child stays");
    world.assert_settled(&[]);
}

#[test]
fn a_child_that_another_user_keeps_to_itself_is_not_added() {
    let mut world = world(&["a", "b"], &["a"]);
    world.root(attach("m", READ_WRITE, ALL));
    world.ok(add(
        json!({"driver": "file", "node-name": "ro", "filename": "ro", "read-only": true}),
    ));
    let before = world.facts();
    assert_eq!(world.error(add_child("m", "ro")), "Block node is read-only");
    assert_eq!(world.facts(), before);
    world.root(attach("b", READ, READ));
    assert_eq!(
        world.error(add_child("m", "b")),
        "The node b already has a parent"
    );
    world.assert_settled(&[]);
}

#[test]
fn a_child_that_nobody_else_holds_is_closed_when_it_is_removed() {
    let mut world = FakeWorld::new();
    world.ok(add(json!({"driver": "many", "node-name": "m", "children": [
        {"driver": "file", "node-name": "a", "filename": "a"},
        {"driver": "file", "node-name": "b", "filename": "b"}]})));
    world.ok(del_child("m", "children.0"));
    assert!(world.facts().nodes.iter().all(|node| node.name != "a"));
    assert_eq!(children(&mut world), pairs(&[("children.1", "b")]));
    world.assert_settled(&[]);
}

#[test]
fn a_section_in_force_grows_over_a_child_that_is_added_and_gives_back_one_that_is_removed() {
    let mut world = world(&["a", "b"], &["a"]);
    let top = world.id("m");
    let subtree = world.still(DrainBegin {
        scope: DrainScope::Subtree("m".to_owned()),
        user: "test".to_owned(),
    });
    world.ok(add_child("m", "b"));
    assert!(
        world.node("b").tokens.contains(&subtree),
        "the section grew over the new child"
    );
    assert!(!world.enter(top), "the section still holds");
    world.ok(del_child("m", "children.1"));
    assert!(world.node("b").tokens.is_empty(), "the child was given back");
    world.assert_settled(&[subtree]);
    world.ok(DrainEnd(subtree));
    world.assert_settled(&[]);
}

#[test]
fn a_parent_is_drained_before_a_drained_child_is_added() {
    let mut world = world(&["a", "b"], &["a"]);
    let (parent, child) = (world.id("m"), world.id("b"));
    let section = world.still(drain_node("b"));
    assert!(world.enter(parent));
    assert!(
        world.try_request(add_child("m", "b")).is_none(),
        "a request is still on its way"
    );
    assert!(
        children(&mut world).len() == 1,
        "there is no edge before the parent is quiet"
    );
    world.leave(parent);
    world.run();
    assert_eq!(children(&mut world).len(), 2);
    assert!(
        !world.enter(parent) && !world.enter(child),
        "the section holds parent and child"
    );
    world.ok(DrainEnd(section));
    assert!(world.enter(parent));
}

#[test]
fn a_child_comes_and_goes_only_once_the_parent_is_quiet() {
    let changes: [(GraphRequest, _); 2] = [
        (add_child("m", "c").into(), 3),
        (del_child("m", "children.0").into(), 1),
    ];
    for (request, after) in changes {
        let mut world = world(&["a", "b", "c"], &["a", "b"]);
        let parent = world.id("m");
        assert!(world.enter(parent));
        assert!(
            world.try_request(request).is_none(),
            "a request is still on its way"
        );
        assert_eq!(children(&mut world).len(), 2);
        world.leave(parent);
        world.run();
        assert_eq!(children(&mut world).len(), after);
        assert!(world.enter(parent), "requests go on");
        world.assert_settled(&[]);
    }
}

/// Sends a notice as a driver would.
fn notice(world: &mut FakeWorld, node: &str, notice: Notice) {
    let id = world.id(node);
    let (sender, receiver) = std::sync::mpsc::channel();
    let notices = Notices::new(move |posted| sender.send(posted).expect("the test listens"));
    notices.report(notice);
    world.tell(Event::Noticed(id, receiver.recv().expect("the notice is posted")));
}

#[test]
fn what_drivers_tell_is_told_with_the_names_that_nodes_have_then() {
    let mut world = world(&["a", "b", "c"], &["a", "b", "c"]);
    let bad = |child| Notice::BadChild {
        operation: QuorumOpType::Read,
        error: Some(IoError::NoSpace),
        child,
        offset: 1000,
        len: 1000,
    };
    notice(&mut world, "m", bad(1));
    world.ok(del_child("m", "children.1"));
    notice(&mut world, "m", bad(1));
    notice(&mut world, "m", bad(7));
    notice(
        &mut world,
        "m",
        Notice::NoQuorum {
            offset: 512,
            len: 512,
        },
    );
    let names = world.announced.iter().map(|announcement| match announcement {
        Announcement::Event(qapi::QmpEvent::QuorumReportBad {
            node_name,
            error,
            sector_num,
            sectors_count,
            ..
        }) => {
            assert_eq!(
                (*sector_num, *sectors_count),
                (1, 3),
                "all sectors that the range touches"
            );
            assert_eq!(error.as_deref(), Some("No space left on device"));
            node_name.as_str()
        }
        Announcement::Event(qapi::QmpEvent::QuorumFailure {
            reference,
            sector_num,
            sectors_count,
        }) => {
            assert_eq!((*sector_num, *sectors_count), (1, 1));
            reference.as_str()
        }
        other => panic!("{other:?}"),
    });
    let names = names.collect::<Vec<_>>();
    assert_eq!(names, ["b", "c", "", "m"]);
    notice(
        &mut world,
        "a",
        Notice::Corrupted {
            message: "bad".to_owned(),
            offset: Some(1),
            size: None,
            fatal: true,
        },
    );
    let Some(Announcement::Event(event)) = world.announced.last() else {
        panic!("it is an event")
    };
    let shown = serde_json::to_value(event).expect("an event is JSON");
    let expected = json!({"event": "BLOCK_IMAGE_CORRUPTED",
        "data": {"device": "", "node-name": "a", "msg": "bad", "offset": 1, "fatal": true}});
    assert_eq!(shown, expected);
}

#[test]
fn nodes_with_numbered_children_are_reopened_and_moved_with_them() {
    let mut world = world(&["a", "b", "c"], &["a", "b"]);
    let error = world.error(reopen(
        json!({"driver": "many", "node-name": "m", "children": ["a"]}),
    ));
    assert_eq!(error, "Cannot change the number of 'children'");
    world.ok(reopen(
        json!({"driver": "many", "node-name": "m", "children": ["c", "b"]}),
    ));
    assert_eq!(
        children(&mut world),
        pairs(&[("children.0", "c"), ("children.1", "b")])
    );
    world.ok(AddIothread(IothreadOptions::named("t")));
    world.ok(SetIothread {
        node_name: "m".to_owned(),
        iothread: Some("t".to_owned()),
        force: false,
    });
    let homes = ["m", "b", "c", "a"].map(|name| {
        let id = world.id(name);
        world.homes[&id]
    });
    assert!(homes[0] == homes[1] && homes[0] == homes[2] && homes[0] != homes[3]);
    // The new child stays where it is: edges may cross iothreads.
    let reply = world.ok(add_child("m", "a"));
    assert!(matches!(reply, GraphReply::Done));
    world.assert_settled(&[]);
}
