//! Requests that pass from node to node as polls within polls, on a stack that ends however many nodes there are.

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use async_task::Task;
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

/// A request one node further down.
pub enum Bounded<F: Future> {
    /// What waits for it polls it.
    Here(Passing<F>),
    /// It is a task of its own, which begins with an empty stack. It is dropped with the request, and so ends as a polled
    /// future would.
    Apart(Task<F::Output>),
}

/// Runs a request one node further down, as a task of its own where the stack is deep already.
pub fn bounded<F>(future: F) -> Bounded<F>
where
    F: Future<Output: 'static> + 'static,
{
    match Local::current().filter(|_| is_deep()) {
        Some(local) => Bounded::Apart(local.spawn_task(future)),
        None => Bounded::Here(passing(future)),
    }
}

/// Runs a request one node further down, on the stack there is.
pub fn passing<F: Future>(future: F) -> Passing<F> {
    Passing { future }
}

pin_project! {
    /// A request that counts its node on the stack.
    pub struct Passing<F> {
        #[pin]
        future: F,
    }
}

impl<F: Future> Future for Passing<F> {
    type Output = F::Output;

    #[inline]
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let _counted = Counted::begin();
        self.project().future.poll(context)
    }
}

/// Counts a node while it is passed; a panic leaves the count as it was before. Requests that begin meanwhile are the
/// parent's own, so the client whose request it serves cannot withdraw them.
struct Counted(#[expect(dead_code, reason = "held until the node was passed")] Hidden);

impl Counted {
    #[inline]
    fn begin() -> Self {
        STACK_DEPTH.set(STACK_DEPTH.get() + 1);
        Self(Hidden::begin())
    }
}

impl Drop for Counted {
    #[inline]
    fn drop(&mut self) {
        STACK_DEPTH.set(STACK_DEPTH.get() - 1);
    }
}
