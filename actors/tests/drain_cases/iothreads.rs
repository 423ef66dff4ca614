//! Sections over nodes that live on other threads than those that drain them, and nodes that move inside of sections.

use millpond::graph::DrainGuard;
use millpond_messages::RequestFlags;
use millpond_messages::graph::{DelIothread, DrainScope};
use millpond_messages::io::OperationKind;

use super::driver::Step;
use super::world::{World, bytes, finish, node, on_home, read, reading, sent, wait, writing};

type Drained = millpond_messages::Result<DrainGuard>;

/// Node a lives on iothread A, node b on B. Two items are in flight on a: a read that only a task on B can end, and a
/// write that goes on to flush, as an admitted request may.
fn across_three_threads(drain: impl FnOnce(&World) -> super::world::Sent<Drained>) {
    let world = World::new(&["a", "b"]);
    for (name, iothread) in [("a", "A"), ("b", "B")] {
        world.memory(name);
        world.iothread(iothread);
        world.move_to(name, Some(iothread));
    }
    let (on_a, on_b) = (world.client("a"), world.reader("b"));
    assert_ne!(on_a.iothread(), on_b.iothread());
    let a = world.node("a");
    a.hold(true);
    let mut request = reading(&on_a, 0);
    let read = a.held_read();
    let write = sent({
        let on_a = on_a.clone();
        async move { on_a.write(0, bytes(1, 512), RequestFlags::FUA).await.0 }
    });
    let writes = a.held(Step::Request(OperationKind::Write));

    let mut draining = drain(&world);
    assert_eq!(world.waiting(), 1);
    wait(on_home(&on_b, move || async move { read.go.send(()) })).unwrap();
    writes.go.send(()).unwrap();
    let flushes = a.held(Step::Request(OperationKind::Flush));
    assert_eq!(world.waiting(), 1, "the second item still flushes");
    assert!(!super::world::is_ready(&mut draining));
    wait(on_home(&on_b, move || async move { flushes.go.send(()) })).unwrap();

    let section = finish(draining).covers(&world, &["a"]);
    assert_eq!(a.transfers(), 2, "both had ended when begin returned");
    drop(section);
    assert_eq!(wait(&mut request), Ok(vec![0; 512]));
    assert_eq!(wait(write), Ok(()));
}

/// drain-cases: iothread/drain_all
#[test]
fn drain_all_of_a_node_elsewhere_waits_for_what_a_third_thread_ends() {
    across_three_threads(|world| world.draining(DrainScope::All));
}

/// drain-cases: iothread/drain
#[test]
fn a_drain_of_a_node_elsewhere_waits_for_what_a_third_thread_ends() {
    across_three_threads(|world| world.draining(node("a")));
}

/// drain-cases: iothread/drain
#[test]
fn a_drain_begun_on_the_nodes_own_iothread_waits_for_what_another_thread_ends() {
    across_three_threads(|world| {
        let (client, graph) = (world.reader("a"), world.graph.clone());
        let begun = on_home(
            &client,
            move || async move { graph.drain(node("a"), "task").await },
        );
        // Known to the graph before it is asked what it waits for.
        while world.waiting() == 0 {
            std::thread::yield_now();
        }
        begun
    });
}

/// drain-cases: set_aio_context
#[test]
fn a_node_moves_to_and_fro_inside_of_one_section() {
    let world = World::new(&["below", "above"]);
    world.memory("below");
    world.filter("above", "below");
    world.iothread("A");
    world.iothread("B");
    let client = world.client("above");
    let home = client.iothread();
    let section = world.drain(DrainScope::All).covers(&world, &["above", "below"]);
    world.move_to("above", Some("A"));
    assert_ne!(client.iothread(), home);
    drop(section);
    assert_eq!(read(&client, 0), [0; 512]);

    let section = world.drain(DrainScope::All).covers(&world, &["above", "below"]);
    let parked: Vec<_> = (0..4_u8)
        .map(|i| writing(&client, u64::from(i) * 512, i + 1))
        .collect();
    for iothread in [Some("B"), Some("A"), Some("B"), None] {
        world.move_to("above", iothread);
    }
    assert_eq!(client.iothread(), home);
    assert_eq!(world.node("below").transfers(), 1, "only the read before");
    drop(section);
    for request in parked {
        assert_eq!(wait(request), Ok(()));
    }
    for i in 0..4_u8 {
        assert_eq!(read(&client, u64::from(i) * 512), [i + 1; 512]);
    }
    for name in ["below", "above"] {
        assert_eq!(world.node(name).callbacks(), (2, 2), "moves call nothing");
    }
    for iothread in ["A", "B"] {
        wait(world.graph.ask(DelIothread {
            id: iothread.to_owned(),
        }))
        .expect("nothing was left behind there");
    }
}
