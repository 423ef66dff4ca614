//! The iothread's loop: a turn handles mail, runs ready tasks and turns the ring.

use std::fmt;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use async_task::Runnable;
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use futures_channel::oneshot;
use millpond_ring::{Monotonic, Ring, RingConfig, Wait, Wake};

use super::guarded::guarded;
use super::local::{Local, Shared, Stats};
use super::poll::Adaptive;
use super::{IoThread, IoThreadConfig, time};

/// How much one turn does at most, so that messages, tasks and I/O get their turn under any flood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// How many messages of the mailbox were handled.
    pub messages: usize,
    /// How many times a task was polled.
    pub polls: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            messages: 256,
            polls: 512,
        }
    }
}

/// How many turns a busy iothread takes before it looks at the time for its flight record: a look costs as much as some
/// records do.
const TIMED: u64 = 16;

/// How many polls mail for others may wait before they are woken for it.
const UNTOLD: usize = 32;

/// How often an iothread that is to retire looks whether it may.
const RETIREMENT_LOOK: Duration = Duration::from_millis(20);

/// What a turn has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The turn did something, or there is something to be done at once.
    Worked,
    /// There was nothing to do.
    Idle,
    /// The iothread was asked to stop, and has handled what was in its mailbox by then.
    Stopped,
}

/// Which ready task runs next.
#[derive(Default)]
pub enum Scheduler {
    /// The task that has been ready longest.
    #[default]
    Fifo,
    /// The task at the index that this function picks among so many (at least one).
    Choose(Box<dyn FnMut(usize) -> usize>),
}

impl Scheduler {
    #[inline]
    fn pick(&mut self, ready: usize) -> usize {
        match self {
            Scheduler::Fifo => 0,
            Scheduler::Choose(choose) => choose(ready).min(ready - 1),
        }
    }
}

/// An iothread without the thread: whoever calls [`Core::turn`] lends it one. A simulator runs many on one thread.
pub struct Core<M> {
    local: Rc<Local>,
    mailbox: Receiver<M>,
    /// Tasks of this iothread that other threads made ready.
    tasks: Receiver<Runnable>,
    handler: Box<dyn Fn(M)>,
    adaptive: Adaptive,
    scheduler: Scheduler,
    budget: Budget,
    stats: Stats,
    /// Once the iothread was asked to stop: how many of the messages in the mailbox at that time are left.
    last: Option<usize>,
    /// Disconnects when the core is gone.
    _running: Sender<()>,
}

impl<M: Send + 'static> Core<M> {
    /// A core and its handle, on a ring made by the caller with the wake word `wake`.
    pub fn new<F>(config: &IoThreadConfig, ring: Ring, scheduler: Scheduler, make: F) -> (Self, IoThread<M>)
    where
        F: FnOnce(Rc<Local>) -> Box<dyn Fn(M)>,
    {
        let (shared, tasks) = Shared::new(config.name.clone(), config.poll, ring.wake().clone());
        let (sender, mailbox) = unbounded();
        let (running, ended) = bounded(0);
        let local = Local::new(shared.clone(), ring);
        let handler = {
            let _entered = local.enter();
            make(local.clone())
        };
        let (adaptive, stats) = (Adaptive::default(), Stats::default());
        let core = Self {
            local,
            mailbox,
            tasks,
            handler,
            adaptive,
            scheduler,
            budget: Budget::default(),
            stats,
            last: None,
            _running: running,
        };
        (
            core,
            IoThread {
                shared,
                mailbox: sender,
                ended,
            },
        )
    }

    /// The iothread from inside.
    pub fn local(&self) -> &Rc<Local> {
        &self.local
    }

    /// Changes how much a turn does at most. A simulator's turns do little, so that more happens in between.
    pub fn set_budget(&mut self, budget: Budget) {
        self.budget = budget;
    }

    /// Handles messages, runs ready tasks, and turns the ring; if there was nothing to do and `may_sleep`, polls and
    /// then sleeps until there is.
    pub fn turn(&mut self, may_sleep: bool) -> Progress {
        let _entered = self.local.enter();
        if self.stats.turns.is_multiple_of(TIMED) {
            self.local.note_time(self.local.ring().now());
        }
        self.stats.turns += 1;
        let work = self.messages() + self.run() + usize::from(self.local.look());
        if self.last.is_some_and(|last| last == 0) {
            return Progress::Stopped;
        }
        if work == 0 && self.local.shared().is_retiring() && self.may_retire() {
            return Progress::Stopped;
        }
        let events = if work == 0 && may_sleep {
            self.wait()
        } else {
            // Whoever turns the core may sleep after a turn without work.
            let came = work == 0 && !self.local.rest();
            usize::from(came) + self.local.ring().turn(Wait::No)
        };
        self.publish();
        if work + events > 0 {
            Progress::Worked
        } else {
            Progress::Idle
        }
    }

    fn messages(&mut self) -> usize {
        let most = self.allowance();
        let mut count = 0;
        // The check spares an empty mailbox the full fence of a receive.
        while count < most && !self.mailbox.is_empty() {
            let Ok(message) = self.mailbox.try_recv() else {
                break;
            };
            count += 1;
            self.stats.messages += 1;
            self.local.note_messages(self.stats.messages);
            time::forget();
            guarded("a message's handler", || (self.handler)(message));
        }
        self.local.ring_bells();
        if let Some(last) = &mut self.last {
            *last -= count;
        }
        count
    }

    /// How many messages this turn may handle: those sent after the stop was asked for are left.
    fn allowance(&mut self) -> usize {
        if self.last.is_none() && self.local.shared().is_stopping() {
            self.last = Some(self.mailbox.len());
        }
        let most = self.budget.messages;
        self.last.map_or(most, |last| last.min(most))
    }

    fn run(&mut self) -> usize {
        while !self.tasks.is_empty() {
            let Ok(task) = self.tasks.try_recv() else { break };
            self.local.push_ready(task);
        }
        let mut count = 0;
        while count < self.budget.polls {
            let ready = self.local.ready();
            if ready == 0 {
                break;
            }
            let next = self.scheduler.pick(ready);
            let Some(task) = self.local.take_ready(next) else {
                break;
            };
            count += 1;
            time::forget();
            guarded("a task", || {
                task.run();
            });
            if count.is_multiple_of(UNTOLD) {
                self.local.ring_bells();
            }
        }
        self.local.ring_bells();
        self.stats.polls += count as u64;
        count
    }

    /// Polls as long as it pays, then sleeps. Returns how many operations ended.
    fn wait(&mut self) -> usize {
        let params = self.local.shared().poll();
        let start = self.local.ring().now();
        let time = self.adaptive.time(params);
        let mut events = 0;
        let mut found = false;
        let mut asleep_from = start;
        if params.max_ns > 0 && !time.is_zero() {
            found = self.poll(time, &mut events);
            asleep_from = self.local.ring().now();
            self.stats.spins += 1;
            self.stats.spins_paid += u64::from(found);
            self.stats.spun_ns += nanoseconds(start, asleep_from);
        }
        let mut end = asleep_from;
        if !found && self.local.rest() {
            // Nobody may wait for one that sleeps.
            self.local.ring_bells();
            events = self.park();
            end = self.local.ring().now();
            self.stats.slept_ns += nanoseconds(asleep_from, end);
        }
        self.local.note_time(end);
        self.adaptive.adjust(params, end.saturating_duration_since(start));
        events
    }

    /// Sleeps in the ring until something happens.
    fn park(&mut self) -> usize {
        self.stats.parks += 1;
        // A thread that reads the counters during a long sleep must see all that was before it.
        self.publish();
        // What keeps an iothread from retiring may end without waking it.
        let retiring = self.local.shared().is_retiring();
        let until = retiring.then(|| self.local.ring().now() + RETIREMENT_LOOK);
        self.local.ring().turn(Wait::Until(until))
    }

    /// Whether nothing is left to be done and nothing can come.
    fn may_retire(&self) -> bool {
        // The order matters: once nobody can send any more, what was sent last is in the mailbox.
        !self.local.has_tasks()
            && self.local.is_unreachable()
            && self.mailbox.is_empty()
            && self.tasks.is_empty()
    }

    /// Looks for work for this long without system calls, but for one to hand over what was submitted. True if
    /// there is some, or a timer is due.
    fn poll(&self, time: Duration, events: &mut usize) -> bool {
        let ring = self.local.ring();
        let end = ring.now() + time;
        let timer = ring.next_timer();
        loop {
            if ring.has_work() {
                *events = ring.turn(Wait::No);
                if *events > 0 {
                    return true;
                }
            }
            if self.local.look() {
                return true;
            }
            if !self.mailbox.is_empty() || !self.tasks.is_empty() || self.local.ready() > 0 {
                return true;
            }
            let now = ring.now();
            if timer.is_some_and(|timer| timer <= now) {
                *events = ring.turn(Wait::No);
                return true;
            }
            if now >= end {
                return false;
            }
            // A hint to the processor, not a lock: nobody's progress is waited for. The thread has no request to serve
            // here, and gives up after `time` at the latest.
            std::hint::spin_loop();
        }
    }

    fn publish(&mut self) {
        self.stats.enters = self.local.ring().stats().enters;
        self.local.shared().publish(self.stats);
    }
}

impl<M> Drop for Core<M> {
    /// Drops all tasks on this thread, so that their guards are released and their operations cancelled.
    fn drop(&mut self) {
        let _entered = self.local.enter();
        self.local.chaos().clear();
        loop {
            self.local.wake_all();
            while let Some(task) = self.local.take_ready(0) {
                guarded("a dropped task", || drop(task));
            }
            if !self.local.has_tasks() {
                break;
            }
            // What is left was made ready by another thread that has yet to put it into the queue. The iothread is
            // ending, no request waits for it any more: it may block here.
            match self.tasks.recv_timeout(Duration::from_secs(5)) {
                Ok(task) => {
                    guarded("a dropped task", || drop(task));
                }
                Err(_) => {
                    tracing::error!(
                        iothread = self.local.name(),
                        "tasks left behind at the iothread's end"
                    );
                    break;
                }
            }
        }
        self.local.clear_ext();
        self.local.ring_bells();
    }
}

fn nanoseconds(from: Instant, to: Instant) -> u64 {
    u64::try_from(to.saturating_duration_since(from).as_nanos()).unwrap_or(u64::MAX)
}

/// Starts a thread that turns a core until it is stopped. The thread is being started when this returns, and the future
/// resolves once it runs.
pub(crate) fn begin<M, F>(
    config: IoThreadConfig,
    make: F,
) -> impl Future<Output = io::Result<IoThread<M>>> + Send
where
    M: Send + 'static,
    F: FnOnce(Rc<Local>) -> Box<dyn Fn(M)> + Send + 'static,
{
    let (send, started) = oneshot::channel();
    let name: String = config.name.chars().filter(|&c| c != '\0').collect();
    let spawned = thread::Builder::new().name(name).spawn(move || {
        let mut core = match prepare(&config, make) {
            Ok((core, handle)) => {
                drop(send.send(Ok(Unclaimed(Some(handle)))));
                core
            }
            Err(error) => return drop(send.send(Err(error))),
        };
        while core.turn(true) != Progress::Stopped {}
    });
    async move {
        spawned?;
        let ended = || io::Error::other("the iothread ended while it was set up");
        let mut unclaimed = started.await.unwrap_or_else(|_| Err(ended()))?;
        unclaimed.0.take().ok_or_else(ended)
    }
}

/// An iothread's handle on its way to its maker. If the maker is gone this stops the thread, which nobody else could.
struct Unclaimed<M>(Option<IoThread<M>>);

impl<M> Drop for Unclaimed<M> {
    fn drop(&mut self) {
        if let Some(iothread) = &self.0 {
            iothread.stop();
        }
    }
}

fn prepare<M, F>(config: &IoThreadConfig, make: F) -> io::Result<(Core<M>, IoThread<M>)>
where
    M: Send + 'static,
    F: FnOnce(Rc<Local>) -> Box<dyn Fn(M)>,
{
    if let Some(cpus) = &config.cpus {
        restrict(cpus)?;
    }
    let ring = Ring::new(RingConfig {
        engine: config.engine,
        max_batch: config.aio_max_batch,
        threads: config.pool_threads,
        clock: Rc::new(Monotonic),
        ..RingConfig::new(Arc::new(Wake::new()?))
    })?;
    Ok(Core::new(config, ring, Scheduler::default(), make))
}

/// Lets this thread run on these processors only.
fn restrict(cpus: &[usize]) -> io::Result<()> {
    let mut set = rustix::thread::CpuSet::new();
    for &cpu in cpus {
        if cpu >= rustix::thread::CpuSet::MAX_CPU {
            return Err(no_processor(cpu));
        }
        set.set(cpu);
    }
    // The kernel reports processors that do not exist only if no other is named.
    let restricted = rustix::thread::sched_setaffinity(None, &set);
    let granted = rustix::thread::sched_getaffinity(None)?;
    match cpus.iter().find(|cpu| !granted.is_set(**cpu)) {
        Some(missing) => Err(no_processor(*missing)),
        None => Ok(restricted?),
    }
}

fn no_processor(cpu: usize) -> io::Error {
    let text = format!("there is no processor {cpu} that it may run on");
    io::Error::new(io::ErrorKind::InvalidInput, text)
}

impl<M> fmt::Debug for Core<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core")
            .field("local", &self.local)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Scheduler::Fifo => "Fifo",
            Scheduler::Choose(_) => "Choose",
        })
    }
}
