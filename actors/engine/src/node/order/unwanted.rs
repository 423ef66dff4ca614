//! Requests to another iothread that their askers may want no more: word of that crosses behind them.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Context;

use futures_util::task::AtomicWaker;
use millpond_drivers::api::Withdrawal;

/// Whether a request on another iothread is not wanted any more.
#[derive(Debug, Default)]
pub struct Unwanted {
    said: AtomicBool,
    waker: AtomicWaker,
}

impl Unwanted {
    /// Says that it is not wanted: it ends early if it only waits.
    pub fn say(&self) {
        self.said.store(true, Ordering::Release);
        self.waker.wake();
    }

    /// Whether that was said; if not, `context` is woken when it is.
    fn poll(&self, context: &Context<'_>) -> bool {
        self.waker.register(context.waker());
        self.said.load(Ordering::Acquire)
    }

    /// Runs the request on the iothread where it is served.
    pub async fn heeded<T>(&self, request: impl Future<Output = T>) -> T {
        let withdrawal = Withdrawal::default();
        let mut request = pin!(withdrawal.scoped(request));
        poll_fn(|context| {
            if !withdrawal.is_withdrawn() && self.poll(context) {
                withdrawal.withdraw();
            }
            request.as_mut().poll(context)
        })
        .await
    }
}
