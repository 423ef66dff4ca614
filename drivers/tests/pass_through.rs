//! What each driver that shows its child as it is hands on to that child.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod host;

use std::cell::RefCell;
use std::rc::Rc;

use host::run;
use millpond_drivers::api::{Answer, Child, ChildPort, Driver, Notices, OpenRequest};
use millpond_drivers::builtin::builtin;
use millpond_drivers::filter::throttle;
use millpond_messages::io::{Operation, Outcome, Value};
use millpond_messages::{IoError, Limits, OpenFlags, RequestFlags};
use millpond_ring::buffer::Buffers;
use millpond_ring::{Engine, Ring};
use serde_json::{Value as Json, json};

const SIZE: u64 = 1 << 20;

type Seen = Rc<RefCell<Vec<(&'static str, u64, RequestFlags)>>>;

/// A child that notes what is asked of it, and does it.
struct Notes(Seen);

impl ChildPort for Notes {
    fn request(&self, operation: Operation<Buffers>) -> Answer<'static, Outcome<Buffers>> {
        let mut seen = self.0.borrow_mut();
        let done = |buffers| Outcome {
            result: Ok(Value::Done),
            buffers,
        };
        Answer::ready(match operation {
            Operation::Read { buffers, .. } => done(Some(buffers)),
            Operation::Write {
                offset,
                buffers,
                flags,
            } => {
                seen.push(("write", offset, flags));
                done(Some(buffers))
            }
            Operation::WriteZeroes { range, flags } => {
                seen.push(("zero", range.offset(), flags));
                done(None)
            }
            Operation::Discard { range } => {
                seen.push(("discard", range.offset(), RequestFlags::empty()));
                done(None)
            }
            Operation::Length => Outcome::plain(Ok(Value::Bytes(SIZE))),
            _ => done(None),
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

    fn takes_compressed(&self) -> bool {
        true
    }
}

/// A driver over as many children as it has, and what its first child sees.
fn open(ring: &Ring, driver: &str, options: Json) -> (Rc<dyn Driver>, Seen) {
    let registry = builtin();
    let groups = registry.throttle_groups();
    groups.add("group", throttle::Limits::default()).unwrap();
    let kind = registry.find(driver).unwrap();
    let seen = Seen::default();
    let notes = |at: usize| {
        if at == 0 {
            Rc::clone(&seen)
        } else {
            Seen::default()
        }
    };
    let children = (0..kind.children().len()).map(|at| Child::new(Rc::new(Notes(notes(at)))));
    let request = OpenRequest {
        node_name: "node".to_owned(),
        options: options.as_object().unwrap().clone(),
        flags: OpenFlags::RDWR,
        children: children.collect(),
        ring: ring.clone(),
        notices: Notices::nowhere(),
    };
    let opened = run(ring, kind.open(request)).unwrap();
    seen.borrow_mut().clear();
    (opened.driver, seen)
}

fn transparent() -> Vec<(&'static str, Json)> {
    vec![
        ("blkdebug", json!({})),
        ("blklogwrites", json!({})),
        ("compress", json!({})),
        ("copy-on-read", json!({})),
        ("preallocate", json!({})),
        ("raw", json!({})),
        ("throttle", json!({"throttle-group": "group"})),
    ]
}

/// The child would take them for its own: it has not noted what is in flight, and refuses.
#[test]
fn how_a_request_is_ordered_where_it_was_sent_is_not_handed_on() {
    let ring = host::ring(Engine::Threads);
    let asked = RequestFlags::SERIALISING | RequestFlags::NO_WAIT | RequestFlags::WRITE_UNCHANGED;
    for (driver, options) in transparent() {
        let (node, seen) = open(&ring, driver, options);
        run(&ring, node.write_zeroes(host::range(512, 512), asked)).unwrap();
        let written = Rc::clone(&node).write(1024, Buffers::zeroed(512), asked);
        run(&ring, written).0.unwrap();
        let seen = seen.take();
        let kept = |(_, _, flags): &(_, _, RequestFlags)| *flags & asked;
        let kept: Vec<_> = seen.iter().map(kept).collect();
        assert_eq!(kept, [RequestFlags::WRITE_UNCHANGED; 2], "{driver}: {seen:?}");
    }
}

/// QEMU's answer for one who writes to a window with the right to make it longer, as a format does.
#[test]
fn a_window_ends_where_it_says() {
    let ring = host::ring(Engine::Threads);
    let (node, seen) = open(&ring, "raw", json!({"offset": 4096, "size": 8192}));
    let none = RequestFlags::empty();
    for (offset, len) in [(8192, 512), (7680, 1024), (0, 8704), (u64::MAX - 512, 512)] {
        let range = host::range(offset, len);
        let placed = run(&ring, node.place(range, none));
        assert_eq!(placed.err(), Some(IoError::NoSpace), "{offset} {len}");
        assert_eq!(run(&ring, node.write_zeroes(range, none)), Err(IoError::NoSpace));
        assert_eq!(run(&ring, node.discard(range)), Err(IoError::NoSpace));
    }
    assert_eq!(seen.take(), []);
    run(&ring, node.write_zeroes(host::range(7680, 512), none)).unwrap();
    run(&ring, node.discard(host::range(0, 8192))).unwrap();
    assert_eq!(seen.take(), [("zero", 11_776, none), ("discard", 4096, none)]);
    assert!(run(&ring, node.place(host::range(0, 8192), none)).is_ok());
}
