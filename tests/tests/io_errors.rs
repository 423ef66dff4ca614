//! Each request to an image's file fails in turn: its user is told, nobody else is, and nothing is corrupt afterwards.

use millpond_tests::nth::{Options, explore};

fn survives(workload: &str, stride: u64) {
    survives_of_kind(workload, stride, None);
}

fn survives_of_kind(workload: &str, stride: u64, kind: Option<&str>) {
    let options = Options {
        workload: None,
        seed: 1,
        requests: Some(6),
        stride,
        kind: kind.map(str::to_owned),
        nth: None,
    };
    match explore(workload, &options) {
        Ok(report) => {
            println!("{workload}: {report:?}");
            assert!(report.runs >= 8 && report.told > 0, "{report:?}");
        }
        Err(text) => panic!("{text}"),
    }
}

macro_rules! workloads {
    ($($test:ident: $name:literal every $stride:literal,)*) => {
        $(#[test] fn $test() { survives($name, $stride); })*

        #[test]
        fn every_workload_is_tried() {
            let names: Vec<&str> = millpond_tests::crash::workload::all().iter().map(|one| one.name).collect();
            assert_eq!(names, [$($name),*]);
        }
    };
}

workloads! {
    allocating: "allocate" every 2,
    growing_refcount_tables: "tables" every 5,
    refcounts_of_one_bit: "narrow" every 3,
    version_2: "version2" every 3,
    lazy_refcounts: "lazy" every 3,
    discards: "discard" every 3,
    compressed_clusters: "compressed" every 3,
    unaligned_writes: "unaligned" every 3,
    copy_on_write: "backing" every 3,
    version_2_with_a_backing_file: "backing-version2" every 3,
    snapshot: "snapshot" every 4,
    commit: "commit" every 5,
    resize: "resize" every 7,
    resize_over_a_backing_file: "resize-backing" every 5,
    amend: "amend" every 5,
    refcounts_of_other_widths: "widths" every 11,
    versions_over_a_backing_file: "versions" every 11,
    reopen_and_permissions: "reopen" every 5,
    stored_bitmaps: "bitmaps" every 11,
    logged_bitmaps: "bitmap-log" every 23,
    internal_snapshots: "internal" every 11,
    subclusters: "subclusters" every 7,
    subclusters_over_a_backing_file: "subclusters-backing" every 5,
    internal_snapshots_with_subclusters: "subclusters-internal" every 11,
    data_file: "data-file" every 7,
    data_file_with_subclusters: "data-file-subclusters" every 7,
    raw_data_file: "data-file-raw" every 7,
    keys_of_an_encrypted_image: "encrypted" every 97,
    keys_of_a_volume: "luks" every 97,
    backup: "job-backup" every 11,
    stream: "job-stream" every 23,
    commit_job: "job-commit" every 23,
    commit_of_the_active_image: "job-commit-active" every 23,
    mirror: "job-mirror" every 11,
    mirror_that_writes_wait_for: "job-mirror-blocking" every 11,
}

/// A table whose new place is in the header already is the one in use, though the flush behind that failed.
#[test]
fn every_flush_of_a_resize_fails() {
    survives_of_kind("resize", 1, Some("flush"));
}

/// Bitmaps that are stored fit the image, whose length is the new one though its node was told that the resize failed.
#[test]
fn every_flush_beside_stored_bitmaps_fails() {
    survives_of_kind("bitmaps", 1, Some("flush"));
}
