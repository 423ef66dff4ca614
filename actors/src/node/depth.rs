//! Requests that pass from node to node as polls within polls, on a stack that ends however many nodes there are.

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use crate::iothread::Local;

/// How many nodes a request passes on one stack. Each takes some kilobytes of it, in a build for tests many.
const NESTED_MAX: u32 = 24;

thread_local! {
    /// How many are being passed on this thread's stack.
    static NESTED: Cell<u32> = const { Cell::new(0) };
}

/// Runs what a request does one node further down: within this poll, or where that is deep already as a task of its own,
/// which begins with an empty stack.
pub async fn nested<T: 'static>(future: impl Future<Output = T> + 'static) -> T {
    if NESTED.get() >= NESTED_MAX
        && let Some(local) = Local::current()
    {
        // Dropped with the request, the task ends as a poll would have.
        return local.spawn_task(future).await;
    }
    Nested(Box::pin(future)).await
}

struct Nested<F>(Pin<Box<F>>);

impl<F: Future> Future for Nested<F> {
    type Output = F::Output;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let _passing = Passing::begin();
        self.0.as_mut().poll(context)
    }
}

/// Counts a node while it is passed; a panic leaves the count as it was before.
struct Passing;

impl Passing {
    #[inline]
    fn begin() -> Self {
        NESTED.set(NESTED.get() + 1);
        Self
    }
}

impl Drop for Passing {
    #[inline]
    fn drop(&mut self) {
        NESTED.set(NESTED.get() - 1);
    }
}
