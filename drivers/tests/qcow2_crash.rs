//! What is left when the program ends at any moment: everything that was flushed, and leaks at the most.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod qcow2_common;

use std::path::Path;

use millpond_drivers::api::Repair;
use millpond_messages::{OpenFlags, RequestFlags};
use qcow2_common::*;
use serde_json::json;

/// A flush that was answered: how long the log was, and what the disk read as.
struct Flushed {
    at: usize,
    bytes: Vec<u8>,
}

/// How an image is made and opened.
struct How {
    create: serde_json::Value,
    open: serde_json::Value,
    lazy: bool,
}

impl How {
    fn made(mut create: serde_json::Value) -> Self {
        create["size"] = json!(3 << 20);
        let lazy = create["lazy-refcounts"] == true;
        let open = json!({});
        Self { create, open, lazy }
    }
}

/// What a run of requests leaves behind.
struct History {
    start: Vec<u8>,
    log: Vec<Event>,
    flushes: Vec<Flushed>,
    /// Ranges that were changed, with the length that the log had when the change began.
    changes: Vec<(usize, u64, u64)>,
}

fn history(how: &How, size: u64, requests: u64, seed: u64) -> History {
    let ring = ring();
    let store = Store::new(Vec::new(), seed);
    let created = create(&store, options(how.create.clone()), &ring);
    block_on(&ring, created).unwrap();
    let start = store.bytes.borrow().clone();
    store.record.set(true);
    let mut random = Random::new(seed);
    let mut bytes = vec![0; size as usize];
    let (mut flushes, mut changes) = (Vec::new(), Vec::new());
    block_on(&ring, async {
        let opened = open(&store, None, options(how.open.clone()), READ_WRITE, &ring);
        let (disk, _) = opened.await.unwrap();
        for n in 0..requests {
            let offset = random.below(size - 1);
            let len = 1 + random.below((size - offset).min(200_000));
            let range = offset as usize..(offset + len) as usize;
            changes.push((store.log.borrow().len(), offset, offset + len));
            match random.below(8) {
                0..4 => {
                    bytes[range.clone()].fill(n as u8 | 1);
                    disk.write(offset, &bytes[range]).await.unwrap();
                }
                4 => {
                    bytes[range].fill(0);
                    let flags = match random.below(3) {
                        0 => RequestFlags::empty(),
                        _ => RequestFlags::MAY_UNMAP,
                    };
                    disk.zero(offset, len, flags).await.unwrap();
                }
                5 => {
                    let (from, to) = disk.discard(offset, len).await.unwrap();
                    bytes[from as usize..to as usize].fill(0);
                }
                _ => {
                    disk.flush().await.unwrap();
                    let at = store.log.borrow().len();
                    flushes.push(Flushed {
                        at,
                        bytes: bytes.clone(),
                    });
                }
            }
        }
        disk.close().await.unwrap();
    });
    let log = store.log.borrow().clone();
    History {
        start,
        log,
        flushes,
        changes,
    }
}

fn apply(bytes: &mut Vec<u8>, event: &Event) {
    match event {
        Event::Write(offset, data) => put(bytes, *offset, data),
        Event::Discard(offset, len) => discard(bytes, *offset, *len),
        Event::Truncate(size) => bytes.resize(*size as usize, 0),
        Event::Flush => {}
    }
}

impl History {
    /// The file after the first `end` events. Those behind the last flush may have got lost on their way to the disk,
    /// where `random` says so.
    fn file(&self, end: usize, mut random: Option<Random>) -> Vec<u8> {
        let mut bytes = self.start.clone();
        let flush = self.log[..end]
            .iter()
            .rposition(|event| matches!(event, Event::Flush))
            .unwrap_or(0);
        for (at, event) in self.log[..end].iter().enumerate() {
            let lost = at > flush && random.as_mut().is_some_and(|random| random.below(2) == 0);
            if !lost {
                apply(&mut bytes, event);
            }
        }
        bytes
    }

    /// Holds the disk's contents against the last flush that was answered before the end, leaving out what was changed
    /// since.
    fn check_contents(&self, end: usize, found: &[u8]) {
        let Some(flushed) = self.flushes.iter().rev().find(|flushed| flushed.at <= end) else {
            return;
        };
        let mut expected = flushed.bytes.clone();
        let mut found = found.to_vec();
        for (at, from, to) in &self.changes {
            if *at >= flushed.at && *at <= end {
                let range = *from as usize / 65536 * 65536
                    ..expected.len().min((*to as usize).next_multiple_of(65536));
                expected[range.clone()].fill(0);
                found[range].fill(0);
            }
        }
        let differs = expected.iter().zip(&found).position(|(a, b)| a != b);
        assert_eq!(
            differs,
            None,
            "flushed data is lost at end {end} of {}",
            self.log.len()
        );
    }
}

/// Opens an image here, which repairs it if it is dirty, and closes it again.
fn open_and_close(path: &Path, node: &serde_json::Value) {
    let ring = ring();
    let store = Store::open(path, 1);
    block_on(&ring, async {
        let (disk, _) = open(&store, None, options(node.clone()), READ_WRITE, &ring)
            .await
            .unwrap();
        disk.close().await.unwrap();
    });
    store.save(path);
}

fn crash(how: &How, seed: u64) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image.qcow2");
    let (history, lazy) = (history(how, 3 << 20, 40, seed), how.lazy);
    let mut random = Random::new(seed);
    for sample in 0..12 {
        let end = random.below(history.log.len() as u64 + 1) as usize;
        // An ended process loses nothing that it wrote; an ended machine may.
        let lossy = (sample % 2 == 1).then(|| Random::new(seed + sample));
        std::fs::write(&path, history.file(end, lossy)).unwrap();
        if lazy {
            open_and_close(&path, &how.open);
        }
        let (corruptions, leaks, errors) = check(&path);
        assert_eq!(corruptions, 0, "seed {seed} end {end}: {errors}");
        assert!(!lazy || leaks == 0, "a repaired image leaks: {errors}");
        history.check_contents(end, &contents(&path));
        compare_checks(&path, &how.open, leaks);
    }
}

/// Our check counts what `qemu-img` counts, and mends it.
fn compare_checks(path: &Path, node: &serde_json::Value, leaks: u64) {
    let ring = ring();
    let store = Store::open(path, 1);
    block_on(&ring, async {
        let (disk, _) = open(&store, None, options(node.clone()), OpenFlags::empty(), &ring)
            .await
            .unwrap();
        let result = disk.driver.image().check(Repair::default()).await.unwrap();
        assert_eq!((result.corruptions, result.leaks), (0, leaks));
        let (disk, _) = open(
            &store,
            None,
            options(node.clone()),
            READ_WRITE | OpenFlags::CHECK,
            &ring,
        )
        .await
        .unwrap();
        let result = disk
            .driver
            .image()
            .check(Repair {
                leaks: true,
                errors: false,
            })
            .await
            .unwrap();
        assert_eq!((result.leaks, result.leaks_fixed), (0, leaks));
        disk.close().await.unwrap();
    });
    store.save(path);
    let (corruptions, left, errors) = check(path);
    assert_eq!((corruptions, left), (0, 0), "of {leaks} leaks: {errors}");
}

#[test]
fn a_crash_leaves_leaks_at_the_most() {
    for seed in 1..3 {
        crash(&How::made(json!({})), seed);
        crash(&How::made(json!({"cluster-size": 4096})), seed);
        crash(
            &How::made(json!({"cluster-size": 512, "refcount-bits": 64})),
            seed,
        );
        crash(&How::made(json!({"cluster-size": 4096, "version": "v2"})), seed);
        let keeps = How {
            open: json!({"discard-no-unref": true, "pass-discard-request": true}),
            ..How::made(json!({"cluster-size": 4096}))
        };
        crash(&keeps, seed);
    }
}

#[test]
fn a_crash_of_an_encrypted_image_leaves_leaks_at_the_most() {
    let luks = json!({"format": "luks", "key-secret": "s", "iter-time": 10});
    let aes = json!({"format": "qcow", "key-secret": "s"});
    for (seed, (encrypt, format, more)) in (1..).zip([
        (&luks, "luks", json!({})),
        (&luks, "luks", json!({"cluster-size": 4096})),
        (
            &luks,
            "luks",
            json!({"cluster-size": 4096, "lazy-refcounts": true}),
        ),
        (&aes, "aes", json!({"cluster-size": 4096})),
        (&aes, "aes", json!({"cluster-size": 4096, "version": "v2"})),
    ]) {
        let mut made = more;
        made["encrypt"] = encrypt.clone();
        let mut how = How::made(made);
        how.open = json!({"encrypt": {"format": format, "key-secret": "s"},
            "discard-no-unref": how.create["version"] != "v2", "pass-discard-request": true});
        crash(&how, seed);
    }
}

#[test]
fn a_crash_with_lazy_refcounts_is_repaired_by_the_next_open() {
    for seed in 1..3 {
        crash(&How::made(json!({"lazy-refcounts": true})), seed);
        crash(
            &How::made(json!({"lazy-refcounts": true, "cluster-size": 2048})),
            seed,
        );
    }
}
