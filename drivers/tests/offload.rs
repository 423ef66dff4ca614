//! Copies without a buffer between two children: what is cut, what is given back, and who refuses for how long.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;

use futures_executor::block_on;
use millpond_drivers::api::{Answer, Child, ChildPort};
use millpond_drivers::replica::offload::Offload;
use millpond_messages::io::{CopyRequest, Operation, Outcome, Value};
use millpond_messages::{CopySource, IoError, IoResult, Lender, Limits, Range};
use millpond_ring::buffer::Buffers;

const CHUNK: u64 = 4096;

/// A disk that notes what it is asked.
struct Disk {
    file: Arc<OwnedFd>,
    /// How much it lends at once; nothing if that is 0.
    lends: Cell<u64>,
    takes: Cell<IoResult<()>>,
    lent: RefCell<Vec<Range>>,
    /// What was taken, and from which offset of the source's file.
    taken: RefCell<Vec<(Range, u64)>>,
    given_back: Cell<usize>,
}

impl Disk {
    fn new() -> Rc<Self> {
        Rc::new(Self {
            file: Arc::new(File::open("/dev/null").unwrap().into()),
            lends: Cell::new(u64::MAX),
            takes: Cell::new(Ok(())),
            lent: RefCell::default(),
            taken: RefCell::default(),
            given_back: Cell::default(),
        })
    }

    async fn lend(&self, lender: Lender) -> IoResult<()> {
        let range = lender.range();
        self.lent.borrow_mut().push(range);
        let len = range.len().min(self.lends.get());
        if len == 0 {
            return Err(IoError::NotSupported);
        }
        let source = CopySource {
            file: Arc::clone(&self.file),
            offset: 1_000_000 + range.offset(),
        };
        lender.lend(source, len).await;
        self.given_back.set(self.given_back.get() + 1);
        Ok(())
    }
}

struct Port(Rc<Disk>);

impl ChildPort for Port {
    fn request(&self, operation: Operation<Buffers>) -> Answer<'static, Outcome<Buffers>> {
        let disk = Rc::clone(&self.0);
        Answer::wait(async move {
            let result = match operation {
                Operation::Copy(CopyRequest::Out(lender)) => disk.lend(lender).await,
                Operation::Copy(CopyRequest::In { range, source, .. }) => {
                    disk.taken.borrow_mut().push((range, source.offset));
                    disk.takes.get()
                }
                other => panic!("nothing else is asked: {other:?}"),
            };
            Outcome::plain(result.map(|()| Value::Done))
        })
    }

    fn limits(&self) -> Limits {
        Limits::default()
    }

    fn is_connected(&self) -> bool {
        true
    }

    fn node_name(&self) -> String {
        "disk".to_owned()
    }

    fn filename(&self) -> String {
        "disk".to_owned()
    }
}

fn copied(offload: &Offload, [source, target]: [&Rc<Disk>; 2], range: Range) -> bool {
    let [from, to] = [source, target].map(|disk| Child::new(Rc::new(Port(Rc::clone(disk)))));
    block_on(offload.copy([&from, &to], range, CHUNK))
}

#[test]
fn a_range_is_copied_in_whole_chunks_and_all_of_it_is_given_back() {
    let (source, target) = (Disk::new(), Disk::new());
    let offload = Offload::new(true);
    source.lends.set(2 * CHUNK + 5);
    assert!(copied(
        &offload,
        [&source, &target],
        Range::between(CHUNK, 6 * CHUNK + 7)
    ));
    let part = |from, to| Range::between(from, to);
    let expected = [
        part(CHUNK, 3 * CHUNK),
        part(3 * CHUNK, 5 * CHUNK),
        part(5 * CHUNK, 6 * CHUNK + 7),
    ];
    let expected = expected.map(|range| (range, 1_000_000 + range.offset()));
    assert_eq!(*target.taken.borrow(), expected);
    assert_eq!(source.given_back.get(), expected.len());
}

#[test]
fn less_than_a_chunk_is_given_back_unused() {
    let (source, target) = (Disk::new(), Disk::new());
    let offload = Offload::new(true);
    source.lends.set(CHUNK - 1);
    assert!(!copied(
        &offload,
        [&source, &target],
        Range::between(0, 2 * CHUNK)
    ));
    assert!(target.taken.borrow().is_empty());
    assert_eq!(source.given_back.get(), 1);
    assert!(offload.is_on());
}

#[test]
fn a_source_is_asked_again_and_a_target_that_cannot_is_not() {
    let (source, target) = (Disk::new(), Disk::new());
    let offload = Offload::new(true);
    let range = Range::between(0, CHUNK);
    source.lends.set(0);
    assert!(!copied(&offload, [&source, &target], range));
    source.lends.set(u64::MAX);
    assert!(copied(&offload, [&source, &target], range));
    // What has failed may well be copied the next time.
    target.takes.set(Err(IoError::NoSpace));
    assert!(!copied(&offload, [&source, &target], range));
    assert!(offload.is_on());
    target.takes.set(Err(IoError::NotSupported));
    assert!(!copied(&offload, [&source, &target], range));
    assert!(!offload.is_on());
    let asked = source.lent.borrow().len();
    assert!(!copied(&offload, [&source, &target], range));
    assert_eq!(source.lent.borrow().len(), asked);
    assert!(!copied(&Offload::new(false), [&source, &Disk::new()], range));
}
