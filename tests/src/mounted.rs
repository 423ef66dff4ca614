//! File systems of a test's own, unmounted at its end.

use std::path::Path;
use std::process::Command;

use crate::daemon::scratch;
use crate::tool;

/// A file system that is mounted, and unmounted on drop.
pub struct Mounted {
    dir: tempfile::TempDir,
    /// What it lies in, where that is a file.
    _file: Option<tempfile::TempDir>,
}

impl Mounted {
    /// One in memory, of so many mebibytes.
    #[must_use]
    pub fn tmpfs(mebibytes: u64) -> Self {
        let size = format!("size={mebibytes}m");
        Self::mount(&["-t", "tmpfs", "-o", &size, "none"], None)
    }

    /// One whose files can share their bytes.
    #[must_use]
    pub fn btrfs() -> Self {
        let within = scratch();
        let file = within.path().join("btrfs");
        let made = std::fs::File::create(&file).and_then(|file| file.set_len(400 << 20));
        made.expect("there is room for a sparse file");
        let file = file.display().to_string();
        tool::run("mkfs.btrfs", &["--quiet", &file]);
        Self::mount(&["-o", "loop", &file], Some(within))
    }

    fn mount(arguments: &[&str], file: Option<tempfile::TempDir>) -> Self {
        let dir = scratch();
        let path = dir.path().display().to_string();
        tool::run("mount", &[arguments, &[&path]].concat());
        Self { dir, _file: file }
    }

    /// Where it is mounted.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Lazily: a daemon that a failed test leaves may hold a file there.
        let _ = Command::new("umount").arg("--lazy").arg(self.dir()).status();
    }
}
