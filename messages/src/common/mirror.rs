//! What a mirror's job and the node that it mirrors from know of each other all the time.

use std::sync::atomic::{AtomicI32, AtomicU8, AtomicU64, Ordering};
use std::task::Waker;

use futures_util::task::AtomicWaker;

use crate::error::IoError;

/// What becomes of a write to a node that is mirrored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MirrorMode {
    /// It is answered once the source has it, and is copied later.
    Background,
    /// It is answered once the target has it too.
    WriteBlocking,
    /// The same at the end of a mirror that was in the background: what it has reached it does not lose again.
    Closing,
}

/// The line between a mirror's job and the node that sees the writes: each writes its half of it, neither waits.
#[derive(Debug)]
pub struct MirrorLine {
    mode: AtomicU8,
    left: AtomicU64,
    /// How many writes have passed.
    writes: AtomicU64,
    /// An errno, 0 for none.
    fault: AtomicI32,
    job: AtomicWaker,
}

const BACKGROUND: u8 = 0;
const WRITE_BLOCKING: u8 = 1;
const CLOSING: u8 = 2;

impl MirrorMode {
    const fn number(self) -> u8 {
        match self {
            Self::Background => BACKGROUND,
            Self::WriteBlocking => WRITE_BLOCKING,
            Self::Closing => CLOSING,
        }
    }
}

impl MirrorLine {
    /// A line on which nothing is left, and nothing has failed.
    #[must_use]
    pub fn new(mode: MirrorMode) -> Self {
        Self {
            mode: AtomicU8::new(mode.number()),
            left: AtomicU64::new(0),
            writes: AtomicU64::new(0),
            fault: AtomicI32::new(0),
            job: AtomicWaker::new(),
        }
    }

    /// What becomes of writes that begin now.
    #[must_use]
    pub fn mode(&self) -> MirrorMode {
        match self.mode.load(Ordering::Acquire) {
            BACKGROUND => MirrorMode::Background,
            WRITE_BLOCKING => MirrorMode::WriteBlocking,
            _ => MirrorMode::Closing,
        }
    }

    /// The job has it otherwise from here on.
    pub fn set_mode(&self, mode: MirrorMode) {
        self.mode.store(mode.number(), Ordering::Release);
    }

    /// Bytes in which the target may differ from the source. While the source is still and the answer is 0, they are alike.
    #[must_use]
    pub fn left(&self) -> u64 {
        self.left.load(Ordering::Acquire)
    }

    /// The node has counted what is left.
    pub fn set_left(&self, bytes: u64) {
        if self.left.swap(bytes, Ordering::AcqRel) == 0 && bytes > 0 {
            self.job.wake();
        }
    }

    /// How many writes have passed the node: whoever sees the number change has a user beside it.
    #[must_use]
    pub fn writes(&self) -> u64 {
        self.writes.load(Ordering::Relaxed)
    }

    /// A write has passed the node.
    pub fn count_write(&self) {
        self.writes.fetch_add(1, Ordering::Relaxed);
    }

    /// Why a write did not reach the target that should have; asked once, it is forgotten.
    #[must_use]
    pub fn take_fault(&self) -> Option<IoError> {
        match self.fault.swap(0, Ordering::AcqRel) {
            0 => None,
            errno => Some(IoError::from_errno(errno)),
        }
    }

    /// A write has not reached the target.
    pub fn set_fault(&self, error: IoError) {
        self.fault.store(error.errno(), Ordering::Release);
        self.job.wake();
    }

    /// Has the job woken when something is left again, or something has failed.
    pub fn watch(&self, waker: &Waker) {
        self.job.register(waker);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_told_once_and_a_mode_is_that_which_was_set() {
        let line = MirrorLine::new(MirrorMode::Background);
        assert_eq!(line.take_fault(), None);
        line.set_fault(IoError::NoSpace);
        assert_eq!(line.take_fault(), Some(IoError::NoSpace));
        assert_eq!(line.take_fault(), None);
        for mode in [
            MirrorMode::WriteBlocking,
            MirrorMode::Closing,
            MirrorMode::Background,
        ] {
            line.set_mode(mode);
            assert_eq!(line.mode(), mode);
        }
    }
}
