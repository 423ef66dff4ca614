//! Sections of several users at once, begun, ended and given up anywhere, while everything else goes on.

use std::thread;

use millpond_messages::graph::{DrainEnd, DrainScope, Resize, SetIothread, SetRootPermissions};
use millpond_messages::io::OperationKind;
use millpond_messages::{ErrorKind, Permissions, Token};
use serde_json::json;

use super::driver::Step;
use super::world::{
    READ_WRITE, World, finish, is_ready, node, read, reading, root, sent, subtree, wait, writing,
};

/// base under left and right, both under nothing else; alone by itself.
fn diamond() -> World {
    let world = World::new(&["base", "left", "right", "alone"]);
    world.memory("base");
    world.overlay("left", "base");
    world.overlay("right", "base");
    world.memory("alone");
    world
}

#[test]
fn sections_of_several_users_overlap_and_end_in_any_order_on_any_thread() {
    let scopes = [node("left"), node("base"), subtree("right"), DrainScope::All];
    let covered: [&[&str]; 4] = [
        &["left"],
        &["left", "right", "base"],
        &["left", "right", "base"],
        &["left", "right", "base", "alone"],
    ];
    for order in [[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2], [2, 0, 3, 1]] {
        let world = diamond();
        let client = world.client("left");
        // Each begun on a thread of its own, and ended on another.
        let mut sections: Vec<_> = scopes
            .iter()
            .map(|scope| {
                let (graph, scope) = (world.graph.clone(), scope.clone());
                let begun = thread::spawn(move || wait(graph.drain(scope, "some thread")).unwrap());
                Some(begun.join().unwrap())
            })
            .collect();
        let mut parked = reading(&client, 0);
        for (count, ending) in order.into_iter().enumerate() {
            let section = sections[ending].take();
            thread::spawn(move || drop(section)).join().unwrap();
            world.settle();
            for name in ["base", "left", "right", "alone"] {
                let expected = order[count + 1..]
                    .iter()
                    .any(|left| covered[*left].contains(&name));
                assert_eq!(
                    world.node(name).is_quiesced(),
                    expected,
                    "{name} after {ending} of {order:?}"
                );
            }
            if count < 3
                && order[count + 1..]
                    .iter()
                    .any(|left| covered[*left].contains(&"left"))
            {
                assert!(!is_ready(&mut parked));
            }
        }
        assert_eq!(wait(parked), Ok(vec![0; 512]));
        for name in ["base", "left", "right", "alone"] {
            assert_eq!(world.node(name).callbacks(), (1, 1), "{name}");
        }
    }
}

#[test]
fn a_subtree_section_covers_what_is_below_and_all_that_stands_on_it() {
    let world = diamond();
    let section = world
        .drain(subtree("left"))
        .covers(&world, &["left", "base", "right"]);
    assert!(!world.node("alone").is_quiesced());
    // Put below what it covers: covered before the edge is.
    wait(world.reopening(json!({"driver": "test-overlay", "node-name": "left", "backing": "alone"})))
        .unwrap();
    assert!(world.node("alone").is_quiesced());
    world.settle();
    assert!(
        !world.node("right").is_quiesced(),
        "it has nothing to do with the section any more"
    );
    drop(section);
    world.settle();
    for name in ["base", "left", "right", "alone"] {
        let (begins, ends) = world.node(name).callbacks();
        assert_eq!(begins, ends, "{name}");
    }
}

#[test]
fn a_section_that_was_ended_is_no_ones_any_more() {
    let world = diamond();
    let error = wait(world.graph.ask(DrainEnd(Token(77))))
        .map(|_| ())
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let error = wait(world.graph.drain(node("nothing"), "test"))
        .map(|_| ())
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    world.settle();
    assert!(!world.node("base").is_quiesced());
}

/// Ways in which a user goes: its guard is dropped, on its thread's panic too; what it waits with is dropped before the
/// section is still; its reply has come and nobody took it.
#[test]
fn a_user_that_dies_gives_its_section_back() {
    let world = diamond();
    let base = world.node("base");
    let client = world.client("left");

    let graph = world.graph.clone();
    let died = thread::Builder::new()
        .name("expected to panic".to_owned())
        .spawn(move || {
            let _section = wait(graph.drain(node("base"), "dies")).unwrap();
            std::panic::resume_unwind(Box::new("a user dies"));
        });
    died.unwrap().join().unwrap_err();
    assert_eq!(read(&client, 0), [0; 512]);

    base.hold(true);
    let request = reading(&client, 0);
    let held = base.held_read();
    let waiting = world.draining(node("base"));
    assert_eq!(world.waiting(), 1);
    drop(waiting);
    assert_eq!(world.waiting(), 0);
    base.hold(false);
    held.go.send(()).unwrap();
    assert_eq!(wait(request), Ok(vec![0; 512]));

    let mut answered = world.draining(node("base"));
    while !base.is_quiesced() {
        thread::yield_now();
    }
    world.settle();
    // Whether it was looked at or not, the reply is there.
    let _ = is_ready(&mut answered);
    drop(answered);
    assert_eq!(read(&client, 0), [0; 512]);
    world.settle();
    assert!(!base.is_quiesced());
    for name in ["base", "left", "right"] {
        let (begins, ends) = world.node(name).callbacks();
        assert_eq!(begins, ends, "{name}");
    }
}

#[test]
fn users_come_and_go_inside_of_a_section() {
    let world = diamond();
    let staying = world.client("left");
    let section = world
        .drain(node("base"))
        .covers(&world, &["base", "left", "right"]);
    // Taking hold asks for no request; what is asked for waits.
    let (new, inside) = (world.client("right"), world.reader("base"));
    let mut parked = [reading(&new, 0), reading(&inside, 0), reading(&staying, 0)];
    world.settle();
    assert!(parked.iter_mut().all(|request| !is_ready(request)));
    let [on_new, on_inside, on_staying] = parked;
    wait(world.graph.detach(inside.root())).unwrap();
    assert_eq!(wait(on_inside), Err(millpond_messages::IoError::NoMedium));
    let shared = Permissions::all();
    wait(world.graph.ask(SetRootPermissions {
        root: new.root(),
        permissions: Permissions::CONSISTENT_READ,
        shared,
    }))
    .unwrap();
    drop(section);
    assert_eq!(wait(on_new), Ok(vec![0; 512]));
    assert_eq!(wait(on_staying), Ok(vec![0; 512]));
}

#[test]
fn a_filter_put_above_or_below_a_drained_node_is_drained_as_long_as_it_is_above() {
    let world = World::new(&["base", "other", "filter", "below"]);
    world.memory("base");
    world.memory("other");
    world.filter("filter", "base");
    let client = world.client_with("filter", READ_WRITE);
    let section = world.drain(node("base")).covers(&world, &["base", "filter"]);
    // Above: opened on what is drained already.
    world.filter("below", "other");
    assert!(!world.node("below").is_quiesced());
    let parked = writing(&client, 0, 3);
    // Below a drained parent: a section covers no children.
    wait(world.reopening(json!({"driver": "test-filter", "node-name": "filter", "file": "below"}))).unwrap();
    world.settle();
    assert!(
        !world.node("filter").is_quiesced(),
        "no longer above the drained node"
    );
    assert_eq!(wait(parked), Ok(()));
    assert_eq!(world.node("base").transfers(), 0);

    // Between a drained node and what will be its parent.
    wait(world.reopening(json!({"driver": "test-filter", "node-name": "below", "file": "base"}))).unwrap();
    world.settle();
    assert!(world.node("below").is_quiesced() && world.node("filter").is_quiesced());
    let mut parked = reading(&client, 0);
    world.settle();
    assert!(!is_ready(&mut parked));
    drop(section);
    assert_eq!(wait(parked), Ok(vec![0; 512]));
    world.settle();
    for name in ["base", "other", "filter", "below"] {
        let (begins, ends) = world.node(name).callbacks();
        assert_eq!(begins, ends, "{name}");
    }
}

/// A section that begins while a node is opened on what it covers waits for the open's own reads, and covers the node.
#[test]
fn a_drain_during_an_open_waits_for_it_and_covers_what_was_opened() {
    let world = World::new(&["base", "new"]);
    world.memory("base");
    world.node("new").hold_open(true);
    let opening = sent(world.adding(json!({"driver": "test-filter", "node-name": "new", "file": "base"})));
    let held = world.node("new").held(Step::Open);
    let mut draining = world.draining(node("base"));
    assert_eq!(world.waiting(), 1, "the open may read from its child");
    assert!(!is_ready(&mut draining));
    held.go.send(()).unwrap();
    wait(opening).unwrap();
    let section = finish(draining).covers(&world, &["base", "new"]);
    drop(section);
}

/// A section that is in force already does not hold an open up: its user may be the one that opens.
#[test]
fn an_open_inside_of_a_section_does_not_wait_for_its_end() {
    let world = World::new(&["base", "new"]);
    world.memory("base");
    let section = world.drain(node("base")).covers(&world, &["base"]);
    world.filter("new", "base");
    let section = section.covers(&world, &["new"]);
    wait(world.graph.delete_node("new")).unwrap();
    drop(section);
}

#[test]
fn a_drain_during_a_close_waits_for_it() {
    let world = diamond();
    world.node("left").hold_open(true);
    let closing = sent({
        let graph = world.graph.clone();
        async move { graph.delete_node("left").await }
    });
    let held = world.node("left").held(Step::Close);
    let mut draining = world.draining(node("base"));
    assert_eq!(world.waiting(), 1, "what closes still writes back");
    assert!(!is_ready(&mut draining));
    held.go.send(()).unwrap();
    wait(closing).unwrap();
    drop(finish(draining).covers(&world, &["base", "right"]));
}

#[test]
fn a_drain_during_a_resize_waits_for_it() {
    let world = diamond();
    let alone = world.node("alone");
    alone.hold(true);
    let resizing = sent({
        let graph = world.graph.clone();
        async move {
            graph
                .ask(Resize {
                    node_name: "alone".to_owned(),
                    size: 1 << 15,
                })
                .await
        }
    });
    let held = alone.held(Step::Request(OperationKind::Truncate));
    let mut draining = world.draining(node("alone"));
    assert_eq!(world.waiting(), 1, "the storage changes its length");
    assert!(!is_ready(&mut draining));
    alone.hold(false);
    held.go.send(()).unwrap();
    wait(resizing).unwrap();
    drop(finish(draining).covers(&world, &["alone"]));
}

#[test]
fn a_drain_during_a_flush_of_everything_waits_for_it() {
    let world = diamond();
    let client = world.client("alone");
    super::world::write(&client, 0, 1);
    let alone = world.node("alone");
    alone.hold(true);
    let flushing = sent({
        let graph = world.graph.clone();
        async move { graph.flush_all().await }
    });
    let held = alone.held(Step::Request(OperationKind::Flush));
    let draining = world.draining(node("alone"));
    assert_eq!(world.waiting(), 1);
    alone.hold(false);
    held.go.send(()).unwrap();
    wait(flushing).unwrap();
    drop(finish(draining).covers(&world, &["alone"]));
}

/// A change that waits for a request, and sections begun and ended by others meanwhile: each gets what it waited for.
#[test]
fn sections_begin_and_end_while_a_reopen_and_a_move_wait() {
    let world = diamond();
    world.iothread("io");
    let client = world.client("left");
    let base = world.node("base");
    base.hold(true);
    let request = reading(&client, 0);
    let held = base.held_read();
    let reopening =
        sent(world.reopening(json!({"driver": "test-overlay", "node-name": "left", "backing": "alone"})));
    let moving = sent({
        let graph = world.graph.clone();
        async move {
            graph
                .ask(SetIothread {
                    node_name: "right".to_owned(),
                    iothread: Some("io".to_owned()),
                    force: true,
                })
                .await
        }
    });
    let left = world.draining(node("left"));
    let given_up = world.draining(DrainScope::All);
    assert!(world.waiting() >= 2);
    drop(given_up);
    base.hold(false);
    held.go.send(()).unwrap();
    let section = finish(left).covers(&world, &["left"]);
    wait(reopening).unwrap();
    wait(moving).unwrap();
    assert_eq!(wait(request), Ok(vec![0; 512]));
    assert_eq!(world.edges(), ["left:backing:alone", "right:backing:base"]);
    let mut parked = reading(&client, 0);
    world.settle();
    assert!(!is_ready(&mut parked));
    drop(section);
    assert_eq!(wait(parked), Ok(vec![0; 512]));
    for name in ["base", "left", "right", "alone"] {
        world.settle();
        let (begins, ends) = world.node(name).callbacks();
        assert_eq!(begins, ends, "{name}");
    }
}

/// An export is a user with a root edge: it may come, and go, whatever is drained or waits to be.
#[test]
fn exports_come_and_go_while_a_drain_waits_and_while_it_lasts() {
    let world = diamond();
    let base = world.node("base");
    let reader = world.reader("base");
    base.hold(true);
    let request = reading(&reader, 0);
    let held = base.held_read();
    let draining = world.draining(node("base"));
    assert_eq!(world.waiting(), 1);
    let export = |node: &str| millpond_messages::graph::RootRequest {
        user: millpond_messages::graph::RootUser::Export("e".to_owned()),
        ..root(node, READ_WRITE)
    };
    let early = wait(world.graph.attach(export("left"))).unwrap();
    wait(world.graph.detach(early.root())).unwrap();
    let early = wait(world.graph.attach(export("left"))).unwrap();
    let mut parked = reading(&early, 0);
    base.hold(false);
    held.go.send(()).unwrap();
    let section = finish(draining).covers(&world, &["base", "left", "right"]);
    assert_eq!(wait(request), Ok(vec![0; 512]));
    let late = wait(world.graph.attach(export("right"))).unwrap();
    let refused = reading(&late, 0);
    world.settle();
    assert!(!is_ready(&mut parked));
    wait(world.graph.detach(late.root())).unwrap();
    assert_eq!(wait(refused), Err(millpond_messages::IoError::NoMedium));
    drop(section);
    assert_eq!(wait(parked), Ok(vec![0; 512]));
}
