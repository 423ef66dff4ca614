//! How requests come to an export: read from the device, or over io_uring. Tests run over each.
//!
//! The kernel offers io_uring where a parameter of its module says so, which is off unless somebody turns it on. It holds for the
//! whole machine: the first test that needs it turns it on, and the last one that is done puts back what it has found.

use std::cell::Cell;
use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

/// Where the kernel says whether it offers io_uring.
const PARAMETER: &str = "/sys/module/fuse/parameters/enable_uring";

/// How requests come to the exports of a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// By reads of the device.
    Device,
    /// Over io_uring, or not at all.
    IoUring,
}

thread_local! {
    static CURRENT: Cell<Option<Transport>> = const { Cell::new(None) };
}

/// Runs a test whose exports are served in this way.
pub fn over(transport: Transport, test: impl FnOnce()) {
    super::require();
    let _offered = (transport == Transport::IoUring).then(Offered::new);
    let _restored = Restored(CURRENT.replace(Some(transport)));
    test();
}

/// Runs what a test has QEMU do, which has one transport and no option for it.
pub fn as_qemu_has_it<T>(run: impl FnOnce() -> T) -> T {
    let _restored = Restored(CURRENT.replace(None));
    run()
}

/// What the option `x-millpond-io-uring` is for the exports of the test that runs on this thread; nothing outside of
/// [`over`].
pub(super) fn option() -> Option<&'static str> {
    CURRENT.get().map(|transport| match transport {
        Transport::Device => "off",
        Transport::IoUring => "on",
    })
}

struct Restored(Option<Transport>);

impl Drop for Restored {
    fn drop(&mut self) {
        CURRENT.set(self.0);
    }
}

/// Makes a test of each of these functions for either transport.
#[macro_export]
macro_rules! over_each_transport {
    ($($(#[$attribute:meta])* $name:ident),* $(,)?) => {
        mod by_device {
            $(#[test] $(#[$attribute])* fn $name() {
                $crate::fuse::over($crate::fuse::Transport::Device, super::$name);
            })*
        }
        mod over_io_uring {
            $(#[test] $(#[$attribute])* fn $name() {
                $crate::fuse::over($crate::fuse::Transport::IoUring, super::$name);
            })*
        }
    };
}

/// Has the kernel offer io_uring while it lives.
#[derive(Debug)]
pub struct Offered {
    /// Held shared by everybody for whom the kernel is to offer it. It holds what was there before.
    found: File,
}

/// The file that says what was found, and keeps tests apart that want the parameter to be different.
#[track_caller]
fn shared_file() -> File {
    assert!(
        Path::new(PARAMETER).exists(),
        "tests of FUSE over io_uring need a kernel from 6.14 on, built with CONFIG_FUSE_IO_URING"
    );
    let path: PathBuf = std::env::temp_dir().join("millpond-fuse-enable-uring");
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false);
    options.open(path).expect("a file can be made")
}

/// Keeps the kernel from offering io_uring while it lives. Waits until no test needs it.
pub struct Withheld {
    _alone: File,
    before: String,
}

impl Withheld {
    /// Has the kernel not offer it to who mounts something from now on.
    #[must_use]
    #[track_caller]
    pub fn new() -> Self {
        let alone = shared_file();
        lock(&alone, FlockOperation::LockExclusive);
        let before = parameter();
        fs::write(PARAMETER, "N").expect("root can set parameters of modules");
        Self {
            _alone: alone,
            before,
        }
    }
}

impl Default for Withheld {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Withheld {
    fn drop(&mut self) {
        let _ = fs::write(PARAMETER, &self.before);
    }
}

impl Offered {
    /// Has the kernel offer it, for who mounts something from now on.
    #[must_use]
    #[track_caller]
    pub fn new() -> Self {
        let mut found = shared_file();
        loop {
            lock(&found, FlockOperation::LockShared);
            if is_offered() && !recorded(&mut found).is_empty() {
                return Self { found };
            }
            lock(&found, FlockOperation::Unlock);
            lock(&found, FlockOperation::LockExclusive);
            if recorded(&mut found).is_empty() {
                record(&mut found, &parameter());
            }
            fs::write(PARAMETER, "Y").expect("root can set parameters of modules");
            lock(&found, FlockOperation::Unlock);
        }
    }
}

impl Default for Offered {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Offered {
    fn drop(&mut self) {
        let alone = flock(&self.found, FlockOperation::NonBlockingLockExclusive);
        if alone.is_ok() {
            let _ = fs::write(PARAMETER, recorded(&mut self.found));
            record(&mut self.found, "");
        }
    }
}

fn lock(file: &File, how: FlockOperation) {
    flock(file, how).expect("a file can be locked");
}

fn parameter() -> String {
    fs::read_to_string(PARAMETER).expect("the parameter can be read")
}

fn is_offered() -> bool {
    parameter().starts_with('Y')
}

/// What the parameter was before any test, while there are tests that have changed it.
fn recorded(file: &mut File) -> String {
    let mut text = String::new();
    file.rewind().expect("a file has a beginning");
    file.read_to_string(&mut text).expect("it is text");
    text
}

fn record(file: &mut File, text: &str) {
    file.rewind().expect("a file has a beginning");
    file.set_len(0).expect("it can be emptied");
    file.write_all(text.as_bytes()).expect("it can be written");
}
