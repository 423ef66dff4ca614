//! A file that holds the process's id while it runs, and is locked, so that two do not share it.

use crate::socket::OwnFile;
use millpond_messages::IoError;
use rustix::fs::{FlockOperation, fcntl_lock};
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// The longest text that a pidfile holds.
const LONGEST: u64 = 32;

/// How often the file may be removed by its last owner while we open it.
const ATTEMPTS: u32 = 100;

/// The file; removed when dropped, unless another is in its place.
#[derive(Debug)]
pub struct Pidfile {
    file: OwnFile,
    /// Holds the lock for as long as it is open.
    _locked: File,
}

impl Pidfile {
    /// Writes the file.
    ///
    /// # Errors
    /// QEMU's text: it cannot be made, or another process holds it.
    pub fn write(path: &str) -> Result<Self, String> {
        // The last owner may remove the file between our opening and our locking it: then it is nobody's, and we begin anew.
        let (locked, file) = (0..ATTEMPTS)
            .find_map(|_| open(path).transpose())
            .unwrap_or_else(|| Err(format!("'{path}' comes and goes")))?;
        let mut held = String::new();
        let is_pidfile = match (&locked).take(LONGEST).read_to_string(&mut held) {
            Ok(_) => held.trim().is_empty() || held.trim().parse::<u32>().is_ok(),
            Err(_) => false,
        };
        if !is_pidfile {
            return Err(format!("'{path}' exists and holds no process id"));
        }
        let text = format!("{}\n", std::process::id());
        locked
            .set_len(0)
            .and_then(|()| std::os::unix::fs::FileExt::write_all_at(&locked, text.as_bytes(), 0))
            .map_err(|error| format!("Failed to write pid file: {}", reason(error)))?;
        Ok(Self {
            file,
            _locked: locked,
        })
    }
}

/// The file at `path`, made if there is none, and locked; nothing if it was removed meanwhile.
fn open(path: &str) -> Result<Option<(File, OwnFile)>, String> {
    let unusable = |error| format!("Could not create '{path}': {}", reason(error));
    // Opening a device or a pipe may do more than open it.
    if Path::new(path).metadata().is_ok_and(|facts| !facts.is_file()) {
        return Err(format!("'{path}' exists and is no regular file"));
    }
    let opened = OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .mode(0o600)
        .open(path);
    let locked = opened.map_err(unusable)?;
    fcntl_lock(&locked, FlockOperation::NonBlockingLockExclusive)
        .map_err(|error| format!("Cannot lock pid file: {}", reason(error.into())))?;
    // A link that leads to the file is the user's, and stays.
    let Ok(real) = Path::new(path).canonicalize() else {
        return Ok(None);
    };
    let facts = locked.metadata().map_err(unusable)?;
    let file = OwnFile::of(&real, &facts).map_err(unusable)?;
    Ok(file.is_there().then_some((locked, file)))
}

fn reason(error: io::Error) -> String {
    IoError::from(error).to_string()
}

impl Drop for Pidfile {
    fn drop(&mut self) {
        self.file.remove();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn only_a_pidfile_is_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        for (name, contents) in [
            ("image", "QFI\u{fb} is not text"),
            ("text", "12 and more"),
            ("long", &"1".repeat(40)),
        ] {
            fs::write(path(name), contents).unwrap();
            let refused = Pidfile::write(&path(name)).unwrap_err();
            assert!(refused.contains("holds no process id"), "{refused}");
            assert_eq!(fs::read_to_string(path(name)).unwrap(), contents);
        }
        fs::create_dir(path("folder")).unwrap();
        let refused = Pidfile::write(&path("folder")).unwrap_err();
        assert!(refused.contains("no regular file"), "{refused}");
        fs::write(path("stale"), "4242\n").unwrap();
        std::os::unix::fs::symlink(path("stale"), path("link")).unwrap();
        let held = Pidfile::write(&path("link")).unwrap();
        assert_eq!(
            fs::read_to_string(path("stale")).unwrap(),
            format!("{}\n", std::process::id())
        );
        drop(held);
        assert!(!fs::exists(path("stale")).unwrap());
        assert!(fs::symlink_metadata(path("link")).is_ok());
    }

    #[test]
    fn a_successor_keeps_its_pidfile() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        let held = Pidfile::write(path.to_str().unwrap()).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "1\n").unwrap();
        drop(held);
        assert!(path.exists());
    }
}
