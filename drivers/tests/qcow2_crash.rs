//! What is left when the program ends at any moment: everything that was flushed, and leaks at the most.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod qcow2_common;

use std::path::Path;

use millpond_drivers::api::Repair;
use millpond_messages::{OpenFlags, RequestFlags};
use qcow2_common::*;
use serde_json::json;

/// What a data file holds where the disk does not show it.
const STALE: u8 = 0xee;

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
    /// The data is in a file of its own.
    data_file: bool,
}

impl How {
    fn made(mut create: serde_json::Value) -> Self {
        create["size"] = json!(3 << 20);
        let lazy = create["lazy-refcounts"] == true;
        let open = json!({});
        Self {
            create,
            open,
            lazy,
            data_file: false,
        }
    }

    fn with_data_file(create: serde_json::Value) -> Self {
        Self {
            data_file: true,
            ..Self::made(create)
        }
    }
}

/// What a run of requests leaves behind.
struct History {
    start: Vec<u8>,
    data_start: Vec<u8>,
    log: Vec<Event>,
    flushes: Vec<Flushed>,
    /// Ranges that were changed, with the length that the log had when the change began.
    changes: Vec<(usize, u64, u64)>,
}

fn history(how: &How, size: u64, requests: u64, seed: u64) -> History {
    let ring = ring();
    let store = Store::new(Vec::new(), seed);
    // What an entry shows too early is seen, as zeroes would not be. Of a raw data file all is the disk's.
    let stale = match how.create["data-file-raw"] == true {
        true => Vec::new(),
        false => vec![STALE; size as usize],
    };
    let data = how.data_file.then(|| store.data_file(stale, seed + 1));
    let created = create_over(&store, data.as_ref(), options(how.create.clone()), &ring);
    block_on(&ring, created).unwrap();
    let start = store.bytes.borrow().clone();
    let data_start = data
        .as_ref()
        .map_or_else(Vec::new, |data| data.bytes.borrow().clone());
    store.record.set(true);
    let mut random = Random::new(seed);
    let mut bytes = vec![0; size as usize];
    let (mut flushes, mut changes) = (Vec::new(), Vec::new());
    block_on(&ring, async {
        let given = options(how.open.clone());
        let opened = open_over(&store, None, data.as_ref(), given, READ_WRITE, &ring);
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
        data_start,
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
        Event::Data(_) => unreachable!("it is of the other file"),
    }
}

impl History {
    /// The file and its data file after the first `end` events. Those behind the last flush may have got lost on their way to the disk,
    /// where `random` says so.
    fn files(&self, end: usize, mut random: Option<Random>) -> (Vec<u8>, Vec<u8>) {
        let (mut bytes, mut data) = (self.start.clone(), self.data_start.clone());
        let log = &self.log[..end];
        let is_data_flush =
            |event: &Event| matches!(event, Event::Data(event) if matches!(**event, Event::Flush));
        let flush = log.iter().rposition(|event| matches!(event, Event::Flush));
        let data_flush = log.iter().rposition(is_data_flush);
        for (at, event) in log.iter().enumerate() {
            let (bytes, event, flush) = match event {
                Event::Data(event) => (&mut data, &**event, data_flush),
                event => (&mut bytes, event, flush),
            };
            let is_durable = at <= flush.unwrap_or(0);
            let lost = !is_durable && random.as_mut().is_some_and(|random| random.below(2) == 0);
            if !lost {
                apply(bytes, event);
            }
        }
        (bytes, data)
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
                let range = *from as usize..*to as usize;
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

/// Lets `qemu-img` find an image's data file.
fn name_data_file(path: &Path, data_file: &Path) {
    let ring = ring();
    let store = Store::open(path, 1);
    block_on(&ring, async {
        let flags = READ_WRITE | OpenFlags::CHECK;
        let (disk, _) = open(&store, None, Default::default(), flags, &ring)
            .await
            .unwrap();
        let name = json!({"data_file": data_file.to_str().unwrap()});
        disk.driver.image().amend(&options(name), false).await.unwrap();
    });
    store.save(path);
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
    let data_path = directory.path().join("data.raw");
    let (history, lazy) = (history(how, 3 << 20, 40, seed), how.lazy);
    let mut random = Random::new(seed);
    for sample in 0..12 {
        let end = random.below(history.log.len() as u64 + 1) as usize;
        // An ended process loses nothing that it wrote; an ended machine may.
        let lossy = (sample % 2 == 1).then(|| Random::new(seed + sample));
        let (bytes, data) = history.files(end, lossy);
        std::fs::write(&path, bytes).unwrap();
        if lazy {
            open_and_close(&path, &how.open);
        }
        if how.data_file {
            std::fs::write(&data_path, data).unwrap();
            name_data_file(&path, &data_path);
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

#[test]
fn a_crash_leaves_no_entry_that_leads_to_data_which_is_not_there() {
    for seed in 1..4 {
        crash(&How::with_data_file(json!({})), seed);
        crash(&How::with_data_file(json!({"cluster-size": 4096})), seed);
        crash(
            &How::with_data_file(json!({"cluster-size": 4096, "data-file-raw": true})),
            seed,
        );
        let keeps = How {
            open: json!({"discard-no-unref": true, "pass-discard-request": true}),
            ..How::with_data_file(json!({"cluster-size": 4096}))
        };
        crash(&keeps, seed);
    }
}

#[test]
fn a_crash_shows_no_subcluster_whose_data_is_not_there() {
    for seed in 1..4 {
        let small = json!({"extended-l2": true, "cluster-size": 16384});
        crash(&How::made(small.clone()), seed);
        crash(&How::made(json!({"extended-l2": true})), seed);
        crash(&How::with_data_file(small), seed);
        let raw = json!({"extended-l2": true, "data-file-raw": true});
        crash(&How::with_data_file(raw), seed);
        let lazy = json!({"extended-l2": true, "cluster-size": 16384, "lazy-refcounts": true});
        crash(&How::made(lazy), seed);
    }
}
