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

/// A future that goes on by itself when nobody waits for it any more.
pub trait Lasts: Future {
    /// Sees to it that the future is polled to its end.
    fn go_on(self: Pin<Box<Self>>);
}

/// A future that goes on if it is dropped between its beginning and its end.
pub struct Lasting<T> {
    /// The future; None once it has ended.
    future: Option<Pin<Box<dyn Lasts<Output = T>>>>,
    has_begun: bool,
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

    /// An answer that `future` will give, whoever waits for it. It begins with its first poll, unless it has begun.
    pub fn lasting(future: impl Lasts<Output = T> + 'static, has_begun: bool) -> Self {
        Self::Lasting(Lasting {
            future: Some(Box::pin(future)),
            has_begun,
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
        self.has_begun = true;
        let poll = future.as_mut().poll(context);
        if poll.is_ready() {
            self.future = None;
        }
        poll
    }
}

impl<T> Drop for Lasting<T> {
    fn drop(&mut self) {
        if let Some(future) = self.future.take().filter(|_| self.has_begun) {
            future.go_on();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use super::*;

    /// Ends at once with a number, or never; counts what goes on.
    struct Counted {
        ends: Option<u32>,
        gone_on: Rc<Cell<u32>>,
    }

    impl Future for Counted {
        type Output = u32;

        fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<u32> {
            self.ends.map_or(Poll::Pending, Poll::Ready)
        }
    }

    impl Lasts for Counted {
        fn go_on(self: Pin<Box<Self>>) {
            self.gone_on.set(self.gone_on.get() + 1);
        }
    }

    #[test]
    fn what_has_begun_and_not_ended_goes_on() {
        let gone_on = Rc::new(Cell::new(0));
        let answer = |ends, has_begun| {
            let gone_on = Rc::clone(&gone_on);
            Answer::lasting(Counted { ends, gone_on }, has_begun)
        };
        let mut ended = answer(Some(7), false);
        assert_eq!((&mut ended).now_or_never(), Some(7));
        drop(ended);
        drop(answer(None, false));
        assert_eq!(gone_on.get(), 0, "one has ended, one had not begun");
        let mut begun = answer(None, false);
        assert_eq!((&mut begun).now_or_never(), None);
        drop(begun);
        assert_eq!(gone_on.get(), 1);
        drop(answer(None, true));
        assert_eq!(gone_on.get(), 2, "it had begun before it was polled");
    }
}
