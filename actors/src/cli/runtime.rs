//! What the program runs on: the control thread, and the daemon on it.

use crate::daemon::Daemon;
use actix_rt::{System, SystemRunner};
use millpond_drivers::builtin::builtin;
use rustix::event::{EventfdFlags, eventfd};
use std::io;

/// Descriptors that the control thread's runtime needs for itself, and some to spare.
const RUNTIME_DESCRIPTORS: usize = 8;

/// The control thread's runtime. Never dropped: that would wait for threads that nothing can wake, such as the one that reads
/// standard input.
///
/// # Errors
/// There are too few descriptors left.
pub fn control_thread() -> Result<&'static mut SystemRunner, String> {
    begin().map_err(|error| format!("the control thread cannot be started: {error}"))
}

fn begin() -> io::Result<&'static mut SystemRunner> {
    // Where tokio finds none for what handles signals it panics, so that there must be enough before it looks.
    let spare: io::Result<Vec<_>> = (0..RUNTIME_DESCRIPTORS)
        .map(|_| Ok(eventfd(0, EventfdFlags::CLOEXEC)?))
        .collect();
    drop(spare?);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    Ok(Box::leak(Box::new(System::with_tokio_rt(|| runtime))))
}

/// A daemon with all drivers, on the control thread.
///
/// # Errors
/// The main iothread cannot be started.
pub fn start() -> io::Result<Daemon> {
    Daemon::start(builtin(), Vec::new())
}
