//! An embedder's own job on drained nodes; those that users start are in `work_cases`.
//!
//! A job is a user with root edges on its source and its target. Draining one of them, or a node below, closes the gate
//! that its requests come through: nothing of it is in flight there when the section is still, and it goes on when the
//! section ends. Nobody has to enter it from outside. A drain waits for the work at the nodes that it covers: a sector
//! that had been read when the source came to rest may still be written to a target that is not drained.

use millpond_messages::IoError;
use millpond_messages::error::errno::EIO;
use millpond_messages::graph::{DelIothread, DrainScope, Reopen};
use millpond_messages::io::OperationKind;
use serde_json::json;

use super::driver::Step;
use super::job::{Fails, Job, Runs};
use super::world::{Section, World, node, wait};

/// A source with a backing node, and a target; the source in an iothread of its own if asked for.
fn nodes(iothread: bool) -> World {
    let world = World::new(&["backing", "source", "target"]);
    world.memory("backing");
    world.overlay("source", "backing");
    world.memory("target");
    if iothread {
        world.iothread("io");
        world.move_to("source", Some("io"));
    }
    world
}

/// What is drained, and what of source, backing node and target that covers.
const DRAINS: [(&str, &[&str]); 4] = [
    ("source", &["source"]),
    ("backing", &["source", "backing"]),
    ("target", &["target"]),
    ("", &["source", "backing", "target"]),
];

fn drain(world: &World, (name, covered): (&str, &[&str])) -> Section {
    let scope = if name.is_empty() {
        DrainScope::All
    } else {
        node(name)
    };
    world.drain(scope).covers(world, covered)
}

/// Has the job in the middle of a sector, drains, and sees it stand still until the section ends.
fn stands_still(world: &World, job: &mut Job, runs: Runs, what: (&str, &[&str])) {
    let backing = world.node("backing");
    backing.hold(true);
    let held = backing.held_read();
    let scope = if what.0.is_empty() {
        DrainScope::All
    } else {
        node(what.0)
    };
    let mut draining = world.draining(scope);
    if what.0 != "target" {
        assert_eq!(world.waiting(), 1, "the job's read is waited for");
        assert!(!super::world::is_ready(&mut draining));
    }
    backing.hold(false);
    held.go.send(()).unwrap();
    let section = super::world::finish(draining).covers(world, what.1);

    // What it was in the middle of where nothing is drained may go on; then it is at rest, wherever one looks.
    let at_rest = || {
        world.settle();
        ["backing", "target"].map(|name| world.node(name).transfers())
    };
    // A job on a thread of its own may be between two requests when nothing moves for a moment.
    let (mut before, mut calm) = (at_rest(), 0);
    while calm < 100 {
        let now = at_rest();
        calm = if now == before { calm + 1 } else { 0 };
        before = now;
    }
    let copied = job.copied();
    assert_eq!(at_rest(), before);
    assert_eq!(job.copied(), copied, "no progress inside of the section");
    assert!(!job.has_ended());
    if runs == Runs::AtHome && !what.1.contains(&"target") {
        assert!(job.is_paused(), "at its pause point");
    }

    backing.hold(true);
    let again = backing.is_idle();
    assert!(again, "no request has come inside of the section");
    drop(section);
    let held = backing.held_read();
    backing.hold(false);
    held.go.send(()).unwrap();
}

fn drained_jobs(iothread: bool, whats: &[(&str, &[&str])], fails: Fails) {
    for runs in [Runs::AtHome, Runs::OnThread] {
        let world = nodes(iothread);
        let mut job = Job::start(&world, "source", "target", runs, fails);
        for what in whats {
            stands_still(&world, &mut job, runs, *what);
        }
        let state = std::sync::Arc::clone(&job.state);
        let expected = match fails {
            Fails::Never => (Ok(()), [true, true, false]),
            Fails::InRun => (Err(IoError::Os(EIO)), [false, false, true]),
            Fails::InPrepare => (Err(IoError::Os(EIO)), [true, false, true]),
        };
        assert_eq!(job.complete(), expected.0);
        let ran = state
            .callbacks
            .each_ref()
            .map(|ran| ran.load(std::sync::atomic::Ordering::SeqCst));
        assert_eq!(ran, expected.1, "prepare, commit, abort");
        // Nobody holds the nodes any more, wherever they are.
        drop(drain(&world, DRAINS[3]));
        if iothread {
            world.move_to("source", None);
            wait(world.graph.ask(DelIothread { id: "io".to_owned() }))
                .expect("nothing was left behind there");
        }
    }
}

/// As blockjob/drain_all, of a job that an embedder brings.
#[test]
fn drain_all_has_a_job_stand_still_and_the_end_lets_it_go_on() {
    drained_jobs(false, &DRAINS[3..], Fails::Never);
}

/// As blockjob/drain, of a job that an embedder brings.
#[test]
fn a_drain_of_a_jobs_node_has_it_stand_still_and_the_end_lets_it_go_on() {
    drained_jobs(false, &DRAINS[..3], Fails::Never);
}

/// As blockjob/error/drain_all, of a job that an embedder brings.
#[test]
fn a_job_that_fails_after_drain_all_tells_its_error_and_its_callbacks_may_flush() {
    drained_jobs(false, &DRAINS[3..], Fails::InRun);
    drained_jobs(false, &DRAINS[3..], Fails::InPrepare);
}

/// As blockjob/error/drain, of a job that an embedder brings.
#[test]
fn a_job_that_fails_after_a_drain_tells_its_error_and_its_callbacks_may_flush() {
    drained_jobs(false, &DRAINS[..3], Fails::InRun);
    drained_jobs(false, &DRAINS[..3], Fails::InPrepare);
}

/// As blockjob/iothread/drain_all, of a job that an embedder brings.
///
/// The target need not follow the source into its iothread: edges lead to any thread.
#[test]
fn drain_all_has_a_job_in_an_iothread_stand_still() {
    drained_jobs(true, &DRAINS[3..], Fails::Never);
}

/// As blockjob/iothread/drain, of a job that an embedder brings.
#[test]
fn a_drain_has_a_job_in_an_iothread_stand_still() {
    drained_jobs(true, &DRAINS[..3], Fails::Never);
}

/// As blockjob/iothread/error/drain_all, of a job that an embedder brings.
#[test]
fn a_job_in_an_iothread_that_fails_after_drain_all_tells_its_error() {
    drained_jobs(true, &DRAINS[3..], Fails::InRun);
    drained_jobs(true, &DRAINS[3..], Fails::InPrepare);
}

/// As blockjob/iothread/error/drain, of a job that an embedder brings.
#[test]
fn a_job_in_an_iothread_that_fails_after_a_drain_tells_its_error() {
    drained_jobs(true, &DRAINS[..3], Fails::InRun);
    drained_jobs(true, &DRAINS[..3], Fails::InPrepare);
}

/// As blockjob/commit_by_drained_end, where the job takes the child from itself and one other parent alone: none that users
/// start does that.
#[test]
fn a_job_that_finishes_as_the_drain_ends_may_take_the_drained_child_away() {
    let world = World::new(&["child", "first", "second", "third", "target"]);
    world.memory("child");
    for parent in ["first", "second", "third"] {
        world.overlay(parent, "child");
    }
    world.memory("target");
    let graph = world.graph.clone();
    let detach = |name: &str| {
        super::world::object(json!({"driver": "test-overlay", "node-name": name, "backing": null}))
    };
    let both = vec![detach("third"), detach("second")];
    let mut job = Job::start_with(
        &world,
        "third",
        "target",
        Runs::AtHome,
        Fails::Never,
        async move {
            graph.ask(Reopen(both)).await.expect("the children can be let go");
        },
    );
    let section = world
        .drain(node("child"))
        .covers(&world, &["child", "first", "second", "third"]);
    job.finish();
    world.settle();
    world.settle();
    assert!(
        !job.has_ended(),
        "it cannot come to its end inside of the section"
    );
    let parents = [
        "first:backing:child",
        "second:backing:child",
        "third:backing:child",
    ];
    assert_eq!(world.edges(), parents);
    drop(section);
    assert_eq!(job.complete(), Ok(()));
    assert_eq!(world.edges(), ["first:backing:child"]);
    for name in ["child", "first", "second", "third"] {
        let (begins, ends) = world.node(name).callbacks();
        assert_eq!(begins, ends, "{name}");
    }
    drop(world.drain(node("child")).covers(&world, &["child", "first"]));
    assert!(!world.node("second").is_quiesced());
}

/// contract: shape 6
#[test]
fn a_job_whose_target_is_dead_is_cancelled_at_once() {
    for runs in [Runs::AtHome, Runs::OnThread] {
        let world = nodes(false);
        world.node("target").hold(true);
        let job = Job::start(&world, "source", "target", runs, Fails::Never);
        let dead = world.node("target").held(Step::Request(OperationKind::Write));
        // With a drain that waits for the dead target as well.
        let draining = world.draining(node("target"));
        assert_eq!(world.waiting(), 1);
        job.cancel();
        assert_eq!(world.waiting(), 1, "what was handed to the storage is still its");
        drop(draining);
        wait(world.graph.delete_node("source")).expect("the job has let go");
        drop(dead);
    }
}

/// contract: shape 7
#[test]
fn a_job_completes_beside_a_drain_of_everything_and_a_shutdown() {
    for runs in [Runs::AtHome, Runs::OnThread] {
        for shut_down in [false, true] {
            let world = nodes(false);
            world.node("target").hold(true);
            let mut job = Job::start(&world, "source", "target", runs, Fails::Never);
            let held = world.node("target").held(Step::Request(OperationKind::Write));
            // Both wait for the job's write: a section, and whatever comes after it in the graph.
            let graph = world.graph.clone();
            let everything = super::world::sent(async move {
                if shut_down {
                    graph.close_all().await.map(|()| None)
                } else {
                    graph.drain(DrainScope::All, "everything").await.map(Some)
                }
            });
            assert_eq!(world.waiting(), 1);
            job.finish();
            world.node("target").hold(false);
            held.go.send(()).unwrap();
            let section = wait(everything).expect("everything comes to rest");
            if shut_down {
                assert_eq!(
                    job.ended(),
                    Err(IoError::NoMedium),
                    "its nodes were closed under it"
                );
            } else {
                world.settle();
                assert!(!job.has_ended(), "its last flush waits for the section");
                drop(section);
                assert_eq!(job.complete(), Ok(()));
            }
        }
    }
}
