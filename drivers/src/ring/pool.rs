//! A small thread pool for system calls that block: started as needed, idle threads end after a while.
//!
//! Workers do block, on their queue and in the kernel: that is what they are for. No request's task ever does; it
//! waits for a completion like any other, sent back over a channel and announced by the ring's wake word.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering, fence};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, unbounded};
use rustix::net::SocketAddrAny;
use smallvec::SmallVec;

use super::backend::Completion;
use super::op::{Fd, Job, Op, SlotId};
use super::sys;
use super::wake::Wake;

/// How long a thread without work stays, as QEMU's pool has it.
const IDLE: Duration = Duration::from_secs(10);

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
    threads: AtomicUsize,
    idle: AtomicUsize,
}

/// The pool's owner's side; one a ring.
pub(super) struct Pool {
    queue: Sender<Task>,
    done: Receiver<Completion>,
    crew: Arc<Crew>,
    most: usize,
}

impl Pool {
    /// A pool of at most `most` threads (at least one), none of them started yet.
    pub(super) fn new(most: usize, wake: Arc<Wake>) -> Self {
        let (queue, tasks) = unbounded();
        let (sender, done) = unbounded();
        let (threads, idle) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let crew = Arc::new(Crew {
            queue: tasks,
            done: sender,
            wake,
            threads,
            idle,
        });
        Self {
            queue,
            done,
            crew,
            most: most.max(1),
        }
    }

    /// Has the operation done by a worker.
    pub(super) fn submit(&mut self, id: SlotId, op: &mut Op) {
        let task = Task { id, work: work(op) };
        // The pool itself holds a receiver, so the queue takes all.
        drop(self.queue.send(task));
        // Pairs with the fence of an ending worker: it sees the task, or this sees it gone.
        fence(Ordering::SeqCst);
        let crew = &self.crew;
        if crew.idle.load(Ordering::SeqCst) < self.queue.len()
            && crew.threads.load(Ordering::SeqCst) < self.most
        {
            self.start_worker();
        }
    }

    fn start_worker(&self) {
        let crew = self.crew.clone();
        crew.threads.fetch_add(1, Ordering::SeqCst);
        let started = thread::Builder::new()
            .name("pool".to_owned())
            .spawn(move || crew.run());
        if let Err(error) = started {
            self.crew.threads.fetch_sub(1, Ordering::SeqCst);
            // Another worker may get to it; if there is none, this thread is the last that can.
            if self.crew.threads.load(Ordering::SeqCst) == 0 {
                tracing::error!("cannot start a thread for blocking work, doing it here: {error}");
                self.crew
                    .queue
                    .try_iter()
                    .for_each(|task| self.crew.perform(task));
            }
        }
    }

    /// Whether a completion waits to be collected.
    #[inline]
    pub(super) fn has_done(&self) -> bool {
        !self.done.is_empty()
    }

    /// Collects completions.
    #[inline]
    pub(super) fn collect(&mut self, done: &mut Vec<Completion>) {
        if self.has_done() {
            done.extend(self.done.try_iter());
        }
    }
}

impl Crew {
    fn run(&self) {
        loop {
            self.idle.fetch_add(1, Ordering::SeqCst);
            let task = self.queue.recv_timeout(IDLE);
            self.idle.fetch_sub(1, Ordering::SeqCst);
            match task {
                Ok(task) => self.perform(task),
                Err(error) => {
                    self.threads.fetch_sub(1, Ordering::SeqCst);
                    fence(Ordering::SeqCst);
                    if error.is_disconnected() || self.queue.is_empty() {
                        return;
                    }
                    self.threads.fetch_add(1, Ordering::SeqCst);
                }
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
