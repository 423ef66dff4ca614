//! One NBD connection on an iothread, over a disk in memory: what is answered, what is in flight, and how it ends.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::cell::RefCell;
use std::future::poll_fn;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::task::{Poll, Waker};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use millpond::export::backend::ExportedNode;
use millpond::export::nbd::handshake::{Contexts, Negotiated};
use millpond::export::nbd::offer::Offer;
use millpond::export::nbd::transmission::connection::{self, Arrival, End};
use millpond::export::nbd::{MAX_BYTES, MAX_IN_FLIGHT, MAX_SHARED, Pool};
use millpond::iothread::{IoThread, IoThreadConfig, Local};
use millpond::node::Begun;
use millpond_messages::io::{Operation, Outcome, Value};
use millpond_messages::nbd::Mode;
use millpond_messages::{BlockStatus, IoError, IoResult, RequestFlags, StatusFlags};
use millpond_ring::buffer::Buffers;

const SIZE: usize = 4 << 20;
/// The disk's blocks: those never written are holes.
const BLOCK: usize = 4096;

/// What tests set and see of a disk from their own thread.
#[derive(Default)]
struct Switches {
    /// Requests wait.
    held: AtomicBool,
    /// The gate is closed.
    drained: AtomicBool,
    moved: AtomicBool,
    in_flight: AtomicUsize,
    bytes_in_flight: AtomicUsize,
    served: AtomicUsize,
    flushes: AtomicUsize,
}

/// A disk in memory that counts, holds back and drains as it is told.
struct Disk {
    data: RefCell<Vec<u8>>,
    written: RefCell<Vec<bool>>,
    switches: Arc<Switches>,
    waiting: Rc<RefCell<Vec<Waker>>>,
}

impl Disk {
    async fn enter(&self, bytes: usize) {
        self.switches.in_flight.fetch_add(1, Ordering::SeqCst);
        self.switches.bytes_in_flight.fetch_add(bytes, Ordering::SeqCst);
        self.wait_for(|switches| !switches.held.load(Ordering::SeqCst))
            .await;
        self.switches.in_flight.fetch_sub(1, Ordering::SeqCst);
        self.switches.bytes_in_flight.fetch_sub(bytes, Ordering::SeqCst);
        self.switches.served.fetch_add(1, Ordering::SeqCst);
    }

    async fn wait_for(&self, condition: impl Fn(&Switches) -> bool) {
        poll_fn(|context| {
            if condition(&self.switches) {
                return Poll::Ready(());
            }
            self.waiting.borrow_mut().push(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    fn mark(&self, offset: u64, len: usize, written: bool) {
        let blocks = offset as usize / BLOCK..(offset as usize + len).div_ceil(BLOCK);
        self.written.borrow_mut()[blocks].fill(written);
    }
}

impl Disk {
    async fn serve(&self, operation: Operation<Buffers>) -> Outcome<Buffers> {
        match operation {
            Operation::Read { offset, buffers, .. } => self.read(offset, buffers).await,
            Operation::Write {
                offset,
                buffers,
                flags,
            } => self.write(offset, buffers, flags).await,
            Operation::WriteZeroes { range, flags } => {
                done(self.zero(range.offset(), range.len(), flags).await)
            }
            Operation::Discard { range } => done(
                self.zero(range.offset(), range.len(), RequestFlags::MAY_UNMAP)
                    .await,
            ),
            Operation::Flush => {
                self.enter(0).await;
                self.switches.flushes.fetch_add(1, Ordering::SeqCst);
                done(Ok(()))
            }
            Operation::BlockStatus { range, .. } => {
                Outcome::plain(Ok(Value::Status(self.status(range.offset(), range.len()))))
            }
            Operation::Map { range, .. } => {
                let status = self.status(range.offset(), range.len());
                Outcome::plain(Ok(Value::Map([status].into())))
            }
            Operation::Truncate { .. }
            | Operation::Snapshot(_)
            | Operation::Mirror(_)
            | Operation::Copy(_)
            | Operation::Length
            | Operation::AllocatedSize => {
                unreachable!("a connection does not ask for that")
            }
        }
    }

    async fn read(&self, offset: u64, mut buffers: Buffers) -> Outcome<Buffers> {
        self.enter(buffers.len()).await;
        let offset = offset as usize;
        let data = self.data.borrow();
        buffers.copy_from_slice(0, &data[offset..offset + buffers.len()]);
        transferred(buffers)
    }

    async fn write(&self, offset: u64, buffers: Buffers, flags: RequestFlags) -> Outcome<Buffers> {
        self.enter(buffers.len()).await;
        let len = buffers.len();
        buffers.copy_to_slice(
            0,
            &mut self.data.borrow_mut()[offset as usize..offset as usize + len],
        );
        self.mark(offset, len, true);
        self.switches
            .flushes
            .fetch_add(usize::from(flags.contains(RequestFlags::FUA)), Ordering::SeqCst);
        transferred(buffers)
    }

    async fn zero(&self, offset: u64, len: u64, flags: RequestFlags) -> IoResult<()> {
        self.enter(0).await;
        if flags.contains(RequestFlags::NO_FALLBACK) {
            return Err(IoError::NotSupported);
        }
        self.data.borrow_mut()[offset as usize..(offset + len) as usize].fill(0);
        self.mark(offset, len as usize, !flags.contains(RequestFlags::MAY_UNMAP));
        Ok(())
    }

    fn status(&self, offset: u64, len: u64) -> BlockStatus {
        let written = self.written.borrow()[offset as usize / BLOCK];
        let to_end = BLOCK as u64 - offset % BLOCK as u64;
        let (flags, depth) = match written {
            true => (StatusFlags::DATA | StatusFlags::ALLOCATED, 1),
            false => (StatusFlags::ZERO, 0),
        };
        BlockStatus {
            flags,
            len: len.min(to_end),
            map: None,
            depth,
        }
    }
}

fn done(result: IoResult<()>) -> Outcome<Buffers> {
    Outcome::plain(result.map(|()| Value::Done))
}

fn transferred(buffers: Buffers) -> Outcome<Buffers> {
    Outcome {
        result: Ok(Value::Done),
        buffers: Some(buffers),
    }
}

/// The disk as a connection has it.
struct Behind(Rc<Disk>);

impl ExportedNode for Behind {
    type Pending = LocalBoxFuture<'static, Outcome<Buffers>>;

    fn begin(&self, operation: Operation<Buffers>) -> Begun<Self::Pending> {
        let disk = Rc::clone(&self.0);
        let mut serving = Box::pin(async move { disk.serve(operation).await });
        match serving.as_mut().now_or_never() {
            Some(outcome) => Begun::Ended(outcome),
            None => Begun::Pending(serving),
        }
    }

    fn takes_any_memory(&self) -> bool {
        true
    }

    fn is_open(&self) -> bool {
        !self.0.switches.drained.load(Ordering::SeqCst)
    }

    async fn wait_open(&self) {
        self.0
            .wait_for(|switches| !switches.drained.load(Ordering::SeqCst))
            .await;
    }

    fn has_moved(&self) -> bool {
        self.0.switches.moved.load(Ordering::SeqCst)
    }
}

type Task = Box<dyn FnOnce(&Rc<Local>) + Send>;

/// An iothread that runs closures.
struct Thread(IoThread<Task>);

impl Thread {
    fn start() -> Self {
        let thread = IoThread::start(IoThreadConfig::default(), |local| {
            Box::new(move |task: Task| task(&local)) as Box<dyn Fn(Task)>
        });
        Self(thread.unwrap())
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.0.stop();
        self.0.join();
    }
}

/// A client and the connection that serves it.
struct Client {
    socket: UnixStream,
    switches: Arc<Switches>,
    end: mpsc::Receiver<End>,
    waiting: mpsc::Sender<()>,
    mode: Mode,
}

impl Client {
    fn connect(thread: &Thread, mode: Mode) -> Self {
        let (socket, theirs) = UnixStream::pair().unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let switches = Arc::new(Switches::default());
        let (waiting, changed) = mpsc::channel::<()>();
        let (ended, end) = mpsc::channel();
        let disk_switches = Arc::clone(&switches);
        let task: Task = Box::new(move |local| {
            let waiting = Rc::new(RefCell::new(Vec::<Waker>::new()));
            let disk = Disk {
                data: RefCell::new(vec![0; SIZE]),
                written: RefCell::new(vec![false; SIZE / BLOCK]),
                switches: disk_switches,
                waiting: Rc::clone(&waiting),
            };
            let here = Rc::clone(local);
            local.spawn(async move {
                let fd = Arc::new(OwnedFd::from(theirs));
                let negotiated = negotiated(mode);
                let mut pool = Pool::new(MAX_SHARED);
                let disk = Behind(Rc::new(disk));
                let arrival = Arrival {
                    link: fd,
                    negotiated: &negotiated,
                    received: &[],
                    standing: Rc::default(),
                };
                let end = connection::serve(here, arrival, disk, &mut pool).await;
                let _ = ended.send(end);
            });
            // Wakes what waits on the disk whenever the test changed a switch.
            let ticker = Rc::clone(local);
            local.spawn(async move {
                loop {
                    match changed.try_recv() {
                        Ok(()) => waiting.take().into_iter().for_each(Waker::wake),
                        Err(mpsc::TryRecvError::Empty) => {}
                        Err(mpsc::TryRecvError::Disconnected) => break,
                    }
                    ticker.ring().sleep(Duration::from_millis(1)).await;
                }
            });
        });
        assert!(thread.0.send(task).is_ok());
        Self {
            socket,
            switches,
            end,
            waiting,
            mode,
        }
    }

    fn set(&self, switch: impl Fn(&Switches) -> &AtomicBool, on: bool) {
        switch(&self.switches).store(on, Ordering::SeqCst);
        self.waiting.send(()).unwrap();
    }

    fn request(&self, flags: u16, command: u16, cookie: u64, offset: u64, len: u64) -> Vec<u8> {
        let extended = self.mode == Mode::Extended;
        let mut bytes = if extended { 0x21e4_1c71_u32 } else { 0x2560_9513 }
            .to_be_bytes()
            .to_vec();
        bytes.extend(flags.to_be_bytes());
        bytes.extend(command.to_be_bytes());
        bytes.extend(cookie.to_be_bytes());
        bytes.extend(offset.to_be_bytes());
        match extended {
            true => bytes.extend(len.to_be_bytes()),
            false => bytes.extend((len as u32).to_be_bytes()),
        }
        bytes
    }

    fn send(&self, bytes: &[u8]) {
        (&self.socket).write_all(bytes).unwrap();
    }

    fn take(&self, n: usize) -> Vec<u8> {
        let mut bytes = vec![0; n];
        (&self.socket).read_exact(&mut bytes).unwrap();
        bytes
    }

    /// A simple reply without data: cookie and error.
    fn simple(&self) -> (u64, u32) {
        let bytes = self.take(16);
        assert_eq!(bytes[..4], 0x6744_6698_u32.to_be_bytes());
        (
            u64::from_be_bytes(bytes[8..].try_into().unwrap()),
            u32::from_be_bytes(bytes[4..8].try_into().unwrap()),
        )
    }

    /// A structured or extended chunk.
    fn chunk(&self) -> Chunk {
        let head = self.take(if self.mode == Mode::Extended { 32 } else { 20 });
        let cookie = u64::from_be_bytes(head[8..16].try_into().unwrap());
        let len = match self.mode {
            Mode::Extended => u64::from_be_bytes(head[24..].try_into().unwrap()),
            _ => u64::from(u32::from_be_bytes(head[16..].try_into().unwrap())),
        };
        Chunk {
            done: head[5] == 1,
            kind: u16::from_be_bytes([head[6], head[7]]),
            cookie,
            payload: self.take(len as usize),
        }
    }

    fn ended(&self) -> End {
        self.end.recv_timeout(Duration::from_secs(60)).unwrap()
    }
}

#[derive(Debug, PartialEq)]
struct Chunk {
    done: bool,
    kind: u16,
    cookie: u64,
    payload: Vec<u8>,
}

fn negotiated(mode: Mode) -> Negotiated {
    let export = Offer {
        name: "disk".to_owned(),
        description: None,
        size: SIZE as u64,
        flags: Offer::base_flags(true, true),
        request_alignment: 1,
        max_transfer: 0,
        allocation_depth: true,
        bitmaps: Vec::new(),
    };
    let contexts = Contexts {
        base_allocation: mode > Mode::Simple,
        allocation_depth: mode > Mode::Simple,
        bitmaps: 0,
    };
    Negotiated {
        export: Arc::new(export),
        mode,
        contexts,
    }
}

/// Waits until `condition` holds.
fn until(condition: impl Fn() -> bool) {
    let start = std::time::Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(60), "waited in vain");
        std::thread::yield_now();
    }
}

#[test]
fn simple_replies_carry_what_was_written() {
    let thread = Thread::start();
    let client = Client::connect(&thread, Mode::Simple);
    let data: Vec<u8> = (0..200_000_u32).map(|i| (i % 251) as u8).collect();
    client.send(&[client.request(1, 1, 7, 1000, data.len() as u64), data.clone()].concat());
    assert_eq!(client.simple(), (7, 0));
    assert_eq!(client.switches.flushes.load(Ordering::SeqCst), 1);
    client.send(&client.request(0, 0, 8, 1000, data.len() as u64));
    assert_eq!(client.simple(), (8, 0));
    assert_eq!(client.take(data.len()), data);
    client.send(&client.request(0, 6, 9, 1000, 4096));
    client.send(&client.request(1, 4, 10, 0, 8192));
    client.send(&client.request(0, 3, 11, 0, 0));
    client.send(&client.request(16, 6, 12, 0, 4096));
    client.send(&client.request(0, 5, 13, 0, 4096));
    let mut replies: Vec<_> = (0..5).map(|_| client.simple()).collect();
    replies.sort_unstable();
    assert_eq!(replies, [(9, 0), (10, 0), (11, 0), (12, 95), (13, 0)]);
    client.send(&client.request(0, 2, 14, 0, 0));
    assert!(matches!(client.ended(), End::Closed(_)));
}

#[test]
fn refusals_keep_the_connection_unless_its_payload_cannot_be_skipped() {
    let thread = Thread::start();
    for mode in [Mode::Simple, Mode::Structured, Mode::Extended] {
        let client = Client::connect(&thread, mode);
        let failure = |cookie, error| match mode {
            Mode::Simple => assert_eq!(client.simple(), (cookie, error)),
            _ => {
                let chunk = client.chunk();
                assert_eq!((chunk.cookie, chunk.kind, chunk.done), (cookie, 0x8001, true));
                assert_eq!(chunk.payload[..4], error.to_be_bytes());
            }
        };
        let end = SIZE as u64;
        for (command, error) in [(0, 22), (3, 22), (4, 22), (5, 22), (6, 28), (7, 22), (99, 22)] {
            client.send(&client.request(0, command, 1, end, 1));
            failure(1, error);
        }
        let write_flag = if mode == Mode::Extended { 32 } else { 0 };
        client.send(&[client.request(write_flag, 1, 2, end - 1, 2), b"xy".to_vec()].concat());
        failure(2, 28);
        client.send(&client.request(0, 0, 3, 0, (32 << 20) + 1));
        failure(3, 22);
        client.send(&client.request(2, 0, 4, 0, 1));
        failure(4, 22);
        client.send(&client.request(write_flag, 1, 5, 0, (32 << 20) + 1));
        failure(5, 22);
        assert!(matches!(client.ended(), End::Closed(_)));
    }
}

#[test]
fn large_structured_reads_send_holes_as_holes() {
    let thread = Thread::start();
    let client = Client::connect(&thread, Mode::Structured);
    client.send(&[client.request(0, 1, 1, 8192, 4096), vec![0xaa; 4096]].concat());
    assert_eq!(client.simple(), (1, 0));
    client.send(&client.request(0, 0, 2, 0, 128 << 10));
    let mut read = vec![0xff; 128 << 10];
    let mut holes = 0;
    loop {
        let chunk = client.chunk();
        let at = u64::from_be_bytes(chunk.payload[..8].try_into().unwrap()) as usize;
        match chunk.kind {
            1 => read[at..at + chunk.payload.len() - 8].copy_from_slice(&chunk.payload[8..]),
            2 => {
                let len = u32::from_be_bytes(chunk.payload[8..].try_into().unwrap()) as usize;
                read[at..at + len].fill(0);
                holes += len;
            }
            other => panic!("chunk of type {other}"),
        }
        if chunk.done {
            break;
        }
    }
    assert_eq!(holes, (128 << 10) - 4096);
    assert!(
        read.iter()
            .enumerate()
            .all(|(i, byte)| *byte == if i / 4096 == 2 { 0xaa } else { 0 })
    );
    // Without a split when that is asked for.
    client.send(&client.request(4, 0, 3, 0, 128 << 10));
    let chunk = client.chunk();
    assert_eq!(
        (chunk.kind, chunk.done, chunk.payload.len()),
        (1, true, 8 + (128 << 10))
    );
}

#[test]
fn block_status_tells_both_contexts_and_payloads_choose() {
    let thread = Thread::start();
    for mode in [Mode::Structured, Mode::Extended] {
        let client = Client::connect(&thread, mode);
        let write_flag = if mode == Mode::Extended { 32 } else { 0 };
        client.send(&[client.request(write_flag, 1, 1, 8192, 4096), vec![0xaa; 4096]].concat());
        match mode {
            Mode::Extended => assert_eq!(client.chunk().kind, 0),
            _ => assert_eq!(client.simple(), (1, 0)),
        }
        client.send(&client.request(0, 7, 2, 0, 20480));
        let (base, depth) = (client.chunk(), client.chunk());
        assert_eq!((base.done, depth.done), (false, true));
        let field = |n: u64| match mode {
            Mode::Extended => n.to_be_bytes().to_vec(),
            _ => (n as u32).to_be_bytes().to_vec(),
        };
        let extents = |id: u32, extents: &[(u64, u64)]| {
            let mut bytes = id.to_be_bytes().to_vec();
            if mode == Mode::Extended {
                bytes.extend((extents.len() as u32).to_be_bytes());
            }
            extents
                .iter()
                .for_each(|(len, flags)| bytes.extend([field(*len), field(*flags)].concat()));
            bytes
        };
        assert_eq!(base.payload, extents(0, &[(8192, 3), (4096, 0), (8192, 3)]));
        assert_eq!(depth.payload, extents(1, &[(8192, 0), (4096, 1), (8192, 0)]));
        client.send(&client.request(8, 7, 3, 0, 20480));
        assert_eq!(client.chunk().payload, extents(0, &[(8192, 3)]));
        assert_eq!(client.chunk().payload, extents(1, &[(8192, 0)]));
        if mode == Mode::Extended {
            let payload = [20480_u64.to_be_bytes().to_vec(), 1_u32.to_be_bytes().to_vec()].concat();
            client.send(&[client.request(32, 7, 4, 0, 12), payload].concat());
            assert_eq!(
                client.chunk().payload,
                extents(1, &[(8192, 0), (4096, 1), (8192, 0)])
            );
        }
    }
}

/// contract: shape 9
#[test]
fn no_more_is_in_flight_than_allowed_and_all_is_answered() {
    let thread = Thread::start();
    let client = Client::connect(&thread, Mode::Simple);
    client.set(|s| &s.held, true);
    let count = 3 * MAX_IN_FLIGHT as u64;
    let requests: Vec<u8> = (0..count)
        .flat_map(|i| client.request(0, 0, i, i * 512, 512))
        .collect();
    client.send(&requests);
    until(|| client.switches.in_flight.load(Ordering::SeqCst) == MAX_IN_FLIGHT);
    client.set(|s| &s.held, false);
    let mut cookies: Vec<_> = (0..count)
        .map(|_| {
            let (cookie, error) = client.simple();
            client.take(512);
            assert_eq!(error, 0);
            cookie
        })
        .collect();
    cookies.sort_unstable();
    assert_eq!(cookies, (0..count).collect::<Vec<_>>());
    assert!(client.switches.in_flight.load(Ordering::SeqCst) == 0);
}

/// contract: shape 9
#[test]
fn a_disk_that_answers_nothing_is_asked_for_bounded_bytes() {
    let thread = Thread::start();
    let (client, other) = (
        Client::connect(&thread, Mode::Simple),
        Client::connect(&thread, Mode::Simple),
    );
    client.set(|s| &s.held, true);
    let requests: Vec<u8> = (0..64)
        .flat_map(|i| client.request(0, 0, i, 0, SIZE as u64))
        .collect();
    client.send(&requests);
    until(|| client.switches.bytes_in_flight.load(Ordering::SeqCst) >= MAX_BYTES);
    for i in 0..100 {
        other.send(&other.request(0, 3, i, 0, 0));
        assert_eq!(other.simple(), (i, 0));
    }
    assert_eq!(client.switches.bytes_in_flight.load(Ordering::SeqCst), MAX_BYTES);
    client.set(|s| &s.held, false);
    client.socket.shutdown(std::net::Shutdown::Both).unwrap();
    assert!(matches!(client.ended(), End::Closed(_)));
}

/// contract: shape 10
#[test]
fn replies_of_a_client_that_left_early_go_to_nobody_else() {
    let thread = Thread::start();
    for _ in 0..20 {
        // Both use the same cookies; what they read differs in length.
        let (leaving, staying) = (
            Client::connect(&thread, Mode::Structured),
            Client::connect(&thread, Mode::Structured),
        );
        for client in [&leaving, &staying] {
            client.set(|s| &s.held, true);
        }
        let reads = |client: &Client, len: u64| -> Vec<u8> {
            (0..32).flat_map(|i| client.request(4, 0, i, 0, len)).collect()
        };
        leaving.send(&reads(&leaving, 4096));
        staying.send(&reads(&staying, 512));
        for client in [&leaving, &staying] {
            until(|| client.switches.in_flight.load(Ordering::SeqCst) == 32);
        }
        leaving.socket.shutdown(std::net::Shutdown::Both).unwrap();
        leaving.set(|s| &s.held, false);
        assert!(matches!(leaving.ended(), End::Closed(_)));
        staying.set(|s| &s.held, false);
        let mut cookies: Vec<u64> = (0..32)
            .map(|_| {
                let chunk = staying.chunk();
                assert_eq!((chunk.done, chunk.payload.len()), (true, 8 + 512));
                chunk.cookie
            })
            .collect();
        cookies.sort_unstable();
        assert_eq!(cookies, (0..32).collect::<Vec<_>>());
    }
}

#[test]
fn a_client_that_does_not_read_holds_bounded_memory_and_nobody_else() {
    let thread = Thread::start();
    let stalled = Client::connect(&thread, Mode::Simple);
    let other = Client::connect(&thread, Mode::Simple);
    let requests: Vec<u8> = (0..2000)
        .flat_map(|i| stalled.request(0, 0, i, 0, SIZE as u64))
        .collect();
    stalled.send(&requests);
    let most = MAX_BYTES / SIZE;
    until(|| stalled.switches.served.load(Ordering::SeqCst) >= most);
    for i in 0..100 {
        other.send(&other.request(0, 0, i, 0, 4096));
        assert_eq!(other.simple(), (i, 0));
        other.take(4096);
    }
    // The other client's requests went round the loop a hundred times: the stalled one got no further.
    assert!(stalled.switches.served.load(Ordering::SeqCst) <= most + 1);
    drop(stalled.socket);
    assert!(matches!(
        stalled.end.recv_timeout(Duration::from_secs(60)).unwrap(),
        End::Closed(_)
    ));
}

/// contract: shape 4
#[test]
fn a_drained_node_sees_no_new_request() {
    let thread = Thread::start();
    let client = Client::connect(&thread, Mode::Simple);
    client.set(|s| &s.drained, true);
    let requests: Vec<u8> = (0..10).flat_map(|i| client.request(0, 3, i, 0, 0)).collect();
    client.send(&requests);
    let other = Client::connect(&thread, Mode::Simple);
    for i in 0..100 {
        other.send(&other.request(0, 3, i, 0, 0));
        assert_eq!(other.simple(), (i, 0));
    }
    assert_eq!(client.switches.served.load(Ordering::SeqCst), 0);
    assert_eq!(client.switches.in_flight.load(Ordering::SeqCst), 0);
    client.set(|s| &s.drained, false);
    let replies: Vec<_> = (0..10).map(|_| client.simple()).collect();
    assert_eq!(replies, (0..10).map(|i| (i, 0)).collect::<Vec<_>>());
}

#[test]
fn a_connection_whose_node_moved_ends_with_what_it_received() {
    let thread = Thread::start();
    let client = Client::connect(&thread, Mode::Simple);
    client.send(&client.request(0, 3, 1, 0, 0));
    assert_eq!(client.simple(), (1, 0));
    client.set(|s| &s.moved, true);
    let next = client.request(0, 3, 2, 0, 0);
    client.send(&next);
    match client.ended() {
        End::Moved(_, received) => assert_eq!(received, next),
        End::Closed(why) => panic!("closed: {why}"),
    }
}

#[test]
fn clients_that_vanish_leave_nothing_in_flight() {
    let thread = Thread::start();
    let client = Client::connect(&thread, Mode::Extended);
    let requests = [
        client.request(32, 1, 1, 0, 100_000),
        client.request(32, 7, 1, 0, 16),
        client.request(32, 3, 1, 0, 1000),
        vec![0x21],
        client.request(0, 0, 1, 0, 512)[..31].to_vec(),
        vec![0xff; 32],
    ];
    for bytes in requests {
        for held in [false, true] {
            let client = Client::connect(&thread, Mode::Extended);
            client.set(|s| &s.held, held);
            client.send(&client.request(0, 3, 1, 0, 0));
            if held {
                until(|| client.switches.in_flight.load(Ordering::SeqCst) == 1);
            }
            client.send(&bytes);
            client.socket.shutdown(std::net::Shutdown::Both).unwrap();
            if held {
                assert!(client.end.try_recv().is_err(), "ended with a request in flight");
                client.set(|s| &s.held, false);
            }
            assert!(matches!(client.ended(), End::Closed(_)));
            assert_eq!(client.switches.in_flight.load(Ordering::SeqCst), 0);
        }
    }
}
