//! Several changes together: all or none, in one drained section.

use millpond_messages::graph::{
    Action, AddIothread, AttachChild, ChildOf, CompletionMode, DrainBegin, DrainEnd, DrainScope, DropFilter,
    InsertNode, MoveNode, ReplaceChild, ReplaceNode, SetBacking, SnapshotSync, Transact,
};
use serde_json::json;

use super::failures::two_disks;
use super::*;

fn together(actions: Vec<Action>) -> Transact {
    let completion = CompletionMode::Individual;
    Transact { actions, completion }
}

fn over(node: &str, overlay: &str) -> Action {
    Action::Snapshot(snapshot(node, overlay))
}

/// Two disks that are written to, and four overlays.
fn two_used_disks() -> FakeWorld {
    let mut world = two_disks();
    for name in ["p", "q", "r", "s"] {
        world.ok(add(json!({"driver": "fmt", "node-name": name, "backing": null,
            "file": {"driver": "file", "filename": name}})));
    }
    world.root(attach("a", READ_WRITE, ALL));
    world.root(attach("b", READ_WRITE, ALL));
    world
}

/// However many disks are cut: all are still, all are flushed, all have their new edges. They have prepared their permissions
/// before.
#[test]
fn a_cut_of_many_disks_takes_as_many_rounds_as_of_one() {
    for disks in [1, 2, 12] {
        let mut world = FakeWorld::new();
        let mut actions = Vec::new();
        for disk in 0..disks {
            for name in [format!("disk{disk}"), format!("over{disk}")] {
                world.ok(add(json!({"driver": "fmt", "node-name": name, "backing": null,
                    "file": {"driver": "file", "filename": name}})));
            }
            world.root(attach(&format!("disk{disk}"), READ_WRITE, ALL));
            actions.push(over(&format!("disk{disk}"), &format!("over{disk}")));
        }
        assert_eq!(
            world.rounds_of_first_section(together(actions)),
            3,
            "{disks} disks"
        );
        world.assert_settled(&[]);
    }
}

/// Making the nodes below read-only is an attempt, as for a single snapshot.
/// Overlays that are opened as they are put there; the third stands on what the first has put there.
#[test]
fn whichever_step_of_overlays_that_are_opened_fails_nothing_has_changed() {
    let opened = |node: &str, overlay: &str| {
        Action::SnapshotSync(SnapshotSync {
            node_name: Some(node.to_owned()),
            snapshot_file: format!("{overlay}-file"),
            snapshot_node_name: Some(overlay.to_owned()),
            format: "fmt".to_owned(),
            existing: true,
            device: None,
        })
    };
    for steps in 0..200 {
        let mut world = two_used_disks();
        let before = (world.facts(), world.links.clone());
        world.fail_after = Some(steps);
        let result = world.request(together(vec![
            opened("a", "x"),
            opened("b", "y"),
            opened("x", "z"),
        ]));
        let failed = world.fail_after.take().is_none();
        world.assert_settled(&[]);
        assert!(world.nodes.values().all(|node| node.tokens.is_empty()));
        match result {
            Err(_) => {
                let after = (world.facts(), world.links.clone());
                assert_eq!(after, before, "after {steps} steps");
            }
            Ok(_) if failed => assert!(steps > 0),
            Ok(_) => {
                assert!(steps > 9, "three overlays have steps that can fail");
                return;
            }
        }
    }
    panic!("the request never got through");
}

#[test]
fn whichever_step_fails_nothing_has_changed() {
    for steps in 0..100 {
        let mut world = two_used_disks();
        let before = (world.facts(), world.links.clone());
        world.fail_after = Some(steps);
        // The third stands on what the first has put there.
        let result = world.request(together(vec![over("a", "p"), over("b", "q"), over("p", "r")]));
        let failed = world.fail_after.take().is_none();
        world.assert_settled(&[]);
        assert!(world.nodes.values().all(|node| node.tokens.is_empty()));
        match result {
            Err(_) => {
                let after = (world.facts(), world.links.clone());
                assert_eq!(after, before, "after {steps} steps");
            }
            Ok(_) if failed => assert!(steps > 0),
            Ok(_) => {
                assert!(steps > 6, "three snapshots have steps that can fail");
                return;
            }
        }
    }
    panic!("the request never got through");
}

#[test]
fn whichever_action_is_not_possible_nothing_has_changed() {
    let impossible = [
        (Action::Abort, "Transaction aborted using Abort action"),
        (
            over("nothing", "s"),
            "Cannot find device='nothing' nor node-name='nothing'",
        ),
        (
            over("a", "s"),
            "Node 'a' is busy: node is used as backing hd of 'p'",
        ),
    ];
    for (last, why) in impossible {
        let mut world = two_used_disks();
        let before = (world.facts(), world.stored(), world.links.clone());
        let actions = vec![over("a", "p"), over("b", "q"), over("p", "r"), last];
        let error = world.request(together(actions)).unwrap_err();
        assert_eq!(error.to_string(), why);
        assert_eq!((world.facts(), world.stored(), world.links.clone()), before);
        world.assert_settled(&[]);
        assert!(world.nodes.values().all(|node| node.tokens.is_empty()));
    }
}

/// Clients wait once, however many changes there are.
#[test]
fn a_transaction_is_one_drained_section() {
    let mut world = two_used_disks();
    let sections = |world: &mut FakeWorld| {
        let token = world.still(DrainBegin {
            scope: DrainScope::All,
            user: "count".to_owned(),
        });
        world.ok(DrainEnd(token));
        token.0
    };
    let before = sections(&mut world);
    world.ok(together(vec![over("a", "p"), over("b", "q"), over("p", "r")]));
    // Each of the three nodes below is reopened after it.
    assert_eq!(sections(&mut world) - before, 1 + 1 + 3);
}

#[test]
fn no_action_has_a_job_that_could_end_with_others() {
    let mut world = two_used_disks();
    let before = world.facts();
    let grouped = |actions| Transact {
        actions,
        completion: CompletionMode::Grouped,
    };
    world.ok(grouped(Vec::new()));
    let why = "Action 'blockdev-snapshot' does not support transaction property completion-mode = grouped";
    let error = world
        .request(grouped(vec![over("a", "p"), Action::Abort]))
        .unwrap_err();
    assert_eq!(error.to_string(), why);
    assert_eq!(world.facts(), before);
}

/// Two disks, one with a filter on it, and a numbered parent beside them; and what is to be done with them.
fn changes_of_many_kinds() -> (FakeWorld, Vec<Action>) {
    let mut world = two_used_disks();
    world.ok(AddIothread(IothreadOptions::named("io")));
    world.ok(add(
        json!({"driver": "file", "node-name": "m0", "filename": "m0"}),
    ));
    world.ok(add(
        json!({"driver": "many", "node-name": "many", "children": ["m0"]}),
    ));
    world.ok(add(
        json!({"driver": "file", "node-name": "spare", "filename": "spare"}),
    ));
    world.ok(add(json!({"driver": "filter", "node-name": "old", "file": "b"})));
    let filter = json!({"driver": "filter", "node-name": "new", "file": "a"});
    let file = json!({"driver": "file", "node-name": "m1", "filename": "m1"});
    let actions = vec![
        Action::AddNode(add(file)),
        Action::AddChild(add_child("many", "spare")),
        Action::DelChild(del_child("many", "children.0")),
        Action::InsertNode(InsertNode {
            node: "a".to_owned(),
            options: options(filter),
        }),
        over("a", "p"),
        Action::SetBacking(SetBacking {
            node_name: "q".to_owned(),
            backing: Some("p".to_owned()),
        }),
        Action::DropFilter(DropFilter {
            node_name: "old".to_owned(),
        }),
        Action::MoveNode(MoveNode {
            node_name: "m0".to_owned(),
            iothread: Some("io".to_owned()),
        }),
        Action::ReplaceNode(ReplaceNode {
            from: "b".to_owned(),
            to: "r".to_owned(),
        }),
    ];
    (world, actions)
}

#[test]
fn changes_of_many_kinds_happen_together_or_not_at_all() {
    let (mut world, actions) = changes_of_many_kinds();
    world.ok(together(actions));
    world.assert_settled(&[]);
    let facts = world.facts();
    let named = |name: &str| facts.nodes.iter().any(|node| node.name == name);
    assert!(named("new") && named("m1") && !named("old"));
    let moved = world.id("m0");
    assert_eq!(world.homes[&moved], millpond_messages::IoThreadId(2));
    for done in 0..9 {
        let (mut world, mut actions) = changes_of_many_kinds();
        let before = (
            world.facts(),
            world.stored(),
            world.links.clone(),
            world.homes.clone(),
        );
        actions.truncate(done);
        actions.push(Action::Abort);
        assert!(world.request(together(actions)).is_err());
        let after = (
            world.facts(),
            world.stored(),
            world.links.clone(),
            world.homes.clone(),
        );
        assert_eq!(after, before, "after {done} changes");
        world.assert_settled(&[]);
        assert!(world.nodes.values().all(|node| node.tokens.is_empty()));
    }
}

/// What a change turns out to touch only after an earlier one is still as well before it is prepared.
#[test]
fn a_change_that_an_earlier_one_makes_possible_waits_for_its_own_nodes() {
    let mut world = FakeWorld::new();
    for name in ["a", "b", "c"] {
        world.ok(add(
            json!({"driver": "file", "node-name": name, "filename": name}),
        ));
    }
    world.ok(add(json!({"driver": "two", "node-name": "t", "file": "a"})));
    let (parent, child) = ("t".to_owned(), "other".to_owned());
    let of = ChildOf::Node {
        node_name: parent.clone(),
        child: child.clone(),
    };
    let node = "b".to_owned();
    let attach = Action::AttachChild(AttachChild { parent, child, node });
    let node = "c".to_owned();
    let replace = Action::ReplaceChild(ReplaceChild { of, node });
    let busy = world.id("c");
    assert!(world.enter(busy));
    let asked = world.send(together(vec![attach, replace]));
    world.run();
    assert!(
        !world.replies.contains_key(&asked),
        "a request is under way there"
    );
    world.leave(busy);
    world.run();
    assert!(world.replies[&asked].is_ok());
    world.assert_settled(&[]);
}
