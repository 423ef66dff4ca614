//! Drained sections: what they cover, in which order, and what becomes of them when the graph changes.

use millpond_messages::graph::{
    AddIothread, ChildOf, CloseAll, DetachRoot, DrainBegin, DrainEnd, DrainScope, GraphReply,
    IothreadOptions, ListDrains, MakeImage, SetIothread,
};
use serde_json::json;

use super::*;

/// `top` (a format) over `file`, with `base` behind it over `basefile`.
fn chain() -> FakeWorld {
    let mut world = FakeWorld::new();
    world.ok(add(json!({"driver": "fmt", "node-name": "base",
        "file": {"driver": "file", "filename": "b", "node-name": "basefile"}})));
    world.ok(add(
        json!({"driver": "fmt", "node-name": "top", "backing": "base",
        "file": {"driver": "file", "filename": "t", "node-name": "topfile"}}),
    ));
    world
}

fn held(world: &mut FakeWorld) -> Vec<(String, usize)> {
    let nodes = world.facts().nodes;
    nodes
        .into_iter()
        .map(|node| (node.name, world.nodes[&node.id].tokens.len()))
        .collect()
}

fn counts(world: &mut FakeWorld) -> [usize; 4] {
    let held = held(world);
    ["top", "topfile", "base", "basefile"].map(|name| {
        held.iter()
            .find(|(node, _)| node == name)
            .map_or(99, |(_, count)| *count)
    })
}

#[test]
fn a_drain_covers_ancestors_but_no_children() {
    let mut world = chain();
    let token = world.still(drain_node("base"));
    assert_eq!(counts(&mut world), [1, 0, 1, 0]);
    world.ok(DrainEnd(token));
    assert_eq!(counts(&mut world), [0; 4]);
    let token = world.still(DrainBegin {
        scope: DrainScope::Subtree("base".to_owned()),
        user: String::new(),
    });
    assert_eq!(counts(&mut world), [1, 0, 1, 1]);
    world.ok(DrainEnd(token));
    assert_eq!(counts(&mut world), [0; 4]);
}

#[test]
fn one_parent_of_a_node_is_held_and_the_others_go_on() {
    let mut world = FakeWorld::new();
    world.ok(add(
        json!({"driver": "file", "filename": "s", "node-name": "shared"}),
    ));
    for name in ["one", "two"] {
        world.ok(add(
            json!({"driver": "filter", "node-name": name, "file": "shared"}),
        ));
    }
    world.ok(add(
        json!({"driver": "filter", "node-name": "above", "file": "one"}),
    ));
    let hold = |of| DrainBegin {
        scope: DrainScope::Parent(of),
        user: "single".to_owned(),
    };
    let edge = |name: &str, child: &str| ChildOf::Node {
        node_name: name.to_owned(),
        child: child.to_owned(),
    };
    let counts = |world: &mut FakeWorld| {
        let held = held(world);
        ["above", "one", "two", "shared"].map(|name| {
            let found = held.iter().find(|(node, _)| node == name);
            found.map_or(99, |(_, count)| *count)
        })
    };
    let one = world.still(hold(edge("one", "file")));
    assert_eq!(
        counts(&mut world),
        [1, 1, 0, 0],
        "what sends to the parent is held too"
    );
    let two = world.still(hold(edge("two", "file")));
    assert_eq!(counts(&mut world), [1, 1, 1, 0]);
    world.ok(DrainEnd(one));
    assert_eq!(counts(&mut world), [0, 0, 1, 0]);
    world.ok(DrainEnd(two));
    assert_eq!(counts(&mut world), [0; 4]);
    // A user's requests wait where they enter.
    let root = world.root(attach("two", READ, ALL));
    let user = world.still(hold(ChildOf::Root(root)));
    assert_eq!(counts(&mut world), [0, 0, 1, 0]);
    world.ok(DrainEnd(user));
    for (of, text) in [
        (edge("none", "file"), "Failed to find node with node-name='none'"),
        (edge("one", "backing"), "Node 'one' does not have child 'backing'"),
    ] {
        assert_eq!(world.error(hold(of)), text);
    }
    world.assert_settled(&[]);
}

#[test]
fn drain_all_asks_each_node_once_parents_first() {
    let mut world = chain();
    world.asked.clear();
    let token = world.still(drain_all());
    assert_eq!(counts(&mut world), [1; 4]);
    let (top, base) = (world.id("top"), world.id("base"));
    let place = |id| world.asked.iter().position(|asked| *asked == id);
    assert!(place(top) < place(base));
    assert_eq!(world.asked.len(), 4);
    world.ok(DrainEnd(token));
    assert!(
        world
            .nodes
            .values()
            .all(|node| node.stops == 1 && node.resumes == 1)
    );
}

#[test]
fn children_are_asked_only_when_no_parent_can_send() {
    let mut world = chain();
    let (top, base) = (world.id("top"), world.id("base"));
    assert!(world.enter(top));
    let drain = world.send(drain_node("base"));
    world.run();
    assert_eq!(counts(&mut world), [1, 0, 0, 0]);
    assert!(!world.replies.contains_key(&drain));
    assert!(!world.enter(top), "a closed gate lets no request in");
    world.leave(top);
    world.run();
    assert!(matches!(
        world.replies.remove(&drain),
        Some(Ok(GraphReply::Still(_)))
    ));
    assert!(!world.nodes[&base].tokens.is_empty());
}

#[test]
fn sections_nest_in_any_order() {
    for second_first in [false, true] {
        for (one, two) in [(drain_all(), drain_all()), (drain_all(), drain_node("base"))] {
            let mut world = chain();
            let (one, two) = (world.still(one), world.still(two));
            assert_eq!(counts(&mut world)[2], 2);
            let (first, last) = if second_first { (two, one) } else { (one, two) };
            world.ok(DrainEnd(first));
            assert_eq!(counts(&mut world)[2], 1);
            assert_eq!(world.node("base").resumes, 0);
            world.ok(DrainEnd(last));
            assert_eq!(counts(&mut world), [0; 4]);
            let base = world.node("base");
            assert_eq!(
                (base.stops, base.resumes),
                (1, 1),
                "the driver hears of the first and the last only"
            );
        }
    }
}

#[test]
fn ending_twice_is_an_error() {
    let mut world = chain();
    let token = world.still(drain_all());
    world.ok(DrainEnd(token));
    assert!(world.error(DrainEnd(token)).contains("no drained section"));
    assert_eq!(
        world.error(drain_node("nobody")),
        "Failed to find node with node-name='nobody'"
    );
}

#[test]
fn a_user_that_goes_while_it_waits_gives_its_section_back() {
    let mut world = chain();
    let top = world.id("top");
    world.enter(top);
    let drain = world.send(drain_all());
    world.run();
    world.abandon(drain);
    world.run();
    assert_eq!(counts(&mut world), [0; 4]);
    assert!(world.enter(top));
    world.leave(top);
    world.leave(top);
    world.assert_settled(&[]);
}

#[test]
fn questions_are_answered_while_a_drain_and_a_mutation_wait() {
    let mut world = chain();
    let top = world.id("top");
    world.enter(top);
    let snapshot = world.send(reopen(
        json!({"driver": "fmt", "node-name": "top", "file": "topfile",
        "backing": null}),
    ));
    world.run();
    let drain = world.send(drain_node("base"));
    world.run();
    assert!(!world.replies.contains_key(&snapshot) && !world.replies.contains_key(&drain));
    assert_eq!(world.facts().nodes.len(), 4);
    let GraphReply::Drains(drains) = world.ok(ListDrains) else {
        panic!()
    };
    assert_eq!(
        drains.iter().map(|drain| drain.user.as_str()).collect::<Vec<_>>(),
        ["blockdev-reopen", "test"]
    );
    for drain in drains {
        assert!(drain.age_ns > 0);
        assert_eq!(drain.waiting_for[0].node_name, "top");
        assert_eq!(drain.waiting_for[0].requests.len(), 1);
    }
    world.leave(top);
    world.run();
    assert!(world.replies[&snapshot].is_ok() && world.replies[&drain].is_ok());
    let Some(Ok(GraphReply::Still(token))) = world.replies.remove(&drain) else {
        panic!()
    };
    // The edge has gone meanwhile, and the section has given back what it held because of it.
    assert_eq!(counts(&mut world), [0, 0, 1, 0]);
    world.assert_settled(&[token]);
}

#[test]
fn what_is_added_while_everything_is_drained_is_drained_too() {
    let mut world = chain();
    let token = world.still(drain_all());
    world.ok(add(json!({"driver": "raw", "node-name": "new",
        "file": {"driver": "file", "filename": "n", "node-name": "newfile"}})));
    assert_eq!(
        (world.node("new").tokens.len(), world.node("newfile").stops),
        (1, 1)
    );
    world.ok(del("top"));
    world.ok(DrainEnd(token));
    assert!(
        world
            .nodes
            .values()
            .all(|node| node.tokens.is_empty() && node.stops == node.resumes)
    );
    world.assert_settled(&[]);
}

#[test]
fn a_node_without_children_is_added_to_sections_that_cover_everything_and_to_no_others() {
    let lone = |name: &str| add(json!({"driver": "file", "node-name": name, "filename": name}));
    let mut world = chain();
    let all = world.still(drain_all());
    world.ok(lone("new"));
    assert_eq!(world.node("new").tokens.len(), 1);
    world.ok(DrainEnd(all));
    let some = world.still(drain_node("base"));
    world.ok(lone("newer"));
    assert_eq!(world.node("newer").stops, 0);
    world.ok(DrainEnd(some));
    world.assert_settled(&[]);
}

#[test]
fn a_node_is_not_seen_before_the_sections_that_cover_it_have_it_quiet() {
    let mut world = chain();
    let tokens = [world.still(drain_all()), world.still(drain_all())];
    let adding = world.send(add(
        json!({"driver": "file", "node-name": "new", "filename": "n"}),
    ));
    let mut seen = false;
    while world.deliver(|_| 0) {
        let new = world.facts().nodes.into_iter().find(|node| node.name == "new");
        if let Some(new) = new {
            assert_eq!(world.nodes[&new.id].tokens.len(), 2);
            seen = true;
        }
    }
    assert!(seen && world.replies[&adding].is_ok());
    for token in tokens {
        world.ok(DrainEnd(token));
    }
    world.assert_settled(&[]);
}

#[test]
fn an_overlay_on_a_drained_node_is_drained_with_it() {
    let mut world = chain();
    world.ok(add(json!({"driver": "fmt", "node-name": "over", "backing": null,
        "file": {"driver": "file", "filename": "o"}})));
    let token = world.still(drain_node("top"));
    world.ok(snapshot("top", "over"));
    assert_eq!(world.node("over").tokens.len(), 1);
    assert_eq!(world.node("over").stops, 1);
    world.ok(DrainEnd(token));
    assert!(world.nodes.values().all(|node| node.tokens.is_empty()));
}

#[test]
fn detaching_gives_back_exactly_what_was_taken() {
    let mut world = chain();
    let own = world.still(drain_node("top"));
    let below = world.still(drain_node("base"));
    assert_eq!(counts(&mut world), [2, 0, 1, 0]);
    let without = json!({"driver": "fmt", "node-name": "top", "file": "topfile", "backing": null});
    world.ok(reopen(without));
    assert_eq!(counts(&mut world), [1, 0, 1, 0]);
    let with = json!({"driver": "fmt", "node-name": "top", "file": "topfile", "backing": "base"});
    world.ok(reopen(with));
    assert_eq!(counts(&mut world), [2, 0, 1, 0]);
    world.ok(DrainEnd(below));
    world.ok(DrainEnd(own));
    assert_eq!(counts(&mut world), [0; 4]);
}

/// Replacing a child under a parent, with the old one, the new one, both or neither drained by users.
#[test]
fn a_replaced_child_hands_over_its_state() {
    for (old_drained, new_drained) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut world = chain();
        world.ok(add(
            json!({"driver": "file", "node-name": "other", "filename": "x"}),
        ));
        let old = old_drained.then(|| world.still(drain_node("base")));
        let new = new_drained.then(|| world.still(drain_node("other")));
        world.ok(reopen(
            json!({"driver": "fmt", "node-name": "top", "file": "topfile", "backing": "other"}),
        ));
        assert_eq!(world.node("top").tokens.len(), usize::from(new_drained));
        if old_drained && new_drained {
            assert_eq!(world.node("top").resumes, 0, "never undrained in between");
        }
        for token in old.into_iter().chain(new) {
            world.ok(DrainEnd(token));
        }
        assert!(world.nodes.values().all(|node| node.tokens.is_empty()));
        world.assert_settled(&[]);
    }
}

#[test]
fn a_diamonds_base_is_asked_once_after_both_sides() {
    let mut world = FakeWorld::new();
    world.ok(add(
        json!({"driver": "file", "node-name": "base", "filename": "b"}),
    ));
    for side in ["left", "right"] {
        world.ok(add(
            json!({"driver": "filter", "node-name": side, "file": "base"}),
        ));
    }
    world.ok(add(
        json!({"driver": "two", "node-name": "top", "file": "left", "other": "right"}),
    ));
    let right = world.id("right");
    world.enter(right);
    let drain = world.send(drain_node("base"));
    world.run();
    assert_eq!(
        world.node("base").tokens.len(),
        0,
        "the right side can still send"
    );
    world.leave(right);
    world.run();
    assert!(world.replies.contains_key(&drain));
    assert!(
        world
            .nodes
            .values()
            .all(|node| node.tokens.len() == 1 && node.stops == 1)
    );
}

#[test]
fn a_parent_that_is_deleted_is_not_waited_for() {
    let mut world = chain();
    let top = world.id("top");
    world.enter(top);
    let delete = world.send(del("top"));
    let drain = world.send(drain_node("base"));
    // The request ends with the node, as one does that holds the last reference.
    world.nodes.get_mut(&top).unwrap().in_flight = 0;
    world.run();
    assert!(world.replies[&delete].is_ok() && world.replies[&drain].is_ok());
}

#[test]
fn drained_nodes_move_between_iothreads() {
    let mut world = chain();
    for id in ["a", "b"] {
        let options: IothreadOptions = serde_json::from_value(json!({"id": id})).unwrap();
        world.ok(AddIothread(options));
    }
    let token = world.still(drain_node("base"));
    for iothread in [Some("a"), Some("b"), None] {
        world.ok(SetIothread {
            node_name: "top".to_owned(),
            iothread: iothread.map(str::to_owned),
            force: false,
        });
        let facts = world.facts();
        assert!(
            facts
                .nodes
                .iter()
                .all(|node| node.iothread == facts.nodes[0].iothread)
        );
        assert_eq!(counts(&mut world), [1, 0, 1, 0]);
    }
    world.ok(DrainEnd(token));
    world.assert_settled(&[]);
}

#[test]
fn closing_everything_ends_in_bounded_steps_and_refuses_the_rest() {
    let mut world = chain();
    world.root(attach("top", READ_WRITE, ALL));
    world.ok(CloseAll { grace: None });
    assert!(world.nodes.is_empty() && world.roots.is_empty());
    assert!(
        world
            .error(add(json!({"driver": "file", "node-name": "x", "filename": "x"})))
            .contains("shutting down")
    );
    assert!(world.facts().nodes.is_empty());
}

/// Making an image may take long: other changes go on, drains wait for it, and what it needs stays.
#[test]
fn an_image_is_made_in_the_background() {
    let mut world = FakeWorld::new();
    for name in ["f", "other"] {
        world.ok(add(
            json!({"driver": "file", "node-name": name, "filename": name}),
        ));
    }
    let made = world.send(MakeImage(options(
        json!({"driver": "fmt", "file": "f", "size": 1}),
    )));
    world.hold_creates = true;
    world.run();
    assert!(!world.replies.contains_key(&made));
    assert_eq!(world.error(del("f")), "Node f is in use");
    world.ok(del("other"));
    let drain = world.send(drain_node("f"));
    world.run();
    assert!(!world.replies.contains_key(&drain));
    let GraphReply::Drains(drains) = world.ok(ListDrains) else {
        panic!()
    };
    assert_eq!(drains[0].waiting_for[0].node_name, "f");
    world.hold_creates = false;
    world.run();
    assert!(world.replies[&made].is_ok());
    let Some(Ok(GraphReply::Still(token))) = world.replies.remove(&drain) else {
        panic!()
    };
    // And the other way round: it waits for a section that is in force.
    let made = world.send(MakeImage(options(
        json!({"driver": "fmt", "file": "f", "size": 1}),
    )));
    world.run();
    assert!(!world.replies.contains_key(&made));
    world.ok(DrainEnd(token));
    assert!(world.replies[&made].is_ok());
    world.ok(del("f"));
    world.assert_settled(&[]);
}

#[test]
fn a_child_is_asked_though_its_parent_answers_while_the_edge_is_away() {
    for (drain, fails) in [
        (drain_all(), None),
        (drain_all(), Some(1)),
        (drain_node("base"), Some(1)),
    ] {
        let mut world = chain();
        let top = world.id("top");
        world.enter(top);
        let change = world.send(reopen(
            json!({"driver": "fmt", "node-name": "top", "file": "topfile", "backing": null}),
        ));
        let drain = world.send(drain);
        world.run();
        world.fail_after = fails;
        // The change goes on at once, and takes the edge away before the section hears of the parent.
        world.leave(top);
        world.run();
        assert_eq!(world.replies[&change].is_err(), fails.is_some());
        let Some(Ok(GraphReply::Still(token))) = world.replies.remove(&drain) else {
            panic!("the section becomes still")
        };
        world.ok(DrainEnd(token));
        world.assert_settled(&[]);
    }
}

#[test]
fn a_node_is_closed_only_when_the_requests_of_an_ended_root_edge_are_over() {
    let mut world = chain();
    let root = world.root(attach("top", READ_WRITE, ALL));
    let top = world.id("top");
    world.enter(top);
    world.ok(DetachRoot(root));
    let delete = world.send(del("top"));
    world.run();
    assert!(!world.replies.contains_key(&delete) && world.nodes.contains_key(&top));
    world.leave(top);
    world.run();
    assert!(world.replies[&delete].is_ok() && !world.nodes.contains_key(&top));
    world.assert_settled(&[]);
}

#[test]
fn a_subtree_that_loses_its_top_is_given_back() {
    let mut world = chain();
    let token = world.still(DrainBegin {
        scope: DrainScope::Subtree("top".to_owned()),
        user: String::new(),
    });
    assert_eq!(counts(&mut world), [1; 4]);
    world.ok(del("top"));
    assert_eq!(counts(&mut world), [99, 99, 0, 0]);
    world.ok(DrainEnd(token));
    world.assert_settled(&[]);
}

/// A child that waits for its parent to be quiet must be asked when the edge between them is taken back.
#[test]
fn a_drain_of_everything_ends_whatever_edges_are_taken_back_meanwhile() {
    for (failure, delivered) in (0..4).flat_map(|failure| (0..10).map(move |delivered| (failure, delivered)))
    {
        let mut world = FakeWorld::new();
        for name in ["a", "b"] {
            world.ok(add(
                json!({"driver": "file", "node-name": name, "filename": name}),
            ));
        }
        world.ok(add(
            json!({"driver": "many", "node-name": "top", "children": ["a"]}),
        ));
        world.root(attach("top", READ, ALL));
        world.fail_after = Some(failure);
        let added = world.send(add_child("top", "b"));
        for _ in 0..delivered {
            world.deliver(|_| 0);
        }
        let drained = world.send(drain_all());
        world.run();
        let Some(Ok(GraphReply::Still(token))) = world.replies.remove(&drained) else {
            panic!("the drain never ends: failure {failure} after {delivered} deliveries");
        };
        world.ok(DrainEnd(token));
        assert!(world.replies.contains_key(&added));
        world.fail_after = None;
        world.assert_settled(&[]);
    }
}
