//! The five things a daemon needs that safe Rust has no function for: a second process, a file descriptor that was
//! passed by number, a descriptor of any kind in tokio's reactor, a signal that is ignored, and a thread that is preferred.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
#[cfg(feature = "tokio")]
use std::sync::Arc;

#[cfg(feature = "tokio")]
use tokio::io::unix::AsyncFd;

/// Who returns from [`fork`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fork {
    /// The process that called.
    Parent {
        /// The number of the new process.
        child: i32,
    },
    /// The process that was made.
    Child,
}

/// Makes a second process.
///
/// # Errors
/// What the system answers, and if this process has more than one thread: the others would be missing in
/// the child, in the middle of whatever they did.
pub fn fork() -> io::Result<Fork> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other(
            "a process with several threads cannot become a daemon",
        ));
    }
    // SAFETY: there is one thread, so the child's copy of memory is a state that this thread left
    // consistent: no lock is held by a thread that the child lacks.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Fork::Child),
        child => Ok(Fork::Parent { child }),
    }
}

/// How much the scheduler prefers a thread to others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Preference {
    /// As all others are.
    None,
    /// It gets a larger share, and its turn soon (niceness -10).
    #[default]
    Nice,
    /// It runs whenever it has something to do (`SCHED_FIFO`, the lowest priority).
    Realtime,
}

/// Has the scheduler prefer the calling thread. What it starts is preferred to nobody.
///
/// # Errors
/// This process may not have that; then all is as before.
pub fn prefer_this_thread(preference: Preference) -> io::Result<()> {
    let (policy, priority) = match preference {
        Preference::None => return Ok(()),
        Preference::Nice => (libc::SCHED_OTHER, 0),
        Preference::Realtime => (libc::SCHED_FIFO, 1),
    };
    let parameters = libc::sched_param {
        sched_priority: priority,
    };
    // SAFETY: the call reads `parameters`, which outlives it, and changes no memory.
    let set =
        unsafe { libc::sched_setscheduler(0, policy | libc::SCHED_RESET_ON_FORK, &raw const parameters) };
    if set != 0 {
        return Err(io::Error::last_os_error());
    }
    if preference == Preference::Nice {
        // Linux takes a thread's number for that of a process, and none for the calling thread.
        rustix::process::setpriority_process(None, NICENESS)?;
    }
    Ok(())
}

/// What [`Preference::Nice`] comes to.
const NICENESS: i32 = -10;

/// Has a write past the limit for files' sizes (`ulimit -f`) fail with EFBIG, as one past the end of the disk fails, rather
/// than end the process by SIGXFSZ.
pub fn ignore_file_size_signal() {
    // SAFETY: no handler is installed that could run at a wrong time, and nobody else in this process handles the signal.
    // It cannot fail: the signal's number is one that there is.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// A duplicate of the descriptor that this process inherited as `number`.
///
/// # Errors
/// There is no such descriptor.
pub fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the call takes numbers only and changes no memory; a number that is no descriptor is refused
    // by the kernel. The original stays as it is, whoever owns it.
    let duplicate = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) };
    if duplicate < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor for us, and nothing else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(duplicate) })
}

/// A descriptor in the reactor of the tokio runtime that this runs in.
///
/// # Errors
/// The reactor cannot wait for descriptors of its kind.
#[cfg(feature = "tokio")]
pub fn watched(fd: Arc<OwnedFd>) -> io::Result<AsyncFd<Arc<OwnedFd>>> {
    // SAFETY: the descriptor is open, and neither closes nor changes while the `Arc` that moves into the result lives:
    // an `OwnedFd` gives no way to that.
    Ok(unsafe { AsyncFd::register(fd) }?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn an_inherited_descriptor_is_a_duplicate() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let mut copy = UnixStream::from(inherited(theirs.as_raw_fd()).unwrap());
        drop(theirs);
        ours.write_all(b"x").unwrap();
        let mut byte = [0];
        copy.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"x");
        assert!(inherited(i32::MAX).is_err());
        assert!(inherited(-1).is_err());
    }
}
