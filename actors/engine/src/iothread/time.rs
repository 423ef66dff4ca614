//! The time by which requests are counted. A look at the clock costs as much as half of a request that needs no waiting,
//! so an iothread looks once for all that one of its tasks, or one message's handler, does in one go.

use std::cell::Cell;
use std::time::Instant;

use super::local::Local;
use crate::flight;

thread_local! {
    /// The time at which the running task or handler asked first; 0 if it has not.
    static NOW: Cell<u64> = const { Cell::new(0) };
}

/// Nanoseconds since the process began, as they were when the task or handler that runs on this thread asked first. Never 0.
#[inline]
pub fn now_ns() -> u64 {
    match NOW.get() {
        0 => look(),
        now => now,
    }
}

#[cold]
fn look() -> u64 {
    let now = match Local::current() {
        Some(local) => local.look_at_time(),
        // Not an iothread, so no task ends here: every caller looks for itself.
        None => return flight::nanoseconds(Instant::now()).max(1),
    };
    let now = now.max(1);
    NOW.set(now);
    now
}

/// Another task or handler begins.
#[inline]
pub(crate) fn forget() {
    NOW.set(0);
}
