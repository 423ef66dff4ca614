//! Files that lie in memory: what is small is read and written in place, whatever else is done with the file.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod host;

use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use host::{Node, pattern, run};
use millpond_messages::io::Preallocation;
use millpond_messages::{OpenFlags, RequestFlags};
use millpond_ring::Ring;

const NONE: RequestFlags = RequestFlags::empty();
const RW: OpenFlags = OpenFlags::RDWR;

on_each_engine! {
    small_requests_need_no_thread
    large_and_small_requests_meet_in_one_file
}

/// A directory in memory.
fn memory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap()
}

/// Threads on which the kernel runs what io_uring cannot do at once, of this test's ring.
fn kernel_workers() -> usize {
    let name = format!("iou-wrk-{}", rustix::thread::gettid().as_raw_nonzero());
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let names = tasks.filter_map(|task| fs::read_to_string(task.unwrap().path().join("comm")).ok());
    names.filter(|other| other.trim_end() == name).count()
}

/// Linux 6.6 and later take O_DIRECT for such files, without which nothing is done in place.
fn kernel_can(path: &Path) -> bool {
    File::options()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(path)
        .is_ok()
}

fn small_requests_need_no_thread(ring: &Ring) {
    let dir = memory();
    let path = dir.path().join("image");
    File::create(&path).unwrap();
    let node = Node::file(ring, &path, RW).unwrap();
    for round in 0..50 {
        let (at, data) = (round as u64 * 4096 + 3, pattern(4096, round));
        node.write(at, &data, NONE);
        assert_eq!(node.read(at, 4096), data);
    }
    node.write(8, &pattern(100, 99), RequestFlags::FUA);
    assert_eq!(node.length(), 50 * 4096 + 3);
    assert!(kernel_workers() == 0 || !kernel_can(&path));
    node.close();
}

fn large_and_small_requests_meet_in_one_file(ring: &Ring) {
    let dir = memory();
    let path = dir.path().join("image");
    File::create(&path).unwrap();
    let node = Node::file(ring, &path, RW).unwrap();
    let mut expected = pattern(300_001, 1);
    node.write(0, &expected, NONE);
    node.write(131_000, &pattern(1000, 2), NONE);
    expected[131_000..132_000].copy_from_slice(&pattern(1000, 2));
    assert_eq!(node.read(0, 300_001), expected);
    assert_eq!(node.read(130_999, 3), expected[130_999..131_002]);
    run(
        ring,
        node.driver.truncate(131_500, true, Preallocation::Off, NONE),
    )
    .unwrap();
    expected.truncate(131_500);
    expected.resize(132_000, 0);
    assert_eq!(
        node.read(131_000, 1000),
        expected[131_000..],
        "past the end there are zeroes"
    );
    run(ring, node.driver.flush()).unwrap();
    node.close();
    // A name that is gone, or is another file's by now, makes no difference to an open node.
    let node = Node::file(ring, &path, RW).unwrap();
    fs::remove_file(&path).unwrap();
    node.write(5, b"still there", NONE);
    assert_eq!(node.read(5, 11), b"still there");
    node.close();
}
