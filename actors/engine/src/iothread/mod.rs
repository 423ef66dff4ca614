//! Iothreads: one OS thread each, with one ring, one mailbox and one single-threaded executor.
//!
//! An [`IoThread`] is the handle that any thread may hold; [`Local`] is the same iothread seen from inside, and is
//! what tasks use to spawn, to reach the ring and to keep per-thread tables.

mod core;
mod delays;
mod guarded;
mod local;
mod poll;
mod time;
mod turn;
mod watched;

use std::fmt;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender};
use millpond_ring::Engine;

pub use self::core::{Budget, Core, Progress, Scheduler};
pub use delays::{ThreadChaos, is_delaying};
pub use local::{Local, Stats};
pub use millpond_messages::IoThreadId;
pub use poll::PollParams;
pub use time::now_ns;
pub use turn::yield_once;
pub use watched::{Watched, Watching};

use local::Shared;

pub(crate) use guarded::guarded;

/// How an iothread is to be made.
#[derive(Clone, Debug)]
pub struct IoThreadConfig {
    /// The thread's name; the kernel shows its first 15 bytes.
    pub name: String,
    /// How long to poll before sleeping.
    pub poll: PollParams,
    /// What runs the ring's operations.
    pub engine: Engine,
    /// The processors the thread may run on; None for the process's own.
    pub cpus: Option<Vec<usize>>,
    /// After how many queued operations to hand them to the kernel early; 0 for the engine's own choice.
    pub aio_max_batch: u32,
    /// The most threads of the pool for blocking work.
    pub pool_threads: usize,
}

impl Default for IoThreadConfig {
    fn default() -> Self {
        Self {
            name: "iothread".to_owned(),
            poll: PollParams::default(),
            engine: Engine::Auto,
            cpus: None,
            aio_max_batch: 0,
            // QEMU's default for thread-pool-max.
            pool_threads: 64,
        }
    }
}

/// A handle on an iothread whose mailbox takes messages of type `M`.
///
/// Dropping handles does not end the thread: [`IoThread::stop`] does.
pub struct IoThread<M> {
    shared: Arc<Shared>,
    /// Unbounded: whoever sends has been admitted (a request holds its client's in-flight guard, the graph actor has
    /// one message a node out at a time), so the queue is as long as what is in flight, not as what is asked for.
    mailbox: Sender<M>,
    /// Disconnected when the thread has ended.
    ended: Receiver<()>,
}

impl<M: Send + 'static> IoThread<M> {
    /// Starts the thread without waiting for it: the future is the handle, once it runs. `make` runs on it first, and gives
    /// the mailbox's handler.
    ///
    /// # Errors
    /// What starting the thread, its processor set or its ring met.
    pub fn begin<F>(config: IoThreadConfig, make: F) -> impl Future<Output = io::Result<Self>> + Send
    where
        F: FnOnce(Rc<Local>) -> Box<dyn Fn(M)> + Send + 'static,
    {
        core::begin(config, make)
    }

    /// Starts the thread and waits until it runs: it blocks, so it is not for a thread that others wait for.
    ///
    /// # Errors
    /// As [`IoThread::begin`].
    pub fn start<F>(config: IoThreadConfig, make: F) -> io::Result<Self>
    where
        F: FnOnce(Rc<Local>) -> Box<dyn Fn(M)> + Send + 'static,
    {
        futures_executor::block_on(Self::begin(config, make))
    }

    /// Puts a message into the mailbox and wakes the thread if it sleeps.
    ///
    /// # Errors
    /// The message itself, if the thread has ended.
    #[inline]
    pub fn send(&self, message: M) -> Result<(), M> {
        self.post(message)?;
        self.wake();
        Ok(())
    }

    /// Puts a message into the mailbox, one of several for which the thread is woken once by [`IoThread::wake`].
    ///
    /// # Errors
    /// The message itself, if the thread has ended.
    #[inline]
    pub fn post(&self, message: M) -> Result<(), M> {
        self.mailbox.send(message).map_err(|refused| refused.0)
    }

    /// Wakes the thread if it sleeps, for what was put into its mailbox. Another iothread wakes it once for all that it sends
    /// within a turn.
    #[inline]
    pub fn wake(&self) {
        self.shared.wake();
    }
}

impl<M> IoThread<M> {
    /// The number of this iothread in the process.
    #[inline]
    pub fn id(&self) -> IoThreadId {
        self.shared.id()
    }

    /// The name that its maker gave it.
    pub fn name(&self) -> &str {
        self.shared.name()
    }

    /// Asks the thread to end: messages already in the mailbox are handled, then all tasks are dropped.
    pub fn stop(&self) {
        self.shared.stop();
    }

    /// Asks the thread to end once it is of no use to anybody: all its tasks have ended by themselves, and nobody can send
    /// it anything more.
    pub fn retire(&self) {
        self.shared.retire();
    }

    /// Whether the thread has ended.
    pub fn has_ended(&self) -> bool {
        self.ended.try_recv() == Err(crossbeam_channel::TryRecvError::Disconnected)
    }

    /// Waits until the thread has ended. For control threads at shutdown: it blocks, so it must not be called from
    /// a task, the thread's own least of all.
    pub fn join(&self) {
        // Nothing is ever sent: this returns when the thread drops its end.
        let _ = self.ended.recv();
    }

    /// Sets the adaptive polling from the thread's next turn on.
    pub fn set_poll(&self, params: PollParams) {
        self.shared.set_poll(params);
    }

    /// The adaptive polling in force.
    pub fn poll_params(&self) -> PollParams {
        self.shared.poll()
    }

    /// What the thread has done so far, in numbers.
    pub fn stats(&self) -> Stats {
        self.shared.stats()
    }
}

impl<M> Clone for IoThread<M> {
    fn clone(&self) -> Self {
        Self {
            shared: self.shared.clone(),
            mailbox: self.mailbox.clone(),
            ended: self.ended.clone(),
        }
    }
}

impl<M> fmt::Debug for IoThread<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IoThread")
            .field("id", &self.id())
            .field("name", &self.name())
            .finish_non_exhaustive()
    }
}
