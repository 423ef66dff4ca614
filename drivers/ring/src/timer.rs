//! Timers: kept in order by the ring, which asks the kernel for one timeout a wait, however many there are.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use super::ring::Ring;

/// A timer's place: its deadline, and a number that tells those of one deadline apart.
type Key = (Instant, u64);

/// The timers that are armed, by the time when they end.
#[derive(Debug, Default)]
pub(super) struct Timers {
    armed: BTreeMap<Key, Waker>,
    next: u64,
}

impl Timers {
    pub(super) fn first(&self) -> Option<Instant> {
        self.armed.first_key_value().map(|((deadline, _), _)| *deadline)
    }

    /// Moves the wakers of all timers due at `now` to `wakers`.
    pub(super) fn expire(&mut self, now: Instant, wakers: &mut Vec<Waker>) {
        while let Some(first) = self.armed.first_entry().filter(|first| first.key().0 <= now) {
            wakers.push(first.remove());
        }
    }

    fn arm(&mut self, deadline: Instant, waker: Waker) -> Key {
        let key = (deadline, self.next);
        self.next += 1;
        self.armed.insert(key, waker);
        key
    }
}

/// Resolves when its deadline has come. Dropping it takes the timer back.
#[must_use = "a timer does nothing unless it is awaited"]
#[derive(Debug)]
pub struct Sleep {
    ring: Ring,
    deadline: Option<Instant>,
    armed: Option<Key>,
}

impl Sleep {
    /// Without a deadline (one too far for the clock) it never resolves.
    pub(super) fn new(ring: Ring, deadline: Option<Instant>) -> Self {
        Self {
            ring,
            deadline,
            armed: None,
        }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(deadline) = self.deadline else {
            return Poll::Pending;
        };
        if self.ring.now() >= deadline {
            return Poll::Ready(());
        }
        let waker = cx.waker().clone();
        let armed = self.armed;
        let (key, old) = self.ring.with_timers(|timers| match armed {
            Some(key) => (key, timers.armed.insert(key, waker)),
            None => (timers.arm(deadline, waker), None),
        });
        self.armed = Some(key);
        // Outside of the borrow: a waker's drop may end a task.
        drop(old);
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(key) = self.armed {
            let old = self.ring.with_timers(|timers| timers.armed.remove(&key));
            drop(old);
        }
    }
}
