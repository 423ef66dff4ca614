//! Compressed writes, held against what `qemu-img` says of the images.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod qcow2_common;

use std::path::Path;
use std::rc::Rc;

use millpond_messages::{IoError, Range, RequestFlags};
use millpond_ring::buffer::{Buffer, Buffers};
use qcow2_common::*;

const COMPRESSED: RequestFlags = RequestFlags::WRITE_COMPRESSED;
const CLUSTER: usize = 65536;

fn make(path: &Path, options: &str, size: &str) {
    let path = path.to_str().unwrap();
    qemu_img(&["create", "-q", "-f", "qcow2", "-o", options, path, size]);
}

/// A cluster that packs well, told apart by its number.
fn plain_text(number: u64, len: usize) -> Vec<u8> {
    let line = format!("cluster {number} says the same over and over; ");
    line.bytes().cycle().take(len).collect()
}

/// A cluster that does not pack at all.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut random = Random::new(seed + 1);
    (0..len).map(|_| random.next() as u8).collect()
}

async fn write_packed(disk: &Disk, offset: u64, data: &[u8]) -> Result<(), IoError> {
    let placement = disk
        .driver
        .place(Range::new(offset, data.len() as u64)?, COMPRESSED)
        .await?;
    assert_eq!(placement.len, data.len() as u64);
    let buffers = Buffers::from(Buffer::from_slice(data));
    let (result, buffers) = Rc::clone(&disk.driver).write(offset, buffers, COMPRESSED).await;
    assert_eq!(buffers.to_vec(), data, "the buffers come back as they were");
    result
}

/// How many clusters `qemu-img` finds compressed.
fn packed_clusters(path: &Path) -> u64 {
    let report = qemu_img(&["check", "--output=json", path.to_str().unwrap()]);
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    report["compressed-clusters"].as_u64().unwrap_or(0)
}

#[test]
fn what_is_written_compressed_is_packed_end_to_end_and_qemu_reads_it() {
    let directory = tempfile::tempdir().unwrap();
    for (name, format, cluster) in [
        ("zlib", "compression_type=zlib", CLUSTER),
        ("zstd", "compression_type=zstd", CLUSTER),
        ("small", "cluster_size=4k", 4096),
        ("old", "compat=0.10,cluster_size=16k", 16384),
        ("narrow", "refcount_bits=1", CLUSTER),
    ] {
        let path = directory.path().join(name);
        let size = 20 * cluster + 1024;
        make(&path, format, &size.to_string());
        let store = Store::open(&path, 1);
        let ring = ring();
        let mut expected = vec![0; size];
        block_on(&ring, async {
            let (disk, _) = open(&store, None, options(serde_json::json!({})), READ_WRITE, &ring)
                .await
                .unwrap();
            for number in 0..=20_u64 {
                let start = number as usize * cluster;
                let len = cluster.min(size - start);
                let data = match number {
                    3 | 7 => noise(number, len),
                    _ => plain_text(number, len),
                };
                write_packed(&disk, start as u64, &data).await.unwrap();
                expected[start..start + len].copy_from_slice(&data);
            }
            assert_eq!(disk.read(0, size as u64).await.unwrap(), expected);
            disk.flush().await.unwrap();
            disk.close().await.unwrap();
        });
        store.save(&path);
        let (corruptions, leaks, errors) = check(&path);
        assert_eq!((corruptions, leaks), (0, 0), "{name}: {errors}");
        assert_eq!(contents(&path), expected, "{name}");
        assert_eq!(packed_clusters(&path), 19, "{name}: two do not shrink");
    }
}

#[test]
fn packed_clusters_share_clusters_of_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk");
    make(&path, "compression_type=zlib", "8M");
    let store = Store::open(&path, 1);
    let before = store.bytes.borrow().len();
    let ring = ring();
    block_on(&ring, async {
        let (disk, _) = open(&store, None, options(serde_json::json!({})), READ_WRITE, &ring)
            .await
            .unwrap();
        for number in 0..128_u64 {
            write_packed(&disk, number * CLUSTER as u64, &plain_text(number, CLUSTER))
                .await
                .unwrap();
        }
        disk.close().await.unwrap();
    });
    let grown = store.bytes.borrow().len() - before;
    assert!(grown < 6 * CLUSTER, "128 clusters took {grown} bytes");
}

#[test]
fn only_whole_clusters_that_are_not_stored_yet_can_be_compressed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk");
    make(&path, "compression_type=zlib", "1M");
    let store = Store::open(&path, 1);
    let ring = ring();
    block_on(&ring, async {
        let (disk, _) = open(&store, None, options(serde_json::json!({})), READ_WRITE, &ring)
            .await
            .unwrap();
        let text = plain_text(1, CLUSTER);
        let cluster = CLUSTER as u64;
        for (offset, len) in [(512, CLUSTER), (0, 512), (cluster, CLUSTER + 512)] {
            let refused = disk
                .driver
                .place(Range::new(offset, len as u64).unwrap(), COMPRESSED)
                .await;
            assert_eq!(refused, Err(IoError::Invalid));
        }
        write_packed(&disk, 0, &text).await.unwrap();
        disk.write(cluster, &text).await.unwrap();
        // As QEMU does it, nothing that is stored is compressed over.
        for stored in [0, cluster] {
            let refused = write_packed(&disk, stored, &plain_text(2, CLUSTER)).await;
            assert_eq!(
                refused,
                Err(IoError::Os(millpond_messages::error::errno::EIO)),
                "{stored}"
            );
        }
        // A part that is written over a packed cluster leaves the rest of it.
        disk.write(100, &[7; 50]).await.unwrap();
        let mut expected = text.clone();
        expected[100..150].fill(7);
        assert_eq!(disk.read(0, cluster).await.unwrap(), expected);
        disk.close().await.unwrap();
    });
    store.save(&path);
    let (corruptions, leaks, errors) = check(&path);
    assert_eq!((corruptions, leaks), (0, 0), "{errors}");
}

#[test]
fn packed_plain_and_forgotten_clusters_do_not_get_into_each_others_way() {
    let directory = tempfile::tempdir().unwrap();
    for seed in 0..12_u64 {
        let path = directory.path().join(format!("disk{seed}"));
        make(&path, "cluster_size=4k", "256k");
        let store = Store::open(&path, seed);
        let ring = ring();
        let mut random = Random::new(seed);
        let mut expected = vec![0; 256 << 10];
        block_on(&ring, async {
            let (disk, _) = open(&store, None, options(serde_json::json!({})), READ_WRITE, &ring)
                .await
                .unwrap();
            for step in 0..200_u64 {
                let offset = random.below(64) * 4096;
                let place = offset as usize..offset as usize + 4096;
                match random.below(6) {
                    0 | 1 => {
                        let data = if random.below(4) == 0 {
                            noise(step, 4096)
                        } else {
                            plain_text(step, 4096)
                        };
                        if write_packed(&disk, offset, &data).await.is_ok() {
                            expected[place].copy_from_slice(&data);
                        }
                    }
                    2 => {
                        let data = noise(step, 4096);
                        disk.write(offset, &data).await.unwrap();
                        expected[place].copy_from_slice(&data);
                    }
                    3 | 4 => {
                        disk.discard(offset, 4096).await.unwrap();
                        expected[place].fill(0);
                    }
                    _ => disk.flush().await.unwrap(),
                }
            }
            assert_eq!(disk.read(0, 256 << 10).await.unwrap(), expected, "seed {seed}");
            disk.close().await.unwrap();
        });
        store.save(&path);
        let (corruptions, leaks, errors) = check(&path);
        assert_eq!((corruptions, leaks), (0, 0), "seed {seed}: {errors}");
        assert_eq!(contents(&path), expected, "seed {seed}");
    }
}

#[test]
fn a_compressed_write_that_fails_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk");
    make(&path, "compression_type=zstd", "1M");
    let store = Store::open(&path, 1);
    let ring = ring();
    block_on(&ring, async {
        let (disk, _) = open(&store, None, options(serde_json::json!({})), READ_WRITE, &ring)
            .await
            .unwrap();
        let (text, cluster) = (plain_text(1, CLUSTER), CLUSTER as u64);
        write_packed(&disk, 0, &text).await.unwrap();
        store.fail_writes.set(true);
        let failed = write_packed(&disk, cluster, &plain_text(2, CLUSTER)).await;
        assert_eq!(failed, Err(IoError::NoSpace));
        store.fail_writes.set(false);
        assert_eq!(disk.read(0, cluster).await.unwrap(), text);
        assert_eq!(disk.read(cluster, cluster).await.unwrap(), [0; CLUSTER]);
        disk.close().await.unwrap();
    });
    store.save(&path);
    let (corruptions, leaks, errors) = check(&path);
    assert_eq!((corruptions, leaks), (0, 0), "{errors}");
}
