//! The quorum driver on children that are made to fail, to differ and to wait.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod host;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::{Arc, mpsc};

use futures_channel::oneshot;
use futures_util::FutureExt;
use millpond_drivers::api::{
    Answer, At, Child, ChildChange, ChildPort, Driver, DriverKind, EdgeUse, Notice, Notices, OpenRequest,
    Purpose, ReopenRequest,
};
use millpond_drivers::builtin::builtin;
use millpond_messages::io::{Operation, OperationKind, Outcome, Preallocation, Value};
use millpond_messages::qapi::QuorumOpType;
use millpond_messages::{
    BlockStatus, IoError, IoResult, Limits, OpenFlags, Permissions, Range, RequestFlags, Role, StatusFlags,
};
use millpond_ring::buffer::{Buffer, Buffers};
use millpond_ring::{Engine, Ring};
use serde_json::{Value as Json, json};

const NONE: RequestFlags = RequestFlags::empty();
const SIZE: usize = 8192;
const EIO: IoError = IoError::Os(5);

/// A child in memory.
struct Memory {
    bytes: RefCell<Vec<u8>>,
    /// Requests of a kind fail.
    fails: RefCell<Vec<(OperationKind, IoError)>>,
    /// The next read waits for this.
    hold: RefCell<Option<oneshot::Receiver<()>>>,
    /// Requests so far, by kind.
    seen: RefCell<Vec<OperationKind>>,
    zero: Cell<bool>,
}

impl Memory {
    fn of(byte: u8) -> Rc<Self> {
        Rc::new(Self {
            bytes: RefCell::new(vec![byte; SIZE]),
            fails: RefCell::default(),
            hold: RefCell::default(),
            seen: RefCell::default(),
            zero: Cell::new(false),
        })
    }

    fn fail(&self, kind: OperationKind, error: IoError) {
        self.fails.borrow_mut().push((kind, error));
    }

    fn count(&self, kind: OperationKind) -> usize {
        self.seen.borrow().iter().filter(|seen| **seen == kind).count()
    }

    fn at(&self, offset: usize) -> u8 {
        self.bytes.borrow()[offset]
    }

    fn obey(&self, operation: Operation<Buffers>) -> Outcome<Buffers> {
        let done = Ok(Value::Done);
        let mut bytes = self.bytes.borrow_mut();
        match operation {
            Operation::Read {
                offset, mut buffers, ..
            } => {
                let start = offset as usize;
                let len = buffers.len();
                buffers.copy_from_slice(0, &bytes[start..start + len]);
                Outcome {
                    result: done,
                    buffers: Some(buffers),
                }
            }
            Operation::Write { offset, buffers, .. } => {
                let start = offset as usize;
                bytes[start..start + buffers.len()].copy_from_slice(&buffers.to_vec());
                Outcome {
                    result: done,
                    buffers: Some(buffers),
                }
            }
            Operation::WriteZeroes { range, .. } => {
                bytes[range.offset() as usize..range.end() as usize].fill(0);
                Outcome::plain(done)
            }
            Operation::Flush => Outcome::plain(done),
            Operation::Length => Outcome::plain(Ok(Value::Bytes(bytes.len() as u64))),
            Operation::BlockStatus { range, .. } => {
                let len = range.len();
                let flags = if self.zero.get() {
                    StatusFlags::ZERO
                } else {
                    StatusFlags::DATA
                };
                let len = if self.zero.get() { len } else { len.min(512) };
                Outcome::plain(Ok(Value::Status(BlockStatus {
                    flags,
                    len,
                    map: None,
                    depth: 1,
                })))
            }
            other => panic!("a quorum does not ask for {other:?}"),
        }
    }
}

struct Port(Rc<Memory>);

impl ChildPort for Port {
    fn request(&self, operation: Operation<Buffers>) -> Answer<'static, Outcome<Buffers>> {
        let memory = Rc::clone(&self.0);
        let kind = operation.kind();
        memory.seen.borrow_mut().push(kind);
        let failure = memory
            .fails
            .borrow()
            .iter()
            .find(|(fails, _)| *fails == kind)
            .map(|(_, error)| *error);
        if let Some(error) = failure {
            let buffers = match operation {
                Operation::Read { buffers, .. } | Operation::Write { buffers, .. } => Some(buffers),
                _ => None,
            };
            return Answer::ready(Outcome {
                result: Err(error),
                buffers,
            });
        }
        match memory.hold.take() {
            Some(hold) if kind == OperationKind::Read => Answer::wait(async move {
                hold.await.unwrap();
                memory.obey(operation)
            }),
            hold => {
                memory.hold.replace(hold);
                Answer::ready(memory.obey(operation))
            }
        }
    }

    fn limits(&self) -> Limits {
        Limits::default()
    }

    fn is_connected(&self) -> bool {
        true
    }

    fn node_name(&self) -> String {
        String::new()
    }

    fn filename(&self) -> String {
        String::new()
    }
}

fn handle(memory: &Rc<Memory>) -> Child {
    Child::new(Rc::new(Port(Rc::clone(memory))))
}

fn kind() -> Arc<dyn DriverKind> {
    Arc::clone(builtin().find("quorum").unwrap())
}

fn options(json: Json) -> millpond_messages::graph::Options {
    let Json::Object(options) = json else {
        panic!("not an object")
    };
    options
}

/// An open quorum on children of these bytes.
struct Quorum {
    driver: Rc<dyn Driver>,
    children: Vec<Rc<Memory>>,
    told: mpsc::Receiver<Notice>,
    ring: Ring,
}

impl Quorum {
    fn open(json: Json, bytes: &[u8]) -> Self {
        let ring = host::ring(Engine::Threads);
        let children: Vec<Rc<Memory>> = bytes.iter().map(|byte| Memory::of(*byte)).collect();
        let (listener, told) = mpsc::channel();
        let request = OpenRequest {
            node_name: "q".to_owned(),
            options: options(json),
            flags: OpenFlags::RDWR,
            children: children.iter().map(handle).collect(),
            ring: ring.clone(),
            notices: Notices::new(move |posted| listener.send(posted.notice.clone()).unwrap()),
        };
        let opened = kind().open(request).now_or_never().unwrap().unwrap();
        Self {
            driver: opened.driver,
            children,
            told,
            ring,
        }
    }

    fn votes(threshold: usize, bytes: &[u8]) -> Self {
        Self::open(json!({"vote-threshold": threshold}), bytes)
    }

    /// Reads 512 bytes at 1024, which must all be the same.
    fn read(&self) -> IoResult<u8> {
        let mut dirty = Buffers::new();
        // In two pieces, as a client may have it.
        dirty.push(Buffer::from_slice(&[0xEE; 100]));
        dirty.push(Buffer::from_slice(&[0xEE; 412]));
        let (result, buffers) = Rc::clone(&self.driver)
            .read(1024, dirty, NONE)
            .now_or_never()
            .unwrap();
        result?;
        let bytes = buffers.to_vec();
        assert_eq!(bytes.len(), 512);
        assert!(bytes.iter().all(|byte| *byte == bytes[0]), "all from one child");
        Ok(bytes[0])
    }

    fn write(&self, byte: u8) -> IoResult<()> {
        let data = Buffer::from_slice(&[byte; 512]).into();
        let (result, buffers) = Rc::clone(&self.driver)
            .write(1024, data, NONE)
            .now_or_never()
            .unwrap();
        assert_eq!(buffers.to_vec(), [byte; 512], "the buffers come back");
        result
    }

    fn reported(&self) -> Vec<Notice> {
        self.told.try_iter().collect()
    }
}

fn bad(operation: QuorumOpType, child: usize, error: Option<IoError>) -> Notice {
    Notice::BadChild {
        operation,
        error,
        child,
        offset: 1024,
        len: 512,
    }
}

const FAILURE: Notice = Notice::NoQuorum {
    offset: 1024,
    len: 512,
};

#[test]
fn children_that_agree_are_all_read_and_nothing_is_told() {
    let quorum = Quorum::votes(2, &[7, 7, 7]);
    assert_eq!(quorum.read(), Ok(7));
    assert!(
        quorum
            .children
            .iter()
            .all(|child| child.count(OperationKind::Read) == 1)
    );
    assert_eq!(quorum.reported(), []);
}

#[test]
fn a_read_gives_what_most_children_have_and_tells_of_the_others() {
    for (bytes, bad_child) in [([1, 2, 2], 0), ([2, 1, 2], 1), ([2, 2, 1], 2)] {
        let quorum = Quorum::votes(2, &bytes);
        assert_eq!(quorum.read(), Ok(2));
        assert_eq!(quorum.reported(), [bad(QuorumOpType::Read, bad_child, None)]);
        assert_eq!(
            quorum.children[bad_child].at(1024),
            1,
            "nothing is rewritten unless asked for"
        );
    }
}

#[test]
fn of_versions_with_as_many_votes_the_last_one_wins() {
    let quorum = Quorum::votes(1, &[1, 2, 3]);
    assert_eq!(quorum.read(), Ok(3));
    assert_eq!(Quorum::votes(2, &[1, 1, 2, 2]).read(), Ok(2));
}

#[test]
fn a_read_with_too_few_votes_fails_and_is_told() {
    let quorum = Quorum::votes(3, &[1, 2, 2]);
    assert_eq!(quorum.read(), Err(EIO));
    assert_eq!(quorum.reported(), [FAILURE]);
}

#[test]
fn children_that_cannot_be_read_have_no_vote() {
    let quorum = Quorum::votes(2, &[1, 2, 2]);
    quorum.children[2].fail(OperationKind::Read, IoError::NoSpace);
    assert_eq!(quorum.read(), Err(EIO), "one against one");
    let unreadable = bad(QuorumOpType::Read, 2, Some(IoError::NoSpace));
    assert_eq!(quorum.reported(), [unreadable.clone(), FAILURE]);
    quorum.children[1].fail(OperationKind::Read, IoError::NoSpace);
    assert_eq!(quorum.read(), Err(IoError::NoSpace), "as those fail that do");
    let other = bad(QuorumOpType::Read, 1, Some(IoError::NoSpace));
    assert_eq!(quorum.reported(), [other, unreadable, FAILURE]);
    let quorum = Quorum::votes(2, &[2, 2, 2]);
    quorum.children[0].fail(OperationKind::Read, EIO);
    assert_eq!(
        quorum.read(),
        Ok(2),
        "the others are enough, though the first had the client's buffers"
    );
}

#[test]
fn fifo_reads_the_first_child_that_can_be_read() {
    let quorum = Quorum::open(json!({"vote-threshold": 3, "read-pattern": "fifo"}), &[1, 2, 3]);
    assert_eq!(quorum.read(), Ok(1));
    assert_eq!(quorum.children[1].count(OperationKind::Read), 0);
    quorum.children[0].fail(OperationKind::Read, EIO);
    assert_eq!(quorum.read(), Ok(2));
    assert_eq!(quorum.reported(), [bad(QuorumOpType::Read, 0, Some(EIO))]);
    quorum.children[1].fail(OperationKind::Read, EIO);
    quorum.children[2].fail(OperationKind::Read, IoError::NoSpace);
    assert_eq!(quorum.read(), Err(IoError::NoSpace), "the last one's");
}

#[test]
fn a_write_goes_to_all_and_succeeds_where_enough_have_it() {
    let quorum = Quorum::votes(2, &[1, 1, 1]);
    quorum.write(5).unwrap();
    assert!(
        quorum
            .children
            .iter()
            .all(|child| child.at(1024) == 5 && child.at(1536) == 1)
    );
    quorum.children[0].fail(OperationKind::Write, IoError::NoSpace);
    quorum.write(6).unwrap();
    assert_eq!((quorum.children[0].at(1024), quorum.children[1].at(1024)), (5, 6));
    let first = bad(QuorumOpType::Write, 0, Some(IoError::NoSpace));
    assert_eq!(quorum.reported(), std::slice::from_ref(&first));
    quorum.children[2].fail(OperationKind::Write, EIO);
    assert_eq!(quorum.write(7), Err(EIO), "of errors as common the last");
    assert_eq!(
        quorum.reported(),
        [first, bad(QuorumOpType::Write, 2, Some(EIO)), FAILURE]
    );
}

#[test]
fn zeroes_go_to_all_as_zeroes_and_never_to_some_of_them_only() {
    let quorum = Quorum::votes(2, &[1, 1, 1]);
    let zero = |flags| {
        quorum
            .driver
            .write_zeroes(Range::new(1024, 512).unwrap(), flags)
            .now_or_never()
            .unwrap()
    };
    assert_eq!(zero(RequestFlags::NO_FALLBACK), Err(IoError::NotSupported));
    assert!(quorum.children.iter().all(|child| child.at(1024) == 1));
    quorum.children[1].fail(OperationKind::WriteZeroes, EIO);
    zero(RequestFlags::MAY_UNMAP).unwrap();
    assert_eq!(
        (
            quorum.children[0].at(1024),
            quorum.children[0].count(OperationKind::Write)
        ),
        (0, 0)
    );
    assert_eq!(quorum.reported(), [bad(QuorumOpType::Write, 1, Some(EIO))]);
}

#[test]
fn a_flush_succeeds_where_enough_are_flushed() {
    let quorum = Quorum::votes(2, &[1, 1, 1]);
    let flush = || quorum.driver.flush().now_or_never().unwrap();
    let told = |child, error| Notice::BadChild {
        operation: QuorumOpType::Flush,
        error: Some(error),
        child,
        offset: 0,
        len: 0,
    };
    flush().unwrap();
    quorum.children[0].fail(OperationKind::Flush, EIO);
    flush().unwrap();
    assert_eq!(quorum.reported(), [told(0, EIO)]);
    quorum.children[1].fail(OperationKind::Flush, IoError::NoSpace);
    assert_eq!(flush(), Err(IoError::NoSpace));
    assert_eq!(
        quorum.reported(),
        [told(0, EIO), told(1, IoError::NoSpace)],
        "no range, so no quorum to speak of"
    );
}

#[test]
fn what_was_outvoted_is_rewritten_where_that_is_asked_for() {
    let quorum = Quorum::open(
        json!({"vote-threshold": 2, "rewrite-corrupted": true}),
        &[1, 2, 2],
    );
    assert_eq!(quorum.read(), Ok(2));
    let first = &quorum.children[0];
    assert_eq!(
        [1023, 1024, 1535, 1536].map(|at| first.at(at)),
        [1, 2, 2, 1],
        "only what was read"
    );
    assert!(
        quorum.children[1..]
            .iter()
            .all(|child| child.count(OperationKind::Write) == 0)
    );
    assert_eq!(quorum.read(), Ok(2));
    assert_eq!(quorum.reported().len(), 1, "they agree now");
    first.bytes.borrow_mut().fill(3);
    first.fail(OperationKind::Write, EIO);
    assert_eq!(quorum.read(), Ok(2), "it is an attempt");
}

/// A vote on data that a write is changing would see half of it, and a rewrite would undo the write.
#[test]
fn a_write_waits_for_reads_of_its_range_and_other_ranges_go_on() {
    let quorum = Quorum::open(
        json!({"vote-threshold": 2, "rewrite-corrupted": true}),
        &[1, 2, 2],
    );
    let (go, hold) = oneshot::channel();
    quorum.children[2].hold.replace(Some(hold));
    let mut read = Rc::clone(&quorum.driver).read(1024, Buffers::alloc(512), NONE);
    assert!((&mut read).now_or_never().is_none());
    let mut write = Rc::clone(&quorum.driver).write(1024, Buffer::from_slice(&[9; 512]).into(), NONE);
    assert!((&mut write).now_or_never().is_none());
    assert!(
        quorum
            .children
            .iter()
            .all(|child| child.count(OperationKind::Write) == 0)
    );
    let beside = Rc::clone(&quorum.driver).write(2048, Buffer::from_slice(&[8; 512]).into(), NONE);
    beside.now_or_never().unwrap().0.unwrap();
    go.send(()).unwrap();
    assert_eq!((&mut read).now_or_never().unwrap().0, Ok(()));
    assert_eq!((&mut write).now_or_never().unwrap().0, Ok(()));
    assert_eq!(quorum.read(), Ok(9));
    assert!(
        quorum
            .children
            .iter()
            .all(|child| child.at(1024) == 9 && child.at(2048) == 8)
    );
}

#[test]
fn a_difference_in_blkverify_mode_ends_everything() {
    let open = |bytes| Quorum::open(json!({"vote-threshold": 2, "blkverify": true}), bytes);
    assert_eq!(open(&[4, 4]).read(), Ok(4));
    let quorum = open(&[4, 4]);
    quorum.children[1].bytes.borrow_mut()[1030] = 5;
    let into = Buffers::alloc(512);
    assert_eq!(
        Rc::clone(&quorum.driver)
            .read(1024, into, NONE)
            .now_or_never()
            .unwrap()
            .0,
        Err(EIO)
    );
    let message = "quorum: offset=1024 bytes=512 contents mismatch at offset 1030".to_owned();
    assert_eq!(quorum.reported(), [Notice::Mismatch { message }]);
}

#[test]
fn children_must_be_as_long_as_each_other() {
    let quorum = Quorum::votes(1, &[1, 1]);
    let length = || quorum.driver.length().now_or_never().unwrap();
    assert_eq!(length(), Ok(SIZE as u64));
    quorum.children[1].bytes.borrow_mut().push(0);
    assert_eq!(length(), Err(EIO));
}

#[test]
fn only_what_all_have_as_zeroes_is_zeroes() {
    let quorum = Quorum::votes(1, &[0, 0]);
    let status = || {
        let purpose = Purpose::Status { want_zero: true };
        let extent = quorum
            .driver
            .locate(purpose, Range::new(1024, 4096).unwrap())
            .now_or_never()
            .unwrap()
            .unwrap();
        (extent.len, extent.at)
    };
    assert_eq!(status(), (512, At::Own));
    quorum.children[0].zero.set(true);
    assert_eq!(status(), (512, At::Own));
    quorum.children[1].zero.set(true);
    assert_eq!(status(), (4096, At::Zero { reserved: None }));
    quorum.children[1].fail(OperationKind::BlockStatus, EIO);
    assert_eq!(status(), (4096, At::Own), "nobody knows, so there may be data");
    let told = Notice::BadChild {
        operation: QuorumOpType::Read,
        error: Some(EIO),
        child: 1,
        offset: 1024,
        len: 4096,
    };
    assert_eq!(quorum.reported(), [told]);
}

#[test]
fn children_come_and_go_and_a_move_takes_all_along() {
    let mut quorum = Quorum::votes(2, &[1, 2]);
    assert_eq!(quorum.read(), Err(EIO));
    quorum.children.push(Memory::of(2));
    let handles: Vec<Child> = quorum.children.iter().map(handle).collect();
    quorum.driver.children_changed(&handles);
    assert_eq!(quorum.read(), Ok(2));
    let moved = quorum.driver.depart();
    quorum.driver = moved.arrive(handles, quorum.ring.clone());
    quorum.reported();
    assert_eq!(quorum.read(), Ok(2));
    assert_eq!(
        quorum.reported(),
        [bad(QuorumOpType::Read, 0, None)],
        "it is still heard"
    );
}

#[test]
fn what_cannot_be_done_is_refused_in_qemus_words() {
    let quorum = Quorum::votes(1, &[1]);
    let resized = quorum
        .driver
        .truncate(512, true, Preallocation::Off, NONE)
        .now_or_never()
        .unwrap();
    assert_eq!(
        resized.unwrap_err().to_string(),
        "Image format driver does not support resize"
    );
    let request = ReopenRequest {
        options: options(json!({"vote-threshold": 1})),
        flags: OpenFlags::RDWR,
    };
    let reopened = quorum.driver.reopen_prepare(request).now_or_never().unwrap();
    assert_eq!(
        reopened.unwrap_err().to_string(),
        "Block format 'quorum' used by node 'q' does not support reopening files"
    );
}

#[test]
fn options_that_cannot_be_are_refused_before_any_child_is_opened() {
    let check = |json: Json, children| {
        let checked = kind().check_options(&options(json), children);
        checked.err().map_or_else(String::new, |error| error.to_string())
    };
    assert_eq!(check(json!({"vote-threshold": 1}), 1), "");
    assert_eq!(
        check(json!({"vote-threshold": 1}), 0),
        "Number of provided children must be 1 or more"
    );
    let low = "Parameter 'vote-threshold' expects a value >= 1";
    assert_eq!(check(json!({"vote-threshold": 0}), 1), low);
    assert_eq!(check(json!({"vote-threshold": -7}), 1), low);
    let high = "threshold may not exceed children count";
    assert_eq!(check(json!({"vote-threshold": 3}), 2), high);
    assert_eq!(check(json!({"vote-threshold": i64::MAX}), 2), high);
    assert_eq!(check(json!({}), 2), "Parameter 'vote-threshold' is missing");
    assert_eq!(
        check(json!({"vote-threshold": 1, "x": 1}), 2),
        "Parameter 'x' is unexpected"
    );
    let two = "blkverify=on can only be set if there are exactly two files and vote-threshold is 2";
    assert_eq!(check(json!({"vote-threshold": 1, "blkverify": true}), 2), two);
    assert_eq!(check(json!({"vote-threshold": 2, "blkverify": true}), 3), two);
    let both = json!({"vote-threshold": 2, "blkverify": true, "rewrite-corrupted": true});
    assert_eq!(
        check(both.clone(), 2),
        "rewrite-corrupted=on cannot be used with blkverify=on"
    );
    let mut fifo = both;
    fifo["read-pattern"] = json!("fifo");
    assert_eq!(check(fifo, 1), "threshold may not exceed children count");
    assert_eq!(
        check(
            json!({"vote-threshold": 1, "blkverify": true, "read-pattern": "fifo"}),
            1
        ),
        ""
    );
}

#[test]
fn children_are_added_and_removed_only_as_the_mode_allows() {
    let change = |json: Json, change, children| {
        let checked = kind().check_change(change, &options(json), children);
        checked.err().map_or_else(String::new, |error| error.to_string())
    };
    let (add, remove) = (ChildChange::Add, ChildChange::Remove);
    assert_eq!(change(json!({"vote-threshold": 2}), add, 2), "");
    assert_eq!(change(json!({"vote-threshold": 2}), remove, 3), "");
    let low = "The number of children cannot be lower than the vote threshold 2";
    assert_eq!(change(json!({"vote-threshold": 2}), remove, 2), low);
    let verify = json!({"vote-threshold": 2, "blkverify": true});
    assert_eq!(
        change(verify, add, 2),
        "Cannot add a child to a quorum in blkverify mode"
    );
}

#[test]
fn nobody_else_may_write_to_a_child_or_resize_it() {
    let rewrites = options(json!({"vote-threshold": 1, "rewrite-corrupted": true}));
    let plain = options(json!({"vote-threshold": 1}));
    let ask = |options, taken, force_share| {
        kind().child_permissions(EdgeUse {
            role: Role::DATA,
            options,
            taken,
            shared: Permissions::all(),
            is_used: true,
            writable: false,
            inactive: false,
            force_share,
        })
    };
    let read = Permissions::CONSISTENT_READ;
    let shared = read | Permissions::WRITE_UNCHANGED;
    assert_eq!(ask(&plain, read, false), (read, shared));
    let all = Permissions::all();
    assert_eq!(ask(&plain, all, true), (all, all));
    assert_eq!(ask(&rewrites, read, false), (read | Permissions::WRITE, shared));
    let mut fifo = rewrites.clone();
    fifo.insert("read-pattern".to_owned(), json!("fifo"));
    assert_eq!(
        ask(&fifo, read, false),
        (read, shared),
        "there is no vote to lose"
    );
}
