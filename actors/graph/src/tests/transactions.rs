//! Several changes together: all or none, in one drained section.

use millpond_messages::graph::{Action, CompletionMode, DrainBegin, DrainEnd, DrainScope, Transact};
use serde_json::json;

use super::failures::two_disks;
use super::*;

fn together(actions: Vec<Action>) -> Transact {
    let completion = CompletionMode::Individual;
    Transact { actions, completion }
}

fn over(node: &str, overlay: &str) -> Action {
    Action::BlockdevSnapshot {
        node: node.to_owned(),
        overlay: overlay.to_owned(),
    }
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

/// Making the nodes below read-only is an attempt, as for a single snapshot.
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
    // Each of the three nodes below is reopened inside of it.
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
