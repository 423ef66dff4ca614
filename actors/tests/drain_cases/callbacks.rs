//! What drivers hear of sections, and how sections nest.

use millpond_messages::graph::{DrainScope, ListDrains};

use super::world::{Section, World, finish, is_ready, node, on_home, read, reading, wait};

/// A top node on a backing node.
fn chain() -> World {
    let world = World::new(&["backing", "top"]);
    world.memory("backing");
    world.overlay("top", "backing");
    world
}

fn callbacks(world: &World) -> [(u32, u32); 2] {
    [world.node("top").callbacks(), world.node("backing").callbacks()]
}

/// Drains, with `drain`, once with nothing under way and once with a request that the backing node holds; `covered` says
/// which of top and backing hear of it.
fn hears(covered: [bool; 2], drain: impl Fn(&World) -> Section) {
    let world = chain();
    let client = world.client("top");
    let times = |begins: u32, ends: u32| covered.map(|covered| if covered { (begins, ends) } else { (0, 0) });
    let section = drain(&world);
    assert_eq!(callbacks(&world), times(1, 0));
    drop(section);
    world.settle();
    assert_eq!(callbacks(&world), times(1, 1));

    let backing = world.node("backing");
    backing.hold(true);
    let mut request = reading(&client, 0);
    let held = backing.held_read();
    // Let go by another thread, since a drain from here may wait where the test runs.
    let letting_go = std::thread::spawn({
        let graph = world.graph.clone();
        move || {
            while wait(graph.ask(ListDrains)).unwrap().is_empty() {
                std::thread::yield_now();
            }
            held.go.send(()).unwrap();
        }
    });
    backing.hold(false);
    let section = drain(&world);
    assert_eq!(backing.transfers(), 1, "the drain waited for the request");
    assert_eq!(wait(&mut request), Ok(vec![0; 512]));
    assert_eq!(callbacks(&world), times(2, 1));
    letting_go.join().unwrap();
    drop(section);
    world.settle();
    assert_eq!(callbacks(&world), times(2, 2));
}

/// drain-cases: driver-cb/drain_all
#[test]
fn drain_all_calls_each_driver_once_and_waits_for_a_pending_request() {
    hears([true, true], |world| {
        world.drain(DrainScope::All).covers(world, &["top", "backing"])
    });
}

/// drain-cases: driver-cb/drain
#[test]
fn a_drain_of_one_node_calls_its_driver_and_not_its_childs() {
    hears([true, false], |world| {
        world.drain(node("top")).covers(world, &["top"])
    });
}

/// Drains from a task on the iothread where the top node lives.
fn drain_in_task(world: &World, scope: DrainScope) -> Section {
    let client = world.reader("top");
    let graph = world.graph.clone();
    finish(on_home(&client, move || async move {
        graph.drain(scope, "task").await
    }))
}

/// drain-cases: driver-cb/co/drain_all
#[test]
fn drain_all_from_a_task_on_the_nodes_own_iothread_does_not_deadlock() {
    hears([true, true], |world| {
        drain_in_task(world, DrainScope::All).covers(world, &["top", "backing"])
    });
}

/// drain-cases: driver-cb/co/drain
#[test]
fn a_drain_of_one_node_from_a_task_on_its_own_iothread_does_not_deadlock() {
    hears([true, false], |world| {
        drain_in_task(world, node("top")).covers(world, &["top"])
    });
}

/// Drains with `drain`; `covered` says which of top and backing stand still meanwhile. Both go on afterwards.
fn quiesces(covered: [bool; 2], drain: impl Fn(&World) -> Section) {
    let world = chain();
    let clients = [world.client("top"), world.reader("backing")];
    let section = drain(&world);
    let now = ["top", "backing"].map(|name| world.node(name).is_quiesced());
    assert_eq!(now, covered);
    let reads = clients.each_ref().map(|client| reading(client, 0));
    world.settle();
    let mut parked = Vec::new();
    for (mut read, covered) in reads.into_iter().zip(covered) {
        if covered {
            assert!(!is_ready(&mut read), "its node stands still");
            parked.push(read);
        } else {
            assert_eq!(wait(read), Ok(vec![0; 512]));
        }
    }
    drop(section);
    for read in parked {
        assert_eq!(wait(read), Ok(vec![0; 512]));
    }
    assert!(!world.node("top").is_quiesced() && !world.node("backing").is_quiesced());
}

/// drain-cases: quiesce/drain_all
///
/// Each node is held once by the section, whatever paths lead to it: a section has a set of nodes, not a walk.
#[test]
fn drain_all_quiesces_every_node() {
    quiesces([true, true], |world| {
        world.drain(DrainScope::All).covers(world, &["top", "backing"])
    });
}

/// drain-cases: quiesce/drain
#[test]
fn a_drain_of_one_node_leaves_its_child_going() {
    quiesces([true, false], |world| {
        world.drain(node("top")).covers(world, &["top"])
    });
}

/// drain-cases: quiesce/co/drain_all
#[test]
fn drain_all_from_a_task_quiesces_every_node() {
    quiesces([true, true], |world| {
        drain_in_task(world, DrainScope::All).covers(world, &["top", "backing"])
    });
}

/// drain-cases: quiesce/co/drain
#[test]
fn a_drain_from_a_task_leaves_the_child_going() {
    quiesces([true, false], |world| {
        drain_in_task(world, node("top")).covers(world, &["top"])
    });
}

/// drain-cases: nested
#[test]
fn sections_of_any_scope_nest_and_the_driver_hears_the_first_and_the_last() {
    for outer in [DrainScope::All, node("top")] {
        for inner in [DrainScope::All, node("top")] {
            for inner_ends_first in [true, false] {
                nested(&outer, &inner, inner_ends_first);
            }
        }
    }
}

fn nested(outer: &DrainScope, inner: &DrainScope, inner_ends_first: bool) {
    let world = chain();
    let (top, backing) = (world.client("top"), world.reader("backing"));
    let covers_backing = |scope: &DrainScope| *scope == DrainScope::All;
    let begin = |scope: &DrainScope| {
        let nodes: &[&str] = if covers_backing(scope) {
            &["top", "backing"]
        } else {
            &["top"]
        };
        world.drain(scope.clone()).covers(&world, nodes)
    };
    let (first, second) = (begin(outer), begin(inner));
    let all = [covers_backing(outer), covers_backing(inner)];
    let told = |told: bool| u32::from(told);
    assert_eq!(
        callbacks(&world),
        [(1, 0), (told(all[0] || all[1]), 0)],
        "only the first begin is heard"
    );
    let parked = reading(&top, 0);
    let (ending, left, left_covers_backing) = if inner_ends_first {
        (second, first, all[0])
    } else {
        (first, second, all[1])
    };
    drop(ending);
    world.settle();
    assert_eq!(world.node("top").callbacks(), (1, 0), "one section is left");
    assert_eq!(world.node("backing").is_quiesced(), left_covers_backing);
    drop(left);
    assert_eq!(wait(parked), Ok(vec![0; 512]));
    read(&backing, 0);
    assert_eq!(
        callbacks(&world),
        [(1, 1), (told(all[0] || all[1]), told(all[0] || all[1]))]
    );
}
