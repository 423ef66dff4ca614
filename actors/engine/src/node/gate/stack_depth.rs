//! Requests that pass from node to node as polls within polls, on a stack that ends however many nodes there are.

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::future::LocalBoxFuture;
use millpond_drivers::api::Hidden;
use pin_project_lite::pin_project;

use crate::iothread::Local;

/// How many nodes a request passes on one stack. Each takes some kilobytes of it, and many in a build for tests.
const STACK_DEPTH_MAX: u32 = 24;

thread_local! {
    /// How many nodes are being passed on this thread's stack.
    static STACK_DEPTH: Cell<u32> = const { Cell::new(0) };
}

/// Whether so many nodes are on this thread's stack already that the next needs one of its own.
#[inline]
pub fn is_deep() -> bool {
    STACK_DEPTH.get() >= STACK_DEPTH_MAX
}

/// Runs a request one node further down: polled by what waits for it, or where the stack is deep already as a task of its
/// own, which begins with an empty stack.
pub fn bounded<T: 'static>(future: impl Future<Output = T> + 'static) -> LocalBoxFuture<'static, T> {
    if is_deep()
        && let Some(local) = Local::current()
    {
        // The task is dropped with the request, and so ends as a polled future would.
        return Box::pin(local.spawn_task(future));
    }
    Box::pin(Bounded { future })
}

pin_project! {
    struct Bounded<F> {
        #[pin]
        future: F,
    }
}

impl<F: Future> Future for Bounded<F> {
    type Output = F::Output;

    #[inline]
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let _passing = Passing::begin();
        self.project().future.poll(context)
    }
}

/// Counts a node while it is passed; a panic leaves the count as it was before. Requests that begin meanwhile are the
/// parent's own, so the client whose request it serves cannot withdraw them.
struct Passing(#[expect(dead_code, reason = "held until the node was passed")] Hidden);

impl Passing {
    #[inline]
    fn begin() -> Self {
        STACK_DEPTH.set(STACK_DEPTH.get() + 1);
        Self(Hidden::begin())
    }
}

impl Drop for Passing {
    #[inline]
    fn drop(&mut self) {
        STACK_DEPTH.set(STACK_DEPTH.get() - 1);
    }
}
