//! Keyed waits: a request that holds a key makes others that want the same key wait.

use std::cell::RefCell;
use std::future::poll_fn;
use std::task::{Poll, Waker};

use super::layout::index::{L1Index, SliceKey};

/// What a request may hold while others wait for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    /// The load of the L2 slice at this offset.
    Slice(SliceKey),
    /// The load of the refcount block of this number.
    Refblock(u64),
    /// The making of a writable L2 table for this L1 entry.
    Table(L1Index),
    /// The write-back of metadata.
    Writeback,
    /// The clusters set aside by the ticket of this number.
    Allocation(u64),
    /// A change of the disk's length, and whatever else must not run beside one.
    Resize,
    /// Readying the image for changes.
    Activation,
    /// Writing the log of the dirty bitmaps.
    BitmapLog,
}

/// The waits of one node. Few are held at a time, so a list does.
#[derive(Default)]
pub(super) struct KeyedWait {
    held: RefCell<Vec<(Key, Vec<Waker>)>>,
}

impl KeyedWait {
    /// Whether somebody holds `key`.
    pub fn is_held(&self, key: Key) -> bool {
        self.held.borrow().iter().any(|(held, _)| *held == key)
    }

    /// Takes hold of `key` unless somebody has. Let go with [`KeyedWait::release`].
    pub fn try_take(&self, key: Key) -> bool {
        let free = !self.is_held(key);
        if free {
            self.held.borrow_mut().push((key, Vec::new()));
        }
        free
    }

    /// Lets go of `key` and wakes all that wait for it.
    pub fn release(&self, key: Key) {
        let mut held = self.held.borrow_mut();
        let Some(at) = held.iter().position(|(other, _)| *other == key) else {
            return;
        };
        let (_, wakers) = held.swap_remove(at);
        drop(held);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Takes hold of `key` unless somebody has, until the guard is dropped.
    pub fn try_hold(&self, key: Key) -> Option<Held<'_>> {
        self.try_take(key).then(|| Held { waits: self, key })
    }

    /// Waits until nobody holds `key`. It may be held again when the waiter runs.
    pub async fn wait(&self, key: Key) {
        poll_fn(|context| {
            let mut held = self.held.borrow_mut();
            let Some((_, wakers)) = held.iter_mut().find(|(other, _)| *other == key) else {
                return Poll::Ready(());
            };
            if !wakers.iter().any(|waker| waker.will_wake(context.waker())) {
                wakers.push(context.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }

    /// Takes hold of `key`, waiting as long as it takes.
    pub async fn hold(&self, key: Key) -> Held<'_> {
        loop {
            if let Some(held) = self.try_hold(key) {
                return held;
            }
            self.wait(key).await;
        }
    }
}

/// A hold that ends with this guard.
#[must_use = "dropping the guard lets go"]
pub(super) struct Held<'a> {
    waits: &'a KeyedWait,
    key: Key,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.waits.release(self.key);
    }
}
