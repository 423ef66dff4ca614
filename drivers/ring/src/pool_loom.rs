//! The pool's sets of workers under loom, as the pool and its workers use them: `tests/loom` runs this.
//!
//! The sets are the real ones. What is around them is a model: a queue of which only the length counts, bells, and the order
//! in which a worker looks at the queue and at the sets. The queue is relaxed where the real one may be no stronger, so that
//! only the sets order anything. A worker's long sleep may end at any time: here it ends at once where nobody has rung.

use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread::{self, JoinHandle};

use super::idle::Idle;

struct Bell {
    rung: Mutex<bool>,
    sleeper: Condvar,
}

struct Model {
    queued: AtomicUsize,
    done: AtomicUsize,
    idle: Idle,
    vacant: Idle,
    closing: AtomicBool,
    bells: Vec<Bell>,
    /// Whether a long sleep ends by itself.
    gives_up: bool,
}

impl Model {
    fn new(most: usize, gives_up: bool) -> Arc<Self> {
        let bell = |_| Bell {
            rung: Mutex::new(false),
            sleeper: Condvar::new(),
        };
        Arc::new(Self {
            queued: AtomicUsize::new(0),
            done: AtomicUsize::new(0),
            idle: Idle::none(most),
            vacant: Idle::all(most),
            closing: AtomicBool::new(false),
            bells: (0..most).map(bell).collect(),
            gives_up,
        })
    }

    fn is_empty(&self) -> bool {
        self.queued.load(Ordering::Relaxed) == 0
    }

    fn perform_all(&self) {
        loop {
            let queued = self.queued.load(Ordering::Relaxed);
            if queued == 0 {
                return;
            }
            let taken =
                self.queued
                    .compare_exchange(queued, queued - 1, Ordering::Relaxed, Ordering::Relaxed);
            if taken.is_ok() {
                self.done.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn ring(&self, worker: usize) {
        *self.bells[worker].rung.lock().unwrap() = true;
        self.bells[worker].sleeper.notify_one();
    }

    fn wait(&self, worker: usize, may_give_up: bool) -> bool {
        let bell = &self.bells[worker];
        let mut rung = bell.rung.lock().unwrap();
        while !*rung {
            if may_give_up {
                return false;
            }
            rung = bell.sleeper.wait(rung).unwrap();
        }
        *rung = false;
        true
    }

    /// A worker's life, as `Crew::run` has it.
    fn run(&self, worker: usize) {
        loop {
            let is_closing = self.closing.load(Ordering::Acquire);
            self.perform_all();
            if is_closing {
                return;
            }
            self.idle.join(worker);
            let is_wanted = !self.is_empty() || self.closing.load(Ordering::Acquire);
            if is_wanted && self.idle.leave(worker) {
                continue;
            }
            if self.wait(worker, self.gives_up) {
                continue;
            }
            if !self.idle.leave(worker) {
                self.wait(worker, false);
                continue;
            }
            self.vacant.join(worker);
            if self.is_empty() || !self.vacant.leave(worker) {
                return;
            }
        }
    }

    /// As `Pool::submit`: the thread that was started, if one was.
    fn submit(model: &Arc<Self>) -> Option<JoinHandle<()>> {
        model.queued.fetch_add(1, Ordering::Relaxed);
        if let Some(worker) = model.idle.take() {
            model.ring(worker);
            return None;
        }
        let worker = model.vacant.take()?;
        let model = Arc::clone(model);
        Some(thread::spawn(move || model.run(worker)))
    }

    /// The pool's end, as `Pool` has it when it is dropped.
    fn close(&self) {
        self.closing.store(true, Ordering::Release);
        while let Some(worker) = self.idle.take() {
            self.ring(worker);
        }
    }
}

/// A task that nobody does shows in the count, and a worker that nobody wakes as a deadlock.
fn all_is_done(most: usize, tasks: usize, gives_up: bool) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(move || {
        let model = Model::new(most, gives_up);
        let started: Vec<_> = (0..tasks).filter_map(|_| Model::submit(&model)).collect();
        model.close();
        started.into_iter().for_each(|worker| worker.join().unwrap());
        assert_eq!(model.done.load(Ordering::Relaxed), tasks);
    });
}

#[test]
fn loom_one_worker_does_all() {
    all_is_done(1, 3, false);
}

#[test]
fn loom_two_workers_do_all() {
    all_is_done(2, 2, false);
}

#[test]
fn loom_a_worker_that_has_waited_long_ends_and_another_comes() {
    all_is_done(1, 3, true);
}

/// A task queued just as the last idle worker takes another has a thread of its own.
#[test]
fn loom_a_worker_is_taken_once() {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(|| {
        let idle = Arc::new(Idle::none(1));
        idle.join(0);
        let worker = Arc::clone(&idle);
        let left = thread::spawn(move || worker.leave(0));
        let taken = idle.take().is_some();
        assert_ne!(taken, left.join().unwrap(), "one of them has it, and not both");
    });
}
