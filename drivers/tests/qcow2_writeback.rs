//! When metadata is written back: not before somebody asks, where the caches hold all of it.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod qcow2_common;

use millpond_messages::OpenFlags;
use qcow2_common::*;
use serde_json::json;

/// Bytes that one L2 table of clusters of 512 bytes maps, and one slice, since the table is no larger than that.
const SPAN: u64 = 64 * 512;

fn flushes(store: &Store) -> usize {
    let log = store.log.borrow();
    log.iter().filter(|event| matches!(event, Event::Flush)).count()
}

/// Changes a slice of each table of a disk. Tells how often the file was flushed for that, then closes the image, which
/// must be sound.
fn flushes_for_all_slices(options: serde_json::Value) -> usize {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image.qcow2");
    let ring = ring();
    let store = Store::new(Vec::new(), 1);
    let size = 100 * SPAN;
    let layout = json!({"size": size, "cluster-size": 512});
    block_on(&ring, create(&store, qcow2_common::options(layout), &ring)).unwrap();
    let mut expected = vec![0; size as usize];
    let mut count = 0;
    block_on(&ring, async {
        let (disk, _) = open(&store, None, qcow2_common::options(options), READ_WRITE, &ring)
            .await
            .unwrap();
        store.record.set(true);
        // Twice, so that all slices are dirty for the second half of the writes.
        for round in 0..2 {
            for slice in 0..100 {
                let at = slice * SPAN + round * 512;
                let data = vec![slice as u8 + 1; 512];
                disk.write(at, &data).await.unwrap();
                expected[at as usize..at as usize + 512].copy_from_slice(&data);
            }
        }
        count = flushes(&store);
        disk.flush().await.unwrap();
        assert!(
            flushes(&store) > count,
            "what waits in memory goes out when asked"
        );
        disk.close().await.unwrap();
    });
    store.save(&path);
    let (corruptions, leaks, errors) = check(&path);
    assert_eq!((corruptions, leaks), (0, 0), "{errors}");
    assert!(contents(&path) == expected, "qemu-img reads something else");
    let ring = qcow2_common::ring();
    block_on(&ring, async {
        let (disk, _) = open(&store, None, Default::default(), OpenFlags::empty(), &ring)
            .await
            .unwrap();
        assert!(disk.read(0, size).await.unwrap() == expected);
    });
    count
}

#[test]
fn a_cache_that_holds_all_tables_is_not_written_back_by_itself() {
    assert_eq!(flushes_for_all_slices(json!({})), 0);
}

#[test]
fn a_smaller_cache_is_written_back_to_make_room() {
    assert!(flushes_for_all_slices(json!({"l2-cache-size": 50 * 512, "l2-cache-entry-size": 512})) > 0);
}

#[test]
fn a_flush_that_fails_leaves_none_of_its_writes_behind() {
    // One left behind could overwrite what is written there next, and a drain would not wait for it.
    let ring = ring();
    let store = Store::new(Vec::new(), 1);
    let layout = json!({"size": 16 * SPAN, "cluster-size": 512});
    block_on(&ring, create(&store, qcow2_common::options(layout), &ring)).unwrap();
    block_on(&ring, async {
        let (disk, _) = open(&store, None, Default::default(), READ_WRITE, &ring)
            .await
            .unwrap();
        for table in 0..16 {
            disk.write(table * SPAN, &[1; 512]).await.unwrap();
        }
        disk.flush().await.unwrap();
        // This changes slices alone, each far from the next.
        for table in 0..16 {
            disk.zero(table * SPAN, 512, Default::default()).await.unwrap();
        }
        store.fail_writes.set(true);
        disk.flush().await.unwrap_err();
        assert_eq!(store.under_way.get(), 0);
        store.fail_writes.set(false);
        disk.flush().await.unwrap();
        disk.close().await.unwrap();
    });
}
