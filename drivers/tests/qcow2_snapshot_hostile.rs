//! Snapshot tables that lie: refused with QEMU's words, when the image is opened or when they are used.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod qcow2_common;

use millpond_drivers::api::Repair;
use millpond_messages::{OpenFlags, SnapshotChange, SnapshotName};
use qcow2_common::*;

/// An image with a snapshot, and where its entry of the table is.
fn image(directory: &tempfile::TempDir) -> (Vec<u8>, usize) {
    let path = directory.path().join("image.qcow2");
    let name = path.to_str().unwrap();
    qemu_img(&["create", "-q", "-f", "qcow2", name, "1M"]);
    qemu_io(&path, &["write -P 1 0 64k"]);
    qemu_img(&["snapshot", "-c", "one", name]);
    let bytes = std::fs::read(&path).unwrap();
    let entry = u64::from_be_bytes(bytes[64..72].try_into().unwrap()) as usize;
    (bytes, entry)
}

fn set(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// More than 64 MiB of entries, each as long as its texts can make it.
fn endless() -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    let (mut bytes, _) = image(&directory);
    let start = bytes.len().next_multiple_of(65536);
    let (entries, length) = (600, (40 + 2 * 0xffff_usize).next_multiple_of(8));
    bytes.resize(start + entries * length, b'x');
    for n in 0..entries {
        let entry = start + n * length;
        bytes[entry..entry + 40].fill(0);
        set(&mut bytes, entry + 12, &[0xff; 4]);
    }
    set(&mut bytes, 60, &(entries as u32).to_be_bytes());
    set(&mut bytes, 64, &(start as u64).to_be_bytes());
    bytes
}

#[test]
fn a_table_that_is_too_long_is_not_read() {
    let directory = tempfile::tempdir().unwrap();
    let (mut extra, entry) = image(&directory);
    set(&mut extra, entry + 36, &1025_u32.to_be_bytes());
    let path = directory.path().join("crafted.qcow2");
    for (bytes, text) in [
        (extra, "Too much extra metadata in snapshot table entry 0"),
        (endless(), "Snapshot table is too big"),
    ] {
        std::fs::write(&path, &bytes).unwrap();
        let (_, _, theirs) = run("qemu-io", &["-f", "qcow2", "-c", "quit", path.to_str().unwrap()]);
        assert!(theirs.contains(text), "QEMU: {theirs}");
        let ring = ring();
        let store = Store::new(bytes, 1);
        let opened = block_on(&ring, open(&store, None, Default::default(), READ_WRITE, &ring));
        let error = opened.err().expect("the image is refused");
        assert_eq!(error.to_string(), text);
    }
}

#[test]
fn an_l1_table_that_cannot_be_is_found_when_it_is_used() {
    let directory = tempfile::tempdir().unwrap();
    let (good, entry) = image(&directory);
    let path = directory.path().join("crafted.qcow2");
    let name = path.to_str().unwrap();
    for (at, value, text) in [
        (0, &4097_u64.to_be_bytes()[..], "Snapshot L1 table offset invalid"),
        (8, &0x40_0001_u32.to_be_bytes()[..], "Snapshot L1 table too large"),
    ] {
        let mut bytes = good.clone();
        set(&mut bytes, entry + at, value);
        std::fs::write(&path, &bytes).unwrap();
        let (_, _, theirs) = run("qemu-img", &["snapshot", "-a", "one", name]);
        assert!(theirs.contains(text), "QEMU: {theirs}");
        let ring = ring();
        let store = Store::new(bytes, 1);
        block_on(&ring, async {
            let opened = open(&store, None, Default::default(), READ_WRITE, &ring).await;
            let (disk, _) = opened.unwrap();
            assert_eq!(disk.read(0, 512).await.unwrap(), [1; 512]);
            for change in [
                SnapshotChange::Apply("one".to_owned()),
                SnapshotChange::Delete(SnapshotName::named("one")),
            ] {
                let error = disk.driver.image().change_snapshots(&change).await.unwrap_err();
                assert_eq!(error.to_string(), text);
            }
            disk.close().await.unwrap();
        });
    }
}

#[test]
fn a_check_counts_what_it_finds_wrong_with_snapshots_as_qemu_does() {
    let directory = tempfile::tempdir().unwrap();
    let (good, entry) = image(&directory);
    let path = directory.path().join("crafted.qcow2");
    let l1 = u64::from_be_bytes(good[entry..entry + 8].try_into().unwrap()) as usize;
    for (at, value) in [
        (entry, &4097_u64.to_be_bytes()[..]),
        (entry + 8, &0x40_0001_u32.to_be_bytes()[..]),
        (l1, &0_u64.to_be_bytes()[..]),
    ] {
        let mut bytes = good.clone();
        set(&mut bytes, at, value);
        std::fs::write(&path, &bytes).unwrap();
        let (corruptions, leaks, errors) = check(&path);
        let ring = ring();
        let store = Store::new(bytes, 1);
        let found = block_on(&ring, async {
            let opened = open(&store, None, Default::default(), OpenFlags::CHECK, &ring).await;
            let (disk, _) = opened.unwrap();
            disk.driver.image().check(Repair::default()).await.unwrap()
        });
        assert_eq!((found.corruptions, found.leaks), (corruptions, leaks), "{errors}");
    }
}

#[test]
fn extra_data_that_is_not_known_stays() {
    let directory = tempfile::tempdir().unwrap();
    let (mut bytes, entry) = image(&directory);
    bytes.resize(bytes.len() + 16, 0);
    // The texts move behind sixteen more bytes of extra data.
    let texts = bytes[entry + 64..entry + 68].to_vec();
    set(&mut bytes, entry + 36, &40_u32.to_be_bytes());
    set(&mut bytes, entry + 40, &(7_u64 << 32).to_be_bytes());
    set(&mut bytes, entry + 56, &99_u64.to_be_bytes());
    set(&mut bytes, entry + 64, b"what is to come!");
    set(&mut bytes, entry + 80, &texts);
    let ring = ring();
    let store = Store::new(bytes, 1);
    block_on(&ring, async {
        let opened = open(&store, None, Default::default(), READ_WRITE, &ring).await;
        let (disk, _) = opened.unwrap();
        let image = disk.driver.image();
        let snapshots = image.snapshots();
        assert_eq!(
            (
                snapshots[0].vm_state_size,
                snapshots[0].icount,
                snapshots[0].name.as_str()
            ),
            (7 << 32, Some(99), "one")
        );
        let second = SnapshotChange::Create(snapshots[0].clone());
        image.change_snapshots(&second).await.unwrap();
        disk.close().await.unwrap();
    });
    let bytes = store.bytes.borrow().clone();
    let entry = u64::from_be_bytes(bytes[64..72].try_into().unwrap()) as usize;
    assert_eq!(&bytes[entry + 64..entry + 84], b"what is to come!1one");
    assert_eq!(bytes[entry + 40..entry + 48], (7_u64 << 32).to_be_bytes());
}
