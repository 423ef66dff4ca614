//! Pseudoterminals: whoever opens the other side is the client.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use millpond_messages::IoError;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};

use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::unix::pipe::{Receiver, Sender};

use super::connection::Connection;

/// How often to look whether somebody has opened the terminal: the kernel tells only of its being closed.
const LOOK: Duration = Duration::from_millis(200);

/// A pseudoterminal, of which this is the master.
pub struct Pty {
    master: File,
    name: String,
    link: Option<PathBuf>,
}

impl Drop for Pty {
    fn drop(&mut self) {
        if let Some(link) = &self.link {
            // Somebody may have removed it already.
            let _ = std::fs::remove_file(link);
        }
    }
}

impl Pty {
    /// Makes a pseudoterminal that hands on bytes as they are, and a link to it at `path`.
    ///
    /// # Errors
    /// QEMU's text.
    pub fn open(path: Option<&str>) -> Result<Self, String> {
        let (master, name) = raw().map_err(|errno| {
            format!(
                "Failed to open PTY: {}",
                IoError::from_errno(errno.raw_os_error())
            )
        })?;
        let mut pty = Self {
            master,
            name,
            link: None,
        };
        if let Some(path) = path {
            std::os::unix::fs::symlink(&pty.name, path)
                .map_err(|error| format!("Failed to create PTY symlink: {}", IoError::from(error)))?;
            pty.link = Some(Path::new(path).to_owned());
        }
        Ok(pty)
    }

    /// The name of the side that clients open.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Waits until somebody has opened the other side.
    ///
    /// # Errors
    /// It cannot be watched.
    pub async fn accept(&self) -> io::Result<Connection> {
        while self.is_closed()? {
            tokio::time::sleep(LOOK).await;
        }
        // Watched anew for each client: that the one before has closed it is remembered.
        let reader = Receiver::from_file_unchecked(self.master.try_clone()?)?;
        let writer = Sender::from_file_unchecked(self.master.try_clone()?)?;
        Ok(Connection::new(UntilClosed(reader), writer))
    }

    fn is_closed(&self) -> io::Result<bool> {
        let mut master = [PollFd::new(&self.master, PollFlags::IN)];
        poll(&mut master, Some(&Timespec::default()))?;
        let [master] = master;
        Ok(master.revents().contains(PollFlags::HUP))
    }
}

/// Input that ends when the other side is closed, which is an error to the kernel.
struct UntilClosed(Receiver);

impl AsyncRead for UntilClosed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match ready!(Pin::new(&mut self.0).poll_read(context, buffer)) {
            Err(error) if Errno::from_io_error(&error) == Some(Errno::IO) => Poll::Ready(Ok(())),
            read => Poll::Ready(read),
        }
    }
}

fn raw() -> Result<(File, String), Errno> {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let name: CString = ptsname(&master, Vec::new())?;
    let slave = rustix::fs::open(
        &name,
        OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let mut modes = tcgetattr(&slave)?;
    modes.make_raw();
    tcsetattr(&slave, OptionalActions::Now, &modes)?;
    rustix::io::ioctl_fionbio(&master, true)?;
    Ok((File::from(master), name.to_string_lossy().into_owned()))
}
