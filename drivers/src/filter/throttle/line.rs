//! The requests of one node that wait for their turn in its group.

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

/// A node's requests that wait, in order, for each direction.
#[derive(Default)]
pub(super) struct Lines {
    lines: [RefCell<VecDeque<Arc<Waiter>>>; 2],
    /// Nobody waits: the node is being drained.
    open: Cell<bool>,
}

impl Lines {
    /// Lets all go at once, or no longer.
    pub(super) fn set_open(&self, open: bool) {
        self.open.set(open);
        if open {
            let lines = self.lines.iter();
            lines.for_each(|line| line.borrow().iter().for_each(|waiter| waiter.wake()));
        }
    }

    fn line(&self, direction: Direction) -> &RefCell<VecDeque<Arc<Waiter>>> {
        &self.lines[direction.index()]
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
        let is_first = self.line(direction).borrow().is_empty();
        if is_first && group.admit(None, direction, bytes, ring.now()) == Admission::Go {
            return Ok(());
        }
        unless_withdrawn(self.wait(group, ring, direction, bytes)).await
    }

    async fn wait(&self, group: &Group, ring: &Ring, direction: Direction, bytes: u64) {
        let place = Place::take(self, group, direction);
        let mut timer = pin!(None);
        poll_fn(|context| {
            // Registered first: whoever makes it our turn after we have looked wakes us.
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
                    Admission::Turn => return Poll::Pending,
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

/// A request's place in its node's line, which it leaves when it goes or is given up.
struct Place<'a> {
    lines: &'a Lines,
    group: &'a Group,
    direction: Direction,
    waiter: Arc<Waiter>,
}

impl<'a> Place<'a> {
    fn take(lines: &'a Lines, group: &'a Group, direction: Direction) -> Self {
        let waiter = Arc::new(Waiter::default());
        lines.line(direction).borrow_mut().push_back(Arc::clone(&waiter));
        Self {
            lines,
            group,
            direction,
            waiter,
        }
    }

    fn is_first(&self) -> bool {
        let line = self.lines.line(self.direction).borrow();
        line.front().is_some_and(|first| Arc::ptr_eq(first, &self.waiter))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.group.leave(&self.waiter, self.direction);
        let next = {
            let mut line = self.lines.line(self.direction).borrow_mut();
            // The one that goes is the first, unless all go or it is given up.
            if let Some(place) = line.iter().position(|waiter| Arc::ptr_eq(waiter, &self.waiter)) {
                line.remove(place);
            }
            line.front().cloned()
        };
        if let Some(next) = next {
            next.wake();
        }
    }
}
