//! Ranges in use: a write has its range for itself, so that no vote sees half of it and all children end up the same.
//!
//! Who comes first goes first: a request waits only for older ones that overlap it, so none waits in a circle or for
//! ever.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::task::{Poll, Waker};

/// What a request does to its range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// Several may use the range at once.
    Read,
    /// Nobody else may use the range.
    Write,
}

#[derive(Debug)]
struct Entry {
    start: u64,
    end: u64,
    access: Use,
    waker: Option<Waker>,
}

impl Entry {
    fn excludes(&self, other: &Self) -> bool {
        let overlaps = self.start < other.end && other.start < self.end;
        overlaps && (self.access == Use::Write || other.access == Use::Write)
    }
}

/// The ranges of a node that are in use or waited for, by age.
#[derive(Debug, Default)]
pub struct Ranges {
    entries: RefCell<BTreeMap<u64, Entry>>,
    last: Cell<u64>,
}

impl Ranges {
    /// Waits until no older request excludes this one. The range is given back when the answer is dropped.
    pub async fn hold(&self, start: u64, len: u64, access: Use) -> Held<'_> {
        let id = self.last.get() + 1;
        self.last.set(id);
        let entry = Entry {
            start,
            end: start.saturating_add(len),
            access,
            waker: None,
        };
        self.entries.borrow_mut().insert(id, entry);
        // Held from here on, so that a request dropped while it waits is no longer waited for.
        let held = Held { ranges: self, id };
        poll_fn(|context| {
            let mut entries = self.entries.borrow_mut();
            let waits = entries
                .get(&id)
                .is_some_and(|own| entries.range(..id).any(|(_, older)| older.excludes(own)));
            if !waits {
                return Poll::Ready(());
            }
            if let Some(own) = entries.get_mut(&id) {
                own.waker = Some(context.waker().clone());
            }
            Poll::Pending
        })
        .await;
        held
    }
}

/// A range in use.
#[derive(Debug)]
#[must_use = "the range is in use only as long as this is kept"]
pub struct Held<'a> {
    ranges: &'a Ranges,
    id: u64,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut entries = self.ranges.entries.borrow_mut();
        let Some(gone) = entries.remove(&self.id) else {
            return;
        };
        let waiting = entries
            .range_mut(self.id..)
            .filter(|(_, entry)| entry.excludes(&gone));
        let wakers: Vec<Waker> = waiting.filter_map(|(_, entry)| entry.waker.take()).collect();
        drop(entries);
        wakers.into_iter().for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;
    use std::pin::pin;

    #[test]
    fn a_write_waits_for_what_is_older_and_is_waited_for() {
        let ranges = Ranges::default();
        let read = ranges.hold(0, 10, Use::Read).now_or_never().unwrap();
        let beside = ranges.hold(5, 10, Use::Read).now_or_never();
        assert!(beside.is_some(), "reads go side by side");
        drop(beside);
        let mut write = pin!(ranges.hold(9, 2, Use::Write));
        assert!(
            write.as_mut().now_or_never().is_none(),
            "it overlaps the first read"
        );
        let mut behind = pin!(ranges.hold(9, 1, Use::Read));
        assert!(
            behind.as_mut().now_or_never().is_none(),
            "it came after the write"
        );
        assert!(
            ranges.hold(11, 5, Use::Write).now_or_never().is_some(),
            "it overlaps nothing"
        );
        drop(read);
        let write = write.as_mut().now_or_never().unwrap();
        assert!(behind.as_mut().now_or_never().is_none());
        drop(write);
        assert!(behind.as_mut().now_or_never().is_some());
        assert!(ranges.entries.borrow().is_empty(), "nothing is left");
    }

    #[test]
    fn a_request_that_is_dropped_while_it_waits_is_not_waited_for() {
        let ranges = Ranges::default();
        let read = ranges.hold(0, 10, Use::Read).now_or_never().unwrap();
        assert!(ranges.hold(0, 10, Use::Write).now_or_never().is_none());
        assert!(ranges.hold(0, 10, Use::Read).now_or_never().is_some());
        drop(read);
        assert!(ranges.entries.borrow().is_empty());
    }
}
