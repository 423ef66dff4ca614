//! How another thread wakes an iothread: one word of three states, and an eventfd for when it really sleeps.
//!
//! The sleeper's side, run by [`Ring::turn`](super::Ring::turn):
//!
//! ```text
//!            try_park                    wake (writes the eventfd)
//!  RUNNING ------------> PARKING -----------------------------------> WOKEN
//!     ^  \                  |                                          | |
//!     |   \---- wake ------ | ---------------------------------------->| |
//!     |                     | unpark                                   | | try_park (fails), unpark
//!     +---------------------+------------------------------------------+-+
//! ```
//!
//! WOKEN sticks until the sleeper takes it back to RUNNING, and after that it looks at its queues before it parks
//! again. So whoever puts work into a queue first and calls [`Wake::wake`] second is seen: either the sleeper
//! has yet to look, or the word keeps it awake, or the eventfd wakes it. All changes are read-modify-writes of one
//! word, hence totally ordered; no fence between the queue and the word is needed beyond acquire and release.

#[cfg(not(loom))]
use std::sync::atomic::{AtomicU8, Ordering};

#[cfg(loom)]
use loom::sync::atomic::{AtomicU8, Ordering};

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use rustix::event::{EventfdFlags, eventfd};

const RUNNING: u8 = 0;
const PARKING: u8 = 1;
const WOKEN: u8 = 2;

/// The three-state word, without the eventfd.
#[derive(Debug)]
pub(super) struct Word(AtomicU8);

impl Word {
    pub(super) fn new() -> Self {
        Self(AtomicU8::new(RUNNING))
    }

    /// Marks the sleeper woken; true if it may be asleep, so that the caller must also ring the bell.
    #[inline]
    #[must_use]
    pub(super) fn wake(&self) -> bool {
        self.0.swap(WOKEN, Ordering::AcqRel) == PARKING
    }

    /// Announces that the caller is about to sleep. False, and the state is RUNNING again, if it was woken.
    #[inline]
    #[must_use]
    pub(super) fn try_park(&self) -> bool {
        if self
            .0
            .compare_exchange(RUNNING, PARKING, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
        {
            return true;
        }
        self.0.swap(RUNNING, Ordering::AcqRel);
        false
    }

    /// Whether the sleeper has announced to sleep, and nobody has woken it since.
    pub(super) fn is_parked(&self) -> bool {
        self.0.load(Ordering::Acquire) == PARKING
    }

    /// The caller is awake again, whatever woke it.
    #[inline]
    pub(super) fn unpark(&self) {
        self.0.swap(RUNNING, Ordering::AcqRel);
    }
}

/// Wakes the thread that sleeps in a ring; shared by everybody who gives that thread work.
#[derive(Debug)]
pub struct Wake {
    word: Word,
    event: OwnedFd,
    rung: AtomicU64,
}

impl Wake {
    /// A wake word in the state RUNNING, with its eventfd.
    ///
    /// # Errors
    /// As `eventfd(2)`: no descriptor or memory left.
    pub fn new() -> io::Result<Self> {
        // The eventfd is never read: the ring watches it edge by edge, and 2^64 - 1 wakes do not come.
        Ok(Self {
            word: Word::new(),
            event: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            rung: AtomicU64::new(0),
        })
    }

    /// Makes the owner's next sleep return at once, or ends the one it is in. Work for it must already be
    /// where it looks. One atomic operation unless the owner is parked.
    #[inline]
    pub fn wake(&self) {
        if self.word.wake() {
            self.ring_bell();
        }
    }

    #[cold]
    fn ring_bell(&self) {
        // Beside a system call it costs nothing.
        self.rung.fetch_add(1, Relaxed);
        if let Err(error) = rustix::io::write(&self.event, &1u64.to_ne_bytes()) {
            tracing::error!("cannot wake an iothread: {error}");
        }
    }

    /// How often the owner slept, or was about to, when it was woken.
    pub fn rung(&self) -> u64 {
        self.rung.load(Relaxed)
    }

    /// Announces that the owner is about to sleep, so that it is woken. False if it was woken already: then it must not.
    /// [`Ring::turn`](super::Ring::turn) does this; a simulator whose iothreads sleep between turns does it too.
    #[inline]
    #[must_use]
    pub fn try_park(&self) -> bool {
        self.word.try_park()
    }

    /// Whether the owner has announced to sleep, and nobody has woken it since.
    #[must_use]
    pub fn is_parked(&self) -> bool {
        self.word.is_parked()
    }

    /// The owner is awake again, whatever woke it.
    #[inline]
    pub fn unpark(&self) {
        self.word.unpark();
    }

    /// The eventfd that a wake of a parked thread makes readable anew. It is never read: whoever waits for it does so by edges.
    pub fn bell(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}
