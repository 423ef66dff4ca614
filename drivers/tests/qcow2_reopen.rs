//! Changes of an open node: its options, its right to write, its iothread.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod qcow2_common;

use millpond_drivers::api::ReopenRequest;
use millpond_messages::OpenFlags;
use qcow2_common::*;
use serde_json::json;

#[test]
fn state_that_is_not_written_back_moves_along() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image.qcow2");
    let ring = ring();
    let store = Store::new(Vec::new(), 1);
    block_on(&ring, async {
        create(&store, options(json!({"size": 1 << 20})), &ring)
            .await
            .unwrap();
        let (disk, _) = open(&store, None, Default::default(), READ_WRITE, &ring)
            .await
            .unwrap();
        disk.write(70_000, &[7; 70_000]).await.unwrap();
        let disk = disk.move_away(&ring);
        assert_eq!(disk.read(70_000, 70_000).await.unwrap(), [7; 70_000]);
        disk.write(0, &[8; 1000]).await.unwrap();
        disk.discard(65536, 65536).await.unwrap();
        let disk = disk.move_away(&ring);
        disk.close().await.unwrap();
    });
    store.save(&path);
    assert_eq!((check(&path).0, check(&path).1), (0, 0));
    assert_eq!(contents(&path)[..1000], [8; 1000]);
}

#[test]
fn a_reopen_changes_options_and_the_right_to_write() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image.qcow2");
    let ring = ring();
    let store = Store::new(Vec::new(), 1);
    block_on(&ring, async {
        create(
            &store,
            options(json!({"size": 1 << 20, "lazy-refcounts": true})),
            &ring,
        )
        .await
        .unwrap();
        let (disk, _) = open(&store, None, Default::default(), OpenFlags::empty(), &ring)
            .await
            .unwrap();
        assert_eq!(
            disk.write(0, &[1; 512]).await.unwrap_err(),
            millpond_messages::IoError::ReadOnly
        );
        let reopen = |json: serde_json::Value, flags| {
            disk.driver.reopen_prepare(ReopenRequest {
                options: options(json),
                flags,
            })
        };
        reopen(json!({"l2-cache-entry-size": 512}), READ_WRITE)
            .await
            .unwrap();
        disk.driver.reopen_abort();
        assert!(
            disk.write(0, &[1; 512]).await.is_err(),
            "an aborted reopen has an effect"
        );
        reopen(json!({"l2-cache-entry-size": 512}), READ_WRITE)
            .await
            .unwrap();
        disk.driver.reopen_commit();
        disk.write(0, &[1; 512]).await.unwrap();
        disk.write(900_000, &[2; 512]).await.unwrap();
        // While changes are cached the image is dirty; a node that may not write any more leaves it clean.
        disk.flush().await.unwrap();
        assert!(disk.driver.image().info().is_dirty);
        reopen(json!({}), OpenFlags::empty()).await.unwrap();
        disk.driver.reopen_commit();
        assert!(!disk.driver.image().info().is_dirty);
        store.save(&path);
        assert_eq!((check(&path).0, check(&path).1), (0, 0));
        assert_eq!(disk.read(900_000, 512).await.unwrap(), [2; 512]);
        assert!(disk.write(0, &[1; 512]).await.is_err());
    });
}

#[test]
fn options_that_do_not_fit_are_named() {
    let ring = ring();
    let store = Store::new(Vec::new(), 1);
    block_on(&ring, create(&store, options(json!({"size": 1 << 30})), &ring)).unwrap();
    for (bad, expected) in [
        (json!({"colour": 1}), "Parameter 'colour' is unexpected"),
        (
            json!({"cache-size": 1, "l2-cache-size": 1, "refcount-cache-size": 1}),
            "cache-size, l2-cache-size and refcount-cache-size may not be set at the same time",
        ),
        (
            json!({"cache-size": 1, "l2-cache-size": 2}),
            "l2-cache-size may not exceed cache-size",
        ),
        (
            json!({"l2-cache-entry-size": 1000}),
            "L2 cache entry size must be a power of two between 512 and the cluster size (65536)",
        ),
        (
            json!({"overlap-check": "some"}),
            "Unsupported value 'some' for qcow2 option 'overlap-check'. Allowed are any of the following: none, constant, \
             cached, all",
        ),
    ] {
        let result = block_on(&ring, open(&store, None, options(bad), OpenFlags::empty(), &ring));
        assert_eq!(result.err().unwrap().to_string(), expected);
    }
}

/// Written here and there and partly compressed by QEMU's program, counted by both: in one table, and over many, which lie
/// between the clusters.
#[test]
fn a_check_counts_fragments_as_qemu_does() {
    counts_fragments_as_qemu("cluster_size=64k");
    counts_fragments_as_qemu("cluster_size=512");
}

fn counts_fragments_as_qemu(options: &str) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image.qcow2");
    let name = path.to_str().unwrap();
    qemu_img(&["create", "-q", "-f", "qcow2", "-o", options, name, "4M"]);
    qemu_io(
        &path,
        &[
            "write 1M 64k",
            "write 0 64k",
            "write -c 2M 64k",
            "write 64k 128k",
            "write -z 3M 64k",
        ],
    );
    let told: serde_json::Value =
        serde_json::from_str(&qemu_img(&["check", "--output=json", "-f", "qcow2", name])).unwrap();
    let ring = ring();
    let store = Store::open(&path, 1);
    let result = block_on(&ring, async {
        let (disk, _) = open(&store, None, Default::default(), OpenFlags::empty(), &ring)
            .await
            .unwrap();
        disk.driver
            .image()
            .check(millpond_drivers::api::Repair::default())
            .await
            .unwrap()
    });
    let count = |name: &str| told.get(name).and_then(serde_json::Value::as_u64).unwrap_or(0);
    let expected = millpond_messages::FragmentInfo {
        allocated_clusters: count("allocated-clusters"),
        total_clusters: count("total-clusters"),
        fragmented_clusters: count("fragmented-clusters"),
        compressed_clusters: count("compressed-clusters"),
    };
    assert!(
        expected.fragmented_clusters > 0 && expected.compressed_clusters > 0,
        "{told}"
    );
    assert_eq!(result.fragments, expected);
    assert_eq!(result.image_end_offset, count("image-end-offset"));
}
