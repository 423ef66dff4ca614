//! Drained sections beside the jobs that users start. What a case of QEMU's asks for of its own test job is asked for of
//! each of them.

use super::driver::Fails;
use super::work::{Kind, Registry, check, check_free};
use super::world::{Section, World, finish, is_ready, node, sent, wait, writing};
use millpond::job::JobOrder;
use millpond::node::Client;
use millpond_messages::graph::DrainScope;

/// What is drained, and what of the job's nodes that covers.
struct Drain {
    /// The node, or nothing for all of them.
    name: &'static str,
    covers: Vec<&'static str>,
}

impl Drain {
    fn scope(&self) -> DrainScope {
        match self.name {
            "" => DrainScope::All,
            name => node(name),
        }
    }
}

/// The source, its backing node and the target, each by itself.
fn single(kind: Kind) -> Vec<Drain> {
    let above: &[&str] = match kind {
        Kind::Commit => &["top"],
        _ => &[],
    };
    let mut drains = vec![
        Drain {
            name: "source",
            covers: [above, &["source"]].concat(),
        },
        Drain {
            name: "backing",
            covers: [above, &["source", "backing"]].concat(),
        },
    ];
    if kind.has_target() {
        drains.push(Drain {
            name: "target",
            covers: vec!["target"],
        });
    }
    drains
}

fn all(kind: Kind) -> Vec<Drain> {
    vec![Drain {
        name: "",
        covers: kind.nodes().to_vec(),
    }]
}

/// Has a job stand still in the middle of its work: begins a section, and answers it once it is still and the job is paused.
fn stand_still(world: &World, jobs: &Registry, kind: Kind, drain: &Drain) -> Section {
    let writes = drain.name == "target";
    let held_at = world.node(if writes { kind.written() } else { kind.read() });
    held_at.hold(true);
    jobs.start(kind, 0)
        .unwrap_or_else(|error| panic!("{kind:?}: {error:?}"));
    let first = held_at.held(Kind::step(writes));
    let mut draining = world.draining(drain.scope());
    assert_eq!(world.waiting(), 1, "the job's request is waited for");
    assert!(!is_ready(&mut draining));
    world.settle();
    // Nothing begins any more: what is under way is all that is let go.
    held_at.hold(false);
    first.go.send(()).expect("the driver waits");
    held_at.held.try_iter().for_each(drop);
    let section = finish(draining).covers(world, &drain.covers);
    jobs.wait_status("paused");
    let transfers = || {
        kind.nodes()
            .iter()
            .map(|name| world.node(name).transfers())
            .collect::<Vec<_>>()
    };
    let before = transfers();
    for _ in 0..10 {
        world.settle();
    }
    assert_eq!(
        transfers(),
        before,
        "{kind:?}: a job that is paused has nothing in flight"
    );
    section
}

/// Each kind of job stands still in a section, goes on by itself when that ends, and comes to its end.
fn drained(iothread: bool, drains: fn(Kind) -> Vec<Drain>) {
    for kind in Kind::ALL {
        for drain in drains(kind) {
            let world = kind.world(iothread);
            let jobs = Registry::new(&world);
            let section = stand_still(&world, &jobs, kind, &drain);
            assert!(!jobs.has_ended());
            drop(section);
            jobs.wait_status("running");
            if kind.is_completed() {
                jobs.wait_status("ready");
                jobs.order(JobOrder::Complete);
            }
            assert_eq!(jobs.wait_end(), None, "{kind:?}");
            check(&world, kind.written());
            check_free(&world, kind, iothread);
        }
    }
}

/// The same of jobs whose storage fails once the section is over.
fn failing_in_run(iothread: bool, drains: fn(Kind) -> Vec<Drain>) {
    for kind in Kind::ALL {
        for drain in drains(kind) {
            let world = kind.world(iothread);
            let before = world.edges();
            let jobs = Registry::new(&world);
            let section = stand_still(&world, &jobs, kind, &drain);
            match drain.name {
                "target" => world.node(kind.written()).fails(Fails::Write, true),
                _ => world.node(kind.read()).fails(Fails::Read, true),
            }
            drop(section);
            assert_eq!(jobs.wait_end().as_deref(), Some("Input/output error"), "{kind:?}");
            assert_eq!(world.edges(), before, "{kind:?} has left the chain as it was");
            check_free(&world, kind, iothread);
        }
    }
}

/// Has a job that copies on copy what a guest writes, so that there is something to flush in its end.
fn write_more(world: &World, kind: Kind, guest: Client) {
    let written = world.node(kind.written());
    let before = written.transfers();
    wait(writing(&guest, 0, 9)).expect("the write succeeds");
    while written.transfers() == before {
        world.settle();
    }
    wait(world.graph.detach(guest.root())).expect("the node is held");
}

/// The same of jobs that fail in the very end: those that copy on are ready and told to complete in the section, the others
/// come to their end after it. A backup ends in no step that can fail.
fn failing_in_prepare(iothread: bool, drains: fn(Kind) -> Vec<Drain>) {
    for kind in Kind::ALL {
        let Some((at, what)) = kind.last_step() else {
            continue;
        };
        for drain in drains(kind) {
            let world = kind.world(iothread);
            let before = world.edges();
            let jobs = Registry::new(&world);
            let section = if kind.is_completed() {
                let guest = world.client("source");
                jobs.start(kind, 0).expect("the job starts");
                jobs.wait_status("ready");
                write_more(&world, kind, guest);
                world.drain(drain.scope()).covers(&world, &drain.covers)
            } else {
                stand_still(&world, &jobs, kind, &drain)
            };
            world.node(at).fails(what, true);
            if kind.is_completed() {
                jobs.wait_status("standby");
                jobs.order(JobOrder::Complete);
                world.settle();
                assert!(!jobs.has_ended(), "{kind:?} ends inside of the section");
            }
            drop(section);
            let error = jobs.wait_end();
            assert_eq!(error.as_deref(), Some("Input/output error"), "{kind:?}");
            assert_eq!(world.edges(), before, "{kind:?} has left the chain as it was");
            world.node(at).fails(what, false);
            check_free(&world, kind, iothread);
        }
    }
}

/// drain-cases: blockjob/drain_all
#[test]
fn drain_all_pauses_every_job_and_its_end_lets_it_go_on() {
    drained(false, all);
}

/// drain-cases: blockjob/drain
#[test]
fn a_drain_of_a_jobs_node_pauses_it_and_its_end_lets_it_go_on() {
    drained(false, single);
}

/// drain-cases: blockjob/error/drain_all
#[test]
fn every_job_that_fails_after_drain_all_tells_its_error() {
    failing_in_run(false, all);
    failing_in_prepare(false, all);
}

/// drain-cases: blockjob/error/drain
#[test]
fn every_job_that_fails_after_a_drain_tells_its_error() {
    failing_in_run(false, single);
    failing_in_prepare(false, single);
}

/// drain-cases: blockjob/iothread/drain_all
#[test]
fn drain_all_pauses_every_job_in_an_iothread() {
    drained(true, all);
}

/// drain-cases: blockjob/iothread/drain
#[test]
fn a_drain_pauses_every_job_in_an_iothread() {
    drained(true, single);
}

/// drain-cases: blockjob/iothread/error/drain_all
#[test]
fn every_job_in_an_iothread_that_fails_after_drain_all_tells_its_error() {
    failing_in_run(true, all);
    failing_in_prepare(true, all);
}

/// drain-cases: blockjob/iothread/error/drain
#[test]
fn every_job_in_an_iothread_that_fails_after_a_drain_tells_its_error() {
    failing_in_run(true, single);
    failing_in_prepare(true, single);
}

/// drain-cases: blockjob/commit_by_drained_end. Three overlays stand on one node; the mirror of that node is told to complete
/// while the node is drained. When the section ends, so does the job, and takes the node from under all three.
#[test]
fn a_mirror_that_completes_as_the_drain_ends_takes_the_drained_node_from_under_its_parents() {
    let parents = ["first", "second", "third"];
    let names = ["source", "target", "first", "second", "third"];
    let world = World::new(&names);
    for name in ["source", "target"] {
        world.memory(name);
    }
    let guest = world.client("source");
    wait(writing(&guest, 0, 7)).expect("the write succeeds");
    wait(world.graph.detach(guest.root())).expect("the node is held");
    let jobs = Registry::new(&world);
    jobs.start(Kind::Mirror, 0).expect("the job starts");
    jobs.wait_status("ready");
    // Over what is mirrored, not beside it: so it is they that the target gets.
    let filter = wait(world.graph.facts()).expect("questions are answered");
    let filter = filter.nodes.iter().find(|node| node.driver == "mirror_top");
    let filter = filter.expect("the mirror has a filter").name.clone();
    for parent in parents {
        world.overlay(parent, &filter);
    }
    let covered = ["source", "first", "second", "third"];
    let section = world.drain(node("source")).covers(&world, &covered);
    jobs.wait_status("standby");
    jobs.order(JobOrder::Complete);
    world.settle();
    world.settle();
    assert!(!jobs.has_ended(), "it does not end inside of the section");
    let reader = world.reader("third");
    let mut parked = sent({
        let reader = reader.clone();
        async move { reader.read(0, millpond_ring::buffer::Buffers::zeroed(512)).await }
    });
    assert!(!is_ready(&mut parked));
    drop(section);
    assert_eq!(jobs.wait_end(), None);
    let (read, buffers) = wait(parked);
    assert_eq!((read, buffers.to_vec()), (Ok(()), vec![7; 512]));
    let edges = parents.map(|parent| format!("{parent}:backing:target"));
    assert_eq!(world.edges(), edges);
    for name in names {
        let (begins, ends) = world.node(name).callbacks();
        assert_eq!(begins, ends, "{name}");
    }
    drop(
        world
            .drain(node("target"))
            .covers(&world, &["target", "first", "second", "third"]),
    );
    assert!(!world.node("source").is_quiesced());
}
