//! A qcow2 image, opened for reading and for writing over a file in memory that holds 64 MiB at most.
//!
//! An image in which a check finds no error must behave as one: what is written is read back, what is zeroed is zero,
//! nothing else changes, a snapshot brings back what was, and another check finds no error either. Of all others it is only
//! asked that they are answered, and that a repair which leaves no error has left none.

#[allow(
    missing_docs,
    unreachable_pub,
    reason = "it belongs to the tests of the drivers"
)]
#[path = "../../../drivers/tests/qcow2_common/mod.rs"]
mod common;

use std::rc::Rc;

use common::{Disk, READ_WRITE, Store, block_on, create_over, open, open_over, options, ring};
use millpond_drivers::api::{ImageBitmap, Purpose, Repair};
use millpond_messages::io::Preallocation;
use millpond_messages::{
    ChunkSet, InternalSnapshot, OpenFlags, Range, RequestFlags, SnapshotChange, SnapshotName,
};
use millpond_ring::Ring;
use millpond_ring::buffer::Buffers;
use serde_json::json;

/// Where the disk under the image is full.
const ROOM: u64 = 64 << 20;

/// Places of the disk that are looked at.
const PLACES: u64 = 16;

/// Bytes looked at in each.
const PART: u64 = 1024;

/// The node's options, which images that are not encrypted take as well.
fn node() -> common::Options {
    options(json!({"encrypt": {"key-secret": "s"}}))
}

pub(super) fn run(image: &[u8]) {
    if image.len() > 1 << 20 {
        return;
    }
    for flags in [OpenFlags::empty(), READ_WRITE] {
        let ring = ring();
        let store = Store::new(image.to_vec(), 1);
        store.latency.set(0);
        store.room.set(ROOM);
        // The incompatible feature "external data file".
        let has_data_file = image.get(79).is_some_and(|features| features & 4 != 0);
        let data = has_data_file.then(|| store.data_file(Vec::new(), 2));
        if let Some(data) = &data {
            data.latency.set(0);
            data.room.set(ROOM);
        }
        block_on(&ring, async {
            let opened = open_over(&store, None, data.as_ref(), node(), flags, &ring);
            let Ok((disk, _)) = opened.await else {
                return;
            };
            look(&disk).await;
            if flags == READ_WRITE {
                write(&disk).await;
            }
            let _ = disk.flush().await;
            let _ = disk.close().await;
        });
        if flags.is_read_only() {
            assert_eq!(*store.bytes.borrow(), image, "a reader has changed the image");
        }
    }
    mend(image);
}

const ALL: Repair = Repair {
    leaks: true,
    errors: true,
};

/// Opens an image only to repair it, however little of it can be read.
fn mend(image: &[u8]) {
    let ring = ring();
    let store = Store::new(image.to_vec(), 1);
    store.latency.set(0);
    store.room.set(ROOM);
    block_on(&ring, async {
        let flags = READ_WRITE | OpenFlags::CHECK;
        let Ok((disk, _)) = open(&store, None, node(), flags, &ring).await else {
            return;
        };
        let mended = disk.driver.image().check(ALL).await;
        if mended.is_ok_and(|mended| mended.corruptions == 0 && mended.check_errors == 0) {
            assert!(
                is_sound(&disk).await,
                "a repair has left errors that it did not tell of"
            );
        }
        let _ = disk.close().await;
    });
}

/// Where the places are: spread over the disk, the last one at its end.
async fn places(disk: &Disk) -> Vec<u64> {
    let size = disk.driver.length().await.unwrap_or(0);
    let last = size.saturating_sub(PART);
    (0..PLACES)
        .map(|index| last / (PLACES - 1) * index / 512 * 512)
        .filter(|at| at + PART <= size)
        .collect()
}

async fn contents(disk: &Disk) -> Option<Vec<Vec<u8>>> {
    let mut all = Vec::new();
    for at in places(disk).await {
        all.push(disk.read(at, PART).await.ok()?);
    }
    Some(all)
}

async fn look(disk: &Disk) {
    for at in places(disk).await {
        let _ = disk.read(at, PART).await;
        for purpose in [Purpose::Read, Purpose::Status { want_zero: true }] {
            let Ok(range) = Range::new(at, PART) else { continue };
            if let Ok(extent) = disk.driver.locate(purpose, range).await {
                assert!((1..=PART).contains(&extent.len), "{extent:?}");
            }
        }
    }
    let _ = (disk.driver.image().specific_info(), disk.driver.image().info());
}

async fn is_sound(disk: &Disk) -> bool {
    let found = disk.driver.image().check(Repair::default()).await;
    found.is_ok_and(|found| found.corruptions == 0 && found.check_errors == 0)
}

async fn write(disk: &Disk) {
    let sound = is_sound(disk).await;
    let before = contents(disk).await;
    let places = places(disk).await;
    let mut written = Vec::new();
    for (index, at) in places.iter().enumerate() {
        let result = match index % 3 {
            0 => disk.write(*at, &[index as u8 + 1; PART as usize]).await,
            1 => disk.zero(*at, PART, RequestFlags::MAY_UNMAP).await,
            _ => continue,
        };
        written.push((index, result.is_ok()));
    }
    if let Some((_, at)) = places.iter().enumerate().find(|(index, _)| index % 3 == 2) {
        let _ = disk.discard(*at, 1).await;
    }
    if sound {
        let after = contents(disk).await;
        compare(&written, before, after, &places);
        let _ = disk.flush().await;
        assert!(is_sound(disk).await, "writing has broken a sound image");
    }
    let size = disk.driver.length().await.unwrap_or(0);
    let _ = disk
        .resize(size.saturating_add(1 << 20), Preallocation::Off)
        .await;
    let _ = disk.resize(size / 2 / 512 * 512, Preallocation::Off).await;
    if sound {
        assert!(is_sound(disk).await, "a new size has broken a sound image");
    }
    change_snapshots(disk, sound).await;
    change_bitmaps(disk).await;
    if sound {
        assert!(
            is_sound(disk).await,
            "snapshots or bitmaps have broken a sound image"
        );
    }
    let _ = disk.driver.image().check(ALL).await;
}

/// Makes a snapshot and goes back to it, and to one that the image had; deletes them.
async fn change_snapshots(disk: &Disk, sound: bool) {
    let image = disk.driver.image();
    let had = image.snapshots();
    let before = contents(disk).await;
    let make = SnapshotChange::Create(InternalSnapshot {
        name: "fuzz".to_owned(),
        ..InternalSnapshot::default()
    });
    if let Ok(made) = image.change_snapshots(&make).await {
        let places = places(disk).await;
        if let Some(at) = places.first() {
            let _ = disk.write(*at, &[0xaa; PART as usize]).await;
        }
        let back = SnapshotChange::Apply(made.id.clone());
        if image.change_snapshots(&back).await.is_ok() && sound {
            assert_eq!(
                contents(disk).await,
                before,
                "a snapshot is not what the disk was"
            );
        }
        let delete = SnapshotChange::Delete(SnapshotName::with_id(made.id));
        let _ = image.change_snapshots(&delete).await;
    }
    for old in had.into_iter().take(2) {
        let _ = image
            .change_snapshots(&SnapshotChange::Apply(old.id.clone()))
            .await;
        let _ = contents(disk).await;
        let delete = SnapshotChange::Delete(SnapshotName::with_id(old.id));
        let _ = image.change_snapshots(&delete).await;
    }
}

/// Stores the bitmaps that the image had, and one more; removes one.
async fn change_bitmaps(disk: &Disk) {
    let Some(bitmaps) = disk.driver.image().bitmaps() else {
        return;
    };
    let mut all = bitmaps.take_read();
    let names: Vec<String> = all.iter().map(|bitmap| bitmap.name.clone()).collect();
    let len = disk.driver.length().await.unwrap_or(0);
    for bitmap in &mut all {
        // A node has them follow the disk.
        let follows = bitmap.set.as_mut().is_none_or(|set| set.resize(len).is_ok());
        bitmap.set.take_if(|_| !follows);
    }
    if let (Ok(()), Ok(set)) = (
        bitmaps.check_new("fuzz", 1 << 16, &names),
        ChunkSet::new(len, 1 << 16),
    ) {
        all.push(ImageBitmap {
            name: "fuzz".to_owned(),
            granularity: 1 << 16,
            is_recording: true,
            set: Some(set),
        });
    }
    let _ = bitmaps.store(all).await;
    let _ = bitmaps.remove(names.first().map_or("fuzz", String::as_str)).await;
}

/// What was written is there; what was not is as it was.
fn compare(
    written: &[(usize, bool)],
    before: Option<Vec<Vec<u8>>>,
    after: Option<Vec<Vec<u8>>>,
    places: &[u64],
) {
    // Places of a small disk overlap.
    if places.windows(2).any(|pair| pair[1] - pair[0] < PART) {
        return;
    }
    let (Some(before), Some(after)) = (before, after) else {
        return;
    };
    for (index, (before, after)) in before.iter().zip(&after).enumerate() {
        match written.iter().find(|(at, _)| *at == index) {
            Some((_, false)) => {}
            Some((_, true)) if index % 3 == 0 => assert_eq!(*after, [index as u8 + 1; PART as usize]),
            Some((_, true)) => assert_eq!(*after, [0; PART as usize]),
            None => assert_eq!(after, before, "place {index} changed by itself"),
        }
    }
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    [
        json!({ "size": 1 << 20, "cluster-size": 512 }),
        json!({ "size": 1 << 20, "cluster-size": 4096, "version": "v2" }),
        json!({ "size": 1 << 19, "cluster-size": 1024, "refcount-bits": 1, "lazy-refcounts": true }),
        json!({ "size": 1_u64 << 32, "cluster-size": 4096, "refcount-bits": 64 }),
        json!({ "size": 1 << 20, "cluster-size": 2048, "compression-type": "zstd" }),
        json!({ "size": 1 << 20, "cluster-size": 1024, "encrypt": { "format": "qcow", "key-secret": "s" } }),
        json!({ "size": 1 << 20, "cluster-size": 16384, "extended-l2": true }),
    ]
    .into_iter()
    .flat_map(|how| {
        let stores_bitmaps = how["version"] != "v2";
        let more = stores_bitmaps.then(|| keeping(how.clone()));
        [Some(seed(how, false)), more]
    })
    .flatten()
    .chain([
        seed(json!({ "size": 1 << 20, "cluster-size": 4096 }), true),
        seed(
            json!({ "size": 1 << 20, "cluster-size": 16384, "extended-l2": true, "data-file-raw": true }),
            true,
        ),
    ])
    .collect()
}

/// The same with snapshots and bitmaps.
fn keeping(how: serde_json::Value) -> Vec<u8> {
    let ring: Ring = ring();
    let store = Store::new(seed(how, false), 1);
    store.latency.set(0);
    block_on(&ring, async {
        let opened = open(&store, None, node(), READ_WRITE, &ring).await;
        let (disk, _) = opened.expect("it can be opened");
        let len = disk.driver.length().await.expect("it has a length");
        for name in ["one", "two"] {
            let make = SnapshotChange::Create(InternalSnapshot {
                name: name.to_owned(),
                ..InternalSnapshot::default()
            });
            // Refcounts of one bit count no second reference.
            let _ = disk.driver.image().change_snapshots(&make).await;
            disk.write(4000, &[4; 2000]).await.expect("it can be written");
        }
        let bitmaps = ["fine", "coarse"].map(|name| {
            let granularity = if name == "fine" { 1 << 16 } else { 1 << 20 };
            let mut set = ChunkSet::new(len, granularity).expect("it is small");
            set.insert(Range::between(0, 1 << 17));
            ImageBitmap {
                name: name.to_owned(),
                granularity,
                is_recording: name == "fine",
                set: Some(set),
            }
        });
        let image = disk.driver.image().bitmaps().expect("it stores bitmaps");
        image.store(bitmaps.into()).await.expect("they can be stored");
        disk.close().await.expect("it can be closed");
    });
    store.bytes.take()
}

/// A small image with data, zeroes and holes in it, perhaps with a data file.
fn seed(how: serde_json::Value, has_data_file: bool) -> Vec<u8> {
    let ring: Ring = ring();
    let store = Store::new(Vec::new(), 1);
    store.latency.set(0);
    let data = has_data_file.then(|| store.data_file(Vec::new(), 2));
    block_on(&ring, async {
        create_over(&store, data.as_ref(), options(how), &ring)
            .await
            .expect("an image can be made");
        let opened = open_over(&store, None, data.as_ref(), node(), READ_WRITE, &ring).await;
        let (disk, _) = opened.expect("it can be opened");
        for (offset, byte) in [(0, 1), (5000, 2), (300_000, 3)] {
            disk.write(offset, &[byte; 700]).await.expect("it can be written");
        }
        if !has_data_file {
            let cluster = Buffers::alloc(disk.driver.abilities().limits.discard_alignment as usize);
            let compressed = Rc::clone(&disk.driver).write(1 << 18, cluster, RequestFlags::WRITE_COMPRESSED);
            compressed.await.0.expect("it can be compressed");
        }
        disk.zero(8192, 4096, RequestFlags::MAY_UNMAP)
            .await
            .expect("it can be zeroed");
        disk.flush().await.expect("it can be flushed");
        disk.close().await.expect("it can be closed");
    });
    store.bytes.take()
}
