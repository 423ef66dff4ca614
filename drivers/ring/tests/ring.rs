//! The ring's behaviour, the same on every engine.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::cell::Cell;
use std::fs::{File, OpenOptions};
use std::future::Future;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use futures_util::future::{join, join_all, poll_immediate};
use millpond_ring::buffer::{Buffer, Buffers};
use millpond_ring::{AioMode, Engine, Fd, FileOps, Ring, RingConfig, Wait, Wake};

fn ring(engine: Engine) -> Ring {
    let ring = Ring::new(RingConfig {
        engine,
        ..RingConfig::new(Arc::new(Wake::new().unwrap()))
    })
    .unwrap();
    assert_eq!(ring.engine(), engine);
    ring
}

/// Turns the ring until the future is ready. The future may only wait for the ring.
fn run<F: Future>(ring: &Ring, future: F) -> F::Output {
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(output) => return output,
            Poll::Pending => drop(ring.turn(Wait::Until(None))),
        }
    }
}

fn fd(file: impl Into<OwnedFd>) -> Fd {
    Arc::new(file.into())
}

fn file() -> Fd {
    fd(tempfile::tempfile().unwrap())
}

fn pattern(len: usize, seed: usize) -> Buffer {
    Buffer::from(
        (0..len)
            .map(|i| (i * 31 + i / 251 + seed) as u8)
            .collect::<Vec<_>>(),
    )
}

/// Makes one test an engine of a function.
macro_rules! on_each_engine {
    ($($name:ident)*) => {
        mod uring {
            $(#[test] fn $name() { super::$name(&super::ring(super::Engine::Uring)); })*
        }
        mod threads {
            $(#[test] fn $name() { super::$name(&super::ring(super::Engine::Threads)); })*
        }
    };
}

on_each_engine! {
    writes_and_reads_single_buffers
    writes_and_reads_gather_lists
    reads_short_at_the_end
    reports_errors_and_gives_buffers_back
    runs_more_operations_than_the_queue_holds
    file_operations_run_on_threads_when_asked
    syncs_and_allocates
    sends_and_receives_all_bytes
    sends_gather_lists_larger_than_the_socket_buffer
    receives_exactly_what_was_asked_for
    works_with_nonblocking_sockets
    a_closed_peer_is_an_error_to_send_and_an_end_to_receive
    accepts_and_connects_over_unix
    accepts_and_connects_over_tcp
    a_refused_connection_is_an_error
    two_operations_wait_for_one_socket
    polls_for_events
    timers_fire_in_order
    a_dropped_timer_does_not_fire
    a_dropped_receive_leaves_the_stream_to_the_next
    a_ring_dropped_with_operations_in_flight_ends_them
    a_dropped_accept_closes_what_it_accepted
    jobs_run_elsewhere_and_wake_the_ring
    each_job_has_a_thread
    a_job_s_panic_comes_out_of_its_future
    another_thread_wakes_a_sleeping_ring
    wakes_before_the_sleep_are_not_lost
    turns_without_work_make_no_system_call
}

fn writes_and_reads_single_buffers(ring: &Ring) {
    let file = file();
    for fua in [false, true] {
        let (written, bufs) = run(ring, ring.write_at(&file, pattern(8192, 1).into(), 4096, fua));
        assert_eq!(written.unwrap(), 8192);
        assert_eq!(bufs.into_single(), pattern(8192, 1));
    }
    let (read, bufs) = run(ring, ring.read_at(&file, Buffers::alloc(12288), 0));
    assert_eq!(read.unwrap(), 12288);
    let all = bufs.to_vec();
    assert_eq!(all[..4096], [0; 4096]);
    assert_eq!(all[4096..], *pattern(8192, 1));
}

fn writes_and_reads_gather_lists(ring: &Ring) {
    let file = file();
    let mut whole = pattern(10_000, 2);
    let expected = whole.to_vec();
    let mut list = Buffers::new();
    while !whole.is_empty() {
        list.push(whole.split_to(whole.len().min(1777)));
    }
    let (written, _) = run(ring, ring.write_at(&file, list, 100, true));
    assert_eq!(written.unwrap(), 10_000);
    let parts = [1, 4096, 0, 5903].map(Buffer::alloc);
    let (read, bufs) = run(ring, ring.read_at(&file, parts.into_iter().collect(), 100));
    assert_eq!(read.unwrap(), 10_000);
    assert_eq!(bufs.to_vec(), expected);
}

fn reads_short_at_the_end(ring: &Ring) {
    let file = file();
    run(ring, ring.write_at(&file, pattern(100, 0).into(), 0, false))
        .0
        .unwrap();
    assert_eq!(
        run(ring, ring.read_at(&file, Buffers::alloc(4096), 60))
            .0
            .unwrap(),
        40
    );
    assert_eq!(
        run(ring, ring.read_at(&file, Buffers::alloc(4096), 100))
            .0
            .unwrap(),
        0
    );
}

fn reports_errors_and_gives_buffers_back(ring: &Ring) {
    let read_only = fd(File::open("/dev/null").unwrap());
    let (result, bufs) = run(ring, ring.write_at(&read_only, pattern(512, 3).into(), 0, false));
    assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EBADF));
    assert_eq!(bufs.into_single(), pattern(512, 3));
    assert!(
        run(ring, ring.read_at(&file(), Buffers::alloc(512), u64::MAX))
            .0
            .is_err()
    );
    assert!(run(ring, ring.fallocate(&read_only, 0, 0, 4096)).is_err());
}

fn runs_more_operations_than_the_queue_holds(ring: &Ring) {
    let file = file();
    let writes = (0..3000).map(|i| ring.write_at(&file, pattern(512, i).into(), i as u64 * 512, false));
    for (result, _) in run(ring, join_all(writes)) {
        assert_eq!(result.unwrap(), 512);
    }
    let reads = (0..3000).map(|i| ring.read_at(&file, Buffers::alloc(512), i * 512));
    for (i, (result, bufs)) in run(ring, join_all(reads)).into_iter().enumerate() {
        assert_eq!(result.unwrap(), 512);
        assert_eq!(bufs.into_single(), pattern(512, i));
    }
    assert_eq!(ring.stats().in_use, 0);
    assert_eq!(ring.stats().completed, 6000);
}

fn file_operations_run_on_threads_when_asked(ring: &Ring) {
    let ops = FileOps::new(ring, file(), AioMode::Threads);
    let writes = (0..40).map(|i| ops.write_at(pattern(4096, i).into(), i as u64 * 4096, i % 2 == 0));
    assert!(
        run(ring, join_all(writes))
            .into_iter()
            .all(|(result, _)| result.unwrap() == 4096)
    );
    run(ring, ops.sync(true)).unwrap();
    let (_, bufs) = run(ring, ops.read_at(Buffers::alloc(4096), 7 * 4096));
    assert_eq!(bufs.into_single(), pattern(4096, 7));
}

fn syncs_and_allocates(ring: &Ring) {
    let file = file();
    run(ring, ring.fallocate(&file, 0, 0, 1 << 20)).unwrap();
    assert_eq!(rustix::fs::fstat(&file).unwrap().st_size, 1 << 20);
    run(ring, ring.sync(&file, true)).unwrap();
    run(ring, ring.sync(&file, false)).unwrap();
}

async fn receive_exactly(ring: &Ring, socket: &Fd, len: usize) -> Vec<u8> {
    let mut all = Vec::new();
    while all.len() < len {
        let (count, buf) = ring.recv(socket, Buffer::alloc(65536)).await;
        let count = count.unwrap();
        assert_ne!(count, 0, "the stream ended after {} bytes", all.len());
        all.extend_from_slice(&buf[..count]);
    }
    all
}

fn sockets() -> (Fd, Fd) {
    let (a, b) = UnixStream::pair().unwrap();
    (fd(a), fd(b))
}

fn sends_and_receives_all_bytes(ring: &Ring) {
    let (a, b) = sockets();
    let (sent, received) = run(
        ring,
        join(
            ring.send(&a, pattern(4 << 20, 5).into()),
            receive_exactly(ring, &b, 4 << 20),
        ),
    );
    assert_eq!(sent.0.unwrap(), 4 << 20);
    assert!(received == *pattern(4 << 20, 5));
}

fn sends_gather_lists_larger_than_the_socket_buffer(ring: &Ring) {
    let (a, b) = sockets();
    // More buffers than one call takes, too.
    let list: Buffers = (0..1500).map(|i| pattern(1000 + i, i)).collect();
    let expected = list.to_vec();
    let (sent, received) = run(
        ring,
        join(ring.send(&a, list), receive_exactly(ring, &b, expected.len())),
    );
    assert_eq!(sent.0.unwrap(), expected.len());
    assert!(received == expected);
}

fn receives_exactly_what_was_asked_for(ring: &Ring) {
    let (a, b) = sockets();
    let pieces = async {
        for i in 0..10 {
            ring.send(&a, pattern(100_000, i).into()).await.0.unwrap();
            ring.sleep(Duration::from_micros(100)).await;
        }
    };
    let expected: Vec<u8> = (0..10).flat_map(|i| pattern(100_000, i).to_vec()).collect();
    let (count, buf) = run(ring, join(ring.recv_exact(&b, Buffer::alloc(999_990)), pieces)).0;
    assert_eq!(count.unwrap(), 999_990);
    assert!(*buf == expected[..999_990]);
    drop(a);
    let (count, buf) = run(ring, ring.recv_exact(&b, Buffer::alloc(100)));
    assert_eq!(count.unwrap(), 10, "the stream ended");
    assert_eq!(buf[..10], expected[999_990..]);
}

fn works_with_nonblocking_sockets(ring: &Ring) {
    let (a, b) = UnixStream::pair().unwrap();
    a.set_nonblocking(true).unwrap();
    b.set_nonblocking(true).unwrap();
    let (a, b) = (fd(a), fd(b));
    let later = async {
        ring.sleep(Duration::from_millis(5)).await;
        ring.send(&a, pattern(1 << 20, 6).into()).await.0.unwrap()
    };
    let (sent, received) = run(ring, join(later, receive_exactly(ring, &b, 1 << 20)));
    assert_eq!(sent, 1 << 20);
    assert!(received == *pattern(1 << 20, 6));

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let addr = listener.local_addr().unwrap();
    let listener = fd(listener);
    let mut accept = pin!(ring.accept(&listener));
    assert!(run(ring, poll_immediate(accept.as_mut())).is_none());
    ring.turn(Wait::No);
    let _client = TcpStream::connect(addr).unwrap();
    run(ring, accept).unwrap();
}

fn a_closed_peer_is_an_error_to_send_and_an_end_to_receive(ring: &Ring) {
    let (a, b) = sockets();
    drop(b);
    assert_eq!(run(ring, ring.recv(&a, Buffer::alloc(512))).0.unwrap(), 0);
    let error = run(ring, ring.send(&a, pattern(512, 0).into())).0.unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EPIPE));
}

fn accepts_and_connects_over_unix(ring: &Ring) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let listener = fd(UnixListener::bind(&path).unwrap());
    let family = rustix::net::AddressFamily::UNIX;
    let client = fd(rustix::net::socket(family, rustix::net::SocketType::STREAM, None).unwrap());
    let addr = rustix::net::SocketAddrUnix::new(&path).unwrap();
    let (accepted, connected) = run(ring, join(ring.accept(&listener), ring.connect(&client, addr)));
    connected.unwrap();
    exchange(ring, &client, &fd(accepted.unwrap()));
}

fn exchange(ring: &Ring, client: &Fd, server: &Fd) {
    let (sent, received) = run(
        ring,
        join(
            ring.send(client, pattern(100, 9).into()),
            receive_exactly(ring, server, 100),
        ),
    );
    assert_eq!(sent.0.unwrap(), 100);
    assert_eq!(received, *pattern(100, 9));
}

fn tcp_socket() -> Fd {
    let family = rustix::net::AddressFamily::INET;
    fd(rustix::net::socket(family, rustix::net::SocketType::STREAM, None).unwrap())
}

fn accepts_and_connects_over_tcp(ring: &Ring) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr: SocketAddr = listener.local_addr().unwrap();
    let (listener, client) = (fd(listener), tcp_socket());
    let (accepted, connected) = run(ring, join(ring.accept(&listener), ring.connect(&client, addr)));
    connected.unwrap();
    exchange(ring, &client, &fd(accepted.unwrap()));
}

fn a_refused_connection_is_an_error(ring: &Ring) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr: SocketAddr = listener.local_addr().unwrap();
    drop(listener);
    let error = run(ring, ring.connect(&tcp_socket(), addr)).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ECONNREFUSED));
}

fn two_operations_wait_for_one_socket(ring: &Ring) {
    let (a, b) = sockets();
    // Each end receives while it sends more than the socket holds: both directions of one descriptor are waited for.
    let there = join(
        ring.send(&a, pattern(2 << 20, 1).into()),
        receive_exactly(ring, &a, 2 << 20),
    );
    let back = join(
        ring.send(&b, pattern(2 << 20, 2).into()),
        receive_exactly(ring, &b, 2 << 20),
    );
    let ((sent, at_a), (also_sent, at_b)) = run(ring, join(there, back));
    assert_eq!((sent.0.unwrap(), also_sent.0.unwrap()), (2 << 20, 2 << 20));
    assert!(at_a == *pattern(2 << 20, 2) && at_b == *pattern(2 << 20, 1));
}

fn polls_for_events(ring: &Ring) {
    let (mut a, b) = UnixStream::pair().unwrap();
    let b = fd(b);
    assert_eq!(
        run(ring, ring.poll(&b, libc::POLLOUT as u32)).unwrap(),
        libc::POLLOUT as u32
    );
    let mut readable = pin!(ring.poll(&b, libc::POLLIN as u32));
    assert!(run(ring, poll_immediate(readable.as_mut())).is_none());
    ring.turn(Wait::No);
    a.write_all(b"x").unwrap();
    assert_ne!(run(ring, readable).unwrap() & libc::POLLIN as u32, 0);
}

fn timers_fire_in_order(ring: &Ring) {
    let start = Instant::now();
    let order = Rc::new(Cell::new(Vec::new()));
    let timer = |ms: u64| {
        let order = order.clone();
        let ring = ring.clone();
        async move {
            ring.sleep_until(start + Duration::from_millis(ms)).await;
            let mut so_far = order.take();
            so_far.push(ms);
            order.set(so_far);
        }
    };
    run(ring, join_all([30, 10, 20, 10, 0].map(timer)));
    assert_eq!(order.take(), [0, 10, 10, 20, 30]);
    assert!(start.elapsed() >= Duration::from_millis(30));
    run(ring, ring.sleep_until(start));
}

fn a_dropped_timer_does_not_fire(ring: &Ring) {
    let mut timer = Box::pin(ring.sleep(Duration::from_millis(1)));
    assert!(run(ring, poll_immediate(timer.as_mut())).is_none());
    assert!(ring.next_timer().is_some());
    drop(timer);
    assert_eq!(ring.next_timer(), None);
}

fn a_dropped_receive_leaves_the_stream_to_the_next(ring: &Ring) {
    let (mut a, b) = UnixStream::pair().unwrap();
    let b = fd(b);
    let mut dropped = Box::pin(ring.recv(&b, Buffer::alloc(4096)));
    assert!(run(ring, poll_immediate(dropped.as_mut())).is_none());
    ring.turn(Wait::No);
    drop(dropped);
    assert_eq!(
        ring.stats().in_use,
        1,
        "the buffer stays until the kernel's last word"
    );
    while ring.stats().in_use > 0 {
        ring.turn(Wait::Until(None));
    }
    a.write_all(b"hello").unwrap();
    let (count, buf) = run(ring, ring.recv(&b, Buffer::alloc(4096)));
    assert_eq!(&buf[..count.unwrap()], b"hello");
}

fn a_ring_dropped_with_operations_in_flight_ends_them(outer: &Ring) {
    let (mut peer, b) = UnixStream::pair().unwrap();
    let (b, file) = (fd(b), file());
    {
        let ring = ring(outer.engine());
        let receives: Vec<_> = (0..10).map(|_| ring.recv(&b, Buffer::alloc(4096))).collect();
        let write = ring.write_at(&file, pattern(1 << 20, 0).into(), 0, true);
        let job = ring.blocking(|| 5);
        ring.turn(Wait::No);
        drop((receives, write, job));
    }
    assert_eq!(Arc::strong_count(&b), 1, "no operation holds the socket any more");
    assert_eq!(
        Arc::strong_count(&file),
        1,
        "no operation holds the file any more"
    );
    drop(b);
    assert_eq!(peer.read(&mut [0; 1]).unwrap(), 0);
}

fn a_dropped_accept_closes_what_it_accepted(ring: &Ring) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let listener = fd(listener);
    let accept = ring.accept(&listener);
    while ring.stats().completed == 0 {
        ring.turn(Wait::Until(None));
    }
    drop(accept);
    assert_eq!(client.read(&mut [0; 1]).unwrap(), 0, "the connection was closed");
    assert_eq!(ring.stats().in_use, 0);
}

fn jobs_run_elsewhere_and_wake_the_ring(ring: &Ring) {
    let here = std::thread::current().id();
    let jobs = (0..200u64).map(|i| ring.blocking(move || (i, std::thread::current().id())));
    for (i, (value, thread)) in run(ring, join_all(jobs)).into_iter().enumerate() {
        assert_eq!(value, i as u64);
        assert_ne!(thread, here);
    }
}

/// The one that is idle was taken for the job before.
fn each_job_has_a_thread(ring: &Ring) {
    for _ in 0..200 {
        run(ring, ring.blocking(|| ()));
        let (tell, hear) = std::sync::mpsc::channel();
        let waits = ring.blocking(move || hear.recv_timeout(Duration::from_secs(20)).is_ok());
        let tells = ring.blocking(move || tell.send(()).is_ok());
        assert_eq!(run(ring, join(waits, tells)), (true, true));
    }
}

fn a_job_s_panic_comes_out_of_its_future(ring: &Ring) {
    let job = std::panic::AssertUnwindSafe(|| run(ring, ring.blocking(|| panic!("in the job"))));
    let panic = std::panic::catch_unwind(job).unwrap_err();
    assert_eq!(panic.downcast_ref(), Some(&"in the job"));
    assert_eq!(run(ring, ring.blocking(|| 1)), 1, "the pool goes on");
}

fn another_thread_wakes_a_sleeping_ring(ring: &Ring) {
    let (send, receive) = crossbeam_channel::unbounded();
    let wake = ring.wake().clone();
    let senders: Vec<_> = (0..4u32)
        .map(|_| {
            let (send, wake) = (send.clone(), wake.clone());
            std::thread::spawn(move || {
                for i in 0..5000u32 {
                    send.send(i).unwrap();
                    wake.wake();
                }
            })
        })
        .collect();
    // A lost wake shows as a hang.
    let mut seen = 0;
    while seen < 20_000 {
        seen += receive.try_iter().count();
        if seen < 20_000 {
            ring.turn(Wait::Until(None));
        }
    }
    senders.into_iter().for_each(|sender| sender.join().unwrap());
}

fn wakes_before_the_sleep_are_not_lost(ring: &Ring) {
    for _ in 0..3 {
        ring.wake().wake();
        ring.turn(Wait::Until(None));
    }
}

fn turns_without_work_make_no_system_call(ring: &Ring) {
    let before = ring.stats().enters;
    for _ in 0..100 {
        assert_eq!(ring.turn(Wait::No), 0);
        assert!(!ring.has_work());
    }
    assert_eq!(ring.stats().enters, before);
    // And one for many operations.
    let file = file();
    let writes: Vec<_> = (0..16)
        .map(|i| ring.write_at(&file, pattern(512, 0).into(), i * 512, false))
        .collect();
    assert_eq!(ring.stats().enters, before);
    run(ring, join_all(writes));
    assert!(ring.stats().enters <= before + 20);
}

/// A device works while the rest of a turn's operations are made; those on memory all go with the turn's one system call.
#[test]
fn a_device_gets_its_operations_as_they_are_made() {
    let ring = ring(Engine::Uring);
    let cached = FileOps::new(&ring, file(), AioMode::IoUring);
    for (ops, expected) in [(cached.clone(), 0), (cached.past_the_page_cache(), 4)] {
        let before = ring.stats().enters;
        // Two by themselves, then two groups of four.
        let writes: Vec<_> = (0..10)
            .map(|i| ops.write_at(pattern(512, i).into(), i as u64 * 512, false))
            .collect();
        assert_eq!(ring.stats().enters - before, expected);
        for (result, _) in run(&ring, join_all(writes)) {
            assert_eq!(result.unwrap(), 512);
        }
    }
}

#[test]
fn an_odd_engine_is_refused() {
    let wake = Arc::new(Wake::new().unwrap());
    assert!(
        Ring::new(RingConfig {
            engine: Engine::Other,
            ..RingConfig::new(wake)
        })
        .is_err()
    );
}

#[test]
fn a_descriptor_closes_with_its_last_operation() {
    for engine in [Engine::Uring, Engine::Threads] {
        let ring = ring(engine);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let mine = fd(OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(path)
            .unwrap());
        let writing = ring.write_at(&mine, pattern(4096, 0).into(), 0, true);
        let weak = Arc::downgrade(&mine);
        drop(mine);
        assert!(weak.upgrade().is_some(), "the operation holds it");
        assert_eq!(run(&ring, writing).0.unwrap(), 4096);
        assert!(weak.upgrade().is_none());
    }
}

#[test]
fn futures_can_be_stored_without_a_lifetime() {
    let ring = ring(Engine::Threads);
    let stored: Pin<Box<dyn Future<Output = _>>> = {
        let (a, _b) = sockets();
        Box::pin(ring.recv(&a, Buffer::alloc(16)))
    };
    assert_eq!(run(&ring, stored).0.unwrap(), 0);
}
