//! What happens to an image, and what it is afterwards.

use std::fs;

use millpond_tests::bitmaps;
use millpond_tests::model::Model;
use millpond_tests::nbd::{Extent, Request};
use millpond_tests::program::{Program, oracle, under_test};
use serde_json::{Value, json};

use super::image::{BASE_BYTE, BASE_SIZE, DataFile, Image, KIB, Kind, MIB, SIZE};
use super::{ours, theirs};

/// Something that happens to an image.
#[derive(Debug, Clone, Copy)]
pub enum Act {
    /// The whole disk is filled with zeroes.
    Clear,
    /// Bytes are written.
    Write(u64, u64, u8),
    /// A cluster of bytes is written compressed.
    Compressed(u64, u8),
    /// Zeroes are written, by which space may be freed.
    Zero(u64, u64),
    /// What is there is of no use any more.
    Discard(u64, u64),
    /// A snapshot is taken.
    Snapshot(&'static str),
    /// A snapshot is deleted.
    Delete(&'static str),
    /// A bitmap is added, which is to be stored.
    Bitmap(&'static str),
}

/// Bytes that a bit of each bitmap stands for.
pub const GRANULARITY: u64 = 64 * KIB;

/// Those of some acts that the image can have.
fn possible(kind: Kind, acts: &[Act]) -> Vec<Act> {
    let can = |act: &&Act| match act {
        Act::Clear => kind.is_noise_at_first(),
        Act::Compressed(..) => kind.compresses(),
        Act::Snapshot(_) | Act::Delete(_) => kind.has_snapshots,
        Act::Bitmap(_) => kind.has_bitmaps,
        Act::Write(..) | Act::Zero(..) | Act::Discard(..) => true,
    };
    acts.iter().filter(can).copied().collect()
}

/// What happens to a new image.
pub fn beginning(kind: Kind) -> Vec<Act> {
    let acts = [
        Act::Clear,
        Act::Compressed(4 * MIB, 0x21),
        Act::Write(0, 100_000, 0x11),
        Act::Write(MIB + 512, 1536, 0x12),
        Act::Snapshot("one"),
        Act::Bitmap("b0"),
        Act::Write(64 * KIB, 4 * KIB, 0x13),
        Act::Write(7 * MIB, 512 * KIB, 0x14),
    ];
    possible(kind, &acts)
}

/// What happens to it then. A discard is the last, of which nobody knows what is there afterwards.
fn continuation(kind: Kind) -> Vec<Act> {
    let acts = [
        Act::Write(30_000, 50_000, 0x31),
        Act::Write(4 * MIB + 1024, 2 * KIB, 0x32),
        Act::Zero(7 * MIB + 64 * KIB, 128 * KIB),
        Act::Snapshot("two"),
        Act::Delete("one"),
        Act::Bitmap("b1"),
        Act::Write(2 * MIB - 700, 5000, 0x33),
        Act::Zero(0, 8 * KIB),
        Act::Discard(7 * MIB + 256 * KIB, 192 * KIB),
    ];
    possible(kind, &acts)
}

/// What a disk and its snapshot should have.
struct Expected {
    disk: Model,
    snapshot: Option<Vec<u8>>,
}

impl Expected {
    fn new(kind: Kind) -> Expected {
        let mut bytes = vec![0; SIZE as usize];
        if kind.backing.is_some() {
            bytes[..BASE_SIZE as usize].fill(BASE_BYTE);
        }
        Expected {
            disk: Model::of(bytes),
            snapshot: None,
        }
    }

    fn take(&mut self, kind: Kind, acts: &[Act]) {
        for act in acts {
            match *act {
                Act::Clear => self.write(0, SIZE, 0),
                Act::Write(offset, len, byte) => self.write(offset, len, byte),
                Act::Compressed(offset, byte) => self.write(offset, kind.cluster, byte),
                Act::Zero(offset, len) => self.disk.apply(&Request::zero(offset, len)),
                Act::Snapshot(_) => self.snapshot = Some(self.disk.bytes().to_vec()),
                Act::Discard(..) | Act::Delete(_) | Act::Bitmap(_) => {}
            }
        }
    }

    fn write(&mut self, offset: u64, len: u64, byte: u8) {
        self.disk.apply(&Request::write(offset, vec![byte; len as usize]));
    }
}

/// What a program makes of an image.
#[derive(Debug, PartialEq)]
struct Look {
    bytes: Vec<u8>,
    map: Vec<Extent>,
    bitmaps: Vec<String>,
    shown: Value,
}

fn look(image: &Image, program: &Program) -> Look {
    let mut daemon = image.serve(program);
    daemon.qmp.ok("blockdev-add", image.node(true));
    let export = json!({"type": "nbd", "id": "disk", "node-name": "disk"});
    daemon.qmp.ok("block-export-add", export);
    let mut session = daemon.session("disk");
    let (bytes, map) = (session.read_all(), session.status_all("base:allocation"));
    let nodes = daemon.qmp.ok("query-named-block-nodes", json!({"flat": true}));
    let nodes = nodes.as_array().expect("a list of nodes").clone();
    let disk = nodes.into_iter().find(|node| node["node-name"] == "disk");
    let look = Look {
        bytes,
        map,
        bitmaps: bitmaps::shown(&mut daemon),
        shown: disk.expect("the node is there")["image"].take(),
    };
    session.disconnect().expect("a goodbye closes the connection");
    daemon.quit();
    look
}

/// Looks at an image by both programs, which must see what is expected; answers its bitmaps.
fn verify(image: &Image, mut expected: Expected) -> Vec<String> {
    theirs::check(image);
    let (seen, theirs) = (look(image, under_test()), look(image, &oracle()));
    assert_eq!(seen.map, theirs.map, "ours is left");
    assert_eq!(seen.shown, theirs.shown, "ours is left");
    assert_eq!(seen.bitmaps, theirs.bitmaps, "ours is left");
    assert!(seen.bytes == theirs.bytes, "the two programs read other bytes");
    for act in continuation(image.kind) {
        if let Act::Discard(offset, len) = act {
            let range = offset as usize..(offset + len) as usize;
            expected.disk.settle(offset, &seen.bytes[range]);
        }
    }
    expected.disk.check(0, &seen.bytes);
    if image.kind.data_file == DataFile::Raw && image.kind.encryption.is_none() {
        let data = fs::read(image.path("data")).expect("the data file is there");
        expected.disk.check(0, &data);
    }
    if let Some(snapshot) = expected.snapshot {
        assert!(
            theirs::snapshot(image, "two") == snapshot,
            "the snapshot is another"
        );
    }
    seen.bitmaps
}

/// Has one program make an image and the other change it, both ways round.
pub fn tell(kind: Kind) {
    let (first, then) = (beginning(kind), continuation(kind));
    let expected = || {
        let mut expected = Expected::new(kind);
        expected.take(kind, &first);
        expected.take(kind, &then);
        expected
    };
    let image = Image::new(kind);
    theirs::try_tell(&image, &first).unwrap_or_else(|text| panic!("QEMU refuses: {text}"));
    ours::change(&image, &then);
    let ours_last = verify(&image, expected());
    let image = Image::new(kind);
    ours::tell(&image, &first);
    theirs::change(&image, &then).unwrap_or_else(|text| panic!("QEMU refuses: {text}"));
    let theirs_last = verify(&image, expected());
    assert_eq!(
        ours_last, theirs_last,
        "what was last changed by Millpond is left"
    );
}
