//! Calls that one thread of the pool makes one after the other: between two of them it does not wait for the iothread.
//!
//! Several copies into one file at once would only wait for each other in the kernel, which turns processors hot.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crossbeam_channel::{Receiver, Sender, unbounded};
use futures_channel::oneshot;
use millpond_ring::{Job, Ring};

/// The calls of one file.
pub(super) struct Lane(Arc<Calls>);

struct Calls {
    sender: Sender<Job>,
    waiting: Receiver<Job>,
    /// How many have been sent and not been made. Whoever makes it one has a thread begin; the thread that makes it none ends.
    left: AtomicUsize,
}

impl Default for Lane {
    fn default() -> Self {
        let (sender, waiting) = unbounded();
        let left = AtomicUsize::new(0);
        Self(Arc::new(Calls {
            sender,
            waiting,
            left,
        }))
    }
}

impl fmt::Debug for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let left = self.0.left.load(Ordering::Relaxed);
        f.debug_struct("Lane")
            .field("left", &left)
            .finish_non_exhaustive()
    }
}

impl Lane {
    /// Makes a call once those before it are made; answers nothing if it panics. It is made though nobody waits for its answer.
    pub(super) async fn call<T: Send + 'static>(
        &self,
        ring: &Ring,
        call: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let (answer, answered) = oneshot::channel();
        // The lane itself holds a receiver, so the channel takes all.
        drop(self.0.sender.send(Box::new(move || drop(answer.send(call())))));
        if self.0.left.fetch_add(1, Ordering::AcqRel) == 0 {
            let calls = Arc::clone(&self.0);
            drop(ring.blocking(move || calls.make_all()));
        }
        answered.await.ok()
    }
}

impl Calls {
    fn make_all(&self) {
        loop {
            // One was sent for each that is left.
            if let Ok(call) = self.waiting.try_recv()
                && catch_unwind(AssertUnwindSafe(call)).is_err()
            {
                tracing::error!("a call on a thread of the pool panicked");
            }
            if self.left.fetch_sub(1, Ordering::AcqRel) == 1 {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::mpsc;
    use std::task::{Context, Poll, Waker};

    use futures_util::future::join3;
    use millpond_ring::{RingConfig, Wait, Wake};

    use super::*;

    #[test]
    fn calls_are_made_one_after_the_other_in_their_order_and_a_panic_stops_none() {
        let ring = Ring::new(RingConfig::new(Arc::new(Wake::new().unwrap()))).unwrap();
        let lane = Lane::default();
        let (begun, order) = mpsc::channel();
        let call = |name: u32| {
            let begun = begun.clone();
            move || {
                assert!(name != 1, "the second call fails");
                begun.send(name).unwrap();
                name
            }
        };
        let mut calls = pin!(join3(
            lane.call(&ring, call(0)),
            lane.call(&ring, call(1)),
            lane.call(&ring, call(2)),
        ));
        let answers = loop {
            match calls.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(answers) => break answers,
                Poll::Pending => drop(ring.turn(Wait::Until(None))),
            }
        };
        assert_eq!(answers, (Some(0), None, Some(2)));
        let order: Vec<u32> = order.try_iter().collect();
        assert_eq!(order, [0, 2]);
    }
}
