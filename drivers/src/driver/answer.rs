//! An answer that is there already or has to be waited for.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;

/// What a driver answers: at once, without an allocation, or later.
#[must_use = "an answer does nothing unless awaited"]
pub enum Answer<'a, T> {
    /// It is known now. Empty once taken.
    Ready(Option<T>),
    /// It has to be waited for.
    Wait(LocalBoxFuture<'a, T>),
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
}

impl<T: Unpin> Future for Answer<'_, T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        match self.get_mut() {
            Self::Ready(value) => value.take().map_or(Poll::Pending, Poll::Ready),
            Self::Wait(future) => future.poll_unpin(context),
        }
    }
}
