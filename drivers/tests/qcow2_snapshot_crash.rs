//! What is left of a change of the snapshots inside an image when the program ends, the machine ends, or a request fails at
//! any point of it: the disk and each snapshot as before or as after, and nothing in between.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod qcow2_common;

use std::path::Path;
use std::rc::Rc;

use millpond_messages::{InternalSnapshot, SnapshotChange, SnapshotName};
use millpond_ring::Ring;
use qcow2_common::*;
use serde_json::{Value, json};

const SIZE: u64 = 1 << 20;

fn new(name: &str) -> SnapshotChange {
    SnapshotChange::Create(InternalSnapshot {
        name: name.to_owned(),
        ..InternalSnapshot::default()
    })
}

fn changes() -> [SnapshotChange; 3] {
    [
        new("third"),
        SnapshotChange::Apply("first".to_owned()),
        SnapshotChange::Delete(SnapshotName::named("first")),
    ]
}

async fn change(disk: &Disk, change: &SnapshotChange) -> millpond_messages::Result<InternalSnapshot> {
    disk.driver.image().change_snapshots(change).await
}

async fn open_rw(store: &Rc<Store>, ring: &Ring) -> Disk {
    let opened = open(store, None, Default::default(), READ_WRITE, ring).await;
    opened.unwrap().0
}

/// An image with two snapshots and data that they share with each other and with the disk, in part.
fn image(create_options: &Value, ring: &Ring) -> Vec<u8> {
    let store = Store::new(Vec::new(), 1);
    store.latency.set(0);
    let mut wanted = create_options.clone();
    wanted["size"] = json!(SIZE);
    block_on(ring, create(&store, options(wanted), ring)).unwrap();
    block_on(ring, async {
        let disk = open_rw(&store, ring).await;
        disk.write(0, &vec![1; 300_000]).await.unwrap();
        change(&disk, &new("first")).await.unwrap();
        disk.write(100_000, &vec![2; 300_000]).await.unwrap();
        change(&disk, &new("second")).await.unwrap();
        disk.write(200_000, &vec![3; 300_000]).await.unwrap();
        disk.close().await.unwrap();
    });
    store.bytes.take()
}

/// What the disk reads as, and each of its snapshots.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Contents {
    disk: u64,
    snapshots: Vec<(String, u64)>,
}

fn hash(bytes: &[u8]) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}

/// Reads all by showing each snapshot, without a change of the file.
fn read_all(bytes: Vec<u8>, ring: &Ring) -> Contents {
    let store = Store::new(bytes, 1);
    store.latency.set(0);
    block_on(ring, async {
        let flags = millpond_messages::OpenFlags::empty();
        let opened = open(&store, None, Default::default(), flags, ring).await;
        let (disk, _) = opened.unwrap();
        let read = async || hash(&disk.read(0, SIZE).await.unwrap());
        let active = read().await;
        let mut snapshots = Vec::new();
        for snapshot in disk.driver.image().snapshots() {
            let show = SnapshotChange::Show(SnapshotName::with_id(snapshot.id));
            change(&disk, &show).await.unwrap();
            snapshots.push((snapshot.name, read().await));
        }
        Contents {
            disk: active,
            snapshots,
        }
    })
}

/// Opens the file as whoever comes next does, writes to it, and looks at what `qemu-img` says. Answers what it was found with.
fn go_on(bytes: Vec<u8>, version: u64, path: &Path, what: &str) -> Contents {
    let ring = ring();
    let found = read_all(bytes.clone(), &ring);
    let store = Store::new(bytes, 1);
    store.latency.set(0);
    let snapshots = block_on(&ring, async {
        let disk = open_rw(&store, &ring).await;
        // All of it is overwritten: what a snapshot shares must have been copied.
        disk.write(0, &vec![9; SIZE as usize]).await.unwrap();
        disk.close().await.unwrap();
        read_all(store.bytes.borrow().clone(), &ring).snapshots
    });
    assert_eq!(snapshots, found.snapshots, "{what}: a write changed a snapshot");
    store.save(path);
    let (corruptions, _, errors) = check(path);
    // Version 2 cannot say that its flags are to be mended.
    let only_flags = version == 2
        && errors
            .lines()
            .all(|line| !line.contains("ERROR") || line.contains("OFLAG_COPIED"));
    assert!(corruptions == 0 || only_flags, "{what}: {errors}");
    found
}

const KINDS: [(&str, u64); 3] = [
    (r#"{"cluster-size": 65536}"#, 3),
    (r#"{"cluster-size": 2048}"#, 3),
    (r#"{"cluster-size": 4096, "version": "v2"}"#, 2),
];

fn kinds() -> impl Iterator<Item = (Value, u64)> {
    let parse = |(json, version): (&str, u64)| (serde_json::from_str(json).unwrap(), version);
    KINDS.into_iter().map(parse)
}

/// The file after the first events, of which those behind the last flush may be lost.
fn after(start: &[u8], log: &[Event], end: usize, mut random: Option<Random>) -> Vec<u8> {
    let mut bytes = start.to_vec();
    let flush = log[..end].iter().rposition(|event| matches!(event, Event::Flush));
    for (at, event) in log[..end].iter().enumerate() {
        let may_go = flush.is_none_or(|flush| at > flush);
        if may_go && random.as_mut().is_some_and(|random| random.below(2) == 0) {
            continue;
        }
        match event {
            Event::Write(offset, data) => put(&mut bytes, *offset, data),
            Event::Discard(offset, len) => discard(&mut bytes, *offset, *len),
            Event::Truncate(size) => bytes.resize(*size as usize, 0),
            Event::Flush | Event::Data(_) => {}
        }
    }
    bytes
}

#[test]
fn a_crash_leaves_the_state_before_or_after() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image.qcow2");
    for (kind, version) in kinds() {
        let ring = ring();
        let start = image(&kind, &ring);
        let before = read_all(start.clone(), &ring);
        for wanted in changes() {
            let store = Store::new(start.clone(), 1);
            store.record.set(true);
            block_on(&ring, async {
                let disk = open_rw(&store, &ring).await;
                change(&disk, &wanted).await.unwrap();
            });
            let log = store.log.borrow().clone();
            let done = read_all(store.bytes.borrow().clone(), &ring);
            let mut seen = [false; 2];
            for end in 0..=log.len() {
                for lossy in [None, Some(Random::new(end as u64 + 1))] {
                    let what = format!("{kind} {wanted:?} ended after {end} of {}", log.len());
                    let bytes = after(&start, &log, end, lossy);
                    let found = go_on(bytes, version, &path, &what);
                    assert!(found == before || found == done, "{what}: {found:?}");
                    seen[usize::from(found == done)] = true;
                }
            }
            assert_eq!(seen, [true; 2], "{wanted:?} was not seen on both sides");
        }
    }
}

#[test]
fn a_request_that_fails_leaves_the_state_before_or_after() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image.qcow2");
    for (kind, _) in kinds() {
        let ring = ring();
        let start = image(&kind, &ring);
        let before = read_all(start.clone(), &ring);
        for wanted in changes() {
            let store = Store::new(start.clone(), 1);
            block_on(&ring, async {
                let disk = open_rw(&store, &ring).await;
                change(&disk, &wanted).await.unwrap();
            });
            let done = read_all(store.bytes.borrow().clone(), &ring);
            assert_ne!(done, before, "{wanted:?} did nothing");
            for n in 0.. {
                let store = Store::new(start.clone(), 1);
                store.latency.set(0);
                let result = block_on(&ring, async {
                    let disk = open_rw(&store, &ring).await;
                    store.fail_after.set(Some(n));
                    let result = change(&disk, &wanted).await;
                    let has_failed = store.fail_after.take().is_none();
                    assert!(
                        has_failed || result.is_ok(),
                        "{wanted:?} failed by itself: {result:?}"
                    );
                    disk.close().await.unwrap();
                    result.map(|_| has_failed)
                });
                let bytes = store.bytes.borrow().clone();
                let what = format!("{kind} {wanted:?}, request {n} failed: {result:?}");
                store.save(&path);
                let (corruptions, leaks, errors) = check(&path);
                assert_eq!((corruptions, leaks), (0, 0), "{what}: {errors}");
                let found = go_on(bytes, 3, &path, &what);
                // Of an error behind the write that makes the disk another one the user is told, too.
                let may_be_done = result.is_ok() || matches!(wanted, SnapshotChange::Apply(_));
                let expected = result.is_err() && found == before || may_be_done && found == done;
                assert!(expected, "{what}: {found:?}");
                if matches!(result, Ok(false)) {
                    break;
                }
            }
        }
    }
}
