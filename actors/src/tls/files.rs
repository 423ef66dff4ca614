//! The files that credentials are made of: read whole, of bounded size, and known by what changes when they do.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use millpond_messages::{Error, IoError, Result};
use zeroize::Zeroizing;

/// The most bytes of a file that are read: thousands of certificates or keys.
pub(super) const MOST_BYTES: u64 = 4 << 20;

/// What changes with a file; all zeroes for one that is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    length: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    /// What the file at `path` is now.
    pub(super) fn of(path: &Path) -> Self {
        fs::metadata(path).map_or_else(
            |_| Self::default(),
            |file| Self {
                device: file.dev(),
                inode: file.ino(),
                length: file.len(),
                modified: (file.mtime(), file.mtime_nsec()),
                changed: (file.ctime(), file.ctime_nsec()),
            },
        )
    }
}

/// A file of credentials, read. Its bytes, which may be a key, are wiped when they are dropped.
pub(super) struct CredentialFile {
    pub(super) path: PathBuf,
    pub(super) bytes: Zeroizing<Vec<u8>>,
}

impl CredentialFile {
    /// The path, as people are shown it.
    pub(super) fn shown(&self) -> String {
        self.path.display().to_string()
    }
}

/// Reads the file `name` in a folder that must be there.
///
/// # Errors
/// It is not there, or cannot be read.
pub(super) fn required(dir: &Path, name: &str) -> Result<CredentialFile> {
    let path = dir.join(name);
    read(&path)
        .map_err(|error| unreadable(&path, error))
        .map(|bytes| CredentialFile { path, bytes })
}

/// Reads the file `name` in a folder, if there is one.
///
/// # Errors
/// It is there, and cannot be read.
pub(super) fn optional(dir: &Path, name: &str) -> Result<Option<CredentialFile>> {
    let path = dir.join(name);
    match read(&path) {
        Ok(bytes) => Ok(Some(CredentialFile { path, bytes })),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(unreadable(&path, error)),
    }
}

fn read(path: &Path) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(Vec::new());
    File::open(path)?.take(MOST_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn unreadable(path: &Path, error: io::Error) -> Error {
    Error::io(
        &format!("Unable to access credentials {}", path.display()),
        IoError::from(error),
    )
}
