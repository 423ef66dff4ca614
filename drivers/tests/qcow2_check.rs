//! Checks and repairs of crafted images beside `qemu-img check`: what is counted, what is repaired, and what is left of it.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod qcow2_common;

use std::path::{Path, PathBuf};

use millpond_drivers::api::Repair;
use millpond_messages::{CheckResult, OpenFlags, SnapshotChange, SnapshotName};
use qcow2_common::*;
use serde_json::Value;

const NOTHING: Repair = Repair {
    leaks: false,
    errors: false,
};
const LEAKS: Repair = Repair {
    leaks: true,
    errors: false,
};
const ALL: Repair = Repair {
    leaks: true,
    errors: true,
};

/// Bytes put over those of a good image.
type Poke = (u64, Vec<u8>);

/// What a check counts: corruptions, leaks, and how many of them are repaired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Counts {
    corruptions: u64,
    leaks: u64,
    corruptions_fixed: u64,
    leaks_fixed: u64,
}

/// What QEMU makes of a copy of an image; none where it gives up.
struct Theirs {
    counts: Option<Counts>,
    bytes: Vec<u8>,
    errors: String,
}

fn theirs(path: &Path, bytes: &[u8], repair: Repair) -> Theirs {
    std::fs::write(path, bytes).unwrap();
    let mut words = vec!["check", "--output=json", "-f", "qcow2"];
    match repair {
        ALL => words.extend(["-r", "all"]),
        LEAKS => words.extend(["-r", "leaks"]),
        _ => {}
    }
    words.push(path.to_str().unwrap());
    let (_, output, errors) = run("qemu-img", &words);
    let json: Option<Value> = serde_json::from_str(&output).ok();
    let json = json.filter(|json| json["check-errors"] == 0);
    let counts = json.map(|json| {
        let count = |name: &str| json[name].as_u64().unwrap_or(0);
        Counts {
            corruptions: count("corruptions"),
            leaks: count("leaks"),
            corruptions_fixed: count("corruptions-fixed"),
            leaks_fixed: count("leaks-fixed"),
        }
    });
    Theirs {
        counts,
        bytes: std::fs::read(path).unwrap(),
        errors,
    }
}

/// What is made of it here.
fn ours(bytes: &[u8], repair: Repair) -> (Result<Counts, String>, Vec<u8>) {
    let ring = ring();
    let store = Store::new(bytes.to_vec(), 1);
    store.latency.set(0);
    let flags = match repair {
        NOTHING => OpenFlags::CHECK,
        _ => READ_WRITE | OpenFlags::CHECK,
    };
    let checked: millpond_messages::Result<CheckResult> = block_on(&ring, async {
        let (disk, _) = open(&store, None, Default::default(), flags, &ring).await?;
        let found = disk.driver.image().check(repair).await?;
        disk.close().await?;
        Ok(found)
    });
    let counts = checked.map(|found| Counts {
        corruptions: found.corruptions,
        leaks: found.leaks,
        corruptions_fixed: found.corruptions_fixed,
        leaks_fixed: found.leaks_fixed,
    });
    (
        counts.map_err(|error| error.to_string()),
        store.bytes.borrow().clone(),
    )
}

/// An image of one kind, good as it is.
struct Good {
    directory: tempfile::TempDir,
    bytes: Vec<u8>,
}

impl Good {
    fn new(steps: &[&str]) -> Self {
        let create = ["create", "-q", "-f", "qcow2", "-o", "cluster_size=4k"];
        Self::made(&create, steps)
    }

    /// One that is made by these words, with the image's name and length behind them.
    fn made(create: &[&str], steps: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("good.qcow2");
        let name = path.to_str().unwrap();
        qemu_img(&[create, &[name, "4M"]].concat());
        for step in steps {
            match step.strip_prefix("img ") {
                None => qemu_io(&path, &[step]),
                Some(line) => {
                    let words: Vec<&str> = line.split(' ').collect();
                    let words = words
                        .into_iter()
                        .map(|word| if word == "DISK" { name } else { word });
                    qemu_img(&words.collect::<Vec<_>>());
                }
            }
        }
        let bytes = std::fs::read(&path).unwrap();
        Self { directory, bytes }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("crafted.qcow2")
    }

    fn number(&self, at: u64) -> u64 {
        let at = at as usize;
        u64::from_be_bytes(self.bytes[at..at + 8].try_into().unwrap())
    }

    /// Where an L2 table is.
    fn l2(&self, index: u64) -> u64 {
        self.number(self.number(40) + index * 8) & 0x00ff_ffff_ffff_fe00
    }

    /// The first refcount block.
    fn block(&self) -> u64 {
        self.number(self.number(48))
    }

    /// The entries of the snapshot table, where each begins.
    fn snapshots(&self) -> Vec<u64> {
        let mut at = self.number(64);
        let mut found = Vec::new();
        for _ in 0..self.number(60) >> 32 {
            at = at.next_multiple_of(8);
            found.push(at);
            let texts = (self.number(at + 8) & 0xffff_ffff) as u32;
            let extra = self.number(at + 36) >> 32;
            at += 40 + extra + u64::from(texts >> 16) + u64::from(texts & 0xffff);
        }
        found
    }

    fn with(&self, pokes: &[Poke]) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        pokes.iter().for_each(|(at, new)| put(&mut bytes, *at, new));
        bytes
    }

    /// Compares what is counted and left of each crafted image.
    fn compare(&self, cases: &[(&str, Vec<Poke>)]) {
        for (name, pokes) in cases {
            for repair in [NOTHING, LEAKS, ALL] {
                self.compare_one(name, &self.with(pokes), repair);
            }
        }
    }

    /// Answers what ours leaves and what QEMU does.
    fn compare_one(&self, name: &str, bytes: &[u8], repair: Repair) -> (Vec<u8>, Vec<u8>) {
        let theirs = theirs(&self.path(), bytes, repair);
        let (counts, left) = ours(bytes, repair);
        let what = format!("{name}, {repair:?}: {}", theirs.errors);
        let Some(expected) = theirs.counts else {
            // Where QEMU gives up, nothing may be worse afterwards.
            if counts.is_ok() && repair == ALL {
                self.assert_no_corruption(&left, &what);
            }
            return (left, theirs.bytes);
        };
        let found = counts.unwrap_or_else(|error| panic!("{what}\nours: {error}"));
        // A table of counts that is made anew counts what was repaired otherwise.
        if !theirs.errors.contains("Rebuilding") {
            assert_eq!(found, expected, "left is ours; {what}");
        }
        let after = |bytes: &[u8]| self::theirs(&self.path(), bytes, NOTHING).counts;
        let (left_there, left_here) = (after(&theirs.bytes), after(&left));
        assert_eq!(left_here, left_there, "left is of what ours has left; {what}");
        if left_there.is_some_and(|counts| counts.corruptions == 0) {
            std::fs::write(self.path(), &theirs.bytes).unwrap();
            let disk = contents(&self.path());
            std::fs::write(self.path(), &left).unwrap();
            assert!(contents(&self.path()) == disk, "another disk is left; {what}");
        }
        (left, theirs.bytes)
    }

    fn assert_no_corruption(&self, bytes: &[u8], what: &str) {
        let left = theirs(&self.path(), bytes, NOTHING);
        let corruptions = left.counts.map(|counts| counts.corruptions);
        assert!(matches!(corruptions, None | Some(0)), "{what}: {}", left.errors);
    }
}

fn be8(at: u64, value: u64) -> Vec<Poke> {
    vec![(at, value.to_be_bytes().to_vec())]
}

fn be4(at: u64, value: u32) -> Vec<Poke> {
    vec![(at, value.to_be_bytes().to_vec())]
}

const COPIED: u64 = 1 << 63;
/// Behind the end of every image here, which a repair may make the file reach to.
const FAR: u64 = 1 << 24;

#[test]
fn of_the_disks_own_tables() {
    let good = Good::new(&[
        "write -P 1 0 64k",
        "write -z 1M 64k",
        "write -c -P 4 2M 8k",
        "write -P 3 3M 4k",
        "write -z 3M 4k",
    ]);
    let (l1, table, block) = (good.number(40), good.number(48), good.block());
    let (l2, second) = (good.l2(0), good.l2(1));
    let (data, compressed) = (good.number(l2), good.number(second));
    let reserved = good.number(second + 256 * 8);
    good.compare(&[
        ("good", vec![]),
        ("reserved bits", be8(l2, data | 1 << 60)),
        ("a low reserved bit", be8(l2, data | 2)),
        ("unaligned data", be8(l2, data | 512)),
        ("unaligned zeroes", be8(l2, data | 513)),
        (
            "unaligned reserved cluster",
            be8(second + 256 * 8, reserved | 512),
        ),
        ("data behind the end", be8(l2, COPIED | FAR)),
        ("no COPIED", be8(l2, data & !COPIED)),
        ("data twice", be8(l2 + 8, data)),
        ("data on the L1 table", be8(l2, COPIED | l1)),
        ("data lost", be8(l2, 0)),
        ("compressed and COPIED", be8(second, compressed | COPIED)),
        ("compressed behind the end", be8(second, compressed | FAR)),
        ("reserved bits of L1", be8(l1, good.number(l1) | 1)),
        ("L1 unaligned", be8(l1, good.number(l1) | 512)),
        ("L1 behind the end", be8(l1, COPIED | FAR)),
        ("L1 not COPIED", be8(l1, good.number(l1) & !COPIED)),
        ("block with reserved bits", be8(table, block | 1)),
        ("no block", be8(table, 0)),
        ("block behind the end", be8(table, FAR)),
        ("second block behind the end", be8(table + 8, FAR)),
        ("second block is the first", be8(table + 8, block)),
        ("data on a block", be8(l2, COPIED | block)),
        ("count of 0", vec![(block + 10, vec![0, 0])]),
        ("count of 7", vec![(block + 10, vec![0, 7])]),
        ("a count behind the end", vec![(block + 1000, vec![0, 1])]),
        ("all counts of 0", vec![(block, vec![0; 200])]),
        ("dirty", vec![(79, vec![1])]),
        ("corrupt", vec![(79, vec![2])]),
    ]);
}

/// A count of one bit cannot be told apart from none that is higher, whoever repairs it.
#[test]
fn of_counts_that_have_no_room() {
    let create = [
        "create",
        "-q",
        "-f",
        "qcow2",
        "-o",
        "cluster_size=4k,refcount_bits=1",
    ];
    let good = Good::made(&create, &["write -P 1 0 64k"]);
    let l2 = good.l2(0);
    let data = good.number(l2);
    good.compare(&[("good", vec![]), ("data twice", be8(l2 + 8, data))]);
}

/// An image with two snapshots, and data that they share in part.
fn with_snapshots() -> Good {
    Good::new(&[
        "write -P 1 0 256k",
        "img snapshot -c one DISK",
        "write -P 2 128k 256k",
        "img snapshot -c two DISK",
        "write -P 3 64k 100k",
    ])
}

#[test]
fn of_snapshots() {
    let good = with_snapshots();
    let snapshots = good.snapshots();
    let (one, two) = (snapshots[0], snapshots[1]);
    let l1 = good.number(one);
    good.compare(&[
        ("good", vec![]),
        ("L1 unaligned", be8(one, l1 + 512)),
        ("L1 too large", be4(one + 8, 0x40_0001)),
        ("L1 behind the end", be8(one, FAR)),
        ("L1 empty", be4(one + 8, 0)),
        ("one L1 for two", be8(two, l1)),
        ("reserved bits of L1", be8(l1, good.number(l1) | 1 << 60)),
        ("COPIED in L1", be8(l1, good.number(l1) | COPIED)),
        ("no table in L1", be8(l1, 0)),
        ("table in L1 unaligned", be8(l1, good.number(l1) | 512)),
        ("only the first", be4(60, 1)),
        ("one more of zeroes", be4(60, 3)),
        ("table behind the end", be8(64, FAR)),
        ("table unaligned", be8(64, good.number(64) + 512)),
        ("too much extra data", be4(two + 36, 1100)),
        ("far too much extra data", be4(one + 36, 2000)),
        ("just enough extra data", be4(two + 36, 16)),
        ("too little extra data", be4(two + 36, 8)),
    ]);
}

/// A table that is too long keeps what fits.
#[test]
fn of_too_many_snapshots() {
    let good = Good::new(&["write -P 1 0 64k"]);
    let start = (good.bytes.len() as u64).next_multiple_of(4096);
    let entry = |texts: u16, extra: &[u8]| {
        let mut bytes = vec![0; 40];
        bytes[12..14].copy_from_slice(&texts.to_be_bytes());
        bytes[14..16].copy_from_slice(&texts.to_be_bytes());
        bytes[36..40].copy_from_slice(&(extra.len() as u32).to_be_bytes());
        bytes.extend(extra);
        bytes.extend(vec![b'x'; 2 * usize::from(texts)]);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    };
    for (name, count, one) in [
        ("65537 snapshots", 65_537_u32, entry(0, &[0; 16])),
        ("600 long snapshots", 600, entry(u16::MAX, &[0; 16])),
        ("extra data that is cut", 3, entry(1, &[7; 1100])),
    ] {
        let mut table = one.repeat(count as usize);
        table.resize(table.len().next_multiple_of(4096), 0);
        let pokes = [be4(60, count), be8(64, start), vec![(start, table)]].concat();
        let crafted = good.with(&pokes);
        assert!(
            ours(&crafted, NOTHING).0.is_err() && theirs(&good.path(), &crafted, NOTHING).counts.is_none()
        );
        let (mended, theirs) = good.compare_one(name, &crafted, ALL);
        let count = |bytes: &[u8]| u32::from_be_bytes(bytes[60..64].try_into().unwrap());
        assert_eq!(count(&mended), count(&theirs), "{name}");
    }
}

/// Whoever has an image open that was opened only to be checked cannot change it past a snapshot table that was not read.
#[test]
fn an_image_whose_snapshots_are_not_known_is_not_changed() {
    let good = with_snapshots();
    let two = good.snapshots()[1];
    let bytes = good.with(&be4(two + 36, 1100));
    let ring = ring();
    let store = Store::new(bytes.clone(), 1);
    block_on(&ring, async {
        let flags = READ_WRITE | OpenFlags::CHECK;
        let opened = open(&store, None, Default::default(), flags, &ring).await;
        let (disk, _) = opened.unwrap();
        let delete = SnapshotChange::Delete(SnapshotName::named("one"));
        let image = disk.driver.image();
        image.change_snapshots(&delete).await.unwrap_err();
        disk.write(0, &[1; 4096]).await.unwrap_err();
        assert!(*store.bytes.borrow() == bytes, "the file is what it was");
        image.check(ALL).await.unwrap();
        disk.write(0, &[1; 4096]).await.unwrap();
        image.change_snapshots(&delete).await.unwrap();
        disk.close().await.unwrap();
    });
    good.assert_no_corruption(&store.bytes.borrow(), "repaired and changed");
}

/// Bitmaps that are in use, which QEMU does not read when it opens the image to check it.
fn with_bitmaps() -> (Good, u64) {
    let good = Good::new(&[
        "img bitmap --add -g 4k DISK one",
        "img bitmap --add -g 512 DISK two",
        "write -P 1 0 64k",
    ]);
    let mut at = 104;
    while good.number(at) >> 32 != 0x2385_2875 {
        at += 8 + (good.number(at) & 0xffff_ffff).next_multiple_of(8);
    }
    let mut good = good;
    let directory = good.number(at + 24);
    for entry in [directory, directory + 32] {
        put(&mut good.bytes, entry + 15, &[3]);
    }
    (good, at + 8)
}

#[test]
fn of_bitmaps() {
    let (good, extension) = with_bitmaps();
    let directory = good.number(extension + 16);
    let table = good.number(directory);
    let bits = good.number(table);
    good.compare(&[
        ("good", vec![]),
        ("table behind the end", be8(directory, FAR)),
        ("bits unaligned", be8(table, bits | 512)),
        ("bits with reserved bits", be8(table, bits | 2)),
        ("bits behind the end", be8(table, FAR)),
        ("all ones", be8(table, 1)),
        ("no bits", be8(table, 0)),
        ("one table for two", be8(directory + 32, table)),
        ("bits on data", be8(table, good.number(good.l2(0)) & !COPIED)),
        ("bitmaps given up", be8(88, 0)),
    ]);
}

/// What belongs to bitmaps whose directory is broken is not known: nothing is freed, and QEMU does not open the image.
#[test]
fn a_broken_directory_of_bitmaps_ends_a_check() {
    let (good, extension) = with_bitmaps();
    let directory = good.number(extension + 16);
    for (name, pokes) in [
        ("directory behind the end", be8(extension + 16, FAR)),
        (
            "a longer directory",
            be8(extension + 8, good.number(extension + 8) + 8),
        ),
        ("fewer bitmaps", be4(extension, 1)),
        ("more bitmaps", be4(extension, 3)),
        ("table unaligned", be8(directory, good.number(directory) + 8)),
        ("unknown flag", be4(directory + 12, 8)),
        ("extra data", be4(directory + 20, 8)),
        ("unknown type", vec![(directory + 16, vec![2])]),
    ] {
        let bytes = good.with(&pokes);
        for repair in [NOTHING, LEAKS, ALL] {
            let expected = theirs(&good.path(), &bytes, repair);
            assert!(expected.counts.is_none(), "{name}: {}", expected.errors);
            let (counts, left) = ours(&bytes, repair);
            assert!(counts.is_err(), "{name}: {counts:?}");
            assert!(left == bytes, "{name}: something was changed");
        }
    }
}
