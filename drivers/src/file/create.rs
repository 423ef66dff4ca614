//! Making and deleting image files. All of it blocks.

use std::path::Path;

use messages::io::Preallocation;
use messages::{Error, ErrorKind, IoError, Permissions, Result};
use rustix::fs::{FileType, Mode, OFlags, ioctl_getflags, ioctl_setflags, open};

use super::lock::{self, Locks};
use super::open::errno;
use super::sys;
use super::truncate::resize_file;

/// What a file system is asked to give new extents if the user does not say, in bytes.
const EXTENT_SIZE_HINT: u64 = 1 << 20;

/// What a new file is to be, as QAPI's `BlockdevCreateOptionsFile` has it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct CreateFile {
    /// Its path.
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
/// As `open(2)`, the locks of another process, or as for truncation. A file that was made is not deleted on failure.
pub fn create_file(wanted: &CreateFile) -> Result<()> {
    let CreateFile {
        filename,
        size,
        preallocation,
        nocow,
        extent_size_hint,
    } = wanted;
    let hint = u32::try_from(extent_size_hint.unwrap_or(EXTENT_SIZE_HINT))
        .map_err(|_| Error::new(ErrorKind::InvalidArgument, "Extent size hint is too large"))?;
    if *preallocation == Preallocation::Metadata {
        let text = "Unsupported preallocation mode: metadata";
        return Err(Error::new(ErrorKind::Unsupported, text));
    }
    // It is emptied below, not here: first it must be nobody else's.
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    let mode = Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::ROTH;
    let fd = open(filename.as_str(), flags, mode)
        .map_err(|error| Error::io(&format!("Could not create '{filename}'"), errno(error)))?;
    if lock::is_available(&fd) {
        let locks = Locks::new(
            Permissions::WRITE | Permissions::RESIZE,
            Permissions::all() - Permissions::RESIZE,
        );
        lock::add(&fd, Locks::NONE, locks)?;
        lock::check(&fd, locks, filename)?;
    }
    resize_file(&fd, 0, Preallocation::Off)?;
    if *nocow {
        // A file system without the flag copies or does not copy as it always does.
        let set =
            ioctl_getflags(&fd).and_then(|flags| ioctl_setflags(&fd, flags | rustix::fs::IFlags::NOCOW));
        if let Err(error) = set {
            tracing::debug!(%filename, "copy-on-write is not turned off: {error}");
        }
    }
    if hint != 0
        && let Err(error) = sys::set_extent_size_hint(&fd, hint)
    {
        tracing::debug!(%filename, "the extent size hint is not set: {error}");
    }
    resize_file(&fd, *size, *preallocation)
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
    let shown = filename.display();
    let is_regular = rustix::fs::stat(filename)
        .is_ok_and(|facts| FileType::from_raw_mode(facts.st_mode) == FileType::RegularFile);
    if !is_regular {
        let error = IoError::from_errno(libc::ENOENT);
        return Err(Error::io(&format!("{shown} is not a regular file"), error));
    }
    rustix::fs::unlink(filename)
        .map_err(|error| Error::io(&format!("Error when deleting file {shown}"), errno(error)))
}
