//! Nodes that are mounted as files of the host.

use std::fs::File;
use std::ops::Deref;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use rustix::fs::{FallocateFlags, fallocate};
use serde_json::{Value, json};

use crate::daemon::Daemon;
use crate::image::with;
use crate::{PATIENCE, tool};

mod transport;

pub use transport::{Offered, Transport, Withheld, as_qemu_has_it, over};

/// Fails, with what to do about it, where nothing can be mounted.
#[track_caller]
pub fn require() {
    assert!(
        Path::new("/dev/fuse").exists(),
        "tests of FUSE exports need /dev/fuse: load the module `fuse`, or give the container the device"
    );
    assert!(
        rustix::process::geteuid().is_root(),
        "tests of FUSE exports mount file systems, and run as root"
    );
}

/// Makes an empty file in a daemon's folder, for an export to cover.
#[track_caller]
pub fn mountpoint(daemon: &Daemon, name: &str) -> PathBuf {
    require();
    let path = daemon.dir().join(name);
    File::create(&path).expect("a file can be made");
    path
}

/// The arguments of `block-export-add` for an export of `node` over a file, by the transport of the test.
#[must_use]
pub fn export(id: &str, node: &str, mountpoint: &Path, more: &Value) -> Value {
    let mut export = json!({"type": "fuse", "id": id, "node-name": node, "mountpoint": mountpoint});
    if let Some(io_uring) = transport::option() {
        export["x-millpond-io-uring"] = json!(io_uring);
    }
    with(export, more)
}

/// Mounts a node over a new file of the daemon's folder; the export has the id `fuse`.
#[track_caller]
pub fn mount(daemon: &mut Daemon, node: &str, more: &Value) -> Mount {
    let path = mountpoint(daemon, "disk");
    daemon
        .qmp
        .ok("block-export-add", export("fuse", node, &path, more));
    Mount(path)
}

/// Whether something is mounted at a path.
#[must_use]
pub fn is_mounted(path: &Path) -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mounts").expect("the kernel lists mounts");
    let path = path.display().to_string();
    mounts.lines().any(|line| line.split(' ').nth(1) == Some(&path))
}

/// The length of the file at a path.
#[track_caller]
pub fn length(path: &Path) -> u64 {
    std::fs::metadata(path).expect("the file is there").size()
}

/// Unmounts what is at a path, as its users do.
#[track_caller]
pub fn unmount(path: &Path) {
    tool::run("umount", &[path]);
}

/// The path of an export. What is mounted there yet is unmounted on drop: a test that fails leaves nothing.
#[derive(Debug)]
pub struct Mount(PathBuf);

impl Mount {
    /// What is mounted at a path.
    #[must_use]
    pub fn at(path: PathBuf) -> Mount {
        Mount(path)
    }
}

impl Deref for Mount {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.0
    }
}

impl AsRef<Path> for Mount {
    fn as_ref(&self) -> &Path {
        &self.0
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if is_mounted(&self.0) {
            let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
        }
    }
}

/// Users of an export, each with a part of the file: they write, read back what must be there, and now and then make it
/// durable.
pub struct Users {
    stop: Arc<AtomicBool>,
    requests: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Vec<u8>>>,
}

/// The most bytes of one call of a user.
const MOST: u64 = 48 << 10;

impl Users {
    /// Starts users on the first `size` bytes of a file, which are zero.
    #[must_use]
    pub fn start(path: &Path, size: u64, count: u64, rng: &mut fastrand::Rng) -> Users {
        let (stop, requests) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let part = size / count;
        let threads = (0..count).map(|index| {
            let mut options = File::options();
            let file = options.read(true).write(true).open(path);
            let user = User {
                file: file.expect("an export can be opened"),
                begin: index * part,
                holds: vec![0; part as usize],
                rng: rng.fork(),
            };
            let (stop, requests) = (Arc::clone(&stop), Arc::clone(&requests));
            std::thread::spawn(move || user.run(&stop, &requests))
        });
        let threads = threads.collect();
        Users {
            stop,
            requests,
            threads,
        }
    }

    /// How many calls have ended.
    #[must_use]
    pub fn done(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Waits until some more calls have ended: those under way now, and others that began later.
    #[track_caller]
    pub fn wait_for(&self, more: u64) {
        let (end, deadline) = (self.done() + more, Instant::now() + PATIENCE);
        while self.done() < end {
            self.assert_well();
            assert!(Instant::now() < deadline, "the users of an export stand still");
            std::thread::yield_now();
        }
    }

    /// Fails at once if a user has found a fault.
    #[track_caller]
    pub fn assert_well(&self) {
        let ended = self.threads.iter().any(JoinHandle::is_finished);
        assert!(!ended, "a user has stopped");
    }

    /// Ends the load; what the file must hold.
    #[track_caller]
    pub fn finish(self) -> Vec<u8> {
        self.stop.store(true, Ordering::Relaxed);
        let parts = self.threads.into_iter();
        parts
            .flat_map(|thread| thread.join().expect("a user ends well"))
            .collect()
    }
}

/// One user, and what its part of the file must hold.
struct User {
    file: File,
    begin: u64,
    holds: Vec<u8>,
    rng: fastrand::Rng,
}

impl User {
    fn run(mut self, stop: &AtomicBool, requests: &AtomicU64) -> Vec<u8> {
        while !stop.load(Ordering::Relaxed) {
            self.step();
            requests.fetch_add(1, Ordering::Relaxed);
        }
        self.holds
    }

    fn step(&mut self) {
        let at = self.rng.usize(..self.holds.len());
        let len = self.rng.usize(1..=(MOST as usize).min(self.holds.len() - at));
        let (part, offset) = (&mut self.holds[at..at + len], self.begin + at as u64);
        match self.rng.u32(..100) {
            0..45 => {
                self.rng.fill(part);
                self.file.write_all_at(part, offset).expect("a write succeeds");
            }
            45..50 => {
                part.fill(0);
                let hole = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
                fallocate(&self.file, hole, offset, len as u64).expect("zeroes can be written");
            }
            50..52 => self.file.sync_data().expect("a flush succeeds"),
            _ => {
                let mut found = vec![0; len];
                self.file
                    .read_exact_at(&mut found, offset)
                    .expect("a read succeeds");
                assert!(found == *part, "other bytes at {offset}, {len} of them");
            }
        }
    }
}
