//! A file whose storage fails once: the kernel tells it to whoever asks first, and counts what it gave up as stored from
//! then on. Nobody who asks for durability is told that there is any, neither later nor beside that.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod host;

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use futures_util::future::join;
use host::{Node, run};
use millpond_messages::{IoError, IoResult, OpenFlags, RequestFlags};
use millpond_ring::buffer::Buffer;
use millpond_ring::{
    Backend, Completion, Engine, Monotonic, Op, Ring, RingStats, SleepFor, SlotId, Slots, Wake,
};

/// Which of the operations on a file fail, and which of those in flight together ends first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fails {
    Nothing,
    DurableWrites,
    Flushes,
}

/// Does what the kernel would on request, or fails.
struct Failing {
    fails: Rc<Cell<Fails>>,
    in_flight: Vec<(SlotId, bool, i32)>,
}

impl Backend for Failing {
    fn engine(&self) -> Engine {
        Engine::Other
    }

    fn submit(&mut self, id: SlotId, op: &mut Op) {
        let fails = self.fails.get();
        let failed = |hit: bool, result: i32| if hit { -libc::EIO } else { result };
        let result = match op {
            Op::Blocking(job) => {
                if let Some(job) = job.take() {
                    job();
                }
                0
            }
            Op::Write { bufs, fua, .. } => failed(*fua && fails == Fails::DurableWrites, bufs.len() as i32),
            Op::Sync { .. } => failed(fails == Fails::Flushes, 0),
            other => panic!("{other:?} is not expected"),
        };
        let ends_first = result < 0;
        self.in_flight.push((id, ends_first, result));
    }

    fn cancel(&mut self, _id: SlotId, _op: &mut Op) {}

    fn has_work(&mut self) -> bool {
        !self.in_flight.is_empty()
    }

    fn turn(&mut self, _slots: &mut Slots, _sleep_for: SleepFor, done: &mut Vec<Completion>) {
        self.in_flight.sort_by_key(|(_, ends_first, _)| !ends_first);
        if !self.in_flight.is_empty() {
            let (id, _, result) = self.in_flight.remove(0);
            done.push(Completion { id, result });
        }
    }

    fn stats(&self) -> RingStats {
        RingStats::default()
    }
}

/// What a flush and a durable write come to that are in flight together.
fn both(fails: Fails) -> (Node, IoResult<()>, IoResult<()>) {
    let script = Rc::new(Cell::new(Fails::Nothing));
    let backend = Failing {
        fails: Rc::clone(&script),
        in_flight: Vec::new(),
    };
    let ring = Ring::with_backend(
        Box::new(backend),
        Arc::new(Wake::new().unwrap()),
        Rc::new(Monotonic),
    );
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(4096).unwrap();
    let node = Node::file(&ring, file.path(), OpenFlags::RDWR).unwrap();
    script.set(fails);
    let data = Buffer::from_slice(&[7; 512]);
    let write = Rc::clone(&node.driver).write(0, data.into(), RequestFlags::FUA);
    let (flushed, (written, _)) = run(&ring, join(node.driver.flush(), write));
    script.set(Fails::Nothing);
    (node, flushed, written)
}

const EIO: IoResult<()> = Err(IoError::Os(libc::EIO));

#[test]
fn without_a_failure_both_succeed() {
    let (node, flushed, written) = both(Fails::Nothing);
    assert_eq!((flushed, written), (Ok(()), Ok(())));
    assert_eq!(run(&node.ring, node.driver.flush()), Ok(()));
}

#[test]
fn a_flush_beside_a_durable_write_that_failed_fails() {
    let (node, flushed, written) = both(Fails::DurableWrites);
    assert_eq!((flushed, written), (EIO, EIO));
    assert_eq!(
        run(&node.ring, node.driver.flush()),
        EIO,
        "and so do all later ones"
    );
}

#[test]
fn a_durable_write_beside_a_flush_that_failed_fails() {
    let (node, flushed, written) = both(Fails::Flushes);
    assert_eq!((flushed, written), (EIO, EIO));
    let write = |flags| {
        let data = Buffer::from_slice(&[7; 512]);
        run(&node.ring, Rc::clone(&node.driver).write(0, data.into(), flags)).0
    };
    assert_eq!(write(RequestFlags::empty()), Ok(()), "nothing is promised of it");
    assert_eq!(write(RequestFlags::FUA), EIO);
}
