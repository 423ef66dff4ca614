//! What a backup's job and the node that keeps its moment know of each other all the time.

use std::sync::atomic::{AtomicI32, Ordering};
use std::task::Waker;

use futures_util::task::AtomicWaker;

use crate::error::IoError;

/// The line from a node that keeps a moment of its past to the job that copies it: it says when the moment is lost, because a
/// write went on that could not be waited for. Neither side waits for the other.
#[derive(Debug, Default)]
pub struct MomentLine {
    /// An errno, 0 as long as the moment is kept.
    fault: AtomicI32,
    job: AtomicWaker,
}

impl MomentLine {
    /// Why the moment is lost, if it is.
    #[must_use]
    pub fn lost(&self) -> Option<IoError> {
        match self.fault.load(Ordering::Acquire) {
            0 => None,
            errno => Some(IoError::from_errno(errno)),
        }
    }

    /// The moment is lost; the first reason is the one that is told.
    pub fn lose(&self, error: IoError) {
        let first = self
            .fault
            .compare_exchange(0, error.errno(), Ordering::AcqRel, Ordering::Acquire);
        if first.is_ok() {
            self.job.wake();
        }
    }

    /// Has the job woken when the moment is lost.
    pub fn watch(&self, waker: &Waker) {
        self.job.register(waker);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_lost_once() {
        let line = MomentLine::default();
        assert_eq!(line.lost(), None);
        line.lose(IoError::NoSpace);
        line.lose(IoError::Cancelled);
        assert_eq!(line.lost(), Some(IoError::NoSpace));
    }
}
