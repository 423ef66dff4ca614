//! The queues of the requests of one node that wait for their turn in the node's group.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use futures_util::FutureExt;
use millpond_messages::IoResult;

use super::group::{Admission, Group, Waiter};
use super::limits::Direction;
use crate::api::unless_withdrawn;
use millpond_ring::Ring;

/// A node's waiting requests in order of arrival, a queue for each direction.
#[derive(Default)]
pub(super) struct WaitQueues {
    queues: [RefCell<VecDeque<Arc<Waiter>>>; 2],
    /// Requests pass without waiting, because the node is being drained.
    open: Cell<bool>,
}

impl WaitQueues {
    /// Lets all requests pass without waiting, or makes them wait again.
    pub(super) fn set_open(&self, open: bool) {
        self.open.set(open);
        if open {
            let queues = self.queues.iter();
            queues.for_each(|queue| queue.borrow().iter().for_each(|waiter| waiter.wake()));
        }
    }

    fn queue(&self, direction: Direction) -> &RefCell<VecDeque<Arc<Waiter>>> {
        &self.queues[direction.index()]
    }

    /// Waits until the group lets a request go.
    ///
    /// # Errors
    /// The request was withdrawn while it waited.
    pub(super) async fn pass(
        &self,
        group: &Group,
        ring: &Ring,
        direction: Direction,
        bytes: u64,
    ) -> IoResult<()> {
        if !group.is_limited(direction) {
            return Ok(());
        }
        if self.open.get() {
            group.force(direction, bytes, ring.now());
            return Ok(());
        }
        let is_first = self.queue(direction).borrow().is_empty();
        if is_first && group.admit(None, direction, bytes, ring.now()) == Admission::Go {
            return Ok(());
        }
        unless_withdrawn(self.wait(group, ring, direction, bytes)).await
    }

    async fn wait(&self, group: &Group, ring: &Ring, direction: Direction, bytes: u64) {
        let place = Place::take(self, group, direction);
        let mut timer = pin!(None);
        poll_fn(|context| {
            // The waker is registered before the look: whoever makes it our turn afterwards wakes us.
            place.waiter.register(context.waker());
            loop {
                if self.open.get() {
                    group.force(direction, bytes, ring.now());
                    return Poll::Ready(());
                }
                if !place.is_first() {
                    return Poll::Pending;
                }
                match group.admit(Some(&place.waiter), direction, bytes, ring.now()) {
                    Admission::Go => return Poll::Ready(()),
                    Admission::Queued => return Poll::Pending,
                    Admission::After(wait) => timer.set(Some(ring.sleep(wait))),
                }
                let armed = timer.as_mut().as_pin_mut();
                if armed.is_some_and(|mut timer| timer.poll_unpin(context).is_pending()) {
                    return Poll::Pending;
                }
            }
        })
        .await;
    }
}

/// A request's place in its node's queue. The request leaves the queue when this is dropped.
struct Place<'a> {
    queues: &'a WaitQueues,
    group: &'a Group,
    direction: Direction,
    waiter: Arc<Waiter>,
}

impl<'a> Place<'a> {
    fn take(queues: &'a WaitQueues, group: &'a Group, direction: Direction) -> Self {
        let waiter = Arc::new(Waiter::default());
        queues
            .queue(direction)
            .borrow_mut()
            .push_back(Arc::clone(&waiter));
        Self {
            queues,
            group,
            direction,
            waiter,
        }
    }

    fn is_first(&self) -> bool {
        let queue = self.queues.queue(self.direction).borrow();
        queue
            .front()
            .is_some_and(|first| Arc::ptr_eq(first, &self.waiter))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.group.leave(&self.waiter, self.direction);
        let next = {
            let mut queue = self.queues.queue(self.direction).borrow_mut();
            // The request that leaves is the first, unless all pass at once or its asker gave up.
            if let Some(place) = queue.iter().position(|waiter| Arc::ptr_eq(waiter, &self.waiter)) {
                queue.remove(place);
            }
            queue.front().cloned()
        };
        if let Some(next) = next {
            next.wake();
        }
    }
}
