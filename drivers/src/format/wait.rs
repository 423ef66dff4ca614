//! Keyed waits: a request that holds a key makes others that want the same key wait.

use std::cell::RefCell;
use std::future::poll_fn;
use std::task::{Poll, Waker};

/// The waits of one node. Few are held at a time, so a list does.
pub(super) struct KeyedWait<K> {
    held: RefCell<Vec<(K, Vec<Waker>)>>,
}

impl<K> Default for KeyedWait<K> {
    fn default() -> Self {
        Self {
            held: RefCell::default(),
        }
    }
}

impl<K: Copy + PartialEq> KeyedWait<K> {
    /// Whether somebody holds `key`.
    pub fn is_held(&self, key: K) -> bool {
        self.held.borrow().iter().any(|(held, _)| *held == key)
    }

    /// Takes hold of `key` unless somebody has. Let go with [`KeyedWait::release`].
    pub fn try_take(&self, key: K) -> bool {
        let free = !self.is_held(key);
        if free {
            self.held.borrow_mut().push((key, Vec::new()));
        }
        free
    }

    /// Lets go of `key` and wakes all that wait for it.
    pub fn release(&self, key: K) {
        let mut held = self.held.borrow_mut();
        let Some(at) = held.iter().position(|(other, _)| *other == key) else {
            return;
        };
        let (_, wakers) = held.swap_remove(at);
        drop(held);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Takes hold of `key` unless somebody has, until the guard is dropped.
    pub fn try_hold(&self, key: K) -> Option<Held<'_, K>> {
        self.try_take(key).then(|| Held { waits: self, key })
    }

    /// Waits until nobody holds `key`. It may be held again when the waiter runs.
    pub async fn wait(&self, key: K) {
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
    pub async fn hold(&self, key: K) -> Held<'_, K> {
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
pub(super) struct Held<'a, K: Copy + PartialEq> {
    waits: &'a KeyedWait<K>,
    key: K,
}

impl<K: Copy + PartialEq> Drop for Held<'_, K> {
    fn drop(&mut self) {
        self.waits.release(self.key);
    }
}
