//! The answers of drivers: ready at once without an allocation, or given later.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;

use super::guard::Watched;

/// What a driver answers: at once, without an allocation, or later.
#[must_use = "an answer does nothing unless awaited"]
pub enum Answer<'a, T> {
    /// The answer is known now. Empty once it was taken.
    Ready(Option<T>),
    /// The answer has to be waited for.
    Wait(LocalBoxFuture<'a, T>),
    /// The answer has to be waited for. If the driver panics meanwhile, that is an answer as well.
    Watched(Watched<'a, T>),
    /// The answer has to be waited for, and its future goes on by itself when nobody waits any more.
    Lasting(Lasting<T>),
}

/// A future that somebody else takes over if it is dropped between its first poll and its end.
pub struct Lasting<T> {
    /// The future; None once it has ended.
    future: Option<LocalBoxFuture<'static, T>>,
    begun: bool,
    take_over: fn(LocalBoxFuture<'static, T>),
}

impl<'a, T> Answer<'a, T> {
    /// An answer that is known now.
    pub const fn ready(value: T) -> Self {
        Self::Ready(Some(value))
    }

    /// An answer that `future` will give.
    pub fn wait(future: impl Future<Output = T> + 'a) -> Self {
        Self::Wait(Box::pin(future))
    }

    /// An answer that `future` will give. Dropped after it has been polled and before its end, `take_over` gets it.
    pub const fn lasting(
        future: LocalBoxFuture<'static, T>,
        take_over: fn(LocalBoxFuture<'static, T>),
    ) -> Self {
        Self::Lasting(Lasting {
            future: Some(future),
            begun: false,
            take_over,
        })
    }
}

impl<T: Unpin> Future for Answer<'_, T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        match self.get_mut() {
            Self::Ready(value) => value.take().map_or(Poll::Pending, Poll::Ready),
            Self::Wait(future) => future.poll_unpin(context),
            Self::Watched(watched) => watched.poll_watched(context),
            Self::Lasting(lasting) => lasting.poll(context),
        }
    }
}

impl<T> Lasting<T> {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<T> {
        let Some(future) = &mut self.future else {
            return Poll::Pending;
        };
        self.begun = true;
        let poll = future.as_mut().poll(context);
        if poll.is_ready() {
            self.future = None;
        }
        poll
    }
}

impl<T> Drop for Lasting<T> {
    fn drop(&mut self) {
        if let Some(future) = self.future.take().filter(|_| self.begun) {
            (self.take_over)(future);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::future::{pending, ready};

    use super::*;

    thread_local! {
        static TAKEN: RefCell<Vec<LocalBoxFuture<'static, u32>>> = const { RefCell::new(Vec::new()) };
    }

    fn take(future: LocalBoxFuture<'static, u32>) {
        TAKEN.with_borrow_mut(|taken| taken.push(future));
    }

    fn taken() -> usize {
        TAKEN.with_borrow(Vec::len)
    }

    #[test]
    fn what_has_begun_and_not_ended_is_taken_over() {
        let mut ended = Answer::lasting(Box::pin(ready(7)), take);
        assert_eq!((&mut ended).now_or_never(), Some(7));
        drop(ended);
        drop(Answer::lasting(Box::pin(pending()), take));
        assert_eq!(taken(), 0, "one has ended, one had not begun");
        let mut begun = Answer::lasting(Box::pin(pending()), take);
        assert_eq!((&mut begun).now_or_never(), None);
        drop(begun);
        assert_eq!(taken(), 1);
    }
}
