//! The handle on a ring: starting operations, and the turn that submits, waits and wakes.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;
use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use futures_channel::oneshot;
use rustix::net::SocketAddrAny;

use super::backend::{Backend, Completion, SleepFor};
use super::clock::Clock;
use super::config::{Engine, RingConfig, RingStats, Wait};
use super::future::{Accepted, Blocking, Finished, Kind, Moved, Pending, Polled, Received};
use super::op::{AioMode, Fd, Job, Op, SlotId};
use super::slots::{Completed, Slots};
use super::threads::Threads;
use super::timer::{Sleep, Timers};
use super::uring::Uring;
use super::wake::Wake;
use crate::buffer::{Buffer, Buffers, Region};

/// How long a ring that is dropped waits for its cancelled operations: a disk may hold one for as long as its own
/// time limit, often 30 s, but a daemon that ends should not wait for that.
const LAST_WAIT: Duration = Duration::from_secs(5);

/// After how long to look at the time during that.
const LAST_SLEEP: Duration = Duration::from_millis(100);

struct State {
    slots: Slots,
    backend: Box<dyn Backend>,
    timers: Timers,
    done: Vec<Completion>,
    started: u64,
    completed: u64,
}

struct Inner {
    /// Borrowed for the length of a method here, and never while foreign code (a waker, a destructor) runs.
    state: ManuallyDrop<RefCell<State>>,
    /// Kept for its memory between turns.
    wakers: Cell<Vec<Waker>>,
    wake: Arc<Wake>,
    clock: Rc<dyn Clock>,
}

/// A handle on a ring. Clones are the same ring; all live on the thread that made it.
#[derive(Clone)]
pub struct Ring {
    inner: Rc<Inner>,
}

impl Ring {
    /// A ring on the engine that `config` asks for. Must be called on the thread that will turn it.
    ///
    /// # Errors
    /// Those of `io_uring_setup(2)` or `epoll_create1(2)`. With [`Engine::Auto`], an io_uring that is refused (ENOSYS,
    /// EPERM, EACCES), or for which the system is short of something (ENOMEM, EMFILE, ENFILE), is replaced by epoll and
    /// threads, with one warning in the log.
    pub fn new(config: RingConfig) -> io::Result<Self> {
        let backend: Box<dyn Backend> = match config.engine {
            Engine::Uring => Box::new(Uring::new(&config)?),
            Engine::Threads => Box::new(Threads::new(&config)?),
            Engine::Auto => match Uring::new(&config) {
                Ok(uring) => Box::new(uring),
                Err(error) if is_refusal(&error) => {
                    tracing::warn!("io_uring is not available ({error}), using epoll and threads");
                    Box::new(Threads::new(&config)?)
                }
                Err(error) => return Err(error),
            },
            Engine::Other => {
                let text = "a ring on another engine is made with its backend";
                return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
            }
        };
        Ok(Self::with_backend(backend, config.wake, config.clock))
    }

    /// A ring on a backend from outside.
    pub fn with_backend(backend: Box<dyn Backend>, wake: Arc<Wake>, clock: Rc<dyn Clock>) -> Self {
        let state = State {
            slots: Slots::default(),
            backend,
            timers: Timers::default(),
            done: Vec::new(),
            started: 0,
            completed: 0,
        };
        let inner = Inner {
            state: ManuallyDrop::new(RefCell::new(state)),
            wakers: Cell::default(),
            wake,
            clock,
        };
        Self {
            inner: Rc::new(inner),
        }
    }

    /// What runs the operations; never [`Engine::Auto`].
    pub fn engine(&self) -> Engine {
        self.inner.state.borrow().backend.engine()
    }

    /// The word that wakes this ring's sleep.
    pub fn wake(&self) -> &Arc<Wake> {
        &self.inner.wake
    }

    /// The time by the ring's clock.
    #[inline]
    pub fn now(&self) -> Instant {
        self.inner.clock.now()
    }

    /// How many operations the ring has seen.
    pub fn stats(&self) -> RingStats {
        let state = self.inner.state.borrow();
        let (started, completed, in_use) = (state.started, state.completed, state.slots.len());
        RingStats {
            started,
            completed,
            in_use,
            ..state.backend.stats()
        }
    }

    /// Makes memory known from which many operations will come: reads and writes with a single buffer inside it need no
    /// mapping of their own. False where that is of no use, on threads for instance. The ring keeps the region until it is
    /// unregistered and the kernel has forgotten it.
    ///
    /// # Errors
    /// The kernel's, `ENOMEM` where so much may not be locked; a [`crate::buffer::RegionError`] inside. Operations from
    /// there go on as they do from any memory.
    pub fn register(&self, region: &Arc<Region>) -> io::Result<bool> {
        self.inner.state.borrow_mut().backend.register(region)
    }

    /// Forgets memory that was made known, if it was. Operations in flight go on.
    pub fn unregister(&self, region: &Arc<Region>) {
        self.inner.state.borrow_mut().backend.unregister(region);
    }

    /// Reads at `offset` of a file. Resolves to the bytes read, fewer than the buffers hold at the end of the file
    /// or when the kernel stops short, and to the buffers.
    #[inline]
    pub fn read_at(&self, fd: &Fd, bufs: Buffers, offset: u64) -> Pending<Moved> {
        self.start(Op::Read {
            fd: fd.clone(),
            bufs,
            offset,
            aio: AioMode::IoUring,
            direct: false,
        })
    }

    /// Writes at `offset` of a file; with `fua` it completes when the data is on stable storage. Resolves to the
    /// bytes written, which may be fewer than given, and to the buffers.
    #[inline]
    pub fn write_at(&self, fd: &Fd, bufs: Buffers, offset: u64, fua: bool) -> Pending<Moved> {
        self.start(Op::Write {
            fd: fd.clone(),
            bufs,
            offset,
            fua,
            aio: AioMode::IoUring,
            direct: false,
        })
    }

    /// Makes a file durable, by `fdatasync(2)` or `fsync(2)`.
    pub fn sync(&self, fd: &Fd, datasync: bool) -> Pending<Finished> {
        self.start(Op::Sync {
            fd: fd.clone(),
            datasync,
            aio: AioMode::IoUring,
        })
    }

    /// `fallocate(2)` with `FALLOC_FL_*` flags in `mode`; `offset` and `len` in bytes.
    pub fn fallocate(&self, fd: &Fd, mode: i32, offset: u64, len: u64) -> Pending<Finished> {
        self.start(Op::Fallocate {
            fd: fd.clone(),
            mode,
            offset,
            len,
            aio: AioMode::IoUring,
        })
    }

    /// Receives from a socket what there is, at least a byte. Resolves to the bytes received, 0 when the peer has
    /// closed its end (or the buffer is empty), and to the buffer.
    #[inline]
    pub fn recv(&self, fd: &Fd, buf: Buffer) -> Pending<Received> {
        self.start(Op::Recv {
            fd: fd.clone(),
            buf,
            received: 0,
            all: false,
        })
    }

    /// Receives until the buffer is full. Resolves to the bytes received, fewer only when the peer has closed its end,
    /// and to the buffer.
    #[inline]
    pub fn recv_exact(&self, fd: &Fd, buf: Buffer) -> Pending<Received> {
        self.start(Op::Recv {
            fd: fd.clone(),
            buf,
            received: 0,
            all: true,
        })
    }

    /// Sends all bytes to a stream socket. Resolves to their number or an error (after which some may have gone
    /// out), and to the buffers. Sends on one socket must not overlap: their bytes may mix.
    #[inline]
    pub fn send(&self, fd: &Fd, bufs: Buffers) -> Pending<Moved> {
        self.start(Op::Send {
            fd: fd.clone(),
            bufs,
            sent: 0,
        })
    }

    /// Accepts a connection; the new descriptor is close-on-exec.
    pub fn accept(&self, fd: &Fd) -> Pending<Accepted> {
        self.start(Op::Accept { fd: fd.clone() })
    }

    /// Connects a socket to an address.
    pub fn connect(&self, fd: &Fd, addr: impl Into<SocketAddrAny>) -> Pending<Finished> {
        self.start(Op::Connect {
            fd: fd.clone(),
            addr: Box::new(addr.into()),
            begun: false,
        })
    }

    /// Waits for any of the `poll(2)` events, or an error or hang-up; resolves to those that came.
    pub fn poll(&self, fd: &Fd, events: u32) -> Pending<Polled> {
        self.start(Op::Poll {
            fd: fd.clone(),
            events,
        })
    }

    /// Waits for a while.
    pub fn sleep(&self, time: Duration) -> Sleep {
        Sleep::new(self.clone(), self.now().checked_add(time))
    }

    /// Waits until a time of the ring's clock.
    pub fn sleep_until(&self, deadline: Instant) -> Sleep {
        Sleep::new(self.clone(), Some(deadline))
    }

    /// Runs `job` on the ring's thread pool: for system calls that have no asynchronous form. Panics in the job come
    /// out of the future.
    pub fn blocking<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Blocking<T> {
        let (send, value) = oneshot::channel();
        let job: Job = Box::new(move || {
            // The job is consumed by its panic, so nothing half-changed of it is seen again. If nobody waits for the
            // outcome any more it is dropped here.
            drop(send.send(catch_unwind(AssertUnwindSafe(job))));
        });
        Blocking::new(self.start(Op::Blocking(Some(job))), value)
    }

    #[inline]
    pub(super) fn start<K: Kind>(&self, op: Op) -> Pending<K> {
        let mut state = self.inner.state.borrow_mut();
        let State {
            slots,
            backend,
            started,
            ..
        } = &mut *state;
        let id = slots.insert(op);
        *started += 1;
        if let Some(op) = slots.get_mut(id) {
            backend.submit(id, op);
        }
        drop(state);
        Pending::new(self.clone(), id)
    }

    /// Whether something waits to be submitted, or is known to have ended. Costs no system call, and so may miss
    /// what only a system call can find.
    #[inline]
    pub fn has_work(&self) -> bool {
        self.inner.state.borrow_mut().backend.has_work()
    }

    /// When the next timer is due.
    #[inline]
    pub fn next_timer(&self) -> Option<Instant> {
        self.inner.state.borrow().timers.first()
    }

    /// Submits what was started, waits as `wait` allows, and wakes the tasks of all that ended: one system call, or
    /// none if there is nothing to submit, nothing can have ended and `wait` is [`Wait::No`]. Returns how many
    /// operations and timers ended.
    ///
    /// A turn that may wait runs the sleeper's side of the [`Wake`] protocol: it returns without sleeping
    /// if the ring was woken since it last did so. The caller must look at its queues between two such turns.
    pub fn turn(&self, wait: Wait) -> usize {
        let mut wakers = self.inner.wakers.take();
        let mut disposed = Vec::new();
        let count = self.collect(wait, &mut wakers, &mut disposed);
        wakers.drain(..).for_each(Waker::wake);
        disposed
            .into_iter()
            .for_each(|(op, result): (Op, i32)| op.dispose(result));
        self.inner.wakers.set(wakers);
        count
    }

    /// The part of a turn that borrows the state.
    fn collect(&self, wait: Wait, wakers: &mut Vec<Waker>, disposed: &mut Vec<(Op, i32)>) -> usize {
        let mut state = self.inner.state.borrow_mut();
        let State {
            slots,
            backend,
            timers,
            done,
            completed,
            ..
        } = &mut *state;
        match self.sleep_for(wait, timers) {
            Some(sleep_for) if self.inner.wake.try_park() => {
                backend.turn(slots, sleep_for, done);
                self.inner.wake.unpark();
            }
            _ => backend.turn(slots, SleepFor::NoTime, done),
        }
        let mut count = 0;
        for Completion { id, result } in done.drain(..) {
            if let Some(rest) = unfinished(slots, id, result) {
                backend.submit(id, rest);
                continue;
            }
            count += 1;
            let result = total(slots, id, result);
            match slots.complete(id, result) {
                Completed::Wake(waker) => wakers.push(waker),
                Completed::Dispose(op, result) => disposed.push((op, result)),
                Completed::Nothing => {}
            }
        }
        *completed += count as u64;
        if timers.first().is_some() {
            let before = wakers.len();
            timers.expire(self.inner.clock.now(), wakers);
            count += wakers.len() - before;
        }
        count
    }

    /// How long to sleep, or None for not at all.
    fn sleep_for(&self, wait: Wait, timers: &Timers) -> Option<SleepFor> {
        let Wait::Until(until) = wait else { return None };
        let deadline = match (until, timers.first()) {
            (Some(until), Some(first)) => until.min(first),
            (Some(time), None) | (None, Some(time)) => time,
            (None, None) => return Some(SleepFor::AtMost(None)),
        };
        let time = deadline.saturating_duration_since(self.inner.clock.now());
        (!time.is_zero()).then_some(SleepFor::AtMost(Some(time)))
    }

    #[inline]
    pub(super) fn poll_slot(&self, id: SlotId, waker: &Waker) -> Poll<(i32, Op)> {
        let (poll, old) = self.inner.state.borrow_mut().slots.poll(id, waker);
        drop(old);
        poll
    }

    pub(super) fn abandon(&self, id: SlotId) {
        let mut state = self.inner.state.borrow_mut();
        let (cancel, waker, finished) = state.slots.abandon(id);
        if cancel {
            let State { slots, backend, .. } = &mut *state;
            if let Some(op) = slots.get_mut(id) {
                backend.cancel(id, op);
            }
        }
        drop(state);
        drop(waker);
        if let Some((op, result)) = finished {
            op.dispose(result);
        }
    }

    pub(super) fn with_timers<T>(&self, f: impl FnOnce(&mut Timers) -> T) -> T {
        f(&mut self.inner.state.borrow_mut().timers)
    }
}

impl Drop for Inner {
    /// Runs when every future is gone, and with it every operation cancelled: what is left only has to come back.
    fn drop(&mut self) {
        let state = self.state.get_mut();
        // By the system's clock: a simulator's may stand still, but its operations end at once.
        let deadline = Instant::now() + LAST_WAIT;
        while !state.slots.is_empty() && Instant::now() < deadline {
            let State {
                slots, backend, done, ..
            } = &mut *state;
            if self.wake.try_park() {
                backend.turn(slots, SleepFor::AtMost(Some(LAST_SLEEP)), done);
                self.wake.unpark();
            } else {
                backend.turn(slots, SleepFor::NoTime, done);
            }
            for Completion { id, result } in done.drain(..) {
                if let Completed::Dispose(op, result) = slots.complete(id, result) {
                    op.dispose(result);
                }
            }
        }
        if state.slots.is_empty() {
            // SAFETY: this is the value's own drop, and nothing uses `state` after it.
            unsafe { ManuallyDrop::drop(&mut self.state) };
        } else {
            let stuck = state.slots.len();
            tracing::error!(
                stuck,
                "operations do not end: leaking the ring, and their buffers with it"
            );
        }
    }
}

/// Whether io_uring is kept from us, or needs what is not left, rather than broken.
fn is_refusal(error: &io::Error) -> bool {
    let refused = matches!(
        error.raw_os_error(),
        Some(libc::ENOSYS | libc::EPERM | libc::EACCES | libc::ENOMEM | libc::EMFILE | libc::ENFILE)
    );
    refused || error.kind() == io::ErrorKind::Unsupported
}

/// If the completion is that of a part of a transfer that is still wanted: the operation, to be carried on.
fn unfinished(slots: &mut Slots, id: SlotId, result: i32) -> Option<&mut Op> {
    let count = usize::try_from(result).ok().filter(|&count| count > 0)?;
    if !slots.is_wanted(id) {
        return None;
    }
    let op = slots.get_mut(id)?;
    let left = match op {
        Op::Send { bufs, sent, .. } => {
            *sent += count;
            *sent < bufs.len()
        }
        Op::Recv {
            buf, received, all, ..
        } => {
            *received += count;
            *all && *received < buf.len()
        }
        _ => false,
    };
    left.then_some(op)
}

/// The result of the whole operation: a transfer's last part counts for all of its parts.
fn total(slots: &mut Slots, id: SlotId, result: i32) -> i32 {
    match slots.get_mut(id) {
        Some(Op::Send { sent: moved, .. } | Op::Recv { received: moved, .. }) if result >= 0 => {
            i32::try_from(*moved).unwrap_or(i32::MAX)
        }
        _ => result,
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring").finish_non_exhaustive()
    }
}
