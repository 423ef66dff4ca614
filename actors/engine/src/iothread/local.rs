//! An iothread from inside: its tasks, its ring and its per-thread tables, reached only on the thread itself.

use std::any::{Any, TypeId};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use async_task::{Runnable, Task};
use crossbeam_channel::{Receiver, Sender};
use millpond_messages::IoThreadId;
use millpond_ring::{Ring, Wake};
use pin_project_lite::pin_project;
use slab::Slab;

use super::delays::{OnGuard, ThreadChaos};
use super::poll::{PollParams, SharedParams};
use super::watched::Watched;
use crate::flight::{Note, Recorder};

thread_local! {
    static CURRENT_ID: Cell<Option<IoThreadId>> = const { Cell::new(None) };
    static CURRENT: RefCell<Option<Rc<Local>>> = const { RefCell::new(None) };
}

fn next_id() -> IoThreadId {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    IoThreadId(NEXT.fetch_add(1, Ordering::Relaxed))
}

/// What an iothread has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Turns of the loop.
    pub turns: u64,
    /// System calls for I/O and waiting.
    pub enters: u64,
    /// How many times the thread slept.
    pub parks: u64,
    /// How many messages of the mailbox were handled.
    pub messages: u64,
    /// How many times a task was polled.
    pub polls: u64,
    /// How many times it polled instead of sleeping.
    pub spins: u64,
    /// Busy waits that found work.
    pub spins_paid: u64,
    /// Time spent in busy waits, in nanoseconds.
    pub spun_ns: u64,
    /// Time slept, in nanoseconds.
    pub slept_ns: u64,
}

/// The part of an iothread that other threads touch.
#[derive(Debug)]
pub(crate) struct Shared {
    id: IoThreadId,
    name: String,
    wake: Arc<Wake>,
    /// Tasks that other threads made ready. Unbounded: a task is in it at most once.
    remote: Sender<Runnable>,
    stop: AtomicBool,
    retire: AtomicBool,
    poll: SharedParams,
    turns: AtomicU64,
    enters: AtomicU64,
    parks: AtomicU64,
    messages: AtomicU64,
    polls: AtomicU64,
    spins: AtomicU64,
    spins_paid: AtomicU64,
    spun_ns: AtomicU64,
    slept_ns: AtomicU64,
}

impl Shared {
    pub(crate) fn new(name: String, poll: PollParams, wake: Arc<Wake>) -> (Arc<Self>, Receiver<Runnable>) {
        let (remote, tasks) = crossbeam_channel::unbounded();
        let shared = Self {
            id: next_id(),
            name,
            wake,
            remote,
            stop: AtomicBool::new(false),
            retire: AtomicBool::new(false),
            poll: SharedParams::new(poll),
            turns: AtomicU64::new(0),
            enters: AtomicU64::new(0),
            parks: AtomicU64::new(0),
            messages: AtomicU64::new(0),
            polls: AtomicU64::new(0),
            spins: AtomicU64::new(0),
            spins_paid: AtomicU64::new(0),
            spun_ns: AtomicU64::new(0),
            slept_ns: AtomicU64::new(0),
        };
        (Arc::new(shared), tasks)
    }

    #[inline]
    pub(crate) fn id(&self) -> IoThreadId {
        self.id
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    #[inline]
    pub(crate) fn wake(&self) {
        Local::wake_later(&self.wake);
    }

    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.wake.wake();
    }

    pub(crate) fn retire(&self) {
        self.retire.store(true, Ordering::Release);
        self.wake.wake();
    }

    pub(crate) fn is_retiring(&self) -> bool {
        self.retire.load(Ordering::Acquire)
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    pub(crate) fn set_poll(&self, params: PollParams) {
        self.poll.set(params);
        self.wake.wake();
    }

    pub(crate) fn poll(&self) -> PollParams {
        self.poll.get()
    }

    /// Publishes the counters; only the iothread does.
    pub(crate) fn publish(&self, stats: Stats) {
        self.turns.store(stats.turns, Ordering::Relaxed);
        self.enters.store(stats.enters, Ordering::Relaxed);
        self.parks.store(stats.parks, Ordering::Relaxed);
        self.messages.store(stats.messages, Ordering::Relaxed);
        self.polls.store(stats.polls, Ordering::Relaxed);
        self.spins.store(stats.spins, Ordering::Relaxed);
        self.spins_paid.store(stats.spins_paid, Ordering::Relaxed);
        self.spun_ns.store(stats.spun_ns, Ordering::Relaxed);
        self.slept_ns.store(stats.slept_ns, Ordering::Relaxed);
    }

    pub(crate) fn stats(&self) -> Stats {
        Stats {
            turns: self.turns.load(Ordering::Relaxed),
            enters: self.enters.load(Ordering::Relaxed),
            parks: self.parks.load(Ordering::Relaxed),
            messages: self.messages.load(Ordering::Relaxed),
            polls: self.polls.load(Ordering::Relaxed),
            spins: self.spins.load(Ordering::Relaxed),
            spins_paid: self.spins_paid.load(Ordering::Relaxed),
            spun_ns: self.spun_ns.load(Ordering::Relaxed),
            slept_ns: self.slept_ns.load(Ordering::Relaxed),
        }
    }

    /// Puts a task that was woken where its iothread will find it.
    #[inline]
    fn schedule(&self, task: Runnable) {
        if Local::current_id() == Some(self.id) {
            // The closure cannot panic: the queue is never borrowed while a task or a waker runs.
            let task = CURRENT.with(|current| match &*current.borrow() {
                Some(local) => {
                    local.ready.borrow_mut().push_back(task);
                    None
                }
                None => Some(task),
            });
            // Current by number but without a table: the thread is ending, and dropping the task drops its future.
            drop(task);
        } else if self.remote.send(task).is_ok() {
            self.wake();
        }
    }
}

/// The iothread that this code runs on.
pub struct Local {
    shared: Arc<Shared>,
    ring: Ring,
    begun: Instant,
    messages: Cell<u64>,
    ready: RefCell<VecDeque<Runnable>>,
    /// A waker of every task alive, to reach those that wait when the iothread ends.
    alive: RefCell<Slab<Waker>>,
    ext: RefCell<Vec<(TypeId, Rc<dyn Any>)>>,
    /// Asks the mailbox's handler whether nobody can send to the iothread any more.
    unreachable: RefCell<Box<dyn Fn() -> bool>>,
    /// Sleepers elsewhere for whom there is mail, to be woken once for all of it.
    bells: RefCell<Vec<Arc<Wake>>>,
    /// What is looked at between tasks.
    pub(super) watched: RefCell<Vec<Rc<dyn Watched>>>,
    chaos: ThreadChaos,
    flight: Arc<Recorder>,
    /// The time that the flight recorder notes. It is taken where the clock is read anyway, and now and then.
    flight_ns: Cell<u64>,
}

impl Local {
    pub(crate) fn new(shared: Arc<Shared>, ring: Ring) -> Rc<Self> {
        let flight = Recorder::register(&shared.name);
        Rc::new(Self {
            shared,
            begun: ring.now(),
            messages: Cell::new(0),
            ring,
            ready: RefCell::default(),
            alive: RefCell::default(),
            ext: RefCell::default(),
            unreachable: RefCell::new(Box::new(|| true)),
            bells: RefCell::default(),
            watched: RefCell::default(),
            chaos: ThreadChaos::default(),
            flight,
            flight_ns: Cell::new(0),
        })
    }

    /// The iothread this thread is, if it is one.
    pub fn current() -> Option<Rc<Local>> {
        CURRENT.with(|current| current.borrow().clone())
    }

    /// The number of the iothread this thread is, if it is one.
    #[inline]
    pub fn current_id() -> Option<IoThreadId> {
        CURRENT_ID.get()
    }

    /// Makes this the current iothread while the guard lives.
    pub(crate) fn enter(self: &Rc<Self>) -> Entered {
        let id = CURRENT_ID.replace(Some(self.shared.id));
        let local = CURRENT.with(|current| current.replace(Some(self.clone())));
        let _chaos = self.chaos.enter();
        Entered { id, local, _chaos }
    }

    /// The number of this iothread in the process.
    #[inline]
    pub fn id(&self) -> IoThreadId {
        self.shared.id
    }

    /// The name that its maker gave it.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// The ring in which all I/O and timers of this iothread wait.
    #[inline]
    pub fn ring(&self) -> &Ring {
        &self.ring
    }

    /// Has the flight recorder keep a message.
    #[inline]
    pub fn note(&self, note: Note) {
        self.flight.note(self.flight_ns.get(), note);
    }

    /// Sets the time that records carry from here on.
    #[inline]
    pub fn note_time(&self, now: Instant) {
        self.flight_ns.set(self.flight.since_begin(now));
    }

    /// Reads the clock, also for records made from here on.
    pub fn look_at_time(&self) -> u64 {
        let now = self.flight.since_begin(self.ring.now());
        self.flight_ns.set(now);
        now
    }

    /// The delay rules in force here.
    pub fn chaos(&self) -> &ThreadChaos {
        &self.chaos
    }

    /// Wakes a sleeper that has been sent something. On an iothread (one that ends is none) that waits until its turn's end:
    /// a sleeper that has much to hear is woken once for it, and the iothread makes one system call.
    pub fn wake_later(sleeper: &Arc<Wake>) {
        match Self::current_id().and_then(|_| Self::current()) {
            None => sleeper.wake(),
            Some(local) => {
                let mut bells = local.bells.borrow_mut();
                if !bells.iter().any(|other| Arc::ptr_eq(other, sleeper)) {
                    bells.push(Arc::clone(sleeper));
                }
            }
        }
    }

    /// Wakes those for whom there is mail.
    #[inline]
    pub(crate) fn ring_bells(&self) {
        for sleeper in self.bells.borrow_mut().drain(..) {
            sleeper.wake();
        }
    }

    /// Has the iothread, once it is to retire, ask `unreachable` whether nobody can send it anything more.
    pub fn retire_when(&self, unreachable: impl Fn() -> bool + 'static) {
        *self.unreachable.borrow_mut() = Box::new(unreachable);
    }

    pub(crate) fn is_unreachable(&self) -> bool {
        (self.unreachable.borrow())()
    }

    /// What the iothread has done up to its present turn, with the messages of that turn.
    pub fn stats(&self) -> Stats {
        Stats {
            messages: self.messages.get(),
            ..self.shared.stats()
        }
    }

    #[inline]
    pub(crate) fn note_messages(&self, messages: u64) {
        self.messages.set(messages);
    }

    /// How often another thread has ended the iothread's sleep.
    pub fn wake_ups(&self) -> u64 {
        self.shared.wake.rung()
    }

    /// When the iothread was started.
    pub fn begun(&self) -> Instant {
        self.begun
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Runs a future on this iothread. It goes on by itself; a panic in it ends it alone.
    pub fn spawn(self: &Rc<Self>, future: impl Future<Output = ()> + 'static) {
        self.spawn_task(future).detach();
    }

    /// Runs a future on this iothread; the task gives its output, and cancels the future when dropped. Awaiting a
    /// task whose future panicked panics in turn.
    pub fn spawn_task<T: 'static>(self: &Rc<Self>, future: impl Future<Output = T> + 'static) -> Task<T> {
        let key = self.alive.borrow_mut().insert(Waker::noop().clone());
        let future = Alive {
            future,
            _entry: Entry {
                local: self.clone(),
                key,
            },
        };
        let shared = self.shared.clone();
        let (runnable, task) = async_task::spawn_local(future, move |task| shared.schedule(task));
        if let Some(waker) = self.alive.borrow_mut().get_mut(key) {
            *waker = runnable.waker();
        }
        runnable.schedule();
        task
    }

    /// How many tasks are ready.
    #[inline]
    pub(crate) fn ready(&self) -> usize {
        self.ready.borrow().len()
    }

    /// Adds a task that another thread made ready.
    #[inline]
    pub(crate) fn push_ready(&self, task: Runnable) {
        self.ready.borrow_mut().push_back(task);
    }

    /// Takes the ready task at `index`; 0 is the one that became ready first.
    #[inline]
    pub(crate) fn take_ready(&self, index: usize) -> Option<Runnable> {
        let mut ready = self.ready.borrow_mut();
        if index == 0 {
            ready.pop_front()
        } else {
            ready.remove(index)
        }
    }

    /// Whether any task has not ended.
    pub(crate) fn has_tasks(&self) -> bool {
        !self.alive.borrow().is_empty()
    }

    /// Makes every waiting task ready.
    pub(crate) fn wake_all(&self) {
        let wakers: Vec<Waker> = self
            .alive
            .borrow()
            .iter()
            .map(|(_, waker)| waker.clone())
            .collect();
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Empties the per-thread tables, last made first.
    pub(crate) fn clear_ext(&self) {
        while let Some(last) = { self.ext.borrow_mut().pop() } {
            drop(last);
        }
    }

    /// The iothread's own `T`, made when first asked for.
    pub fn ext<T: Default + 'static>(&self) -> Rc<T> {
        let found = |ext: &[(TypeId, Rc<dyn Any>)]| {
            let (_, value) = ext.iter().find(|(id, _)| *id == TypeId::of::<T>())?;
            value.clone().downcast::<T>().ok()
        };
        if let Some(value) = found(&self.ext.borrow()) {
            return value;
        }
        // Made outside of the borrow: a default may ask for another table.
        let value = Rc::new(T::default());
        self.ext.borrow_mut().push((TypeId::of::<T>(), value.clone()));
        value
    }
}

pin_project! {
    /// A task's future with its entry in the list of those alive.
    struct Alive<F> {
        #[pin]
        future: F,
        _entry: Entry,
    }
}

impl<F: Future> Future for Alive<F> {
    type Output = F::Output;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        self.project().future.poll(cx)
    }
}

/// Leaves the list when the task's future is dropped.
struct Entry {
    local: Rc<Local>,
    key: usize,
}

impl Drop for Entry {
    fn drop(&mut self) {
        let waker = self.local.alive.borrow_mut().try_remove(self.key);
        // Outside of the borrow: it may be the last reference to the task.
        drop(waker);
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        self.flight.unregister();
    }
}

impl fmt::Debug for Local {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Local")
            .field("id", &self.shared.id)
            .finish_non_exhaustive()
    }
}

/// Restores the iothread that was current before (none, but for a simulator).
pub(crate) struct Entered {
    id: Option<IoThreadId>,
    local: Option<Rc<Local>>,
    _chaos: OnGuard,
}

impl Drop for Entered {
    fn drop(&mut self) {
        CURRENT_ID.set(self.id);
        let left = CURRENT.with(|current| current.replace(self.local.take()));
        drop(left);
    }
}
