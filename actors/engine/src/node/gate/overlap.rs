//! Overlapping requests: which ranges a node's requests in flight cover, and which request waits for which.
//!
//! A request waits for those that came before it, overlap it, and of which it or the other is serialising. Requests are
//! ordered by arrival and wait only for earlier ones, so nothing waits in a circle. A piece of a request on the same
//! node must not be tracked again, because it would wait for those that wait for the whole, or for the whole itself.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

use millpond_messages::{IoError, Range};
use slab::Slab;

#[derive(Debug, Clone, Copy)]
struct Tracked {
    range: Range,
    serialising: bool,
    order: u64,
}

/// The requests in flight on a node.
#[derive(Default)]
pub struct Tracker {
    entries: RefCell<Slab<Tracked>>,
    waiting: RefCell<Vec<Waker>>,
    serialising: Cell<usize>,
    next_order: Cell<u64>,
}

/// A tracked request; untracked when dropped.
pub struct Tracking {
    tracker: Rc<Tracker>,
    key: usize,
}

impl Tracker {
    /// Tracks a request on a range, and waits for the earlier requests that it must not run beside.
    ///
    /// # Errors
    /// [`IoError::WouldWait`] if `no_wait` is set and it would have to wait.
    pub async fn begin(
        self: &Rc<Self>,
        range: Range,
        serialising: bool,
        no_wait: bool,
    ) -> Result<Tracking, IoError> {
        let (entry, tracking) = self.register(range, serialising);
        if !self.must_wait(&entry) {
            return Ok(tracking);
        }
        if no_wait {
            return Err(IoError::WouldWait);
        }
        poll_fn(|context| {
            if !self.must_wait(&entry) {
                return Poll::Ready(());
            }
            self.waiting.borrow_mut().push(context.waker().clone());
            Poll::Pending
        })
        .await;
        Ok(tracking)
    }

    /// Tracks a request that is not serialising, unless it would have to wait.
    pub fn try_begin(self: &Rc<Self>, range: Range) -> Option<Tracking> {
        let (entry, tracking) = self.register(range, false);
        (!self.must_wait(&entry)).then_some(tracking)
    }

    fn register(self: &Rc<Self>, range: Range, serialising: bool) -> (Tracked, Tracking) {
        let order = self.next_order.get();
        self.next_order.set(order.wrapping_add(1));
        let entry = Tracked {
            range,
            serialising,
            order,
        };
        let key = self.entries.borrow_mut().insert(entry);
        if serialising {
            self.serialising.set(self.serialising.get() + 1);
        }
        let tracking = Tracking {
            tracker: Rc::clone(self),
            key,
        };
        (entry, tracking)
    }

    fn must_wait(&self, entry: &Tracked) -> bool {
        if self.serialising.get() == 0 {
            return false;
        }
        self.entries.borrow().iter().any(|(_, other)| {
            other.order < entry.order
                && (other.serialising || entry.serialising)
                && other.range.overlaps(entry.range)
        })
    }
}

impl Drop for Tracking {
    fn drop(&mut self) {
        let removed = self.tracker.entries.borrow_mut().try_remove(self.key);
        if removed.is_some_and(|entry| entry.serialising) {
            self.tracker
                .serialising
                .set(self.tracker.serialising.get().saturating_sub(1));
        }
        if !self.tracker.waiting.borrow().is_empty() {
            let waiting = self.tracker.waiting.take();
            waiting.into_iter().for_each(Waker::wake);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn begin(tracker: &Rc<Tracker>, range: std::ops::Range<u64>, serialising: bool) -> Option<Tracking> {
        tracker
            .begin(Range::between(range.start, range.end), serialising, false)
            .now_or_never()
            .map(Result::unwrap)
    }

    #[test]
    fn plain_requests_overlap_freely() {
        let tracker = Rc::new(Tracker::default());
        let first = begin(&tracker, 0..10, false);
        assert!(first.is_some() && begin(&tracker, 5..15, false).is_some());
    }

    #[test]
    fn a_serialising_request_waits_for_earlier_ones_and_holds_back_later_ones() {
        let tracker = Rc::new(Tracker::default());
        let first = begin(&tracker, 0..10, false).unwrap();
        let mut second = Box::pin(tracker.begin(Range::between(5, 15), true, false));
        assert!((&mut second).now_or_never().is_none());
        let mut third = Box::pin(tracker.begin(Range::between(12, 20), false, false));
        assert!((&mut third).now_or_never().is_none());
        assert!(
            begin(&tracker, 20..30, false).is_some(),
            "what does not overlap goes on"
        );
        drop(first);
        let second = (&mut second).now_or_never().unwrap().unwrap();
        assert!((&mut third).now_or_never().is_none());
        drop(second);
        assert!((&mut third).now_or_never().is_some());
    }

    #[test]
    fn ranges_that_only_touch_do_not_wait_for_each_other() {
        let tracker = Rc::new(Tracker::default());
        let middle = begin(&tracker, 10..20, true);
        assert!(middle.is_some());
        for serialising in [false, true] {
            assert!(begin(&tracker, 0..10, serialising).is_some());
            assert!(begin(&tracker, 20..30, serialising).is_some());
            for range in [0..11, 19..30, 10..20, 0..30, 12..13] {
                assert!(begin(&tracker, range, serialising).is_none());
            }
        }
    }

    #[test]
    fn no_wait_fails_instead_of_waiting_and_leaves_nothing_behind() {
        let tracker = Rc::new(Tracker::default());
        let first = begin(&tracker, 0..10, true).unwrap();
        let refused = tracker
            .begin(Range::between(0, 1), false, true)
            .now_or_never()
            .unwrap();
        assert_eq!(refused.err(), Some(IoError::WouldWait));
        drop(first);
        assert!(begin(&tracker, 0..10, true).is_some());
    }

    #[test]
    fn one_that_gives_up_waiting_no_longer_holds_others_back() {
        let tracker = Rc::new(Tracker::default());
        let first = begin(&tracker, 0..10, false).unwrap();
        let mut second = Box::pin(tracker.begin(Range::between(0, 10), true, false));
        assert!((&mut second).now_or_never().is_none());
        drop(second);
        assert!(begin(&tracker, 0..10, false).is_some());
        drop(first);
    }
}
