//! A task that leaves the rest of the turn to others.

use std::future::poll_fn;
use std::task::Poll;

/// Ends this poll; the task is polled again after what else is ready.
pub async fn yield_once() {
    let mut yielded = false;
    poll_fn(|context| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
