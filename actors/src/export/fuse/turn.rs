//! One at a time: who changes the length of an export waits for others that do.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::{Poll, Waker};

/// Whose turn it is, among the tasks of one iothread.
#[derive(Debug, Default)]
pub(super) struct Turns {
    taken: Cell<bool>,
    waiting: RefCell<VecDeque<Waker>>,
}

/// Somebody's turn, until it is dropped.
#[derive(Debug)]
pub(super) struct Turn<'a>(&'a Turns);

impl Turns {
    /// Waits until it is nobody's turn, and takes it.
    pub(super) async fn take(&self) -> Turn<'_> {
        poll_fn(|context| match self.taken.replace(true) {
            false => Poll::Ready(()),
            true => {
                self.waiting.borrow_mut().push_back(context.waker().clone());
                Poll::Pending
            }
        })
        .await;
        Turn(self)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.taken.set(false);
        // All of them: one that was woken may have lost interest.
        let waiting = self.0.waiting.take();
        waiting.into_iter().for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[test]
    fn the_next_one_begins_when_the_first_has_ended() {
        let turns = Turns::default();
        let first = turns.take().now_or_never().expect("nobody has it");
        assert!(turns.take().now_or_never().is_none());
        drop(first);
        assert!(turns.take().now_or_never().is_some());
    }
}
