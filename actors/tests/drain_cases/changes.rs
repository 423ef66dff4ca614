//! Graphs that change while sections begin, last and end, often by what the sections wait for.

use millpond_messages::graph::DrainScope;
use serde_json::{Value, json};

use super::driver::Step;
use super::world::{
    READ_WRITE, World, finish, is_ready, node, on_home, read, reading, sent, wait, write, writing,
};

fn pair(name: &str, left: &str, right: Value) -> Value {
    json!({"driver": "test-pair", "node-name": name, "left": left, "right": right})
}

/// drain-cases: graph-change/drain_all
#[test]
fn what_is_added_while_everything_is_drained_is_drained_and_what_is_deleted_is_not_waited_for() {
    let world = World::new(&["old", "doomed", "new", "above"]);
    world.memory("old");
    world.memory("doomed");
    let section = world.drain(DrainScope::All).covers(&world, &["old", "doomed"]);
    world.memory("new");
    assert_eq!(
        world.node("new").callbacks(),
        (1, 0),
        "told before it can be used"
    );
    world.overlay("above", "new");
    assert_eq!(world.node("above").callbacks(), (1, 0));
    let client = world.client("above");
    let mut parked = reading(&client, 0);
    world.settle();
    assert!(!is_ready(&mut parked));

    wait(world.reopening(json!({"driver": "test-overlay", "node-name": "above", "backing": null}))).unwrap();
    wait(world.graph.delete_node("new")).unwrap();
    wait(world.graph.delete_node("doomed")).unwrap();
    assert_eq!(world.node("new").closed(), 1);
    assert!(!is_ready(&mut parked), "the section is still in force");
    drop(section);
    assert_eq!(wait(parked), Ok(vec![0; 512]));
    world.settle();
    for survivor in ["old", "above"] {
        assert_eq!(world.node(survivor).callbacks(), (1, 1), "{survivor}");
    }
    wait(world.graph.delete_node("old")).unwrap();
}

/// drain-cases: deletion/drain
#[test]
fn the_work_that_a_drain_waits_for_may_delete_a_parent_of_the_drained_node() {
    let world = World::new(&["child", "parent"]);
    world.memory("child");
    world.overlay("parent", "child");
    let client = world.client("parent");
    world.node("child").hold(true);
    let graph = world.graph.clone();
    let operation = on_home(&client, {
        let client = client.clone();
        move || async move {
            let (result, _) = client.here().read(0, super::world::bytes(1, 512)).await;
            graph.detach(client.root()).await.unwrap();
            graph.delete_node("parent").await.unwrap();
            result
        }
    });
    let held = world.node("child").held_read();
    let drain = world.draining(node("child"));
    assert_eq!(world.waiting(), 1);
    held.go.send(()).unwrap();
    let section = finish(drain).covers(&world, &["child"]);
    assert_eq!(wait(operation), Ok(()));
    assert_eq!(world.node("parent").closed(), 1);
    assert!(world.edges().is_empty());
    assert_eq!(world.node("child").callbacks(), (1, 0), "still in the section");
    drop(section);
    world.settle();
    assert_eq!(world.node("child").callbacks(), (1, 1));
}

/// drain-cases: detach/drain_all
#[test]
fn the_work_that_a_drain_of_everything_waits_for_may_detach_children() {
    // The parent stays covered: everything is.
    detached_by_what_is_drained(DrainScope::All, (1, 0));
}

/// drain-cases: detach/drain
#[test]
fn the_work_that_a_drain_of_a_child_waits_for_may_detach_it() {
    // The parent was covered as the child's parent, which it no longer is.
    detached_by_what_is_drained(node("child"), (1, 1));
}

fn detached_by_what_is_drained(scope: DrainScope, parent_then: (u32, u32)) {
    let world = World::new(&["child", "parent"]);
    world.memory("child");
    world.overlay("parent", "child");
    let client = world.client("parent");
    world.node("child").hold(true);
    let alone = world.reopening(json!({"driver": "test-overlay", "node-name": "parent", "backing": null}));
    let operation = on_home(&client, {
        let client = client.clone();
        move || async move {
            let (result, _) = client.here().read(0, super::world::bytes(1, 512)).await;
            alone.await.unwrap();
            result
        }
    });
    let held = world.node("child").held_read();
    let drain = world.draining(scope);
    assert_eq!(world.waiting(), 1);
    held.go.send(()).unwrap();
    let section = finish(drain).covers(&world, &["child"]);
    assert_eq!(wait(operation), Ok(()));
    assert!(world.edges().is_empty());
    world.settle();
    assert_eq!(world.node("parent").callbacks(), parent_then);
    assert_eq!(world.node("child").callbacks(), (1, 0));
    drop(section);
    world.settle();
    for name in ["child", "parent"] {
        let (begins, ends) = world.node(name).callbacks();
        assert_eq!(begins, ends, "{name}");
    }
}

/// PA on A, PB on A and B, and C by itself.
fn two_parents() -> World {
    let world = World::new(&["a", "b", "c", "pa", "pb"]);
    for name in ["a", "b", "c"] {
        world.memory(name);
    }
    world.add(pair("pa", "a", Value::Null));
    world.add(pair("pb", "a", json!("b")));
    world
}

/// Drains each node in turn; each must cover itself and its parents, and nothing be left afterwards.
fn drain_in_turn(world: &World, expected: [(&str, &[&str]); 4]) {
    let all = ["a", "b", "c", "pa", "pb"];
    let quiesced = || -> Vec<&str> {
        all.into_iter()
            .filter(|name| world.node(name).is_quiesced())
            .collect()
    };
    world.settle();
    assert!(quiesced().is_empty());
    let mut sections = Vec::new();
    for (name, covered) in expected {
        let section = world.drain(node(name)).covers(world, covered);
        assert_eq!(quiesced(), covered, "drain of '{name}'");
        sections.push(section);
        sections.clear();
        world.settle();
        assert!(quiesced().is_empty());
    }
}

/// drain-cases: detach/parent_cb
#[test]
fn a_child_replaced_while_its_parent_is_being_drained_is_found_right_afterwards() {
    let world = two_parents();
    let client = world.reader("pa");
    world.node("a").hold(true);
    let replace = world.reopening(pair("pb", "a", json!("c")));
    let operation = on_home(&client, {
        let client = client.clone();
        move || async move {
            let (result, _) = client.here().read(0, super::world::bytes(1, 512)).await;
            result.unwrap();
            replace.await
        }
    });
    let held = world.node("a").held_read();
    // What the reopen flushes is not held.
    world.node("a").hold(false);
    world.node("pb").hold_quiesce(true);
    let drain = world.draining(node("pb"));
    let stopping = world.node("pb").held(Step::Quiesce);
    held.go.send(()).unwrap();
    assert!(world.waiting() >= 1, "its driver is on its way to stopping");
    stopping.go.send(()).unwrap();
    let section = finish(drain).covers(&world, &["pb"]);
    wait(operation).unwrap();
    assert_eq!(world.edges(), ["pa:left:a", "pb:left:a", "pb:right:c"]);
    drop(section);
    world.node("pb").hold_quiesce(false);
    drain_in_turn(
        &world,
        [
            ("pb", &["pb"]),
            ("a", &["a", "pa", "pb"]),
            ("b", &["b"]),
            ("c", &["c", "pb"]),
        ],
    );
}

/// drain-cases: detach/driver_cb
#[test]
fn a_graph_may_change_while_drivers_sleep_in_drained_begin() {
    let world = two_parents();
    for parent in ["pa", "pb"] {
        world.node(parent).hold_quiesce(true);
    }
    let mut drain = world.draining(node("a"));
    // Both parents are told before either has answered: it is waited for once, not once a parent.
    let sleeping = world.node("pa").held(Step::Quiesce);
    let changing = world.node("pb").held(Step::Quiesce);
    let replace = sent(world.reopening(pair("pb", "a", json!("c"))));
    changing.go.send(()).unwrap();
    wait(replace).unwrap();
    assert_eq!(world.edges(), ["pa:left:a", "pb:left:a", "pb:right:c"]);
    assert!(!is_ready(&mut drain), "a driver still sleeps");
    assert!(
        !world.node("a").is_quiesced(),
        "children are told after their parents"
    );
    sleeping.go.send(()).unwrap();
    drop(finish(drain).covers(&world, &["a", "pa", "pb"]));
    for parent in ["pa", "pb"] {
        world.node(parent).hold_quiesce(false);
        assert_eq!(world.node(parent).callbacks().0, 1);
    }
    drain_in_turn(
        &world,
        [
            ("pb", &["pb"]),
            ("a", &["a", "pa", "pb"]),
            ("b", &["b"]),
            ("c", &["c", "pb"]),
        ],
    );
}

/// drain-cases: attach/drain
#[test]
fn an_overlay_put_on_a_drained_node_is_drained_with_it() {
    let world = World::new(&["base", "overlay"]);
    world.memory("base");
    world.add(json!({"driver": "test-overlay", "node-name": "overlay", "backing": null}));
    let client = world.client_with("base", READ_WRITE);
    write(&client, 0, 7);
    let transfers = world.node("base").transfers();
    let section = world.drain(node("base")).covers(&world, &["base"]);
    wait(world.graph.snapshot("base", "overlay")).unwrap();
    world.settle();
    assert_eq!(world.behind(&client), "overlay");
    assert_eq!(world.node("overlay").callbacks(), (1, 0), "told once");
    let mut parked = reading(&client, 0);
    world.settle();
    assert!(!is_ready(&mut parked));
    assert_eq!(
        world.node("base").transfers(),
        transfers,
        "attaching asks for nothing"
    );
    drop(section);
    assert_eq!(wait(parked), Ok(vec![7; 512]));
    world.settle();
    for name in ["base", "overlay"] {
        assert_eq!(world.node(name).callbacks(), (1, 1), "{name}");
    }
}

/// drain-cases: replace_child/mid-drain
#[test]
fn a_parent_takes_over_whether_its_new_child_is_drained() {
    for old_drained in [true, false] {
        for new_drained in [true, false] {
            replaced(old_drained, new_drained);
        }
    }
}

fn replaced(old_drained: bool, new_drained: bool) {
    let world = World::new(&["old", "new", "parent"]);
    world.memory("old");
    world.memory("new");
    world.filter("parent", "old");
    let client = world.reader("parent");
    let inside = world.client("new");
    write(&inside, 0, 9);
    let written = world.node("new").transfers();
    let old_section = old_drained.then(|| world.drain(node("old")).covers(&world, &["old", "parent"]));
    let new_section = new_drained.then(|| world.drain(node("new")).covers(&world, &["new"]));
    let before = old_drained.then(|| reading(&client, 0));
    wait(world.reopening(json!({"driver": "test-filter", "node-name": "parent", "file": "new"}))).unwrap();
    assert_eq!(world.edges(), ["parent:file:new"]);
    world.settle();
    let parent = world.node("parent");
    assert_eq!(
        parent.callbacks(),
        if new_drained { (1, 0) } else { (1, 1) },
        "drained at most once, and never undrained in between"
    );
    let after = reading(&client, 0);
    if new_drained {
        world.settle();
        assert_eq!(world.node("new").transfers(), written, "the new child is drained");
    }
    drop(old_section);
    world.settle();
    assert_eq!(
        parent.is_quiesced(),
        new_drained,
        "the old child's section is nothing to it any more"
    );
    drop(new_section);
    for parked in before.into_iter().chain([after]) {
        assert_eq!(wait(parked), Ok(vec![9; 512]), "read from the new child");
    }
    assert_eq!(world.node("old").transfers(), 0, "nothing reached the old child");
    assert_eq!(parent.callbacks(), (1, 1));
}

/// drain-cases: bdrv_drop_intermediate/poll
///
/// Changes of the graph run one at a time, so another that becomes due while one waits cannot get in between: it is
/// carried out before or after, on the graph as it is then.
#[test]
fn dropping_an_intermediate_node_lets_no_other_change_in_between() {
    let world = World::new(&["node-0", "node-1", "node-2", "job-node"]);
    world.memory("node-0");
    world.overlay("node-1", "node-0");
    world.overlay("node-2", "node-1");
    world.overlay("job-node", "node-1");
    let client = world.client("node-2");
    write(&client, 0, 1);
    let backed = |name: &str, backing: &str| {
        world.reopening(json!({"driver": "test-overlay", "node-name": name, "backing": backing}))
    };
    // The drop waits for a driver in drained-begin; a second change of the same edges is asked for meanwhile.
    world.node("node-2").hold_quiesce(true);
    let dropping = sent(backed("node-2", "node-0"));
    let sleeping = world.node("node-2").held(Step::Quiesce);
    world.node("node-2").hold_quiesce(false);
    let mut finishing = sent(backed("job-node", "node-0"));
    let parked = writing(&client, 512, 2);
    assert_eq!(world.waiting(), 1);
    assert!(!is_ready(&mut finishing), "one change at a time");
    let unchanged = [
        "job-node:backing:node-1",
        "node-1:backing:node-0",
        "node-2:backing:node-1",
    ];
    assert_eq!(world.edges(), unchanged);
    sleeping.go.send(()).unwrap();
    wait(dropping).unwrap();
    wait(finishing).unwrap();
    let dropped = [
        "job-node:backing:node-0",
        "node-1:backing:node-0",
        "node-2:backing:node-0",
    ];
    assert_eq!(world.edges(), dropped);
    wait(world.graph.delete_node("node-1")).unwrap();
    assert_eq!(wait(parked), Ok(()));
    assert_eq!(
        [read(&client, 0), read(&client, 512)],
        [vec![1; 512], vec![2; 512]]
    );
}
