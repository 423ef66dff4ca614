//! The kernel's queues that an iothread serves: requests come out of a ring, and answers go there.
//!
//! Answers are handed over once for all that were given in a turn. Requests are looked for while the iothread is awake, without
//! a system call, and wake it while it sleeps.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Waker};

use millpond_engine::iothread::Watched;
use millpond_ring::buffer::Buffers;
use millpond_ring::fuse::{FuseEnd, FuseEntry, FuseRequest, FuseRing};
use millpond_ring::{Fd, Pending, Polled, Ring};
use rustix::event::PollFlags;
use rustix::io::Errno;

/// A ring of the kernel's requests, on the iothread that serves it.
pub(super) struct Queue {
    /// None once it has gone elsewhere.
    ring: RefCell<Option<FuseRing>>,
    bell: Fd,
    /// The iothread's own ring.
    home: Ring,
    /// The task that takes requests, and hands answers over.
    taker: RefCell<Option<Waker>>,
    /// It waits for requests.
    is_waiting: Cell<bool>,
    /// There are answers that the kernel does not have.
    unsent: Cell<bool>,
    /// Another thread, which the ring was on before, has yet to take a request.
    is_elsewhere: Cell<bool>,
    /// Wakes the iothread that sleeps.
    ringing: RefCell<Option<Pending<Polled>>>,
}

/// The kernel's error, as it is told of elsewhere.
fn errno(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

impl Queue {
    pub(super) fn new(ring: FuseRing, home: &Ring) -> Self {
        Self {
            bell: ring.bell().clone(),
            ring: RefCell::new(Some(ring)),
            home: home.clone(),
            taker: RefCell::default(),
            is_waiting: Cell::new(false),
            unsent: Cell::new(false),
            is_elsewhere: Cell::new(false),
            ringing: RefCell::default(),
        }
    }

    /// Gives the kernel what it does not know yet: all entries, or answers that were given on another iothread.
    ///
    /// # Errors
    /// Those of `io_uring_enter(2)`.
    pub(super) fn open(&self) -> Result<(), Errno> {
        self.with(FuseRing::register)
    }

    /// Hands answers over, if there are any.
    ///
    /// # Errors
    /// Those of `io_uring_enter(2)`.
    pub(super) fn flush(&self) -> Result<(), Errno> {
        match self.unsent.take() {
            true => self.with(FuseRing::submit),
            false => Ok(()),
        }
    }

    /// Answers a request that was taken.
    pub(super) fn answer(&self, entry: FuseEntry, answer: Buffers) {
        let mut ring = self.ring.borrow_mut();
        let Some(ring) = ring.as_mut() else { return };
        if !ring.answer(entry, answer) {
            // The export ends, and whatever uses the memory has not ended yet.
            tracing::debug!("an answer of a FUSE export cannot be given");
        } else if !self.unsent.replace(true) {
            self.rouse();
        }
    }

    /// Whether there are requests; if there are none, `context` is woken when there are. It is woken for answers in any case.
    ///
    /// # Errors
    /// Those of `io_uring_enter(2)`.
    pub(super) fn has_requests(&self, context: &mut Context<'_>) -> Result<bool, Errno> {
        let mut ringing = self.ringing.borrow_mut();
        if ringing
            .as_mut()
            .is_some_and(|poll| Pin::new(poll).poll(context).is_ready())
        {
            *ringing = None;
        }
        drop(ringing);
        let (has_requests, has_work) = self.look_at_ring();
        if has_requests {
            self.is_elsewhere.set(false);
        } else if has_work && !self.is_elsewhere.get() {
            self.with(FuseRing::submit)?;
            let (has_requests, has_work) = self.look_at_ring();
            self.is_elsewhere.set(has_work && !has_requests);
            self.is_waiting.set(!has_requests);
            return Ok(has_requests);
        }
        self.is_waiting.set(!has_requests);
        Ok(has_requests)
    }

    /// Has a task see to answers, and be told of requests where it waits for them.
    pub(super) fn attend(&self, waker: &Waker) {
        self.is_waiting.set(false);
        let mut taker = self.taker.borrow_mut();
        if !taker.as_ref().is_some_and(|known| known.will_wake(waker)) {
            *taker = Some(waker.clone());
        }
    }

    /// Takes a request that came.
    ///
    /// # Errors
    /// No more come.
    pub(super) fn take(&self) -> Result<Option<FuseRequest>, FuseEnd> {
        match self.ring.borrow_mut().as_mut() {
            Some(ring) => ring.take(),
            None => Ok(None),
        }
    }

    /// The ring, to go elsewhere or to be closed.
    pub(super) fn leave(&self) -> Option<FuseRing> {
        drop(self.ringing.take());
        self.ring.take()
    }

    fn with(&self, act: impl FnOnce(&mut FuseRing) -> std::io::Result<()>) -> Result<(), Errno> {
        let mut ring = self.ring.borrow_mut();
        ring.as_mut()
            .map_or(Ok(()), |ring| act(ring).map_err(|error| errno(&error)))
    }

    /// Whether there are requests, and whether some can be had by a system call.
    fn look_at_ring(&self) -> (bool, bool) {
        let mut ring = self.ring.borrow_mut();
        ring.as_mut()
            .map_or((false, false), |ring| (ring.has_requests(), ring.has_work()))
    }

    /// Whether the task that waits for requests has something to do.
    fn is_due(&self) -> bool {
        if !self.is_waiting.get() {
            return false;
        }
        let (has_requests, has_work) = self.look_at_ring();
        has_requests || (has_work && !self.is_elsewhere.get())
    }

    fn rouse(&self) {
        if let Some(taker) = &*self.taker.borrow() {
            taker.wake_by_ref();
        }
    }
}

impl Watched for Queue {
    fn look(&self) -> bool {
        let is_due = self.is_due();
        if is_due {
            self.is_waiting.set(false);
            self.rouse();
        }
        is_due
    }

    fn rest(&self) -> bool {
        if self.look() {
            return true;
        }
        let taker = self.taker.borrow().clone();
        let Some(taker) = taker.filter(|_| self.is_waiting.get()) else {
            return false;
        };
        let mut ringing = self.ringing.borrow_mut();
        let readable = u32::from(PollFlags::IN.bits());
        let poll = ringing.get_or_insert_with(|| self.home.poll(&self.bell, readable));
        let is_ringing = Pin::new(poll).poll(&mut Context::from_waker(&taker)).is_ready();
        if is_ringing {
            *ringing = None;
            taker.wake();
        }
        is_ringing
    }
}
