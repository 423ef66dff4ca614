//! One client in the transmission phase, as its tasks share it: what came, who works on it, what goes out.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

use drivers::buffer::Buffer;

use super::backend::Backend;
use super::budget::{Budget, MAX_IN_FLIGHT, Permit};
use super::outbox::Outbox;
use super::request::{Limits, Request};
use crate::iothread::Local;

/// Workers that stay when there is nothing to do; more than these end.
const IDLE_WORKERS: usize = 8;

/// Requests that a worker serves without a pause before others on the iothread get their turn.
const WITHOUT_PAUSE: usize = 64;

/// A request that was admitted, with what it owns.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) request: Request,
    /// A write's data.
    pub(super) payload: Buffer,
    pub(super) permit: Permit,
}

/// What the tasks of one connection share.
///
/// Requests are served by *workers*: tasks that take the next request from the queue when they have served one. At most
/// one of them (the one *on call*) looks at the queue. It serves request after request for as long as none has to wait;
/// when one has to, the next worker is called and takes over the queue. So a client whose requests are served at once
/// costs one task and no allocation a request, and one whose requests wait for storage gets as many tasks as it has
/// requests in flight.
pub(super) struct Session<B> {
    pub(super) backend: B,
    pub(super) limits: Limits,
    pub(super) budget: Rc<Budget>,
    pub(super) outbox: Outbox,
    queue: RefCell<VecDeque<Job>>,
    idle: RefCell<Vec<Idle>>,
    workers: Cell<usize>,
    /// A worker is on call.
    called: Cell<bool>,
    closing: Cell<bool>,
}

/// A worker that waits to be called.
struct Idle {
    call: Rc<Cell<bool>>,
    waker: Waker,
}

impl<B: Backend> Session<B> {
    pub(super) fn new(backend: B, limits: Limits) -> Rc<Self> {
        let budget = Rc::new(Budget::default());
        Rc::new(Self {
            backend,
            limits,
            outbox: Outbox::new(&budget),
            budget,
            queue: RefCell::default(),
            idle: RefCell::default(),
            workers: Cell::new(0),
            called: Cell::new(false),
            closing: Cell::new(false),
        })
    }

    /// Hands a request to the workers.
    pub(super) fn dispatch(self: &Rc<Self>, local: &Rc<Local>, job: Job) {
        self.queue.borrow_mut().push_back(job);
        self.call(local);
    }

    /// Sees to it that somebody looks at the queue.
    fn call(self: &Rc<Self>, local: &Rc<Local>) {
        if self.called.get() || self.queue.borrow().is_empty() {
            return;
        }
        let idle = self.idle.borrow_mut().pop();
        if let Some(Idle { call, waker }) = idle {
            self.called.set(true);
            call.set(true);
            waker.wake();
        } else if self.workers.get() < MAX_IN_FLIGHT {
            self.called.set(true);
            self.workers.set(self.workers.get() + 1);
            local.spawn(Rc::clone(self).work(Rc::clone(local)));
        }
        // Else every worker has a request that waits; the first to be done takes over the queue.
    }

    /// Lets workers that wait end, and those that work once they are done.
    pub(super) fn dismiss(&self) {
        self.closing.set(true);
        let idle = self.idle.take();
        idle.into_iter().for_each(|idle| idle.waker.wake());
    }

    /// A worker's life; it begins on call.
    async fn work(self: Rc<Self>, local: Rc<Local>) {
        let worker = Worker {
            session: &self,
            on_call: Rc::new(Cell::new(true)),
        };
        let mut without_pause = 0;
        while let Some(job) = worker.next_job().await {
            let mut serving = std::pin::pin!(self.serve(job));
            let mut waited = false;
            poll_fn(|context| {
                let poll = serving.as_mut().poll(context);
                if poll.is_pending() {
                    waited = true;
                    worker.pass_on(&local);
                }
                poll
            })
            .await;
            without_pause = if waited { 0 } else { without_pause + 1 };
            if without_pause >= WITHOUT_PAUSE {
                without_pause = 0;
                pause().await;
            }
        }
    }
}

/// A worker at its work.
struct Worker<'a, B> {
    session: &'a Rc<Session<B>>,
    on_call: Rc<Cell<bool>>,
}

impl<B: Backend> Worker<'_, B> {
    /// The next request to serve; waits to be called if another worker has the queue or there is none. `None` ends the
    /// worker.
    async fn next_job(&self) -> Option<Job> {
        let session = self.session;
        poll_fn(|context| {
            if self.on_call.get() || !session.called.get() {
                let job = session.queue.borrow_mut().pop_front();
                self.on_call.set(job.is_some());
                session.called.set(job.is_some());
                if job.is_some() {
                    return Poll::Ready(job);
                }
            }
            if session.closing.get() || session.idle.borrow().len() >= IDLE_WORKERS {
                return Poll::Ready(None);
            }
            let idle = Idle {
                call: Rc::clone(&self.on_call),
                waker: context.waker().clone(),
            };
            session.idle.borrow_mut().push(idle);
            Poll::Pending
        })
        .await
    }

    /// Gives the queue to another worker, if it is this one's.
    fn pass_on(&self, local: &Rc<Local>) {
        if self.on_call.replace(false) {
            self.session.called.set(false);
            self.session.call(local);
        }
    }
}

impl<B> Drop for Worker<'_, B> {
    fn drop(&mut self) {
        self.session.workers.set(self.session.workers.get() - 1);
        if self.on_call.get() {
            self.session.called.set(false);
        }
    }
}

/// Lets other tasks of the thread run.
pub(super) async fn pause() {
    let mut paused = false;
    poll_fn(|context| {
        if std::mem::replace(&mut paused, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
