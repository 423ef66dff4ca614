//! What a ring needs from whoever runs its operations: the kernel's io_uring, epoll and threads, or a simulator.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::config::{Engine, RingStats};
use super::op::{Op, SlotId};
use super::slots::Slots;
use crate::buffer::Region;

/// The end of an operation: its slot, and a result as system calls have it (a negative error number, or more).
#[derive(Clone, Copy, Debug)]
pub struct Completion {
    /// The operation that has ended.
    pub id: SlotId,
    /// Its result: a count, or a negative errno.
    pub result: i32,
}

/// How long a backend's turn may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SleepFor {
    /// No time: hand over what is queued and collect what is there.
    NoTime,
    /// Until something completes or the bell rings, and no longer than this.
    AtMost(Option<Duration>),
}

/// Runs operations.
///
/// The slot table owns each operation from before [`Backend::submit`] until after the backend reported its one
/// completion; the backend may keep pointers into the operation's buffers (not into the table) in between.
pub trait Backend {
    /// What kind this is.
    fn engine(&self) -> Engine;

    /// Takes an operation on. Never completes it here: completions come out of [`Backend::turn`] only.
    fn submit(&mut self, id: SlotId, op: &mut Op);

    /// Asks for an early end of an operation in flight. It completes all the same, `ECANCELED` or otherwise.
    fn cancel(&mut self, id: SlotId, op: &mut Op);

    /// Whether something waits to be handed over, or is known to have completed. Costs no system call.
    fn has_work(&mut self) -> bool;

    /// Hands over what was submitted, collects completions into `done`, and sleeps in between as `sleep_for` allows if
    /// there is nothing to collect. One system call, or none if there is nothing to do.
    fn turn(&mut self, slots: &mut Slots, sleep_for: SleepFor, done: &mut Vec<Completion>);

    /// Makes memory known from which many operations will come. False where that is of no use.
    ///
    /// # Errors
    /// As [`super::Ring::register`] has them; nothing is known then.
    fn register(&mut self, _region: &Arc<Region>) -> io::Result<bool> {
        Ok(false)
    }

    /// Forgets memory that was made known. Operations in flight go on.
    fn unregister(&mut self, _region: &Arc<Region>) {}

    /// Counters; the ring adds its own.
    fn stats(&self) -> RingStats;
}
