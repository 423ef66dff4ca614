//! Making and deleting image files. All of it blocks.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use millpond_messages::io::Preallocation;
use millpond_messages::{Error, ErrorKind, IoError, Permissions, Result};
use rustix::fs::{FileType, Mode, OFlags, ioctl_getflags, ioctl_setflags, open};
use rustix::io::Errno;

use super::lock::{self, Locks};
use super::open::errno;
use super::truncate::resize_file;
use millpond_ring::os::files;

/// What a file system is asked to give new extents if the user does not say, in bytes.
const EXTENT_SIZE_HINT: u64 = 1 << 20;

/// What a new file is to be, as QAPI's `BlockdevCreateOptionsFile` has it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct CreateFile {
    /// The path of the new file.
    pub filename: String,
    /// Its length in bytes.
    pub size: u64,
    /// Off, falloc or full.
    #[serde(default)]
    pub preallocation: Preallocation,
    /// Turn copy-on-write off where the file system has it (btrfs).
    #[serde(default)]
    pub nocow: bool,
    /// The extent size to ask the file system for, in bytes; 0 for none. 1 MiB by default.
    pub extent_size_hint: Option<u64>,
}

/// Makes a file, or makes an existing one anew: what was in it is gone. One that another process uses is refused. For
/// thread pools and command lines: it blocks.
///
/// # Errors
/// As `open(2)`, the locks of another process, or as for truncation. A file that was not there before is deleted again.
pub fn create_file(wanted: &CreateFile) -> Result<()> {
    let filename = wanted.filename.as_str();
    let hint = u32::try_from(wanted.extent_size_hint.unwrap_or(EXTENT_SIZE_HINT))
        .map_err(|_| Error::new(ErrorKind::InvalidArgument, "Extent size hint is too large"))?;
    if wanted.preallocation == Preallocation::Metadata {
        let text = "Unsupported preallocation mode: metadata";
        return Err(Error::new(ErrorKind::Unsupported, text));
    }
    // It is emptied below, not here: first it must be nobody else's.
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    let mode = Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::ROTH;
    let (opened, is_new) = match open(filename, flags | OFlags::EXCL, mode) {
        Err(Errno::EXIST) => (open(filename, flags, mode), false),
        made => (made, true),
    };
    let fd = opened.map_err(|error| Error::io(&format!("Could not create '{filename}'"), errno(error)))?;
    let made = make_anew(&fd, wanted, hint);
    lock::give_back(&fd);
    if made.is_err()
        && is_new
        && let Err(error) = delete_open_file(&fd, Path::new(filename))
    {
        tracing::warn!(%error, "half a file is left");
    }
    made
}

/// Makes a file that is open what it is to be.
fn make_anew(fd: &OwnedFd, wanted: &CreateFile, hint: u32) -> Result<()> {
    let filename = wanted.filename.as_str();
    if lock::is_available(fd) {
        let locks = Locks::new(
            Permissions::WRITE | Permissions::RESIZE,
            Permissions::all() - Permissions::RESIZE,
        );
        lock::add(fd, Locks::NONE, locks)?;
        lock::check(fd, locks, filename)?;
    }
    resize_file(fd, 0, Preallocation::Off)?;
    if wanted.nocow {
        // A file system without the flag copies or does not copy as it always does.
        let set = ioctl_getflags(fd).and_then(|flags| ioctl_setflags(fd, flags | rustix::fs::IFlags::NOCOW));
        if let Err(error) = set {
            tracing::debug!(%filename, "copy-on-write is not turned off: {error}");
        }
    }
    if hint != 0
        && let Err(error) = files::set_extent_size_hint(fd, hint)
    {
        tracing::debug!(%filename, "the extent size hint is not set: {error}");
    }
    resize_file(fd, wanted.size, wanted.preallocation)
}

/// Makes an empty file with a name that nobody can foresee, in `TMPDIR` or else in `/var/tmp`; answers the name. It blocks.
///
/// # Errors
/// As `open(2)`.
pub fn create_temporary() -> Result<String> {
    let folder = std::env::var_os("TMPDIR").map_or_else(|| "/var/tmp".into(), std::path::PathBuf::from);
    let failed = |error: std::io::Error| {
        let text = format!(
            "Could not open temporary file '{}'",
            folder.join("vl.XXXXXX").display()
        );
        Error::io(&text, IoError::from(error))
    };
    let file = tempfile::Builder::new()
        .prefix("vl.")
        .tempfile_in(&folder)
        .map_err(failed)?;
    let path = file
        .into_temp_path()
        .keep()
        .map_err(|error| failed(error.error))?;
    path.into_os_string().into_string().map_err(|name| {
        let text = format!("The name {} is not UTF-8", name.display());
        Error::new(ErrorKind::InvalidArgument, text)
    })
}

/// Takes the name away from a file that is open: it goes when it is closed. It blocks.
pub(super) fn unlink(filename: &str) -> Result<()> {
    rustix::fs::unlink(filename).map_err(|error| {
        Error::io(
            &format!("Could not delete temporary file '{filename}'"),
            errno(error),
        )
    })
}

/// Deletes a regular file. It blocks.
///
/// # Errors
/// There is none of that name, it is not regular, or as `unlink(2)`.
pub fn delete_file(filename: &Path) -> Result<()> {
    regular(filename)?;
    remove(filename)
}

/// Deletes the regular file that is open as `fd`, unless its name has become another file's. It blocks.
///
/// # Errors
/// There is none of that name, it is not regular or another, or as `unlink(2)`.
pub(super) fn delete_open_file(fd: impl AsFd, filename: &Path) -> Result<()> {
    let named = regular(filename)?;
    let open =
        rustix::fs::fstat(fd).map_err(|error| Error::io("Could not look at the file", errno(error)))?;
    if (named.st_dev, named.st_ino) != (open.st_dev, open.st_ino) {
        let text = format!("{} is another file than the one that is open", filename.display());
        return Err(Error::new(ErrorKind::InUse, text));
    }
    remove(filename)
}

fn regular(filename: &Path) -> Result<rustix::fs::Stat> {
    let found = rustix::fs::stat(filename).ok();
    let is_regular =
        |found: &rustix::fs::Stat| FileType::from_raw_mode(found.st_mode) == FileType::RegularFile;
    found.filter(is_regular).ok_or_else(|| {
        let error = IoError::from_errno(libc::ENOENT);
        Error::io(&format!("{} is not a regular file", filename.display()), error)
    })
}

fn remove(filename: &Path) -> Result<()> {
    rustix::fs::unlink(filename).map_err(|error| {
        let text = format!("Error when deleting file {}", filename.display());
        Error::io(&text, errno(error))
    })
}
