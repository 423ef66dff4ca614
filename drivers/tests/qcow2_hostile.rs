//! Images that lie: refused with QEMU's words, or read as far as they make sense; never a panic, never without bound.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod qcow2_common;

use std::path::Path;
use std::rc::Rc;

use millpond_drivers::api::Repair;
use millpond_messages::{OpenFlags, RequestFlags};
use qcow2_common::*;

fn image(directory: &tempfile::TempDir, option: &str) -> Vec<u8> {
    let path = directory.path().join("image.qcow2");
    qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-o",
        option,
        path.to_str().unwrap(),
        "4M",
    ]);
    qemu_io(
        &path,
        &[
            "write -P 1 0 256k",
            "write -z 1M 64k",
            "write -c -P 3 2M 64k",
            "write -P 4 3M 1k",
        ],
    );
    std::fs::read(&path).unwrap()
}

fn try_open(bytes: Vec<u8>, flags: OpenFlags) -> Result<Rc<Store>, String> {
    let ring = ring();
    let store = Store::new(bytes, 1);
    let result = block_on(&ring, open(&store, None, Default::default(), flags, &ring));
    result.map(|_| store).map_err(|error| error.to_string())
}

/// What QEMU says when it opens the image.
fn qemu_error(path: &Path, flags: OpenFlags) -> String {
    let mut arguments = vec!["-f", "qcow2"];
    if flags.is_read_only() {
        arguments.push("-r");
    }
    arguments.extend(["-c", "quit", path.to_str().unwrap()]);
    run("qemu-io", &arguments).2
}

fn be<const N: usize>(value: u64) -> Vec<u8> {
    value.to_be_bytes()[8 - N..].to_vec()
}

#[test]
fn wrong_headers_are_refused_in_the_words_of_qemu() {
    let directory = tempfile::tempdir().unwrap();
    let good = image(&directory, "cluster_size=64k");
    let path = directory.path().join("bad.qcow2");
    let cases: Vec<(&str, usize, Vec<u8>)> = vec![
        ("magic", 0, be::<4>(0)),
        ("version", 4, be::<4>(4)),
        ("cluster bits too small", 20, be::<4>(8)),
        ("cluster bits too large", 20, be::<4>(22)),
        ("cluster bits huge", 20, be::<4>(0xffff_ffff)),
        ("header length", 100, be::<4>(103)),
        ("header length past the cluster", 100, be::<4>(65537)),
        ("backing offset", 8, be::<8>(65537)),
        ("backing name length", 8, [be::<8>(1000), be::<4>(1024)].concat()),
        (
            "backing name past the cluster",
            8,
            [be::<8>(65530), be::<4>(7)].concat(),
        ),
        ("encryption", 32, be::<4>(7)),
        ("refcount width", 96, be::<4>(7)),
        ("refcount table missing", 56, be::<4>(0)),
        ("refcount table too large", 56, be::<4>(200)),
        ("refcount table unaligned", 48, be::<8>(65537)),
        ("refcount table far", 48, be::<8>(0x7fff_ffff_ffff_0000)),
        ("snapshots too many", 60, be::<4>(65537)),
        (
            "snapshot table unaligned",
            60,
            [be::<4>(1), be::<8>(512)].concat(),
        ),
        ("L1 too large", 36, be::<4>(0x40_0001)),
        ("L1 too small", 36, be::<4>(0)),
        ("L1 unaligned", 40, be::<8>(196_609)),
        ("L1 far", 40, be::<8>(0x7fff_ffff_ffff_0000)),
        ("disk too large", 24, be::<8>(1 << 62)),
        ("a named feature", 72, be::<8>(1 << 5)),
        ("nameless features", 72, be::<8>(0x8000_0000_0000_0100)),
        ("compression type without its bit", 104, vec![1]),
        ("unknown compression type", 104, vec![9]),
        ("compression bit without a type", 72, be::<8>(1 << 3)),
        ("corrupt", 72, be::<8>(2)),
        ("extension too long", 116, be::<4>(0xffff_fff0)),
        (
            "backing format too long",
            112,
            [be::<4>(0xe279_2aca), be::<4>(64)].concat(),
        ),
    ];
    for (what, at, bytes) in cases {
        let mut bad = good.clone();
        bad[at..at + bytes.len()].copy_from_slice(&bytes);
        if what == "a named feature" {
            bad[112 + 8..112 + 8 + 15].copy_from_slice(b"\x00\x05time travel\0\0");
        }
        std::fs::write(&path, &bad).unwrap();
        let theirs = qemu_error(&path, READ_WRITE);
        let ours = try_open(bad, READ_WRITE).err();
        let ours = ours.unwrap_or_else(|| panic!("{what}: opened; QEMU says {theirs}"));
        assert!(
            theirs.contains(ours.as_str()),
            "{what}:\n ours: {ours}\n QEMU: {theirs}"
        );
    }
}

#[test]
fn a_corrupt_image_opens_for_reading() {
    let directory = tempfile::tempdir().unwrap();
    let mut bytes = image(&directory, "cluster_size=64k");
    bytes[79] |= 2;
    assert!(try_open(bytes.clone(), OpenFlags::empty()).is_ok());
    assert!(try_open(bytes, READ_WRITE).is_err());
}

#[test]
fn unknown_automatic_features_are_cleared_by_a_writer_only() {
    let directory = tempfile::tempdir().unwrap();
    let mut bytes = image(&directory, "cluster_size=64k");
    bytes[88] = 0x80;
    let store = try_open(bytes.clone(), OpenFlags::empty()).unwrap();
    assert_eq!(store.bytes.borrow()[88], 0x80);
    let store = try_open(bytes, READ_WRITE).unwrap();
    assert_eq!(store.bytes.borrow()[88], 0);
}

/// The offset of the L2 table of an image's first L1 entry.
fn first_table(bytes: &[u8]) -> usize {
    let number = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
    let l1 = number(40) as usize;
    (number(l1) & 0x00ff_ffff_ffff_fe00) as usize
}

#[test]
fn metadata_that_cannot_be_makes_the_image_unusable() {
    let directory = tempfile::tempdir().unwrap();
    let good = image(&directory, "cluster_size=64k");
    let ring = ring();
    let path = directory.path().join("bad.qcow2");
    // An unaligned cluster, and one on top of the header.
    for entry in [0x8000_0000_0005_0200_u64, 0x8000_0000_0003_0000] {
        let mut bytes = good.clone();
        let at = first_table(&bytes);
        bytes[at..at + 8].copy_from_slice(&entry.to_be_bytes());
        let store = Store::new(bytes, 1);
        block_on(&ring, async {
            let (disk, _) = open(&store, None, Default::default(), READ_WRITE, &ring)
                .await
                .unwrap();
            let error = disk.write(0, &[1; 512]).await.unwrap_err();
            assert_eq!(error.errno(), 5);
            assert!(disk.read(65536, 512).await.is_err(), "goes on after corruption");
            assert_eq!(
                serde_json::json!(disk.driver.image().specific_info())["data"]["corrupt"],
                true
            );
            disk.close().await.unwrap();
        });
        store.save(&path);
        let errors = qemu_error(&path, READ_WRITE);
        assert!(
            errors.contains("Image is corrupt; cannot be opened read/write"),
            "{errors}"
        );
    }
}

/// Everything that a user may do to an image, none of which may panic.
fn exercise(bytes: Vec<u8>, flags: OpenFlags, seed: u64) {
    let ring = ring();
    let store = Store::new(bytes, seed);
    store.latency.set(0);
    block_on(&ring, async {
        let Ok((disk, _)) = open(&store, None, Default::default(), flags, &ring).await else {
            return;
        };
        let size = disk.driver.length().await.unwrap().min(4 << 20);
        let mut random = Random::new(seed);
        let mut checked = false;
        for _ in 0..8 {
            let offset = random.below(size.max(1024) - 512);
            match random.below(6) {
                0..3 => drop(disk.read(offset, 512.min(size)).await),
                3 if size > 0 => drop(
                    disk.driver
                        .locate(
                            millpond_drivers::api::Purpose::Read,
                            range(offset.min(size - 1), 1),
                        )
                        .await,
                ),
                4 if !checked => {
                    checked = true;
                    drop(disk.driver.image().check(Repair::default()).await);
                }
                _ => drop(
                    disk.driver
                        .write_zeroes(range(offset / 65536 * 65536, 65536), RequestFlags::empty())
                        .await,
                ),
            }
        }
        let _ = disk.flush().await;
        let _ = disk.close().await;
    });
}

#[test]
fn mutated_images_never_panic() {
    let directory = tempfile::tempdir().unwrap();
    for option in [
        "cluster_size=64k",
        "cluster_size=512",
        "compat=0.10,cluster_size=4k",
    ] {
        let good = image(&directory, option);
        let table = first_table(&good);
        for seed in 0..150 {
            let mut random = Random::new(seed);
            let mut bytes = good.clone();
            for _ in 0..1 + random.below(4) {
                let at = match random.below(4) {
                    0 => random.below(112),
                    1 => random.below(2000),
                    2 => table as u64 + random.below(512),
                    _ => random.below(bytes.len() as u64),
                } as usize;
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = match random.below(3) {
                        0 => 0xff,
                        1 => *byte ^ 1 << random.below(8),
                        _ => random.next() as u8,
                    };
                }
            }
            if random.below(10) == 0 {
                bytes.truncate(random.below(bytes.len() as u64) as usize);
            }
            exercise(bytes.clone(), OpenFlags::empty(), seed);
            exercise(bytes, READ_WRITE, seed);
        }
    }
}

fn range(offset: u64, len: u64) -> millpond_messages::Range {
    millpond_messages::Range::new(offset, len).unwrap()
}

#[test]
fn a_check_finds_bitmaps_of_subclusters_that_cannot_be() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image.qcow2");
    let name = path.to_str().unwrap();
    let option = "extended_l2=on,cluster_size=16k";
    qemu_img(&["create", "-q", "-f", "qcow2", "-o", option, name, "1M"]);
    qemu_io(
        &path,
        &["write -P 1 0 1k", "write -P 2 16k 16k", "write -c -P 5 96k 16k"],
    );
    let good = std::fs::read(&path).unwrap();
    let table = 0x1_0000;
    for (entry, bitmap, corruptions) in [
        (0, 3_u64 << 32 | 3, 1),
        (1, 1 << 32 | 0xffff_ffff, 1),
        (3, 1, 1),
        (6, 1, 1),
        (3, 0xff << 32, 0),
        (0, 0xfe << 32 | 1, 0),
    ] {
        let mut bad = good.clone();
        bad[table + entry * 16 + 8..][..8].copy_from_slice(&bitmap.to_be_bytes());
        std::fs::write(&path, &bad).unwrap();
        let (theirs, their_leaks, errors) = check(&path);
        assert_eq!(theirs, corruptions, "QEMU's, of entry {entry}: {errors}");
        let (ring, store) = (ring(), Store::new(bad, 1));
        let ours = block_on(&ring, async {
            let opened = open(&store, None, Default::default(), OpenFlags::empty(), &ring).await;
            opened
                .unwrap()
                .0
                .driver
                .image()
                .check(Repair::default())
                .await
                .unwrap()
        });
        assert_eq!(
            (ours.corruptions, ours.leaks),
            (theirs, their_leaks),
            "entry {entry}"
        );
    }
}
