//! Tests of what a file prepares for other permissions and options, and of the locks meanwhile.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};

use millpond_messages::{OpenFlags, Permissions};

use super::super::node::{Caps, State};
use super::*;
use millpond_ring::os::files::is_byte_locked;
use millpond_ring::{Ring, RingConfig, Wait, Wake};

/// The byte of the permission to write, taken.
const WRITE_TAKEN: u16 = 101;

fn run<F: Future>(ring: &Ring, future: F) -> F::Output {
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(output) => return output,
            Poll::Pending => drop(ring.turn(Wait::Until(None))),
        }
    }
}

fn ring() -> Ring {
    Ring::new(RingConfig::new(Arc::new(Wake::new().unwrap()))).unwrap()
}

fn takes(taken: Permissions) -> Usage {
    Usage {
        taken,
        shared: Permissions::all(),
    }
}

fn writer(path: &str, ring: &Ring, may_hang: bool) -> File {
    let access = Access::new(OpenFlags::RDWR, Permissions::empty());
    let handle = Handle {
        may_hang,
        ..Handle::open("file", path, access).unwrap()
    };
    let serde_json::Value::Object(options) = serde_json::json!({"filename": path}) else {
        panic!("an object")
    };
    let flags = OpenFlags::RDWR;
    let parsed = FileOptions::new("file", &options, flags).unwrap();
    let config = Config {
        driver: "file",
        options,
        parsed,
        flags,
        locking: true,
    };
    let state = State {
        config,
        handle,
        used: Usage::NONE,
        caps: Caps::ALL,
        flush_error: None,
        releases: Vec::new(),
    };
    File::new(state, ring.clone())
}

#[test]
fn no_change_has_a_moment_without_the_locks_of_both_sides() {
    change_again_and_again(false);
}

#[test]
fn nor_has_one_of_a_file_that_may_hang() {
    change_again_and_again(true);
}

fn is_locked(path: &str, byte: u16) -> bool {
    use std::os::fd::AsFd;
    let other = std::fs::File::open(path).unwrap();
    is_byte_locked(other.as_fd(), byte).unwrap()
}

#[test]
fn a_file_that_may_hang_is_asked_and_unlocked_by_a_thread() {
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(4096).unwrap();
    let (path, ring) = (image.path().to_str().unwrap(), ring());
    let file = writer(path, &ring, true);
    let started = || ring.stats().started;
    let before = started();
    assert_eq!(run(&ring, file.end()), Ok(4096));
    assert_eq!(started(), before + 1);
    let usage = takes(Permissions::WRITE);
    run(&ring, file.prepare_usage(usage)).unwrap();
    file.commit_usage();
    assert!(is_locked(path, WRITE_TAKEN));
    run(&ring, file.prepare_usage(Usage::NONE)).unwrap();
    let before = started();
    file.commit_usage();
    assert_eq!(started(), before + 1, "nothing waits for it here");
    run(&ring, file.released());
    assert!(!is_locked(path, WRITE_TAKEN));
    // Taken again right after it was given up: the one has ended before the other begins.
    run(&ring, file.prepare_usage(usage)).unwrap();
    file.commit_usage();
    run(&ring, file.prepare_usage(Usage::NONE)).unwrap();
    file.commit_usage();
    run(&ring, file.prepare_usage(usage)).unwrap();
    file.commit_usage();
    assert!(is_locked(path, WRITE_TAKEN));
    run(&ring, crate::api::Lifecycle::close(&file)).unwrap();
    assert!(!is_locked(path, WRITE_TAKEN));
}

/// Has a thread look for the lock over and over until it is `over`; it has looked once when this returns.
fn watch_lock(path: String, over: Arc<AtomicBool>) -> std::thread::JoinHandle<()> {
    use std::os::fd::AsFd;
    let begun = Arc::new(AtomicBool::new(false));
    let watcher = std::thread::spawn({
        let begun = Arc::clone(&begun);
        move || {
            let other = std::fs::File::open(path).unwrap();
            let mut looks = 0_u64;
            while !over.load(Ordering::Relaxed) {
                let is_locked = is_byte_locked(other.as_fd(), WRITE_TAKEN).unwrap();
                assert!(is_locked, "look {looks} found no lock");
                looks += 1;
                begun.store(true, Ordering::Relaxed);
            }
        }
    });
    while !begun.load(Ordering::Relaxed) && !watcher.is_finished() {
        std::thread::yield_now();
    }
    watcher
}

#[test]
fn what_is_at_hand_is_not_prepared_anew() {
    let image = tempfile::NamedTempFile::new().unwrap();
    let (path, ring) = (image.path().to_str().unwrap(), ring());
    let file = writer(path, &ring, false);
    run(&ring, file.prepare_usage(takes(Permissions::WRITE))).unwrap();
    file.commit_usage();
    let started = ring.stats().started;
    run(&ring, file.prepare_usage(takes(Permissions::empty()))).unwrap();
    assert_eq!(ring.stats().started, started, "nothing is locked for less");
    let options = file.config.borrow().options.clone();
    let request = ReopenRequest {
        options,
        flags: OpenFlags::empty(),
    };
    run(&ring, file.prepare_reopen(request)).unwrap();
    let prepared = || {
        let pending = file.pending.borrow();
        let handle = pending.as_ref().and_then(|pending| pending.handle.as_ref());
        handle.map(|handle| Arc::clone(&handle.fd))
    };
    let first = prepared().unwrap();
    run(&ring, file.prepare_usage(takes(Permissions::CONSISTENT_READ))).unwrap();
    assert!(
        Arc::ptr_eq(&first, &prepared().unwrap()),
        "it is not opened twice"
    );
    file.commit_reopen();
    file.commit_usage();
    assert!(Arc::ptr_eq(&first, &file.fd()));
    assert!(!is_locked(path, WRITE_TAKEN));
}

fn change_again_and_again(may_hang: bool) {
    let image = tempfile::NamedTempFile::new().unwrap();
    let (path, ring) = (image.path().to_str().unwrap().to_owned(), ring());
    let file = writer(&path, &ring, may_hang);
    let usage = takes(Permissions::WRITE);
    run(&ring, file.prepare_usage(usage)).unwrap();
    file.commit_usage();

    let over = Arc::new(AtomicBool::new(false));
    let watcher = watch_lock(path, Arc::clone(&over));
    for round in 0..300 {
        let old = file.config.borrow().clone();
        let before = file.fd();
        // Another access, so another descriptor.
        let flags = old.flags.symmetric_difference(OpenFlags::RDWR);
        run(
            &ring,
            file.prepare_reopen(ReopenRequest {
                options: old.options,
                flags,
            }),
        )
        .unwrap();
        // Unsharing and sharing again changes the other bytes, and one round in three is given up.
        let shared = if round % 2 == 0 {
            Permissions::WRITE
        } else {
            Permissions::all()
        };
        run(
            &ring,
            file.prepare_usage(Usage {
                taken: Permissions::WRITE,
                shared,
            }),
        )
        .unwrap();
        let commits = round % 3 != 0;
        if commits {
            file.commit_reopen();
            file.commit_usage();
        } else {
            file.abort_usage();
            file.abort_reopen();
        }
        assert_eq!(Arc::ptr_eq(&before, &file.fd()), !commits);
    }
    over.store(true, Ordering::Relaxed);
    watcher.join().unwrap();
}
