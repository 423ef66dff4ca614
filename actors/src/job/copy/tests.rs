//! A copy whose every request ends when the test says so.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::Waker;

use futures_channel::oneshot;
use futures_executor::LocalPool;
use futures_util::task::LocalSpawnExt;
use millpond_messages::qapi::schema::IoOperationType;
use millpond_messages::{ChunkSet, IoError, Range};
use millpond_ring::buffer::Buffers;

use super::{Copier, Copying, Fault, FaultVerdict, Left, Need, Stopped};
use crate::job::pace::{Gates, Pace};

const CHUNK: u64 = 4096;
const CHUNKS: u64 = 20;
const MOST: usize = 4;

/// What ends a piece.
type End = oneshot::Sender<Result<(), Fault>>;

/// What the disk needs, and who waits for the test.
#[derive(Default)]
struct Work {
    under_way: RefCell<Vec<(Range, End)>>,
    /// Each piece that was copied, in the order in which they ended.
    copied: RefCell<Vec<Range>>,
    passed: Cell<u64>,
    /// The waker of a gate that is closed.
    closed: RefCell<Option<Waker>>,
    is_closed: Cell<bool>,
    has_moved: Cell<bool>,
    ends_on_fault: Cell<bool>,
}

const FAULT: Fault = Fault {
    operation: IoOperationType::Write,
    error: IoError::NoSpace,
};

impl Gates for Rc<Work> {
    fn watch(&self, waker: &Waker) -> bool {
        self.closed.replace(Some(waker.clone()));
        !self.is_closed.get()
    }
}

impl Copying for Rc<Work> {
    async fn look(&self, range: Range) -> Result<(u64, Need), Fault> {
        // The second half of the disk is zeroes.
        let middle = CHUNKS / 2 * CHUNK;
        Ok(match range.offset() < middle {
            true => (middle - range.offset(), Need::Data),
            false => (range.len(), Need::Zeroes),
        })
    }

    async fn copy(&self, piece: Range, _: Need, room: Buffers) -> (Result<(), Fault>, Buffers) {
        let (end, ended) = oneshot::channel();
        self.under_way.borrow_mut().push((piece, end));
        let result = ended.await.expect("the test ends each piece");
        if result.is_ok() {
            self.copied.borrow_mut().push(piece);
        }
        (result, room)
    }

    fn begins(&self, _: Range, _: Need) {}

    fn failed(&self, _: Fault) -> FaultVerdict {
        match self.ends_on_fault.get() {
            true => FaultVerdict::End,
            false => FaultVerdict::Again,
        }
    }

    fn passed(&self, bytes: u64) {
        self.passed.set(self.passed.get() + bytes);
    }

    fn has_moved(&self) -> bool {
        self.has_moved.get()
    }
}

/// A copy under way, and what the test does to it.
struct Scene {
    pool: LocalPool,
    work: Rc<Work>,
    left: Rc<RefCell<Left>>,
    pace: Pace,
    ended: Rc<Cell<Option<Result<(), Stopped>>>>,
}

fn begin() -> Scene {
    let disk = Range::new(0, CHUNKS * CHUNK).expect("a disk of that size");
    let mut chunks = ChunkSet::new(disk.len(), CHUNK).expect("a disk of that size");
    chunks.insert(disk);
    let scene = Scene {
        pool: LocalPool::new(),
        work: Rc::default(),
        left: Rc::new(RefCell::new(Left::new(chunks, CHUNK))),
        pace: Pace::new(|_| {}),
        ended: Rc::default(),
    };
    let (work, left, pace) = (Rc::clone(&scene.work), Rc::clone(&scene.left), scene.pace.clone());
    let ended = Rc::clone(&scene.ended);
    let copy = async move {
        let most = MOST;
        let (work, left, pace) = (&work, &*left, &pace);
        let copier = Copier {
            work,
            left,
            pace,
            most,
        };
        ended.set(Some(copier.run().await));
    };
    scene.pool.spawner().spawn_local(copy).expect("the pool runs");
    scene
}

impl Scene {
    fn settle(&mut self) {
        self.pool.run_until_stalled();
    }

    fn under_way(&self) -> usize {
        self.work.under_way.borrow().len()
    }

    /// Ends the oldest piece.
    fn end_one(&mut self, result: Result<(), Fault>) {
        let (_, end) = self.work.under_way.borrow_mut().remove(0);
        end.send(result).expect("the copy waits for it");
        self.settle();
    }

    fn end_all(&mut self) {
        while self.under_way() > 0 {
            self.end_one(Ok(()));
        }
    }
}

#[test]
fn so_many_pieces_are_under_way_and_no_more() {
    let mut scene = begin();
    scene.settle();
    assert_eq!(scene.under_way(), MOST);
    scene.end_one(Ok(()));
    assert_eq!(scene.under_way(), MOST);
    scene.end_all();
    assert_eq!(scene.ended.get(), Some(Ok(())));
    assert_eq!(scene.work.passed.get(), CHUNKS * CHUNK);
    // Ten chunks one by one, and the zeroes at once.
    assert_eq!(scene.work.copied.borrow().len(), 11);
}

#[test]
fn a_copy_is_paused_with_nothing_under_way() {
    let mut scene = begin();
    scene.settle();
    scene.pace.pause();
    scene.settle();
    assert!(!scene.pace.is_resting(), "it has pieces under way");
    while scene.under_way() > 0 {
        scene.end_one(Ok(()));
    }
    assert!(scene.pace.is_resting());
    assert_eq!(
        scene.work.copied.borrow().len(),
        MOST,
        "what was under way, and nothing new"
    );
    scene.pace.resume();
    scene.settle();
    assert_eq!(scene.under_way(), MOST);
    scene.end_all();
    assert_eq!(scene.ended.get(), Some(Ok(())));
}

#[test]
fn a_gate_that_closes_holds_the_copy_and_one_that_opens_lets_it_go_on() {
    let mut scene = begin();
    scene.settle();
    scene.work.is_closed.set(true);
    scene.end_all();
    assert_eq!(scene.work.copied.borrow().len(), MOST);
    scene.work.is_closed.set(false);
    let waker = scene.work.closed.take().expect("the copy watches its gates");
    waker.wake();
    scene.settle();
    scene.end_all();
    assert_eq!(scene.ended.get(), Some(Ok(())));
}

#[test]
fn a_piece_that_failed_is_copied_again() {
    let mut scene = begin();
    scene.settle();
    scene.end_one(Err(FAULT));
    scene.end_all();
    assert_eq!(scene.ended.get(), Some(Ok(())));
    let copied = scene.work.copied.borrow();
    assert!(
        copied.iter().any(|piece| piece.offset() == 0),
        "the first piece is missing"
    );
}

#[test]
fn a_fault_that_ends_the_job_waits_for_the_other_pieces() {
    let mut scene = begin();
    scene.work.ends_on_fault.set(true);
    scene.settle();
    scene.end_one(Err(FAULT));
    assert_eq!((scene.ended.get(), scene.under_way()), (None, MOST - 1));
    scene.end_all();
    assert_eq!(scene.ended.get(), Some(Err(Stopped::Failed(FAULT))));
}

#[test]
fn a_copy_whose_source_has_moved_ends_with_nothing_under_way_and_goes_on_elsewhere() {
    let mut scene = begin();
    scene.settle();
    scene.work.has_moved.set(true);
    scene.end_one(Ok(()));
    assert_eq!(scene.ended.get(), None, "pieces are under way");
    scene.end_all();
    assert_eq!(scene.ended.get(), Some(Err(Stopped::Moved)));
    assert!(matches!(
        scene.left.borrow_mut().take_next(),
        millpond_drivers::replica::left::Next::Piece(..)
    ));
}
