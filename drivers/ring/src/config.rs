//! How a ring is made, how long its turns may wait, and what it counts.

use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use super::clock::{Clock, Monotonic};
use super::wake::Wake;

/// What runs a ring's operations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Engine {
    /// io_uring, or epoll and threads where the kernel refuses it.
    #[default]
    Auto,
    /// io_uring, or an error where it is refused.
    Uring,
    /// epoll for sockets, a thread pool for files.
    Threads,
    /// A backend from outside, such as a simulator.
    Other,
}

/// How a ring is to be made.
pub struct RingConfig {
    /// What runs the operations.
    pub engine: Engine,
    /// Submission queue entries; a full queue is handed to the kernel early. Rounded up to a power of two.
    pub entries: u32,
    /// After how many queued operations to hand them to the kernel without waiting for the turn's end; 0 for when
    /// the queue is full.
    pub max_batch: u32,
    /// The most threads of the pool; they start as they are needed and end when idle for long.
    pub threads: usize,
    /// What wakes the ring's sleep from other threads.
    pub wake: Arc<Wake>,
    /// The clock that timers go by.
    pub clock: Rc<dyn Clock>,
}

impl RingConfig {
    /// The defaults, on this wake word.
    pub fn new(wake: Arc<Wake>) -> Self {
        // 256 entries hold the requests of two clients at queue depth 128; 64 threads are QEMU's default bound.
        Self {
            engine: Engine::Auto,
            entries: 256,
            max_batch: 0,
            threads: 64,
            wake,
            clock: Rc::new(Monotonic),
        }
    }
}

/// How long a turn may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// What is ready is taken; nothing is waited for.
    No,
    /// Until something happens, a timer is due, another thread wakes the ring, or this time has come.
    Until(Option<Instant>),
}

/// What a ring has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingStats {
    /// System calls made by turns and by flushes of a full queue.
    pub enters: u64,
    /// How many operations were started.
    pub started: u64,
    /// How many operations have ended.
    pub completed: u64,
    /// Reads and writes of registered memory, which needed no mapping.
    pub fixed: u64,
    /// Operations in flight now, and completed ones whose result was not fetched yet.
    pub in_use: usize,
}

impl fmt::Debug for RingConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RingConfig")
            .field("engine", &self.engine)
            .finish_non_exhaustive()
    }
}
