//! Jobs that users start, whose nodes go from iothread to iothread meanwhile.

use std::thread::ThreadId;
use std::time::Duration;

use millpond::job::JobOrder;
use millpond::node::Client;
use millpond_messages::graph::{RootRequest, SetIothread};
use millpond_messages::{ErrorKind, Permissions};

use super::driver::Held;
use super::work::{Kind, Registry, check, check_free};
use super::world::{DEADLINE, World, is_ready, on_home, read, root, wait, write};

/// The thread on which a client's node lives.
fn thread(client: &Client) -> ThreadId {
    wait(on_home(client, || async { std::thread::current().id() }))
}

/// Lets what a job does go on, step by step, until a change has ended.
fn step_until<T: Send + 'static>(
    world: &World,
    kind: Kind,
    held: Held,
    mut change: super::world::Sent<T>,
) -> T {
    let at = world.node(kind.read());
    held.go.send(()).expect("the driver waits");
    while !is_ready(&mut change) {
        // What was under way as well.
        if let Ok(next) = at.held.recv_timeout(Duration::from_millis(1)) {
            next.go.send(()).expect("the driver waits");
        }
    }
    wait(change)
}

/// drain-cases: `/attach/blockjob`
#[test]
fn every_job_follows_its_node_from_iothread_to_iothread_and_runs_in_no_other() {
    for kind in Kind::ALL {
        let world = kind.world(false);
        world.iothread("io");
        let jobs = Registry::new(&world);
        let at = world.node(kind.read());
        let watcher = world.client_with(kind.read(), Permissions::empty());
        at.hold(true);
        // One piece at a time.
        jobs.start(kind, 1 << 40).expect("the job starts");
        for place in [Some("io"), None, Some("io")] {
            let held = at
                .held
                .recv_timeout(DEADLINE)
                .unwrap_or_else(|_| panic!("{kind:?} makes progress"));
            let moved = world.moving_to("source", place);
            step_until(&world, kind, held, moved).expect("the node moves");
            let home = thread(&watcher);
            let held = at
                .held
                .recv_timeout(DEADLINE)
                .unwrap_or_else(|_| panic!("{kind:?} makes progress in {place:?}"));
            assert_eq!(held.thread, home, "{kind:?} in {place:?}");
            held.go.send(()).expect("the driver waits");
        }
        at.hold(false);
        at.held.try_iter().for_each(drop);
        if kind.is_completed() {
            jobs.wait_status("ready");
            jobs.order(JobOrder::Complete);
        }
        assert_eq!(jobs.wait_end(), None, "{kind:?}");
        wait(world.graph.detach(watcher.root())).expect("the node is held");
        check(&world, kind.written());
        check_free(&world, kind, true);
    }
}

/// drain-cases: `/propagate/mirror`
#[test]
fn source_filter_target_and_mirror_move_together_or_not_at_all() {
    for kind in [Kind::Mirror, Kind::Blocking] {
        let world = World::new(&["source", "target"]);
        for name in ["source", "target"] {
            world.memory(name);
        }
        world.iothread("io");
        let jobs = Registry::new(&world);
        jobs.start(kind, 0).expect("the job starts");
        jobs.wait_status("ready");
        let facts = wait(world.graph.facts()).expect("questions are answered");
        let filter = facts.nodes.iter().find(|node| node.driver == "mirror_top");
        let filter = filter.expect("the mirror has a filter").name.clone();
        let main = world.home("source");
        let places = || ["source", &filter, "target"].map(|name| world.home(name));
        assert_eq!(places(), [main; 3]);

        world.move_to("source", Some("io"));
        let io = world.home("source");
        assert_ne!(io, main);
        assert_eq!(places(), [io; 3]);
        world.move_to("target", None);
        assert_eq!(places(), [main; 3]);

        // A user that needs its node where it is.
        let staying = RootRequest {
            iothread: Some(main),
            iothread_required: true,
            ..root(&filter, Permissions::CONSISTENT_READ)
        };
        let staying = wait(world.graph.attach(staying)).expect("the source is shared");
        let refused = wait(world.graph.ask(SetIothread {
            node_name: "target".to_owned(),
            iothread: Some("io".to_owned()),
            force: true,
        }));
        let error = refused.expect_err("the source must stay");
        assert_eq!(error.kind(), ErrorKind::InUse);
        assert_eq!(places(), [main; 3]);
        wait(world.graph.detach(staying.root())).expect("it was attached");

        // One that does not mind goes along, and the mirror goes on there.
        let guest = world.client(&filter);
        world.move_to("target", Some("io"));
        assert_eq!(places(), [io; 3]);
        assert_eq!(guest.iothread(), io);
        write(&guest, 512, 5);
        jobs.order(JobOrder::Complete);
        assert_eq!(jobs.wait_end(), None);
        assert_eq!(world.behind(&guest), "target");
        assert_eq!(read(&guest, 512), [5; 512]);
    }
}
