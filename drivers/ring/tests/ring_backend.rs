//! What stands behind a ring can be exchanged: epoll where io_uring is refused, and a simulator by anyone.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::cell::Cell;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::future::Future;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use futures_util::future::{join, join_all};
use millpond_ring::buffer::{Buffer, Buffers, Region};
use millpond_ring::{
    Backend, Clock, Completion, Engine, Fd, Op, Ring, RingConfig, RingStats, SleepFor, SlotId, Slots, Wait,
    Wake,
};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

fn run<F: Future>(ring: &Ring, future: F) -> F::Output {
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(output) => return output,
            Poll::Pending => drop(ring.turn(Wait::Until(None))),
        }
    }
}

/// Counts warnings and errors.
struct Warnings(Arc<AtomicUsize>);

impl Subscriber for Warnings {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::WARN
    }
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, _: &Event<'_>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

/// Makes a system call fail on this thread, as container profiles do.
fn refuse(call: libc::c_long, errno: i32) {
    let statement = |code: u32, k: u32| libc::sock_filter {
        code: code as u16,
        jt: 0,
        jf: 0,
        k,
    };
    let mut program = [
        // The system call's number is the first word of what the filter sees.
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0),
        libc::sock_filter {
            jf: 1,
            ..statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, call as u32)
        },
        statement(
            libc::BPF_RET | libc::BPF_K,
            libc::SECCOMP_RET_ERRNO | errno as u32,
        ),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW),
    ];
    let filter = libc::sock_fprog {
        len: 4,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: no memory is passed.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, 0);
    // SAFETY: the kernel copies the filter, which outlives the call.
    let set = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter) };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn refused_io_uring_is_replaced_with_one_warning() {
    for errno in [libc::ENOSYS, libc::EPERM, libc::EACCES] {
        // A filter is its thread's, and cannot be taken off.
        let thread = std::thread::spawn(move || {
            refuse(libc::SYS_io_uring_setup, errno);
            let wake = Arc::new(Wake::new().unwrap());
            let uring = RingConfig {
                engine: Engine::Uring,
                ..RingConfig::new(wake.clone())
            };
            assert_eq!(
                Ring::new(uring).unwrap_err().raw_os_error(),
                Some(errno),
                "who insists gets the error"
            );

            let warnings = Arc::new(AtomicUsize::new(0));
            let auto = RingConfig::new(wake);
            let ring =
                tracing::subscriber::with_default(Warnings(warnings.clone()), || Ring::new(auto).unwrap());
            assert_eq!(ring.engine(), Engine::Threads);
            assert_eq!(warnings.load(Ordering::Relaxed), 1);
            assert_eq!(run(&ring, ring.blocking(|| 3)), 3);
        });
        thread.join().unwrap();
    }
}

#[test]
fn where_the_kernel_registers_no_memory_requests_from_it_go_on_without() {
    // The table, and then the first place in it.
    for allowed in [false, true] {
        // A filter is its thread's, and cannot be taken off.
        let thread = std::thread::spawn(move || {
            let uring = RingConfig {
                engine: Engine::Uring,
                ..RingConfig::new(Arc::new(Wake::new().unwrap()))
            };
            let ring = Ring::new(uring).unwrap();
            let mut other = Buffer::alloc(4096);
            let other = Arc::new(Region::of(&mut other).unwrap());
            if allowed {
                assert!(ring.register(&other).unwrap());
            }
            let mut from = Buffer::alloc(4096);
            let region = Arc::new(Region::of(&mut from).unwrap());
            refuse(libc::SYS_io_uring_register, libc::ENOMEM);
            let refused = ring.register(&region).unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(libc::ENOMEM));
            assert_eq!(Arc::strong_count(&region), 1, "it is not kept");
            let file = Arc::new(OwnedFd::from(tempfile::tempfile().unwrap()));
            let (written, _) = run(&ring, ring.write_at(&file, from.into(), 0, false));
            assert_eq!(written.unwrap(), 4096);
            assert_eq!(ring.stats().fixed, 0);
            // Nor does it keep what is known already.
            ring.unregister(&other);
            assert_eq!(Arc::strong_count(&other), 1);
        });
        thread.join().unwrap();
    }
}

#[test]
fn a_ring_whose_operations_do_not_end_is_leaked_with_an_error() {
    let wake = Arc::new(Wake::new().unwrap());
    let ring = Ring::new(RingConfig {
        engine: Engine::Threads,
        ..RingConfig::new(wake)
    })
    .unwrap();
    let (release, held) = crossbeam_channel::bounded::<()>(0);
    let (ended, end) = crossbeam_channel::bounded(1);
    drop(ring.blocking(move || {
        let _ = held.recv();
        ended.send(()).unwrap();
    }));
    let errors = Arc::new(AtomicUsize::new(0));
    tracing::subscriber::with_default(Warnings(errors.clone()), || drop(ring));
    assert_eq!(errors.load(Ordering::Relaxed), 1);
    // The job goes on in memory that is still there.
    drop(release);
    end.recv().unwrap();
}

/// Time that passes only when everybody sleeps.
#[derive(Clone)]
struct Virtual(Rc<Cell<Instant>>);

impl Clock for Virtual {
    fn now(&self) -> Instant {
        self.0.get()
    }
}

/// A disk in memory that takes a second for every operation, and a network that never says anything.
struct Simulated {
    clock: Virtual,
    disk: Vec<u8>,
    due: BinaryHeap<Reverse<(Instant, usize)>>,
    taken: Vec<SlotId>,
    cancelled: Vec<SlotId>,
}

impl Simulated {
    fn perform(&mut self, op: &mut Op) -> i32 {
        match op {
            Op::Read { bufs, offset, .. } => bufs.copy_from_slice(0, &self.disk[*offset as usize..]) as i32,
            Op::Write { bufs, offset, .. } => {
                bufs.copy_to_slice(0, &mut self.disk[*offset as usize..]) as i32
            }
            Op::Blocking(job) => {
                job.take().unwrap()();
                0
            }
            other => panic!("{other:?} is not simulated"),
        }
    }
}

impl Backend for Simulated {
    fn engine(&self) -> Engine {
        Engine::Other
    }

    fn submit(&mut self, id: SlotId, op: &mut Op) {
        if !matches!(op, Op::Recv { .. }) {
            self.due.push(Reverse((
                self.clock.now() + Duration::from_secs(1),
                self.taken.len(),
            )));
            self.taken.push(id);
        }
    }

    fn cancel(&mut self, id: SlotId, _: &mut Op) {
        self.cancelled.push(id);
    }

    fn has_work(&mut self) -> bool {
        !self.cancelled.is_empty()
    }

    fn turn(&mut self, slots: &mut Slots, sleep_for: SleepFor, done: &mut Vec<Completion>) {
        done.extend(self.cancelled.drain(..).map(|id| Completion {
            id,
            result: -libc::ECANCELED,
        }));
        if let (SleepFor::AtMost(most), true) = (sleep_for, done.is_empty()) {
            let now = self.clock.now();
            let next = self.due.peek().map(|Reverse((time, _))| *time);
            let end = most.map(|most| now + most);
            let until = next
                .into_iter()
                .chain(end)
                .min()
                .expect("somebody must be waited for");
            self.clock.0.set(until);
        }
        let now = self.clock.now();
        while let Some(Reverse((_, index))) =
            self.due.peek().copied().filter(|Reverse((time, _))| *time <= now)
        {
            self.due.pop();
            let id = self.taken[index];
            if let Some(op) = slots.get_mut(id) {
                done.push(Completion {
                    id,
                    result: self.perform(op),
                });
            }
        }
    }

    fn stats(&self) -> RingStats {
        RingStats::default()
    }
}

#[test]
fn a_simulator_runs_operations_and_timers_in_virtual_time() {
    let clock = Virtual(Rc::new(Cell::new(Instant::now())));
    let simulated = Simulated {
        clock: clock.clone(),
        disk: vec![0; 1 << 16],
        due: BinaryHeap::new(),
        taken: Vec::new(),
        cancelled: Vec::new(),
    };
    let wake = Arc::new(Wake::new().unwrap());
    let ring = Ring::with_backend(Box::new(simulated), wake, Rc::new(clock.clone()));
    let (real, start) = (Instant::now(), clock.now());
    let fd: Fd = Arc::new(std::fs::File::open("/dev/null").unwrap().into());

    let writes = (0..8u8).map(|i| {
        ring.write_at(
            &fd,
            Buffer::from_slice(&[i; 512]).into(),
            u64::from(i) * 512,
            false,
        )
    });
    assert!(
        run(&ring, join_all(writes))
            .iter()
            .all(|(result, _)| matches!(result, Ok(512)))
    );
    assert_eq!(clock.now() - start, Duration::from_secs(1), "all at once");
    let (_, bufs) = run(&ring, ring.read_at(&fd, Buffers::alloc(512), 5 * 512));
    assert_eq!(*bufs.into_single(), [5; 512]);
    assert_eq!(run(&ring, ring.blocking(|| 9)), 9);
    assert_eq!(clock.now() - start, Duration::from_secs(3));

    let hour = Duration::from_secs(3600);
    run(&ring, join(ring.sleep(hour), ring.sleep(hour / 2)));
    assert_eq!(clock.now() - start, Duration::from_secs(3603));
    assert!(real.elapsed() < hour);

    // A receive that never ends is cancelled when its future goes, and the ring can be dropped.
    drop(ring.recv(&fd, Buffer::alloc(512)));
    drop(ring);
    assert_eq!(Arc::strong_count(&fd), 1);
}
