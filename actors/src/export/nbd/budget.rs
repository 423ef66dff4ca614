//! How much one client may have in flight: what bounds the memory that it makes the server hold.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

/// The most requests of one client in flight: received, and not answered to the last byte. QEMU's bound is 16; deeper
/// queues let more replies share a system call.
pub const MAX_IN_FLIGHT: usize = 128;

/// The most bytes of data that one client's requests in flight may hold. A single request, of at most 32 MiB, always
/// fits. (QEMU's bound is 16 requests of 32 MiB.)
pub const MAX_BYTES: usize = 64 << 20;

/// One client's account.
#[derive(Debug, Default)]
pub(super) struct Budget {
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
    fn has_room(&self, bytes: usize) -> bool {
        let requests = self.requests.get();
        requests == 0 || (requests < MAX_IN_FLIGHT && self.bytes.get().saturating_add(bytes) <= MAX_BYTES)
    }

    /// Whether nothing is in flight.
    pub(super) fn is_unused(&self) -> bool {
        self.requests.get() == 0
    }

    /// A permit for one request that holds `bytes`, if there is room.
    pub(super) fn try_admit(self: &Rc<Self>, bytes: usize) -> Option<Permit> {
        self.has_room(bytes).then(|| {
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
        let budget = Rc::new(Budget::default());
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
}
