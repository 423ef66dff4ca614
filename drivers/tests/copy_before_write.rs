//! Who waits for whom in `copy-before-write`: children whose requests end when the test says so.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod host;

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use futures_util::FutureExt;
use host::run;
use millpond_drivers::api::{Answer, Child, ChildPort, Driver, Notices, OpenRequest};
use millpond_drivers::builtin::builtin;
use millpond_messages::io::{Operation, Outcome, Value};
use millpond_messages::{BlockStatus, Limits, OpenFlags, RequestFlags, StatusFlags};
use millpond_ring::buffer::Buffers;
use millpond_ring::{Engine, Ring};
use serde_json::Map;

const SIZE: u64 = 1 << 20;

/// A disk of one byte all over, whose writes and reads can be held up.
struct Disk {
    byte: Cell<u8>,
    is_held: Cell<bool>,
    held: RefCell<Vec<std::task::Waker>>,
}

impl Disk {
    fn new(byte: u8) -> Rc<Self> {
        Rc::new(Self {
            byte: Cell::new(byte),
            is_held: Cell::default(),
            held: RefCell::default(),
        })
    }

    fn let_go(&self) {
        self.is_held.set(false);
        self.held.take().into_iter().for_each(std::task::Waker::wake);
    }

    async fn pass(&self) {
        std::future::poll_fn(|context| match self.is_held.get() {
            true => {
                self.held.borrow_mut().push(context.waker().clone());
                std::task::Poll::Pending
            }
            false => std::task::Poll::Ready(()),
        })
        .await;
    }

    fn carry_out(&self, operation: Operation<Buffers>) -> Outcome<Buffers> {
        let done = |buffers| Outcome {
            result: Ok(Value::Done),
            buffers,
        };
        match operation {
            Operation::Read { mut buffers, .. } => {
                let bytes = vec![self.byte.get(); buffers.len()];
                buffers.copy_from_slice(0, &bytes);
                done(Some(buffers))
            }
            Operation::Write { buffers, .. } => {
                self.byte.set(buffers.to_vec()[0]);
                done(Some(buffers))
            }
            Operation::Length => Outcome::plain(Ok(Value::Bytes(SIZE))),
            Operation::BlockStatus { range, .. } => Outcome::plain(Ok(Value::Status(BlockStatus {
                flags: StatusFlags::DATA | StatusFlags::ALLOCATED,
                len: range.len(),
                map: None,
                depth: 1,
            }))),
            _ => done(None),
        }
    }
}

struct Port(Rc<Disk>);

impl ChildPort for Port {
    fn request(&self, operation: Operation<Buffers>) -> Answer<'static, Outcome<Buffers>> {
        let disk = Rc::clone(&self.0);
        Answer::wait(async move {
            if matches!(operation, Operation::Read { .. } | Operation::Write { .. }) {
                disk.pass().await;
            }
            disk.carry_out(operation)
        })
    }

    fn limits(&self) -> Limits {
        Limits::default()
    }

    fn is_connected(&self) -> bool {
        true
    }

    fn node_name(&self) -> String {
        "below".to_owned()
    }

    fn filename(&self) -> String {
        "below".to_owned()
    }
}

/// The filter over two disks, whose source has ones.
fn open(ring: &Ring) -> (Rc<dyn Driver>, Rc<Disk>, Rc<Disk>) {
    let (source, target) = (Disk::new(1), Disk::new(0));
    let child = |disk: &Rc<Disk>| Child::new(Rc::new(Port(Rc::clone(disk))));
    let registry = builtin();
    let kind = registry.find("copy-before-write").unwrap();
    let request = OpenRequest {
        node_name: "node".to_owned(),
        options: Map::new(),
        flags: OpenFlags::RDWR,
        children: vec![child(&source), child(&target)],
        ring: ring.clone(),
        notices: Notices::nowhere(),
    };
    let opened = run(ring, kind.open(request)).unwrap();
    (opened.driver, source, target)
}

/// A read of the moment that waited for a copy looks again where its chunk is: the write that the copy was made for may have
/// changed the source by then.
#[test]
fn a_read_of_the_moment_that_waited_for_a_copy_finds_the_chunk_in_the_target() {
    let ring = host::ring(Engine::Threads);
    let (node, source, target) = open(&ring);
    target.is_held.set(true);
    let mut write = node.place(host::range(0, 512), RequestFlags::empty());
    assert!(
        (&mut write).now_or_never().is_none(),
        "a write waits for its copy"
    );
    let access = node.snapshot_access();
    let mut read = access.read_then(0, Buffers::zeroed(512));
    assert!((&mut read).now_or_never().is_none(), "a read waits for the copy");
    target.let_go();
    run(&ring, write).unwrap();
    // The write itself.
    source.byte.set(2);
    let (result, bytes) = run(&ring, read);
    assert_eq!((result, bytes.to_vec()[0]), (Ok(()), 1));
}

/// A write waits for those that read what it is about to change where it is.
#[test]
fn a_write_waits_for_reads_of_the_moment_that_began_before_it() {
    let ring = host::ring(Engine::Threads);
    let (node, source, _target) = open(&ring);
    source.is_held.set(true);
    let access = node.snapshot_access();
    let mut read = access.read_then(0, Buffers::zeroed(512));
    assert!((&mut read).now_or_never().is_none());
    source.is_held.set(false);
    let mut write = node.place(host::range(0, 512), RequestFlags::empty());
    assert!((&mut write).now_or_never().is_none(), "the read has not ended");
    source.let_go();
    let (result, bytes) = run(&ring, read);
    assert_eq!((result, bytes.to_vec()[0]), (Ok(()), 1));
    run(&ring, write).unwrap();
    // Nothing waits the second time.
    let again = node
        .place(host::range(0, 512), RequestFlags::empty())
        .now_or_never();
    assert!(again.is_some_and(|placed| placed.is_ok()));
}
