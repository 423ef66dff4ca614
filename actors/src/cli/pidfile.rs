//! A file that holds the process's id while it runs, and is locked, so that two do not share it.

use messages::IoError;
use rustix::fs::{FlockOperation, fcntl_lock};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The file; removed when dropped.
#[derive(Debug)]
pub struct Pidfile {
    path: PathBuf,
    /// Holds the lock.
    _file: File,
}

impl Pidfile {
    /// Writes the file.
    ///
    /// # Errors
    /// QEMU's text: it cannot be made, or another process holds it.
    pub fn write(path: &str) -> Result<Self, String> {
        let told = |what: String| format!("cannot create PID file: {what}");
        let reason = |error: io::Error| IoError::from(error).to_string();
        let file = loop {
            let opened = OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .mode(0o600)
                .open(path);
            let file =
                opened.map_err(|error| told(format!("Could not create '{path}': {}", reason(error))))?;
            fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive)
                .map_err(|error| told(format!("Cannot lock pid file: {}", reason(error.into()))))?;
            // Its last owner may have removed it before we had the lock: then it is nobody's.
            if is_still_at(&file, Path::new(path)) {
                break file;
            }
        };
        let text = format!("{}\n", std::process::id());
        file.set_len(0)
            .and_then(|()| (&file).write_all(text.as_bytes()))
            .map_err(|error| told(format!("Failed to write pid file: {}", reason(error))))?;
        let path = std::path::absolute(path).unwrap_or_else(|_| path.into());
        Ok(Self { path, _file: file })
    }
}

fn is_still_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), path.metadata()) {
        (Ok(ours), Ok(there)) => (ours.dev(), ours.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

impl Drop for Pidfile {
    fn drop(&mut self) {
        // If somebody else removed it, it is gone as it should be.
        let _ = std::fs::remove_file(&self.path);
    }
}
