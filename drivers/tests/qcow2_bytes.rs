//! The bytes of images: the same requests leave the same image, byte for byte, from one version to the next.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod qcow2_common;

use std::rc::Rc;

use millpond_messages::RequestFlags;
use millpond_messages::io::Preallocation;
use millpond_ring::buffer::{Buffer, Buffers};
use qcow2_common::*;

/// FNV-1a: it need not be safe from anybody, only differ where a byte does.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// A random history of one image: writes, zeroes, discards, flushes, changes of length, and a second open at the end.
fn history(made_with: serde_json::Value, opened_with: serde_json::Value, compresses: bool) -> (usize, u64) {
    let store = Store::new(Vec::new(), 5);
    let ring = ring();
    let cluster = made_with["cluster-size"].as_u64().unwrap();
    let mut size = 300 * cluster;
    block_on(&ring, async {
        let mut made_with = options(made_with);
        made_with.insert("size".into(), size.into());
        create(&store, made_with, &ring).await.unwrap();
        let mut random = Random::new(17);
        for _ in 0..2 {
            let (disk, _) = open(&store, None, options(opened_with.clone()), READ_WRITE, &ring)
                .await
                .unwrap();
            for step in 0..250_u64 {
                let start = random.below(size / 512) * 512;
                let len = (1 + random.below(6 * cluster / 512)) * 512;
                let len = len.min(size - start);
                match random.below(12) {
                    0 => disk.flush().await.unwrap(),
                    1 => disk.zero(start, len, RequestFlags::MAY_UNMAP).await.unwrap(),
                    2 => disk.zero(start, len, RequestFlags::empty()).await.unwrap(),
                    3 | 4 => drop(disk.discard(start, len).await.unwrap()),
                    5 if step % 10 == 0 => {
                        size = (200 + random.below(200)) * cluster;
                        disk.resize(size, Preallocation::Off).await.unwrap();
                    }
                    6 if compresses => {
                        let start = start / cluster * cluster;
                        let data = vec![step as u8; cluster as usize];
                        let buffers = Buffers::from(Buffer::from_slice(&data));
                        // Refused where the cluster has data already, as QEMU does.
                        let flags = RequestFlags::WRITE_COMPRESSED;
                        drop(Rc::clone(&disk.driver).write(start, buffers, flags).await);
                    }
                    _ => disk.write(start, &vec![step as u8; len as usize]).await.unwrap(),
                }
            }
            disk.close().await.unwrap();
        }
    });
    let bytes = store.bytes.borrow();
    (bytes.len(), checksum(&bytes))
}

#[test]
fn the_same_requests_leave_the_same_bytes() {
    use serde_json::json;
    let plain = json!({});
    let found = [
        history(json!({"cluster-size": 65536}), plain.clone(), false),
        history(
            json!({"cluster-size": 4096, "version": "v2"}),
            plain.clone(),
            false,
        ),
        history(
            json!({"cluster-size": 512, "refcount-bits": 1}),
            json!({"l2-cache-entry-size": 512}),
            false,
        ),
        history(
            json!({"cluster-size": 65536, "refcount-bits": 64, "lazy-refcounts": true}),
            json!({"discard-no-unref": true}),
            false,
        ),
        history(
            json!({"cluster-size": 16384, "compression-type": "zstd"}),
            plain,
            true,
        ),
    ];
    // Lengths and checksums. The last also depends on how the zstd library compresses.
    let expected = [
        (17_301_504, 16_630_587_575_666_128_739),
        (1_024_000, 4_515_953_415_604_665_657),
        (129_024, 15_614_724_194_457_396_491),
        (19_595_264, 13_453_786_989_105_181_551),
        (4_145_152, 18_395_884_814_057_064_676),
    ];
    assert_eq!(found, expected);
}
