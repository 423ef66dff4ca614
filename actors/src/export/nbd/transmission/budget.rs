//! How much clients may have in flight: what bounds the memory that they make the server hold.
//!
//! One client holds at most [`MAX_BYTES`] of data in at most [`MAX_IN_FLIGHT`] requests. All clients of a server together hold
//! at most [`MAX_SHARED`], and besides, each that is connected, [`OWN`] or one request, of at most 32 MiB: so a client may
//! have to wait for its own requests to end before it may have more of them, and never for those of another client.
//! Requests of a client that has left, and that its storage does not answer, count among what is shared; where that is used
//! up, they keep the client's slot.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Poll, Waker};

/// The most requests of one client in flight: received, and not answered to the last byte. QEMU's bound is 16; deeper
/// queues let more replies share a system call.
pub const MAX_IN_FLIGHT: usize = 128;

/// The most bytes of data that one client's requests in flight may hold. A single request, of at most 32 MiB, always
/// fits. (QEMU's bound is 16 requests of 32 MiB.)
pub const MAX_BYTES: usize = 64 << 20;

/// The most bytes of data that all clients of a server hold together, besides what each may hold at any rate.
pub const MAX_SHARED: usize = 1 << 30;

/// What a client may hold without taking any of what is shared: requests that are not large never touch what other threads
/// write to.
const OWN: usize = 1 << 20;

/// Shares are taken in multiples of this.
const STEP: usize = 1 << 20;

/// What a request takes besides its data, about: for those that their client has left behind.
const REQUEST: usize = 8 << 10;

/// What the clients of a server share.
#[derive(Debug)]
pub struct Pool {
    left: AtomicUsize,
}

impl Pool {
    /// A pool of so many bytes.
    #[must_use]
    pub fn new(bytes: usize) -> Arc<Self> {
        Arc::new(Self {
            left: AtomicUsize::new(bytes),
        })
    }

    fn take(&self, bytes: usize) -> bool {
        let take = |left: usize| left.checked_sub(bytes);
        let taken = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
        taken.is_ok()
    }

    fn give(&self, bytes: usize) {
        self.left.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// What one client has in flight, and may have.
#[derive(Debug)]
pub(super) struct Budget {
    pool: Arc<Pool>,
    /// Taken from the pool.
    shared: Cell<usize>,
    requests: Cell<usize>,
    bytes: Cell<usize>,
    /// Who waits for room, or for all to be given back: the receiving task alone.
    waiter: RefCell<Option<Waker>>,
}

/// A share of the account, given back when dropped.
#[derive(Debug)]
pub(super) struct Permit {
    budget: Rc<Budget>,
    requests: usize,
    bytes: usize,
}

impl Budget {
    /// An account with a server whose clients share `pool`.
    pub(super) fn new(pool: &Arc<Pool>) -> Rc<Self> {
        Rc::new(Self {
            pool: Arc::clone(pool),
            shared: Cell::new(0),
            requests: Cell::new(0),
            bytes: Cell::new(0),
            waiter: RefCell::default(),
        })
    }

    fn has_room(&self, bytes: usize) -> bool {
        let requests = self.requests.get();
        let total = self.bytes.get().saturating_add(bytes);
        requests == 0 || (requests < MAX_IN_FLIGHT && total <= MAX_BYTES && self.cover(total, OWN))
    }

    /// Takes from the pool what `total` is more than `own` and what was taken before, if there is so much.
    fn cover(&self, total: usize, own: usize) -> bool {
        let missing = total.saturating_sub(self.shared.get() + own);
        let step = missing.next_multiple_of(STEP);
        let covered = missing == 0 || self.pool.take(step);
        if covered && missing > 0 {
            self.shared.set(self.shared.get() + step);
        }
        covered
    }

    /// The client has left: has what is still in flight count as shared, all of it, if there is so much.
    pub(super) fn leave_behind(&self) -> bool {
        let left = self.bytes.get() + self.requests.get() * REQUEST;
        self.cover(left, 0)
    }

    /// Whether nothing is in flight.
    pub(super) fn is_unused(&self) -> bool {
        self.requests.get() == 0
    }

    /// A permit for one request that holds `bytes`, if there is room.
    pub(super) fn try_admit(self: &Rc<Self>, bytes: usize) -> Option<Permit> {
        self.has_room(bytes).then(|| {
            if self.requests.get() == 0 {
                // What is not there to be shared is lent: a client's only request always fits.
                self.cover(bytes, OWN);
            }
            self.requests.set(self.requests.get() + 1);
            self.bytes.set(self.bytes.get() + bytes);
            Permit {
                budget: Rc::clone(self),
                requests: 1,
                bytes,
            }
        })
    }

    /// As [`Budget::try_admit`], as soon as there is room.
    pub(super) async fn admit(self: &Rc<Self>, bytes: usize) -> Permit {
        poll_fn(|context| match self.try_admit(bytes) {
            Some(permit) => Poll::Ready(permit),
            None => {
                self.waiter.replace(Some(context.waker().clone()));
                Poll::Pending
            }
        })
        .await
    }

    fn give_back(&self) {
        let shared = self.shared.take();
        if shared > 0 {
            self.pool.give(shared);
        }
    }

    /// Waits until every permit is back.
    pub(super) async fn settled(&self) {
        poll_fn(|context| {
            if self.requests.get() == 0 {
                return Poll::Ready(());
            }
            self.waiter.replace(Some(context.waker().clone()));
            Poll::Pending
        })
        .await;
    }
}

impl Permit {
    /// A permit for nothing, to collect others in.
    pub(super) fn empty(budget: &Rc<Budget>) -> Self {
        Self {
            budget: Rc::clone(budget),
            requests: 0,
            bytes: 0,
        }
    }

    /// Takes over what `other` holds.
    pub(super) fn merge(&mut self, mut other: Permit) {
        debug_assert!(Rc::ptr_eq(&self.budget, &other.budget));
        self.requests += std::mem::take(&mut other.requests);
        self.bytes += std::mem::take(&mut other.bytes);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.requests == 0 {
            return;
        }
        self.budget
            .requests
            .set(self.budget.requests.get() - self.requests);
        self.budget.bytes.set(self.budget.bytes.get() - self.bytes);
        if self.budget.requests.get() == 0 {
            self.budget.give_back();
        }
        let waiter = self.budget.waiter.take();
        if let Some(waiter) = waiter {
            waiter.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_ends_by_requests_and_by_bytes() {
        let budget = Budget::new(&Pool::new(MAX_SHARED));
        let permits: Vec<_> = (0..MAX_IN_FLIGHT).map_while(|_| budget.try_admit(1)).collect();
        assert_eq!(permits.len(), MAX_IN_FLIGHT);
        assert!(budget.try_admit(0).is_none());
        drop(permits);
        let large = budget.try_admit(MAX_BYTES - 1).unwrap();
        assert!(budget.try_admit(2).is_none());
        let small = budget.try_admit(1).unwrap();
        let mut all = Permit::empty(&budget);
        all.merge(large);
        all.merge(small);
        assert!(budget.try_admit(1).is_none());
        drop(all);
        assert!(
            budget.try_admit(usize::MAX).is_some(),
            "alone, a request always fits"
        );
    }

    #[test]
    fn what_all_clients_hold_is_bounded_and_none_waits_for_another() {
        let pool = Pool::new(8 << 20);
        let one = Budget::new(&pool);
        let large: Vec<_> = std::iter::from_fn(|| one.try_admit(1 << 20)).collect();
        assert_eq!(large.len(), 9, "what is shared, and its own");
        let two = Budget::new(&pool);
        let first = two.try_admit(32 << 20).expect("a client's only request fits");
        assert!(two.try_admit(0).is_none(), "but nothing besides it");
        drop(first);
        let small: Vec<_> = std::iter::from_fn(|| two.try_admit(4096)).collect();
        assert_eq!(small.len(), MAX_IN_FLIGHT, "small ones are its own");
        drop(large);
        assert!(two.try_admit(0).is_none());
        drop(small);
        let _all = two.try_admit(8 << 20).expect("there is room again");
        assert!(one.try_admit(4 << 20).is_some());
        assert_eq!(
            pool.left.load(Ordering::Relaxed),
            1 << 20,
            "what is not in use is shared again"
        );
    }

    #[test]
    fn what_clients_leave_behind_is_shared_as_long_as_there_is_room() {
        let pool = Pool::new(4 << 20);
        let leaving = |bytes| {
            let budget = Budget::new(&pool);
            let stuck = budget.try_admit(bytes);
            let free = budget.leave_behind();
            (stuck, free)
        };
        let first = leaving(3 << 20);
        assert!(first.1);
        assert!(!leaving(1 << 20).1, "it keeps its slot");
        drop(first);
        assert!(leaving(1 << 20).1);
        assert_eq!(pool.left.load(Ordering::Relaxed), 4 << 20);
        let flushes: Vec<_> = (0..10).map(|_| leaving(0)).collect();
        let free = flushes.iter().filter(|(_, free)| *free).count();
        assert_eq!(free, 4, "no request is without weight");
    }
}
