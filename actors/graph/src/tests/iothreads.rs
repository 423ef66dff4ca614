//! Iothreads as objects, and what may move between them.

use millpond_messages::IoThreadId;
use millpond_messages::graph::{
    AddIothread, AttachRoot, DelIothread, DetachRoot, IothreadOptions, ServeOn, SetIothread, TuneIothread,
};
use serde_json::json;

use super::world::Told;
use super::*;

fn files(names: &[&str]) -> FakeWorld {
    let mut world = FakeWorld::new();
    for name in names {
        world.ok(add(
            json!({"driver": "file", "node-name": name, "filename": name}),
        ));
    }
    for id in ["one", "two"] {
        world.ok(AddIothread(IothreadOptions::named(id)));
    }
    world
}

fn set(node: &str, iothread: Option<&str>, force: bool) -> SetIothread {
    SetIothread {
        node_name: node.to_owned(),
        iothread: iothread.map(str::to_owned),
        force,
    }
}

fn del_iothread(id: &str) -> DelIothread {
    DelIothread { id: id.to_owned() }
}

fn home(world: &mut FakeWorld, name: &str) -> IoThreadId {
    let id = world.id(name);
    world.homes[&id]
}

/// A user in an iothread, which the node must follow or only may.
fn attach_in(node: &str, iothread: IoThreadId, required: bool) -> AttachRoot {
    let AttachRoot(request) = attach(node, READ, ALL);
    AttachRoot(millpond_messages::graph::RootRequest {
        iothread: Some(iothread),
        iothread_required: required,
        ..request
    })
}

const MAIN: IoThreadId = IoThreadId(1);
const ONE: IoThreadId = IoThreadId(2);
const TWO: IoThreadId = IoThreadId(3);

#[test]
fn properties_out_of_range_are_refused_when_made_and_when_changed() {
    type Property = fn(&mut IothreadOptions) -> &mut i64;
    let properties: [(&str, Property); 6] = [
        ("poll-max-ns", |options| &mut options.poll_max_ns),
        ("poll-grow", |options| &mut options.poll_grow),
        ("poll-shrink", |options| &mut options.poll_shrink),
        ("aio-max-batch", |options| &mut options.aio_max_batch),
        ("thread-pool-min", |options| &mut options.thread_pool_min),
        ("thread-pool-max", |options| &mut options.thread_pool_max),
    ];
    let mut world = files(&[]);
    for (name, property) in properties {
        let mut options = IothreadOptions::named("one");
        *property(&mut options) = -1;
        let text = format!("{name} value must be in range [0, 9223372036854775807]");
        assert_eq!(world.error(TuneIothread(options.clone())), text);
        options.id = "new".to_owned();
        assert_eq!(world.error(AddIothread(options)), text);
    }
    for (min, max, fits) in [(0, 0, false), (2, 1, false), (1, 1, true), (0, 1, true)] {
        let options = IothreadOptions {
            poll_max_ns: 0,
            thread_pool_min: min,
            thread_pool_max: max,
            ..IothreadOptions::named("one")
        };
        let result = world.request(TuneIothread(options));
        let text = result.err().map(|error| error.to_string());
        let refusal = "bad thread-pool-min/thread-pool-max values";
        assert_eq!(text.as_deref(), (!fits).then_some(refusal));
    }
    assert_eq!(world.told, [Told::Tune(ONE, 0), Told::Tune(ONE, 0)]);
}

#[test]
fn iothreads_are_made_and_ended_by_name() {
    let mut world = files(&["a"]);
    assert_eq!(
        world.error(AddIothread(IothreadOptions::named("one"))),
        "attempt to add duplicate property 'one' to object (type 'container')"
    );
    assert_eq!(
        world.error(TuneIothread(IothreadOptions::named("x"))),
        "Cannot find iothread x"
    );
    assert_eq!(world.error(del_iothread("x")), "object 'x' not found");
    world.ok(set("a", Some("two"), false));
    assert_eq!(
        world.error(del_iothread("two")),
        "object 'two' is in use, can not be deleted"
    );
    world.ok(del_iothread("one"));
    assert_eq!(world.told, [Told::Stop(ONE)]);
    assert_eq!(
        world.error(set("a", Some("one"), false)),
        "Cannot find iothread one"
    );
    world.ok(set("a", None, false));
    world.ok(del_iothread("two"));
    assert_eq!(home(&mut world, "a"), MAIN);
}

#[test]
fn a_node_in_use_moves_only_by_force() {
    let mut world = files(&["a", "b"]);
    world.root(attach("a", READ, ALL));
    assert_eq!(
        world.error(set("a", Some("one"), false)),
        "Node a is associated with a BlockBackend and could be in use (use force=true to override this check)"
    );
    world.ok(set("a", Some("one"), true));
    world.ok(set("b", Some("two"), true));
    assert_eq!((home(&mut world, "a"), home(&mut world, "b")), (ONE, TWO));
    assert_eq!(
        world.error(set("x", None, true)),
        "Failed to find node with node-name='x'"
    );
    world.assert_settled(&[]);
}

#[test]
fn a_node_that_is_there_already_is_not_drained_to_be_moved() {
    let mut world = files(&["a"]);
    world.ok(set("a", None, false));
    assert_eq!(world.node("a").stops, 0);
    world.ok(set("a", Some("one"), false));
    assert_eq!(world.node("a").stops, 1);
    world.ok(set("a", Some("one"), false));
    assert_eq!(world.node("a").stops, 1);
}

#[test]
fn a_user_holds_what_is_joined_to_its_node_in_its_iothread_and_nothing_else() {
    let mut world = files(&["a", "b"]);
    world.ok(add(json!({"driver": "filter", "node-name": "f", "file": "a"})));
    world.root(attach_in("a", ONE, true));
    assert_eq!((home(&mut world, "a"), home(&mut world, "f")), (ONE, ONE));
    let refusal = "Cannot change iothread of active block backend";
    for node in ["a", "f"] {
        assert_eq!(world.error(set(node, Some("two"), true)), refusal);
    }
    world.ok(set("f", Some("one"), true));
    world.ok(set("b", Some("two"), true));
    // Another user's edge crosses iothreads, whether it wants the node elsewhere or must have it there.
    world.root(attach_in("f", TWO, true));
    world.root(attach_in("f", TWO, false));
    assert_eq!((home(&mut world, "a"), home(&mut world, "f")), (ONE, ONE));
    assert_eq!(
        world.error(attach_in("b", IoThreadId(9), true)),
        "Cannot find iothread 9"
    );
    world.assert_settled(&[]);
}

#[test]
fn a_user_that_does_not_insist_lets_its_node_move_on() {
    let mut world = files(&["a"]);
    world.root(attach_in("a", ONE, false));
    assert_eq!(home(&mut world, "a"), ONE);
    world.ok(set("a", Some("two"), true));
    assert_eq!(home(&mut world, "a"), TWO);
    world.assert_settled(&[]);
}

#[test]
fn an_iothread_that_a_user_works_on_stays_until_the_user_lets_go() {
    let mut world = files(&["a"]);
    let root = world.root(attach("a", READ, ALL));
    let on = |names: &[&str]| ServeOn {
        root,
        iothreads: names.iter().map(|name| (*name).to_owned()).collect(),
    };
    world.told.clear();
    assert_eq!(world.error(on(&["two", "nine"])), "iothread \"nine\" not found");
    world.ok(del_iothread("one"));
    world.ok(on(&["two"]));
    assert_eq!(world.told, [Told::Stop(ONE), Told::Serves(root, vec![TWO])]);
    assert_eq!(
        world.error(del_iothread("two")),
        "object 'two' is in use, can not be deleted"
    );
    assert_eq!(home(&mut world, "a"), MAIN, "its node is not moved");
    world.ok(DetachRoot(root));
    world.ok(del_iothread("two"));
    world.assert_settled(&[]);
}
