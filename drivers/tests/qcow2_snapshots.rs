//! Snapshots inside images: made, deleted and applied here and by `qemu-img`, against each other and against a model.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod qcow2_common;

use std::path::{Path, PathBuf};
use std::rc::Rc;

use millpond_messages::io::Preallocation;
use millpond_messages::{InternalSnapshot, OpenFlags, RequestFlags, SnapshotChange, SnapshotName};
use millpond_ring::Ring;
use qcow2_common::*;

const MIB: u64 = 1 << 20;

fn new(name: &str) -> SnapshotChange {
    SnapshotChange::Create(InternalSnapshot {
        name: name.to_owned(),
        date_sec: 1_000_000,
        ..InternalSnapshot::default()
    })
}

fn apply(name: &str) -> SnapshotChange {
    SnapshotChange::Apply(name.to_owned())
}

fn delete(name: &str) -> SnapshotChange {
    SnapshotChange::Delete(SnapshotName::named(name))
}

async fn change(disk: &Disk, change: SnapshotChange) -> millpond_messages::Result<InternalSnapshot> {
    disk.driver.image().change_snapshots(&change).await
}

fn names(disk: &Disk) -> Vec<String> {
    let snapshots = disk.driver.image().snapshots();
    snapshots.into_iter().map(|snapshot| snapshot.name).collect()
}

async fn open_rw(store: &Rc<Store>, ring: &Ring) -> Disk {
    let opened = open(store, None, Default::default(), READ_WRITE, ring).await;
    opened.unwrap().0
}

fn made(directory: &tempfile::TempDir, option: &str, size: &str) -> PathBuf {
    let path = directory.path().join("image.qcow2");
    let name = path.to_str().unwrap();
    qemu_img(&["create", "-q", "-f", "qcow2", "-o", option, name, size]);
    path
}

/// What a snapshot holds, as `qemu-img` reads it.
fn snapshot_contents(path: &Path, name: &str) -> Vec<u8> {
    let raw = path.with_extension("snapshot");
    let which = format!("snapshot.name={name}");
    let (from, to) = (path.to_str().unwrap(), raw.to_str().unwrap());
    qemu_img(&["convert", "-l", &which, "-f", "qcow2", "-O", "raw", from, to]);
    let bytes = std::fs::read(&raw).unwrap();
    std::fs::remove_file(&raw).unwrap();
    bytes
}

fn sound(path: &Path) {
    let (corruptions, leaks, errors) = check(path);
    assert_eq!((corruptions, leaks), (0, 0), "{errors}");
}

/// The same bytes, without showing megabytes where they are not.
fn same(found: &[u8], expected: &[u8], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let differs = found.iter().zip(expected).position(|(a, b)| a != b);
    assert_eq!(differs, None, "{what}");
}

const KINDS: [&str; 8] = [
    "cluster_size=64k",
    "cluster_size=512",
    "cluster_size=4k,compat=0.10",
    "cluster_size=2M",
    "cluster_size=4k,refcount_bits=32",
    "cluster_size=4k,refcount_bits=64,lazy_refcounts=on",
    "cluster_size=16k,extended_l2=on",
    "cluster_size=2M,extended_l2=on",
];

#[test]
fn snapshots_made_here_are_those_of_qemu() {
    for kind in KINDS {
        let directory = tempfile::tempdir().unwrap();
        let path = made(&directory, kind, "4M");
        qemu_io(
            &path,
            &["write -P 1 0 1M", "write -z 1M 64k", "write -c -P 3 2M 2M"],
        );
        let ring = ring();
        let store = Store::open(&path, 1);
        let before = contents(&path);
        block_on(&ring, async {
            let disk = open_rw(&store, &ring).await;
            let made = change(&disk, new("one")).await.unwrap();
            assert_eq!((made.id.as_str(), made.disk_size), ("1", 4 * MIB));
            disk.write(MIB / 2, &vec![7; MIB as usize]).await.unwrap();
            disk.write(2 * MIB + 5, &[8; 100]).await.unwrap();
            disk.zero(3 * MIB, MIB / 2, RequestFlags::MAY_UNMAP)
                .await
                .unwrap();
            disk.close().await.unwrap();
        });
        store.save(&path);
        sound(&path);
        same(&snapshot_contents(&path, "one"), &before, kind);
        let listed = qemu_img(&["snapshot", "-l", path.to_str().unwrap()]);
        assert!(listed.contains("one"), "{kind}: {listed}");
        let after = contents(&path);
        assert_eq!(after[MIB as usize - 1], 7);
        // Applied by QEMU it is the disk, and deleted nothing is left of it.
        qemu_img(&["snapshot", "-a", "one", path.to_str().unwrap()]);
        sound(&path);
        same(&contents(&path), &before, kind);
        qemu_img(&["snapshot", "-d", "one", path.to_str().unwrap()]);
        sound(&path);
    }
}

#[test]
fn snapshots_made_by_qemu_are_applied_and_deleted_here() {
    for kind in KINDS {
        let directory = tempfile::tempdir().unwrap();
        let path = made(&directory, kind, "4M");
        let name = path.to_str().unwrap().to_owned();
        qemu_io(&path, &["write -P 1 0 1M", "write -c -P 3 2M 2M"]);
        let first = contents(&path);
        qemu_img(&["snapshot", "-c", "one", &name]);
        qemu_io(&path, &["write -P 2 512k 1M", "discard 2M 64k"]);
        let second = contents(&path);
        qemu_img(&["snapshot", "-c", "two", &name]);
        qemu_io(&path, &["write -P 4 0 3M"]);
        let ring = ring();
        let store = Store::open(&path, 1);
        block_on(&ring, async {
            let disk = open_rw(&store, &ring).await;
            assert_eq!(names(&disk), ["one", "two"]);
            change(&disk, apply("one")).await.unwrap();
            same(&disk.read(0, 4 * MIB).await.unwrap(), &first, kind);
            change(&disk, apply("two")).await.unwrap();
            same(&disk.read(0, 4 * MIB).await.unwrap(), &second, kind);
            change(&disk, delete("one")).await.unwrap();
            disk.write(0, &[9; 3000]).await.unwrap();
            disk.close().await.unwrap();
        });
        store.save(&path);
        sound(&path);
        same(&snapshot_contents(&path, "two"), &second, kind);
        let mut expected = second.clone();
        expected[..3000].fill(9);
        same(&contents(&path), &expected, kind);
    }
}

#[test]
fn a_snapshot_of_a_disk_of_another_length_changes_the_length() {
    let directory = tempfile::tempdir().unwrap();
    let path = made(&directory, "cluster_size=4k", "3M");
    let ring = ring();
    let store = Store::open(&path, 1);
    block_on(&ring, async {
        let disk = open_rw(&store, &ring).await;
        disk.write(0, &vec![1; 3 << 20]).await.unwrap();
        change(&disk, new("short")).await.unwrap();
        disk.resize(40 * MIB, Preallocation::Off).await.unwrap();
        disk.write(39 * MIB, &[2; 4096]).await.unwrap();
        change(&disk, new("long")).await.unwrap();
        change(&disk, apply("short")).await.unwrap();
        assert_eq!(disk.driver.length().await, Ok(3 * MIB));
        disk.write(MIB, &[3; 512]).await.unwrap();
        change(&disk, apply("long")).await.unwrap();
        assert_eq!(disk.driver.length().await, Ok(40 * MIB));
        assert_eq!(disk.read(39 * MIB, 4096).await.unwrap(), [2; 4096]);
        assert_eq!(disk.read(MIB, 512).await.unwrap(), [1; 512]);
        disk.close().await.unwrap();
    });
    store.save(&path);
    sound(&path);
    assert_eq!(contents(&path).len() as u64, 40 * MIB);
    // QEMU goes back to the short one.
    qemu_img(&["snapshot", "-a", "short", path.to_str().unwrap()]);
    same(&contents(&path), &vec![1; 3 << 20], "short");
}

#[test]
fn version_2_keeps_its_length() {
    let directory = tempfile::tempdir().unwrap();
    let path = made(&directory, "compat=0.10", "3M");
    let name = path.to_str().unwrap().to_owned();
    qemu_img(&["snapshot", "-c", "one", &name]);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[24..32].copy_from_slice(&(2 * MIB).to_be_bytes());
    let ring = ring();
    let store = Store::new(bytes, 1);
    block_on(&ring, async {
        let disk = open_rw(&store, &ring).await;
        let error = change(&disk, apply("one")).await.unwrap_err();
        assert_eq!(error.to_string(), "Can't resize a v2 image which has snapshots");
        disk.close().await.unwrap();
    });
}

#[test]
fn a_read_only_node_shows_a_snapshot() {
    let directory = tempfile::tempdir().unwrap();
    let path = made(&directory, "cluster_size=4k", "1M");
    qemu_io(&path, &["write -P 1 0 64k"]);
    qemu_img(&["snapshot", "-c", "one", path.to_str().unwrap()]);
    qemu_io(&path, &["write -P 2 0 64k"]);
    let ring = ring();
    let store = Store::open(&path, 1);
    let show = |name: &str| SnapshotChange::Show(SnapshotName::named(name));
    block_on(&ring, async {
        let disk = open_rw(&store, &ring).await;
        let error = change(&disk, show("one")).await.unwrap_err();
        assert_eq!(error.to_string(), "Device is not readonly");
        disk.close().await.unwrap();
        let opened = open(&store, None, Default::default(), OpenFlags::empty(), &ring).await;
        let (disk, _) = opened.unwrap();
        let error = change(&disk, show("two")).await.unwrap_err();
        assert_eq!(error.to_string(), "Can't find snapshot");
        assert_eq!(disk.read(0, 4096).await.unwrap(), [2; 4096]);
        change(&disk, show("one")).await.unwrap();
        assert_eq!(disk.read(0, 4096).await.unwrap(), [1; 4096]);
        // Whatever reads the image anew shows it still.
        disk.driver.invalidate().await.unwrap();
        assert_eq!(disk.read(0, 4096).await.unwrap(), [1; 4096]);
    });
}

#[test]
fn a_count_that_is_full_takes_no_snapshot() {
    let directory = tempfile::tempdir().unwrap();
    let path = made(&directory, "cluster_size=4k,refcount_bits=1", "1M");
    qemu_io(&path, &["write -P 1 0 64k"]);
    let ring = ring();
    let store = Store::open(&path, 1);
    block_on(&ring, async {
        let disk = open_rw(&store, &ring).await;
        let error = change(&disk, new("one")).await.unwrap_err();
        assert_eq!(error.errno(), 22, "{error}");
        assert!(names(&disk).is_empty());
        disk.write(0, &[5; 4096]).await.unwrap();
        disk.close().await.unwrap();
    });
    store.save(&path);
    sound(&path);
    assert_eq!(contents(&path)[4095..4097], [5, 1]);
}

#[test]
fn a_machines_state_goes_with_its_snapshot() {
    let directory = tempfile::tempdir().unwrap();
    let path = made(&directory, "cluster_size=4k", "3M");
    let ring = ring();
    let state: Vec<u8> = (0..100_000_u32).map(|n| (n / 7) as u8).collect();
    let store = Store::open(&path, 1);
    block_on(&ring, async {
        let disk = open_rw(&store, &ring).await;
        disk.write(0, &vec![1; 3 << 20]).await.unwrap();
        let image = disk.driver.image();
        for (part, offset) in state.chunks(33_333).zip((0..).step_by(33_333)) {
            image.save_vm_state(offset, part.to_vec().into()).await.unwrap();
        }
        let mut with_state = new("running");
        if let SnapshotChange::Create(new) = &mut with_state {
            (new.vm_state_size, new.icount, new.vm_clock_nsec) = (100_000, Some(77), 5);
        }
        change(&disk, with_state).await.unwrap();
        // The disk has it no more, so that its space is not shared for good.
        let none = disk.driver.image().load_vm_state(0, 4096).await.unwrap();
        assert_eq!(none.to_vec(), [0; 4096]);
        disk.write(0, &[2; 4096]).await.unwrap();
        disk.close().await.unwrap();
    });
    store.save(&path);
    sound(&path);
    let listed = qemu_img(&["snapshot", "-l", path.to_str().unwrap()]);
    assert!(listed.contains("97.7 KiB") && listed.contains("77"), "{listed}");
    qemu_img(&["snapshot", "-a", "running", path.to_str().unwrap()]);
    qemu_io(&path, &["read -b -P 0 200k 4k"]);
    let store = Store::open(&path, 1);
    block_on(&ring, async {
        let disk = open_rw(&store, &ring).await;
        let loaded = disk.driver.image().load_vm_state(0, 100_000).await.unwrap();
        same(&loaded.to_vec(), &state, "the state");
        // A longer disk has no part of it.
        disk.resize(8 * MIB, Preallocation::Off).await.unwrap();
        assert_eq!(disk.read(3 * MIB, 5 * MIB).await.unwrap(), vec![0; 5 << 20]);
        disk.close().await.unwrap();
    });
    store.save(&path);
    sound(&path);
    qemu_io(&path, &["write -b -P 6 0 8k"]);
    let store = Store::open(&path, 1);
    block_on(&ring, async {
        let disk = open_rw(&store, &ring).await;
        let loaded = disk.driver.image().load_vm_state(0, 8192).await.unwrap();
        assert_eq!(loaded.to_vec(), [6; 8192]);
        disk.close().await.unwrap();
    });
}

/// The disk and its snapshots as they must be.
struct Model {
    disk: Vec<u8>,
    snapshots: Vec<(String, Vec<u8>)>,
}

async fn step(disk: &Disk, model: &mut Model, random: &mut Random, n: u64) {
    let size = model.disk.len() as u64;
    let offset = random.below(size - 1);
    let len = 1 + random.below((size - offset).min(60_000));
    let range = offset as usize..(offset + len) as usize;
    let number = model.snapshots.len() as u64;
    let chosen = (number > 0).then(|| random.below(number) as usize);
    match (random.below(12), chosen) {
        (0..5, _) => {
            model.disk[range.clone()].fill(n as u8 | 1);
            disk.write(offset, &model.disk[range]).await.unwrap();
        }
        (5, _) => {
            model.disk[range].fill(0);
            let flags = [RequestFlags::empty(), RequestFlags::MAY_UNMAP][random.below(2) as usize];
            disk.zero(offset, len, flags).await.unwrap();
        }
        (6, _) => {
            let (from, to) = disk.discard(offset, len).await.unwrap();
            model.disk[from as usize..to as usize].fill(0);
        }
        (7, _) if number < 6 => {
            let name = format!("s{n}");
            change(disk, new(&name)).await.unwrap();
            model.snapshots.push((name, model.disk.clone()));
        }
        (8, Some(chosen)) => {
            change(disk, apply(&model.snapshots[chosen].0)).await.unwrap();
            model.disk.clone_from(&model.snapshots[chosen].1);
        }
        (9, Some(chosen)) => {
            let (name, _) = model.snapshots.remove(chosen);
            change(disk, delete(&name)).await.unwrap();
        }
        (10, _) => {
            let size = (1 + random.below(6)) * (512 << 10);
            disk.resize(size, Preallocation::Off).await.unwrap();
            model.disk.resize(size as usize, 0);
        }
        _ => same(
            &disk.read(offset, len).await.unwrap(),
            &model.disk[range],
            "a read",
        ),
    }
}

#[test]
fn random_changes_with_snapshots_are_those_of_a_model() {
    for (seed, option) in [
        (1, "cluster_size=64k"),
        (2, "cluster_size=4k"),
        (3, "cluster_size=512,refcount_bits=4"),
        (4, "cluster_size=1k,lazy_refcounts=on"),
        (5, "cluster_size=4k,refcount_bits=64"),
        (6, "cluster_size=16k,extended_l2=on"),
        (7, "cluster_size=64k,extended_l2=on,lazy_refcounts=on"),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let path = made(&directory, option, "2M");
        let store = Store::open(&path, seed);
        store.latency.set(1);
        let ring = ring();
        let mut random = Random::new(seed);
        let mut model = Model {
            disk: vec![0; 2 << 20],
            snapshots: Vec::new(),
        };
        block_on(&ring, async {
            for _ in 0..2 {
                let disk = open_rw(&store, &ring).await;
                for n in 0..80 {
                    step(&disk, &mut model, &mut random, n).await;
                }
                same(
                    &disk.read(0, model.disk.len() as u64).await.unwrap(),
                    &model.disk,
                    option,
                );
                disk.close().await.unwrap();
            }
        });
        store.save(&path);
        sound(&path);
        same(&contents(&path), &model.disk, option);
        let name = path.to_str().unwrap();
        for (snapshot, bytes) in &model.snapshots {
            qemu_img(&["snapshot", "-a", snapshot, name]);
            same(&contents(&path), bytes, snapshot);
        }
        sound(&path);
    }
}
