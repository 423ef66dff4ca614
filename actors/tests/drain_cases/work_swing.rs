//! Jobs in full swing, and what others feel of that: how long a section waits, what is held for a target that
//! never answers.

use millpond::job::JobOrder;
use millpond_messages::graph::Snapshot;
use millpond_messages::io::OperationKind;
use serde_json::json;

use super::driver::{Held, Step};
use super::work::{DISK, Kind, Registry, check, check_free};
use super::world::{Node, World, finish, is_ready, node, sent, wait, write, writing};

/// A mirror in full swing: all its pieces are under way and sixty-four writes of a guest are. A drain ends as soon as those
/// have ended, and nothing of either begins after it was asked for.
#[test]
fn a_drain_beside_a_mirror_in_full_swing_waits_for_what_is_under_way_and_nothing_else() {
    for kind in [Kind::Mirror, Kind::Blocking] {
        for iothread in [false, true] {
            full_swing(kind, iothread);
        }
    }
}

/// Writes of a guest.
const WRITES: u64 = 64;

/// Takes all requests that come to where they are held, until no more do.
fn all_held(world: &World, node: &Node, held: &mut Vec<Held>) {
    let mut calm = 0;
    while calm < 300 {
        world.settle();
        let before = held.len();
        held.extend(node.held.try_iter());
        calm = if held.len() == before { calm + 1 } else { 0 };
    }
}

fn full_swing(kind: Kind, iothread: bool) {
    let world = kind.world(iothread);
    let jobs = Registry::new(&world);
    let (source, target) = (world.node("source"), world.node("target"));
    let guest = world.client("source");
    target.hold(true);
    jobs.start(kind, 0).expect("the job starts");
    // The guest's end of the disk is where the job comes last.
    let end = DISK as u64;
    let mut pieces = vec![target.held(Kind::step(true))];
    all_held(&world, target, &mut pieces);
    source.hold(true);
    let writes: Vec<_> = (0..WRITES)
        .map(|at| writing(&guest, end - (at + 1) * 512, 9))
        .collect();
    let mut held: Vec<_> = (0..WRITES).map(|_| source.held(Kind::step(true))).collect();
    all_held(&world, target, &mut pieces);
    let mut draining = world.draining(node("source"));
    assert_eq!(world.waiting(), 1, "the gate is closed by now");
    world.settle();
    let late = writing(&guest, 0, 9);
    assert!(!is_ready(&mut draining));

    // One after the other ends, and none takes its place; a write-blocking mirror's write goes on to the target, which is part
    // of the write.
    let ended = source.transfers();
    while let Some(one) = held.pop() {
        one.go.send(()).expect("the driver waits");
        world.settle();
    }
    all_held(&world, target, &mut pieces);
    assert_eq!(source.transfers() - ended, WRITES as u32);
    let under_way = pieces.len();
    let of_guest = match kind {
        Kind::Blocking => WRITES as usize,
        _ => 0,
    };
    assert!((1..=16).contains(&(under_way - of_guest)), "{under_way} requests");
    assert!(!is_ready(&mut draining), "the pieces are under way");
    let before = target.transfers();
    for piece in pieces {
        assert!(!is_ready(&mut draining));
        piece.go.send(()).expect("the driver waits");
        world.settle();
    }
    let section = finish(draining).covers(&world, &["source"]);
    assert_eq!(target.transfers() - before, under_way as u32);
    assert!(target.is_idle() && source.is_idle(), "nothing has begun since");
    for write in writes {
        assert_eq!(wait(write), Ok(()));
    }
    target.hold(false);
    source.hold(false);
    drop(section);
    assert_eq!(wait(late), Ok(()));
    jobs.wait_status("ready");
    jobs.order(JobOrder::Cancel { force: false });
    assert_eq!(jobs.wait_end(), None);
    wait(world.graph.detach(guest.root())).expect("the node is held");
    check_free(&world, kind, iothread);
}

/// A guest goes on writing for as long as one likes: of a target that never answers no more is asked than the job may have
/// under way, and what is left to copy is never more than the disk.
#[test]
fn a_mirror_to_a_target_that_never_answers_has_no_more_under_way_however_much_is_written() {
    let kind = Kind::Mirror;
    let world = kind.world(false);
    let jobs = Registry::new(&world);
    let target = world.node("target");
    let guest = world.client("source");
    target.hold(true);
    jobs.start(kind, 0).expect("the job starts");
    let mut held = vec![target.held(Kind::step(true))];
    all_held(&world, target, &mut held);
    let sectors = DISK as u64 / 512;
    for at in 0..20_000 {
        let write = writing(&guest, at * 7919 % sectors * 512, 9);
        assert_eq!(wait(write), Ok(()), "the guest does not wait for the target");
        held.extend(target.held.try_iter());
    }
    all_held(&world, target, &mut held);
    assert!(held.len() <= 16, "{} pieces are under way", held.len());
    let (len, offset) = jobs.progress();
    assert!(len - offset <= DISK as i64, "{len} in all, {offset} done");
    drop(held);
    target.hold(false);
    jobs.wait_status("ready");
    jobs.order(JobOrder::Cancel { force: false });
    assert_eq!(jobs.wait_end(), None);
    wait(world.graph.detach(guest.root())).expect("the node is held");
}

/// The same of a backup: writes wait for what they change to be copied, so that of the target no more is asked than the job
/// and the guest have in flight.
#[test]
fn a_backup_to_a_target_that_never_answers_has_no_more_under_way_than_it_and_its_guest_may() {
    let kind = Kind::Backup;
    let world = kind.world(false);
    let jobs = Registry::new(&world);
    let target = world.node("target");
    let guest = world.client("source");
    target.hold(true);
    jobs.start(kind, 0).expect("the job starts");
    let mut held = vec![target.held(Kind::step(true))];
    all_held(&world, target, &mut held);
    let workers = held.len();
    assert!(workers <= 8, "{workers} pieces are under way");
    // Of a chunk of its own each, where the job has not come yet.
    let chunk = 65_536;
    let end = DISK as u64;
    let mut writes: Vec<_> = (0..WRITES)
        .map(|at| writing(&guest, end - (at + 1) * chunk, 9))
        .collect();
    all_held(&world, target, &mut held);
    assert_eq!(held.len() - workers, WRITES as usize, "a copy for each write");
    assert!(
        writes.iter_mut().all(|write| !is_ready(write)),
        "no write comes before its copy"
    );
    // More of them to the same chunks wait for those copies.
    writes.extend((0..WRITES).map(|at| writing(&guest, end - (at + 1) * chunk + 512, 9)));
    let before = held.len();
    all_held(&world, target, &mut held);
    assert_eq!(held.len(), before);
    drop(held);
    target.hold(false);
    for write in writes {
        assert_eq!(wait(write), Ok(()));
    }
    assert_eq!(jobs.wait_end(), None);
    check(&world, "target");
    wait(world.graph.detach(guest.root())).expect("the node is held");
}

/// A target that dies once it has taken writes holds up no flush of the guest, and not the end of a mirror that is cancelled.
#[test]
fn a_target_that_has_died_holds_up_neither_a_flush_nor_a_cancellation() {
    for kind in [Kind::Mirror, Kind::Blocking] {
        let world = kind.world(false);
        let before = world.edges();
        let jobs = Registry::new(&world);
        let target = world.node("target");
        let guest = world.client("source");
        jobs.start(kind, 0).expect("the job starts");
        jobs.wait_status("ready");
        let copied = target.transfers();
        write(&guest, 0, 9);
        while target.transfers() == copied {
            world.settle();
        }
        target.hold(true);
        assert_eq!(wait(guest.flush()), Ok(()), "{kind:?}");
        jobs.order(JobOrder::Cancel { force: true });
        jobs.wait_cancelled();
        assert_eq!(world.edges(), before, "the filter is gone");
        write(&guest, 512, 9);
        wait(world.graph.detach(guest.root())).expect("the node is held");
    }
}

/// What takes long is done before anybody waits: most of what a snapshot has to flush is flushed while requests still come
/// and go.
#[test]
fn a_snapshot_flushes_its_node_before_it_is_drained() {
    let world = World::new(&["source", "overlay"]);
    world.memory("source");
    world.add(json!({"driver": "test-overlay", "node-name": "overlay", "backing": null}));
    let source = world.node("source");
    let guest = world.client("source");
    write(&guest, 0, 1);
    source.hold(true);
    let snapshot = Snapshot {
        node: "source".to_owned(),
        overlay: "overlay".to_owned(),
    };
    let snapshot = sent({
        let graph = world.graph.clone();
        async move { graph.ask(snapshot).await }
    });
    let flush = source.held(Step::Request(OperationKind::Flush));
    assert!(!source.is_quiesced(), "it is flushed before it is drained");
    assert_eq!(world.waiting(), 0);
    // What comes meanwhile is written, and flushed once nothing is written any more.
    let mut late = writing(&guest, 512, 2);
    source
        .held(Step::Request(OperationKind::Write))
        .go
        .send(())
        .expect("the driver waits");
    assert_eq!(wait(&mut late), Ok(()));
    flush.go.send(()).expect("the driver waits");
    let flush = source.held(Step::Request(OperationKind::Flush));
    assert!(source.is_quiesced());
    source.hold(false);
    flush.go.send(()).expect("the driver waits");
    wait(snapshot).expect("the overlay is put there");
    assert_eq!(world.behind(&guest), "overlay");
}
