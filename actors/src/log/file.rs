//! A log in a file, which whoever moves it away can have opened anew.

use arc_swap::ArcSwapOption;
use rustix::fs::OFlags;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The file, for the one thread that writes it.
#[derive(Debug)]
pub(super) struct LogFile {
    file: File,
    next: Arc<ArcSwapOption<File>>,
}

/// Has the file of a log opened anew.
#[derive(Debug, Clone)]
pub struct Reopen {
    path: PathBuf,
    next: Arc<ArcSwapOption<File>>,
}

/// How much of a file is looked at before it is appended to, in bytes.
const BEGIN: u64 = 4096;

/// A file to append to: a new one, or a text. An image of the user's is none, and stays as it is. A pipe that nobody reads is
/// an error rather than a wait.
///
/// # Errors
/// It cannot be opened, or is no text.
pub fn open_file(path: &Path) -> io::Result<File> {
    if path.metadata().is_ok_and(|facts| facts.is_file()) {
        let mut begin = Vec::new();
        File::open(path)?.take(BEGIN).read_to_end(&mut begin)?;
        // A character may be cut at the end of what was read.
        let is_text = str::from_utf8(&begin).map_or_else(|error| error.error_len().is_none(), |_| true);
        if begin.contains(&0) || !is_text {
            return Err(io::Error::other("the file exists and is no text"));
        }
    }
    let nonblocking = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default();
    OpenOptions::new()
        .create(true)
        .append(true)
        .custom_flags(nonblocking)
        .open(path)
}

impl LogFile {
    /// Opens the file at `path`, or makes it.
    pub(super) fn open(path: &Path) -> io::Result<(Self, Reopen)> {
        let next = Arc::new(ArcSwapOption::empty());
        let reopen = Reopen {
            path: path.to_owned(),
            next: Arc::clone(&next),
        };
        Ok((
            Self {
                file: open_file(path)?,
                next,
            },
            reopen,
        ))
    }
}

impl Reopen {
    /// Opens the file at the log's path, or makes it: what is logged from now on goes there. It waits for the disk.
    ///
    /// # Errors
    /// The file cannot be opened; the log stays where it is.
    pub fn reopen(&self) -> io::Result<()> {
        self.next.store(Some(Arc::new(open_file(&self.path)?)));
        Ok(())
    }

    /// The path that the file was opened by.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Write for LogFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(next) = self.next.swap(None) {
            // Whoever stored it kept nothing of it; if somebody is about to drop a copy, the descriptor is doubled.
            self.file = match Arc::try_unwrap(next) {
                Ok(file) => file,
                Err(shared) => shared.try_clone()?,
            };
        }
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
