//! The time as a ring sees it, so that a simulator can have its own.

use std::time::Instant;

/// A source of monotonic time.
pub trait Clock {
    /// The time that timers are held against.
    fn now(&self) -> Instant;
}

/// The system's monotonic clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct Monotonic;

impl Clock for Monotonic {
    #[inline]
    fn now(&self) -> Instant {
        Instant::now()
    }
}
