//! Which writes to a node are not durable yet, and the flush that is under way.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Poll, Waker};

/// The count of a node's writes, and up to which of them a flush has made them durable.
#[derive(Default)]
pub struct Durability {
    written: Cell<u64>,
    flushed: Cell<u64>,
    /// Whether the driver's last flush failed.
    failed: Cell<bool>,
    /// The tasks that wait for the flush under way; None while there is none.
    flushing: RefCell<Option<Vec<Waker>>>,
}

impl Durability {
    /// `unflushed` says whether something may have been written that is not durable yet.
    pub fn new(unflushed: bool) -> Rc<Self> {
        let durability = Self::default();
        durability.written.set(u64::from(unflushed));
        Rc::new(durability)
    }

    /// Counts a write, which is not durable yet.
    #[inline]
    pub fn mark_unflushed(&self) {
        self.written.set(self.written.get().wrapping_add(1));
    }

    /// The count of writes so far, if some of them are not known to be durable.
    pub fn unflushed(&self) -> Option<u64> {
        (self.written.get() != self.flushed.get()).then(|| self.written.get())
    }

    /// Notes that a flush has succeeded that began when the count of writes was `written`.
    pub fn flushed(&self, written: u64) {
        self.flushed.set(written);
    }

    /// Notes how the driver's flush ended; answers whether the one before it failed.
    pub fn note_flush(&self, failed: bool) -> bool {
        self.failed.replace(failed)
    }

    /// Waits for the flush under way, if there is one, and is the one under way until the guard is dropped. Flushes that
    /// waited together find what they wanted flushed by the first of them.
    pub async fn begin_flush(self: &Rc<Self>) -> Flushing {
        std::future::poll_fn(|context| {
            let mut flushing = self.flushing.borrow_mut();
            if let Some(waiting) = &mut *flushing {
                waiting.push(context.waker().clone());
                return Poll::Pending;
            }
            *flushing = Some(Vec::new());
            Poll::Ready(())
        })
        .await;
        Flushing(Rc::clone(self))
    }
}

/// The one flush of a node that is under way.
pub struct Flushing(Rc<Durability>);

impl Drop for Flushing {
    fn drop(&mut self) {
        for waker in self.0.flushing.take().into_iter().flatten() {
            waker.wake();
        }
    }
}
