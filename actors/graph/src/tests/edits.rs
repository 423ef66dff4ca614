//! Nodes that are put in the place of others, filters that come and go, and children that are exchanged by name.

use millpond_messages::graph::{
    AddIothread, AttachChild, AttachRoot, CheckReplace, ChildOf, DetachChild, DropFilter, DropIntermediate,
    EdgeParent, GraphReply, InsertNode, MakeImage, Mutation, RecordBackingFile, ReplaceChild, ReplaceNode,
    SetBacking, SetIothread, UnfreezeChain,
};
use millpond_messages::{IoThreadId, RootId};
use serde_json::json;

use super::chains::{chain, freeze, frozen, image};
use super::*;

fn replace(from: &str, to: &str) -> ReplaceNode {
    ReplaceNode {
        from: from.to_owned(),
        to: to.to_owned(),
    }
}

fn replace_child(node: &str, child: &str, to: &str) -> ReplaceChild {
    ReplaceChild {
        of: ChildOf::Node {
            node_name: node.to_owned(),
            child: child.to_owned(),
        },
        node: to.to_owned(),
    }
}

fn insert(node: &str, json: serde_json::Value) -> InsertNode {
    InsertNode {
        node: node.to_owned(),
        options: options(json),
    }
}

fn drop_filter(name: &str) -> DropFilter {
    DropFilter {
        node_name: name.to_owned(),
    }
}

fn set_backing(node: &str, backing: Option<&str>) -> SetBacking {
    SetBacking {
        node_name: node.to_owned(),
        backing: backing.map(str::to_owned),
    }
}

fn attach_child(parent: &str, child: &str, node: &str) -> AttachChild {
    AttachChild {
        parent: parent.to_owned(),
        child: child.to_owned(),
        node: node.to_owned(),
    }
}

fn detach_child(parent: &str, child: &str) -> DetachChild {
    DetachChild {
        parent: parent.to_owned(),
        child: child.to_owned(),
    }
}

/// Where a node's edge leads.
fn child(world: &mut FakeWorld, parent: &str, name: &str) -> Option<String> {
    let parent = EdgeParent::Node(world.id(parent));
    let facts = world.facts();
    let mut edges = facts.edges.iter();
    let edge = edges.find(|edge| edge.parent == parent && edge.name == name)?;
    let node = facts.nodes.iter().find(|node| node.id == edge.child);
    node.map(|node| node.name.clone())
}

fn holds(world: &mut FakeWorld, root: RootId) -> String {
    let id = world.roots[&root];
    let facts = world.facts();
    facts.nodes.into_iter().find(|node| node.id == id).unwrap().name
}

fn names(world: &mut FakeWorld) -> Vec<String> {
    world.facts().nodes.into_iter().map(|node| node.name).collect()
}

fn files(names: &[&str]) -> FakeWorld {
    let mut world = FakeWorld::new();
    for name in names {
        world.ok(add(
            json!({"driver": "file", "node-name": name, "filename": name}),
        ));
    }
    world
}

#[test]
fn all_parents_of_a_node_move_to_the_one_in_its_place() {
    let mut world = files(&["a", "b"]);
    world.ok(add(json!({"driver": "filter", "node-name": "f", "file": "a"})));
    let root = world.root(attach("a", READ, ALL));
    world.ok(replace("a", "b"));
    assert_eq!(child(&mut world, "f", "file").as_deref(), Some("b"));
    assert_eq!(holds(&mut world, root), "b");
    assert_eq!(names(&mut world), ["a", "b", "f"], "a user holds the old node");
    world.assert_settled(&[]);
    world.ok(del("a"));
    world.ok(replace("b", "b"));
    assert_eq!(
        world.error(replace("b", "x")),
        "Failed to find node with node-name='x'"
    );
}

#[test]
fn a_node_without_a_user_goes_when_it_is_replaced() {
    let mut world = files(&["b"]);
    world.ok(add(json!({"driver": "filter", "node-name": "f",
        "file": {"driver": "file", "node-name": "a", "filename": "a"}})));
    world.ok(replace("a", "b"));
    assert_eq!(names(&mut world), ["b", "f"]);
    world.assert_settled(&[]);
}

/// In the words of `drain-cases.md`, "should-update-child": parents that can be reached from the node which takes the
/// other's place keep their edge, so that there is no circle.
#[test]
fn parents_below_the_new_node_keep_their_edge() {
    let mut world = files(&["base"]);
    world.ok(add(
        json!({"driver": "filter", "node-name": "target", "file": "base"}),
    ));
    world.ok(add(
        json!({"driver": "filter", "node-name": "other", "file": "base"}),
    ));
    world.ok(insert(
        "base",
        json!({"driver": "filter", "node-name": "new", "file": "target"}),
    ));
    assert_eq!(child(&mut world, "target", "file").as_deref(), Some("base"));
    assert_eq!(child(&mut world, "other", "file").as_deref(), Some("new"));
    assert_eq!(child(&mut world, "new", "file").as_deref(), Some("target"));
    world.assert_settled(&[]);
}

#[test]
fn one_edge_is_led_elsewhere() {
    let mut world = files(&["a", "b"]);
    for name in ["f", "g"] {
        world.ok(add(json!({"driver": "filter", "node-name": name, "file": "a"})));
    }
    let root = world.root(attach("a", READ, ALL));
    world.ok(replace_child("f", "file", "b"));
    assert_eq!(child(&mut world, "f", "file").as_deref(), Some("b"));
    assert_eq!(child(&mut world, "g", "file").as_deref(), Some("a"));
    let of = ChildOf::Root(root);
    let node = "f".to_owned();
    world.ok(ReplaceChild { of, node });
    assert_eq!(holds(&mut world, root), "f");
    world.assert_settled(&[]);
    for (request, text) in [
        (
            replace_child("f", "file", "f"),
            "Making 'f' a file child of 'f' would create a cycle",
        ),
        (
            replace_child("f", "backing", "a"),
            "Node 'f' does not have child 'backing'",
        ),
        (
            replace_child("f", "file", "x"),
            "Failed to find node with node-name='x'",
        ),
    ] {
        assert_eq!(world.error(request), text);
    }
}

#[test]
fn a_filter_comes_between_a_node_and_its_parents_and_goes_again() {
    let mut world = files(&["base"]);
    let root = world.root(attach("base", READ_WRITE, ALL));
    world.ok(add(json!({"driver": "raw", "node-name": "top", "file": "base"})));
    let before = world.facts();
    world.ok(insert(
        "base",
        json!({"driver": "filter", "node-name": "f", "file": "base"}),
    ));
    assert_eq!(holds(&mut world, root), "f");
    assert_eq!(child(&mut world, "top", "file").as_deref(), Some("f"));
    assert_eq!(child(&mut world, "f", "file").as_deref(), Some("base"));
    world.ok(drop_filter("f"));
    assert_eq!(world.facts(), before);
    world.assert_settled(&[]);
}

#[test]
fn what_cannot_be_inserted_leaves_nothing_behind() {
    let mut world = files(&["base"]);
    world.ok(add(
        json!({"driver": "filter", "node-name": "top", "file": "base"}),
    ));
    frozen(&mut world, freeze("top", None, None));
    let before = world.facts();
    for (options, text) in [
        (
            json!({"node-name": "f", "file": "base"}),
            "driver is not specified",
        ),
        (
            json!({"driver": "sieve", "file": "base"}),
            "Unknown driver: 'sieve'",
        ),
        (
            json!({"driver": "filter", "node-name": "f"}),
            "Could not create node: Parameter 'file' is missing",
        ),
        (
            json!({"driver": "filter", "node-name": "f", "file": "base"}),
            "Could not replace node: Cannot change 'file' link to 'base'",
        ),
    ] {
        assert_eq!(world.error(insert("base", options)), text);
        assert_eq!(world.facts(), before);
        world.assert_settled(&[]);
    }
    assert_eq!(
        world.error(insert("x", json!({}))),
        "Failed to find node with node-name='x'"
    );
}

#[test]
fn only_filters_that_nobody_relies_on_are_dropped() {
    let mut world = chain();
    assert_eq!(world.error(drop_filter("mid")), "Node 'mid' is not a filter");
    let token = frozen(&mut world, freeze("pass", Some("mid"), None));
    assert_eq!(
        world.error(drop_filter("pass")),
        "Cannot change frozen 'file' link from 'pass' to 'mid'"
    );
    world.ok(UnfreezeChain(token));
    let token = frozen(&mut world, freeze("top", Some("pass"), None));
    assert_eq!(
        world.error(drop_filter("pass")),
        "Cannot change 'backing' link to 'pass'"
    );
    world.ok(UnfreezeChain(token));
    world.ok(drop_filter("pass"));
    assert_eq!(child(&mut world, "top", "backing").as_deref(), Some("mid"));
    world.assert_settled(&[]);
}

/// A filter that is closed with its user's other nodes still there is not left drained or half attached.
#[test]
fn requests_wait_while_a_filter_goes_and_then_run() {
    let mut world = chain();
    let root = world.root(attach("pass", READ, ALL));
    let pass = world.id("pass");
    assert!(world.enter(pass));
    let id = world.send(drop_filter("pass"));
    world.run();
    assert!(!world.replies.contains_key(&id), "a request is in flight");
    assert!(!world.enter(pass), "the gate is closed");
    world.leave(pass);
    world.run();
    assert!(world.replies.remove(&id).unwrap().is_ok());
    assert_eq!(holds(&mut world, root), "mid");
    let mid = world.id("mid");
    assert!(world.enter(mid));
    world.leave(mid);
    world.assert_settled(&[]);
}

#[test]
fn a_backing_node_is_set_and_cleared() {
    let mut world = chain();
    image(&mut world, "other", None);
    world.ok(set_backing("top", Some("other")));
    assert_eq!(child(&mut world, "top", "backing").as_deref(), Some("other"));
    world.ok(set_backing("top", None));
    assert_eq!(child(&mut world, "top", "backing"), None);
    world.ok(set_backing("top", None));
    world.ok(set_backing("top", Some("pass")));
    world.assert_settled(&[]);
    let token = frozen(&mut world, freeze("top", Some("pass"), None));
    for (request, text) in [
        (
            set_backing("top", None),
            "Cannot change frozen 'backing' link from 'top' to 'pass'",
        ),
        (
            set_backing("pass", Some("other")),
            "Driver 'filter' of node 'pass' does not support backing files",
        ),
        (
            set_backing("base", Some("top")),
            "Making 'top' a backing child of 'base' would create a cycle",
        ),
    ] {
        assert_eq!(world.error(request), text);
    }
    world.ok(set_backing("top", Some("pass")));
    world.ok(UnfreezeChain(token));
    // A backing node that nobody else holds goes with the link.
    world.ok(add(json!({"driver": "fmt", "node-name": "t",
        "backing": {"driver": "fmt", "node-name": "b", "file": {"driver": "file", "filename": "b"}},
        "file": {"driver": "file", "filename": "t"}})));
    world.ok(set_backing("t", None));
    assert!(!names(&mut world).contains(&"b".to_owned()));
    world.assert_settled(&[]);
}

#[test]
fn children_are_attached_and_detached_by_name() {
    let mut world = files(&["a", "b"]);
    world.ok(add(json!({"driver": "two", "node-name": "t", "file": "a"})));
    world.ok(attach_child("t", "other", "b"));
    assert_eq!(child(&mut world, "t", "other").as_deref(), Some("b"));
    let mut refused = |request: Mutation, text: &str| assert_eq!(world.error(request), text);
    let none = "Node 't' does not have child 'third'";
    refused(attach_child("t", "third", "a").into(), none);
    refused(detach_child("t", "third").into(), none);
    let taken = "Node 't' already has child 'other'";
    refused(attach_child("t", "other", "a").into(), taken);
    let needed = "Node 't' cannot be without its child 'file'";
    refused(detach_child("t", "file").into(), needed);
    world.ok(detach_child("t", "other"));
    assert_eq!(child(&mut world, "t", "other"), None);
    assert_eq!(
        world.error(detach_child("t", "other")),
        "Node 't' does not have child 'other'"
    );
    world.ok(add(
        json!({"driver": "filter", "node-name": "above", "file": "t"}),
    ));
    assert_eq!(
        world.error(attach_child("t", "other", "above")),
        "Making 'above' a other child of 't' would create a cycle"
    );
    world.assert_settled(&[]);
}

/// A node that is being formatted stays where the work goes on.
#[test]
fn work_of_the_graphs_own_keeps_its_node() {
    let mut world = files(&["f", "g"]);
    world.hold_creates = true;
    let create = json!({"driver": "fmt", "file": "f"});
    let id = world.send(MakeImage(options(create)));
    world.run();
    assert_eq!(world.error(replace("f", "g")), "Cannot change 'root' link to 'f'");
    world.hold_creates = false;
    world.run();
    assert!(world.replies.remove(&id).unwrap().is_ok());
    world.ok(replace("f", "g"));
}

/// The node that a user is moved to follows it to where that is held in place; one that is held itself stays.
#[test]
fn a_node_follows_a_pinned_user_that_is_moved_to_it() {
    let mut world = files(&["a", "b", "c"]);
    let name = "io".to_owned();
    world.ok(AddIothread(millpond_messages::graph::IothreadOptions::named(
        name.clone(),
    )));
    world.ok(SetIothread {
        node_name: "b".to_owned(),
        iothread: Some(name),
        force: false,
    });
    let AttachRoot(request) = attach("a", READ, ALL);
    let held = request.clone();
    world.root(AttachRoot(millpond_messages::graph::RootRequest {
        iothread: Some(IoThreadId(1)),
        iothread_required: true,
        ..request
    }));
    let home = |world: &mut FakeWorld, name: &str| {
        let facts = world.facts();
        let node = facts.nodes.iter().find(|node| node.name == name);
        node.expect("it is there").iothread
    };
    assert_eq!(home(&mut world, "b"), IoThreadId(2));
    world.ok(replace("a", "b"));
    assert_eq!(home(&mut world, "b"), IoThreadId(1));
    world.root(AttachRoot(millpond_messages::graph::RootRequest {
        node: "c".to_owned(),
        iothread: Some(IoThreadId(2)),
        iothread_required: true,
        ..held
    }));
    world.ok(replace("b", "c"));
    assert_eq!(home(&mut world, "c"), IoThreadId(2));
    world.assert_settled(&[]);
}

#[test]
fn a_node_is_replaced_only_where_nobody_would_see_other_data() {
    let mut world = chain();
    world.ok(add(json!({"driver": "filter", "node-name": "f", "file": "top"})));
    let mut check = |parent: &str, node: &str| {
        let (parent, node_name) = (parent.to_owned(), node.to_owned());
        match world.request(CheckReplace { parent, node_name }) {
            Ok(GraphReply::Found(Some(node))) => node.name,
            Ok(other) => panic!("no node: {other:?}"),
            Err(error) => error.to_string(),
        }
    };
    assert_eq!(check("f", "f"), "f");
    assert_eq!(check("f", "top"), "top");
    assert_eq!(
        check("f", "mid"),
        "Cannot replace 'mid' by a node mirrored from 'f', because it cannot be guaranteed that doing so would not lead \
         to an abrupt change of visible data"
    );
    assert_eq!(check("f", "x"), "Failed to find node with node-name='x'");
    assert_eq!(
        check("pass", "pass"),
        "Node 'pass' is busy: node is used as backing hd of 'top'"
    );
}

/// Any of several like children may be replaced, as long as only their common parent looks at it.
#[test]
fn a_child_of_many_is_replaced_only_if_nobody_else_looks_at_it() {
    let mut world = files(&["a", "b"]);
    world.ok(add(
        json!({"driver": "many", "node-name": "m", "children": ["a", "b"]}),
    ));
    world.root(attach("b", READ, ALL));
    let mut check = |node: &str| {
        let (parent, node_name) = ("m".to_owned(), node.to_owned());
        world.request(CheckReplace { parent, node_name })
    };
    assert!(check("a").is_ok());
    assert!(
        check("b")
            .unwrap_err()
            .to_string()
            .starts_with("Cannot replace 'b'")
    );
}

/// `top` and `other` -> `pass` (a filter) -> `mid` -> `base`, all but `top` and `other` as part of `top`'s options.
fn nested(held: bool) -> FakeWorld {
    let mut world = FakeWorld::new();
    let file = |name: &str| json!({"driver": "file", "filename": format!("/i/{name}")});
    let base = json!({"driver": "fmt", "node-name": "base", "backing": null, "file": file("base")});
    let mid = json!({"driver": "fmt", "node-name": "mid", "backing": base, "file": file("mid")});
    let pass = json!({"driver": "filter", "node-name": "pass", "file": mid});
    world.ok(add(
        json!({"driver": "fmt", "node-name": "top", "backing": pass, "file": file("top")}),
    ));
    image(&mut world, "other", Some("pass"));
    if held {
        world.root(attach("mid", READ, ALL));
    }
    world
}

fn drop_intermediate(top: &str, base: &str, backing_file: Option<&str>) -> DropIntermediate {
    DropIntermediate {
        top: top.to_owned(),
        base: base.to_owned(),
        backing_file: backing_file.map(str::to_owned),
    }
}

#[test]
fn images_are_taken_out_of_a_chain_for_all_their_overlays() {
    let mut world = nested(false);
    world.ok(drop_intermediate("pass", "base", None));
    for overlay in ["top", "other"] {
        assert_eq!(child(&mut world, overlay, "backing").as_deref(), Some("base"));
        let link = &world.links[&format!("/i/{overlay}")];
        assert_eq!(
            (link.filename.as_str(), link.format.as_deref()),
            ("/i/base", Some("fmt"))
        );
    }
    let left = names(&mut world);
    assert!(!left.contains(&"mid".to_owned()) && !left.contains(&"pass".to_owned()));
    world.assert_settled(&[]);
    // What the base inherited through them it inherits from the overlay: it goes on following its options.
    let (top, base) = (world.id("top"), world.id("base"));
    let inherits = |graph: &mut crate::value::graph::Graph| graph.node(base).unwrap().inherits_from;
    assert_eq!(world.policy.world.graph(inherits), Some(top));
    world.ok(del("other"));
    world.ok(del("top"));
    assert!(names(&mut world).is_empty());
}

#[test]
fn images_that_somebody_holds_stay_beside_the_shortened_chain() {
    let mut world = nested(true);
    world.ok(drop_intermediate("pass", "base", Some("../b")));
    assert_eq!(child(&mut world, "top", "backing").as_deref(), Some("base"));
    assert_eq!(child(&mut world, "mid", "backing").as_deref(), Some("base"));
    assert_eq!(world.links["/i/top"].filename, "../b");
    assert!(!names(&mut world).contains(&"pass".to_owned()));
    world.assert_settled(&[]);
}

#[test]
fn chains_that_cannot_be_shortened_stay_whole() {
    let mut world = nested(false);
    world.ok(add(
        json!({"driver": "two", "node-name": "both", "file": "base", "other": "mid"}),
    ));
    let token = frozen(&mut world, freeze("other", Some("pass"), None));
    let before = (world.facts(), world.stored(), world.links.clone());
    for (request, text) in [
        (
            drop_intermediate("mid", "top", None),
            "Node 'top' is not a backing image of 'mid'",
        ),
        (
            drop_intermediate("mid", "mid", None),
            "Node 'mid' is not a backing image of 'mid'",
        ),
        (
            drop_intermediate("pass", "base", None),
            "Cannot change 'backing' link to 'pass'",
        ),
        (
            drop_intermediate("x", "base", None),
            "Failed to find node with node-name='x'",
        ),
    ] {
        assert_eq!(world.error(request), text);
        assert_eq!((world.facts(), world.stored(), world.links.clone()), before);
        world.assert_settled(&[]);
    }
    world.ok(UnfreezeChain(token));
    world.ok(drop_intermediate("pass", "base", None));
}

/// While images are taken out, nothing goes on in the whole tree: a request that is in flight below is waited for.
#[test]
fn the_tree_below_is_still_while_images_are_taken_out() {
    let mut world = nested(false);
    let base = world.id("base");
    assert!(world.enter(base));
    let id = world.send(drop_intermediate("pass", "base", None));
    world.run();
    assert!(!world.replies.contains_key(&id));
    let mid = world.id("mid");
    assert!(!world.enter(mid), "all above is quiet already");
    assert_eq!(child(&mut world, "top", "backing").as_deref(), Some("pass"));
    world.leave(base);
    world.run();
    assert!(world.replies.remove(&id).unwrap().is_ok());
    world.assert_settled(&[]);
}

fn change_backing_file(device: &str, image: &str, name: &str) -> RecordBackingFile {
    RecordBackingFile {
        device: device.to_owned(),
        image_node_name: image.to_owned(),
        backing_file: name.to_owned(),
    }
}

#[test]
fn a_backing_files_name_is_changed_anywhere_in_a_chain() {
    let mut world = nested(false);
    let before = world.facts();
    world.ok(change_backing_file("top", "mid", "elsewhere"));
    let link = &world.links["/i/mid"];
    // The format is the overlay's own: so does QEMU.
    assert_eq!(
        (link.filename.as_str(), link.format.as_deref()),
        ("elsewhere", Some("fmt"))
    );
    assert_eq!(world.facts(), before, "it is read-only again");
    world.ok(change_backing_file("top", "top", ""));
    assert!(!world.links.contains_key("/i/top"));
    for (request, text) in [
        (change_backing_file("mid", "mid", "x"), "Need a root block node"),
        (
            change_backing_file("x", "mid", "x"),
            "Cannot find device='x' nor node-name='x'",
        ),
        (
            change_backing_file("top", "x", "x"),
            "Cannot find device='' nor node-name='x'",
        ),
        (
            change_backing_file("top", "base", "x"),
            "not allowing backing file change on an image without a backing file",
        ),
        (
            change_backing_file("other", "top", "x"),
            "'other' and image file are not in the same chain",
        ),
    ] {
        assert_eq!(world.error(request), text);
    }
    world.assert_settled(&[]);
}
