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
/// This process may not have that; then all is as before, but that the thread gets its turn soon.
pub fn prefer_this_thread(preference: Preference) -> io::Result<()> {
    match preference {
        Preference::None => Ok(()),
        Preference::Nice => schedule(libc::SCHED_OTHER, NICENESS, 0).or_else(|error| {
            // Everybody may ask for shorter turns.
            let own = rustix::process::getpriority_process(None)?;
            schedule(libc::SCHED_OTHER, own, 0)?;
            Err(error)
        }),
        Preference::Realtime => schedule(libc::SCHED_FIFO, 0, 1),
    }
}

/// What [`Preference::Nice`] comes to.
const NICENESS: i32 = -10;

/// How long the turns of a preferred thread are that is not of a real-time class, in nanoseconds: one that wakes up takes the
/// processor at once from a thread whose turn is longer, where else it may wait for the scheduler's tick (4 ms). Linux takes
/// this into account from 6.12 on.
const TURN_NS: u64 = 200_000;

/// Has the scheduler treat the calling thread so, and what it starts as any other.
fn schedule(policy: i32, niceness: i32, priority: u32) -> io::Result<()> {
    let attributes = libc::sched_attr {
        // It is 48 bytes.
        size: size_of::<libc::sched_attr>() as u32,
        // Classes have small numbers.
        sched_policy: policy as u32,
        sched_flags: libc::SCHED_FLAG_RESET_ON_FORK as u64,
        sched_nice: niceness,
        sched_priority: priority,
        sched_runtime: if priority == 0 { TURN_NS } else { 0 },
        sched_deadline: 0,
        sched_period: 0,
    };
    // SAFETY: the call reads `attributes`, which outlives it and says how large it is, and changes no memory.
    match unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

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

    /// How long the calling thread's turns are, in nanoseconds, if the kernel tells.
    fn own_turn() -> u64 {
        let mut attributes = std::mem::MaybeUninit::<libc::sched_attr>::zeroed();
        let size = size_of::<libc::sched_attr>();
        // SAFETY: the kernel writes at most `size` bytes to `attributes`, which are as many.
        let told = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, attributes.as_mut_ptr(), size, 0) };
        assert_eq!(told, 0);
        // SAFETY: it is numbers only, of which all zero is a value, and the kernel has written whole ones.
        unsafe { attributes.assume_init() }.sched_runtime
    }

    #[test]
    fn a_preferred_thread_has_short_turns_and_what_it_starts_has_not() {
        let turns = std::thread::spawn(|| {
            let before = own_turn();
            // It may not have the niceness.
            drop(prefer_this_thread(Preference::Nice));
            let started = std::thread::spawn(own_turn).join().unwrap();
            (before, own_turn(), started)
        });
        let (before, preferred, started) = turns.join().unwrap();
        // Linux 6.12 and later tell, and do it.
        if before != 0 {
            assert_eq!((preferred, started), (TURN_NS, before));
        }
    }
}
