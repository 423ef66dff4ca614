//! Files that this process made for its own use: sockets and pidfiles. What somebody else has put at a path is never
//! removed, whether it was there before or has come since.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Why no socket can be made at a path.
#[derive(Debug, thiserror::Error)]
pub enum SocketPathError {
    /// Something else is there.
    #[error("the path exists and is not a socket")]
    NotASocket,
    /// The socket that is there cannot be removed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A file that this process made.
#[derive(Debug)]
pub struct OwnFile {
    path: PathBuf,
    /// Its device and inode.
    identity: (u64, u64),
}

impl OwnFile {
    /// The file that this process just made at `path`.
    ///
    /// # Errors
    /// It is gone again, or the folder that the process is in cannot be told.
    pub fn made_at(path: &Path) -> io::Result<Self> {
        Self::of(path, &path.symlink_metadata()?)
    }

    /// The file at `path` that this process made and has these facts.
    ///
    /// # Errors
    /// The folder that the process is in cannot be told.
    pub fn of(path: &Path, facts: &Metadata) -> io::Result<Self> {
        Ok(Self {
            // The process may change its folder before the file goes.
            path: std::path::absolute(path)?,
            identity: identity(facts),
        })
    }

    /// Whether the path still leads to the file.
    pub fn is_there(&self) -> bool {
        self.path
            .symlink_metadata()
            .is_ok_and(|facts| identity(&facts) == self.identity)
    }

    /// Removes the file, unless another has taken its place. The owner must still hold it open: only then is its
    /// number nobody else's.
    pub fn remove(&self) {
        if self.is_there()
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!("{} cannot be removed: {error}", self.path.display());
        }
    }
}

fn identity(facts: &Metadata) -> (u64, u64) {
    (facts.dev(), facts.ino())
}

/// Clears the way for a socket at `path`: a socket that is there, as a process that was killed leaves one behind, is
/// removed, and nothing else.
///
/// # Errors
/// Something else is there, or the socket cannot be removed.
pub fn clear_for_socket(path: &Path) -> Result<(), SocketPathError> {
    match path.symlink_metadata() {
        Ok(facts) if facts.file_type().is_socket() => match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        },
        Ok(_) => Err(SocketPathError::NotASocket),
        // If it cannot be looked at, binding says why.
        Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::net::UnixListener;

    #[test]
    fn only_a_socket_makes_way_for_a_socket() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("file"), "kept").unwrap();
        fs::create_dir(path("folder")).unwrap();
        drop(UnixListener::bind(path("socket")).unwrap());
        std::os::unix::fs::symlink(path("socket"), path("link")).unwrap();
        for name in ["file", "folder", "link"] {
            let refused = clear_for_socket(&path(name)).unwrap_err().to_string();
            assert_eq!(refused, "the path exists and is not a socket", "{name}");
            assert!(path(name).exists(), "{name}");
        }
        clear_for_socket(&path("socket")).unwrap();
        assert!(!path("socket").exists());
        clear_for_socket(&path("absent")).unwrap();
    }

    #[test]
    fn a_successor_at_the_same_path_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let first = UnixListener::bind(&path).unwrap();
        let ours = OwnFile::made_at(&path).unwrap();
        assert!(ours.is_there());
        fs::remove_file(&path).unwrap();
        let second = UnixListener::bind(&path).unwrap();
        ours.remove();
        assert!(path.exists());
        OwnFile::made_at(&path).unwrap().remove();
        assert!(!path.exists());
        ours.remove();
        drop((first, second));
    }
}
