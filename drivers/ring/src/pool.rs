//! A small thread pool for system calls that block: started as needed, idle threads end after a while.
//!
//! Workers do block, on their bell and in the kernel: that is what they are for. No request's task ever does; it
//! waits for a completion like any other, sent back over a channel and announced by the ring's wake word.
//!
//! No lock is taken on the way. The channels are used without blocking, so that nobody is ever in their lists of sleepers.
//! A worker without work joins the idle ones and sleeps on an eventfd of its own; the pool's owner takes an idle worker off
//! before it rings its bell, and starts a thread where it finds none. So every task has a worker that was woken or started
//! for it, unless all that may be are busy: and those look at the queue before they sleep.
//!
//! ```text
//!   vacant --(owner takes it, starts a thread)--> busy --(joins)--> idle --(owner takes it, rings)--> busy
//!     ^                                                              |
//!     +------------------------(leaves after a long while)-----------+
//! ```

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::net::SocketAddrAny;
use smallvec::SmallVec;

use super::backend::Completion;
use super::idle::Idle;
use super::op::{Fd, Job, Op, SlotId};
use super::sys;
use super::wake::Wake;

/// How long a thread without work stays, as QEMU's pool has it.
const IDLE: Duration = Duration::from_secs(10);

/// The most threads that a pool has, whatever it is asked for.
const MOST: usize = 4096;

/// The buffers of an operation, as the kernel takes them.
type Parts = SmallVec<[libc::iovec; 2]>;

enum Work {
    Read(Fd, Parts, u64),
    Write(Fd, Parts, u64, bool),
    Sync(Fd, bool),
    Fallocate(Fd, i32, u64, u64),
    Connect(Fd, Box<SocketAddrAny>),
    Call(Job),
    Nothing,
}

struct Task {
    id: SlotId,
    work: Work,
}

// SAFETY: the pointers in `Parts` lead into buffers that the operation's slot owns until this task's completion was
// received; nobody else uses those bytes meanwhile.
unsafe impl Send for Task {}

/// What the workers share.
struct Crew {
    queue: Receiver<Task>,
    done: Sender<Completion>,
    wake: Arc<Wake>,
    /// Workers that sleep, or are about to.
    idle: Idle,
    /// Those that have no thread.
    vacant: Idle,
    closing: AtomicBool,
}

/// The pool's owner's side; one a ring.
pub(super) struct Pool {
    queue: Sender<Task>,
    done: Receiver<Completion>,
    crew: Arc<Crew>,
    /// By worker; those that were never started have none.
    bells: Vec<Arc<Bell>>,
    most: usize,
}

impl Pool {
    /// A pool of at most `most` threads (at least one), none of them started yet.
    pub(super) fn new(most: usize, wake: Arc<Wake>) -> Self {
        let most = most.clamp(1, MOST);
        let (queue, tasks) = unbounded();
        let (sender, done) = unbounded();
        let crew = Arc::new(Crew {
            queue: tasks,
            done: sender,
            wake,
            idle: Idle::none(most),
            vacant: Idle::all(most),
            closing: AtomicBool::new(false),
        });
        Self {
            queue,
            done,
            crew,
            bells: Vec::new(),
            most,
        }
    }

    /// Has the operation done by a worker.
    pub(super) fn submit(&mut self, id: SlotId, op: &mut Op) {
        let task = Task { id, work: work(op) };
        // The pool itself holds a receiver, so the queue takes all.
        drop(self.queue.send(task));
        if let Some(worker) = self.crew.idle.take() {
            self.ring(worker);
        } else if let Some(worker) = self.crew.vacant.take() {
            self.start(worker);
        }
    }

    fn ring(&self, worker: usize) {
        if let Some(bell) = self.bells.get(worker) {
            bell.ring();
        }
    }

    fn start(&mut self, worker: usize) {
        let Err(error) = self.try_start(worker) else {
            return;
        };
        self.crew.vacant.join(worker);
        // Another worker may get to it; if there is none, this thread is the last that can.
        if self.crew.vacant.is_all(self.most) {
            tracing::error!("cannot start a thread for blocking work, doing it here: {error}");
            let crew = Arc::clone(&self.crew);
            crew.queue.try_iter().for_each(|task| crew.perform(task));
        }
    }

    fn try_start(&mut self, worker: usize) -> io::Result<()> {
        // The lowest that is vacant is taken first, so bells are made one after the other.
        while self.bells.len() <= worker {
            self.bells.push(Arc::new(Bell::new()?));
        }
        let Some(bell) = self.bells.get(worker).map(Arc::clone) else {
            return Err(io::Error::other("no such worker"));
        };
        let crew = Arc::clone(&self.crew);
        let thread = thread::Builder::new().name("pool".to_owned());
        thread.spawn(move || crew.run(worker, &bell)).map(drop)
    }

    /// Whether a completion waits to be collected.
    #[inline]
    pub(super) fn has_done(&self) -> bool {
        !self.done.is_empty()
    }

    /// Takes the completions that workers have left.
    #[inline]
    pub(super) fn collect(&mut self, done: &mut Vec<Completion>) {
        if self.has_done() {
            done.extend(self.done.try_iter());
        }
    }
}

impl Drop for Pool {
    /// Nobody waits for the workers: each ends when it has nothing more to do.
    fn drop(&mut self) {
        self.crew.closing.store(true, Ordering::Release);
        while let Some(worker) = self.crew.idle.take() {
            self.ring(worker);
        }
    }
}

impl Crew {
    fn run(&self, worker: usize, bell: &Bell) {
        loop {
            // Looked at before the queue: what was queued before the end is seen then, and done.
            let is_closing = self.closing.load(Ordering::Acquire);
            while let Ok(task) = self.queue.try_recv() {
                self.perform(task);
            }
            if is_closing {
                return;
            }
            self.idle.join(worker);
            let is_wanted = !self.queue.is_empty() || self.closing.load(Ordering::Acquire);
            if is_wanted && self.idle.leave(worker) {
                continue;
            }
            // Whoever takes it off rings its bell.
            if bell.wait(Some(IDLE)) {
                continue;
            }
            if !self.idle.leave(worker) {
                bell.wait(None);
                continue;
            }
            // Nobody rings any more. What was queued before this was known to be vacant may have no other worker.
            self.vacant.join(worker);
            if self.queue.is_empty() || !self.vacant.leave(worker) {
                return;
            }
        }
    }

    fn perform(&self, task: Task) {
        let id = task.id;
        // The work is gone, and with it its share of the descriptor, before its completion can be seen.
        let result = task.work.run();
        if self.done.send(Completion { id, result }).is_ok() {
            self.wake.wake();
        }
    }
}

/// What a worker sleeps on.
struct Bell(OwnedFd);

impl Bell {
    /// # Errors
    /// As `eventfd(2)`.
    fn new() -> io::Result<Self> {
        Ok(Self(eventfd(0, EventfdFlags::CLOEXEC)?))
    }

    /// Ends the sleep that the worker is in, or about to begin.
    fn ring(&self) {
        if let Err(error) = rustix::io::write(&self.0, &1_u64.to_ne_bytes()) {
            tracing::error!("cannot wake a thread for blocking work: {error}");
        }
    }

    /// Sleeps until it rings, or this long. True if it rang.
    fn wait(&self, time: Option<Duration>) -> bool {
        let end = time.map(|time| Instant::now() + time);
        loop {
            let left = end.map(|end| end.saturating_duration_since(Instant::now()));
            let left = left.and_then(|left| Timespec::try_from(left).ok());
            match poll(&mut [PollFd::new(&self.0, PollFlags::IN)], left.as_ref()) {
                Ok(0) => return false,
                Ok(_) => break,
                Err(Errno::INTR) => {}
                Err(error) => {
                    tracing::error!("a thread for blocking work cannot sleep: {error}");
                    break;
                }
            }
        }
        // There is something to be read, and nobody else reads it.
        rustix::io::read(&self.0, &mut [0_u8; 8]).is_ok()
    }
}

impl Work {
    fn run(self) -> i32 {
        match self {
            Work::Read(fd, parts, offset) => sys::preadv(&fd, &parts, offset),
            Work::Write(fd, parts, offset, fua) => sys::pwritev(&fd, &parts, offset, fua),
            Work::Sync(fd, true) => sys::unit(rustix::fs::fdatasync(&fd)),
            Work::Sync(fd, false) => sys::unit(rustix::fs::fsync(&fd)),
            Work::Fallocate(fd, mode, offset, len) => sys::fallocate(&fd, mode, offset, len),
            Work::Connect(fd, addr) => sys::unit(rustix::net::connect(&fd, &*addr)),
            Work::Call(job) => {
                job();
                0
            }
            Work::Nothing => -libc::EINVAL,
        }
    }
}

fn work(op: &mut Op) -> Work {
    match op {
        Op::Read { fd, bufs, offset, .. } => Work::Read(fd.clone(), sys::parts(bufs, 0).collect(), *offset),
        Op::Write {
            fd,
            bufs,
            offset,
            fua,
            ..
        } => Work::Write(fd.clone(), sys::parts(bufs, 0).collect(), *offset, *fua),
        Op::Sync { fd, datasync, .. } => Work::Sync(fd.clone(), *datasync),
        Op::Fallocate {
            fd,
            mode,
            offset,
            len,
            ..
        } => Work::Fallocate(fd.clone(), *mode, *offset, *len),
        Op::Connect { fd, addr, .. } => Work::Connect(fd.clone(), addr.clone()),
        Op::Blocking(job) => job.take().map_or(Work::Nothing, Work::Call),
        Op::Recv { .. } | Op::Send { .. } | Op::Accept { .. } | Op::Poll { .. } => Work::Nothing,
    }
}
