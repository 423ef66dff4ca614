//! Goes to the background: the parent waits until the start has succeeded or failed, and says so by its
//! exit code.

use millpond_ring::os::process::{Fork, fork};
use rustix::fs::Mode;
use rustix::io::{read, retry_on_intr, write};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{chdir, setsid, umask};
use std::io;
use std::os::fd::OwnedFd;
use std::process::ExitCode;

/// What the child writes when everything asked for has been done.
const DONE: &[u8] = b"\0";

/// The permissions that files made in the background do not have.
const UMASK: u32 = 0o027;

/// Which process this is after [`split`].
pub enum Side {
    /// The one that was started: it has nothing more to do than to end with this code.
    Parent(ExitCode),
    /// The one that goes on.
    Child(Background),
}

/// A process whose parent waits for its start to end. If it ends before, the parent tells a failure.
pub struct Background {
    parent: OwnedFd,
}

/// What a daemon makes in the background is not for everybody. QEMU's daemon has the same mask, and its `qemu-nbd` none.
pub fn mask_files() {
    umask(Mode::from_raw_mode(UMASK));
}

/// Makes the process that will be in the background. Must be called before any thread is started.
///
/// # Errors
/// What the system answers.
pub fn split() -> io::Result<Side> {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
    match fork()? {
        Fork::Parent { .. } => {
            drop(writer);
            let mut byte = [0];
            let done = retry_on_intr(|| read(&reader, &mut byte)).unwrap_or(0) > 0;
            Ok(Side::Parent(if done {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }))
        }
        Fork::Child => {
            drop(reader);
            setsid()?;
            // A process that leads its session could get a terminal back by opening one.
            match fork()? {
                // The reader learns by the pipe's end when the last process with the writer is gone.
                Fork::Parent { .. } => std::process::exit(0),
                Fork::Child => Ok(Side::Child(Background { parent: writer })),
            }
        }
    }
}

impl Background {
    /// Lets go of the folder and the terminal, and the parent end with success.
    ///
    /// # Errors
    /// What the system answers.
    pub fn detach(self) -> io::Result<()> {
        chdir("/")?;
        self.detach_here()
    }

    /// The same for a process that stays in its folder.
    ///
    /// # Errors
    /// What the system answers.
    pub fn detach_here(self) -> io::Result<()> {
        let null = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/null")?;
        rustix::stdio::dup2_stdin(&null)?;
        rustix::stdio::dup2_stdout(&null)?;
        rustix::stdio::dup2_stderr(&null)?;
        retry_on_intr(|| write(&self.parent, DONE))?;
        Ok(())
    }
}
