//! The ring: everything an iothread waits for (files, sockets, timers, jobs, its mailbox) in one place.
//!
//! # Contract
//! - A method that starts an operation puts it into a slot at once and returns a future. The slot owns all that
//!   the kernel may touch (buffers, descriptor) until the kernel's last word on it, also when the future is dropped.
//! - Nothing reaches the kernel before [`Ring::turn`], except when the submission queue is full.
//! - Wakers are called by [`Ring::turn`] only, never by the methods that start operations.
//! - The slot table is empty before the backend goes: a ring that cannot empty it leaks it loudly.

pub mod buffer;
pub mod fuse;
pub mod os;

mod backend;
mod clock;
mod config;
mod files;
mod future;
mod idle;
mod op;
mod pool;
#[cfg(all(test, loom))]
mod pool_loom;
mod ring;
mod slots;
mod sys;
mod threads;
mod timer;
mod uring;
mod wake;
#[cfg(all(test, loom))]
mod wake_loom;

pub use backend::{Backend, Completion, SleepFor};
pub use clock::{Clock, Monotonic};
pub use config::{Engine, RingConfig, RingStats, Wait};
pub use files::FileOps;
pub use future::{Accepted, Blocking, Finished, Kind, Moved, Pending, Polled, Received};
pub use op::{AioMode, Fd, Job, Op, SlotId};
pub use ring::Ring;
pub use slots::Slots;
pub use timer::Sleep;
pub use wake::Wake;
