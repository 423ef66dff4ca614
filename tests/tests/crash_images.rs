//! Every image that a crash can leave opens, is not corrupt, and holds what was flushed.

use millpond_tests::crash::{Options, explore};

fn explores(workload: &str) {
    explores_seed(workload, 1);
}

fn explores_seed(workload: &str, seed: u64) {
    let known = millpond_tests::crash::workload::find(workload);
    // A password takes as long as reading a disk, and several are tried on each image.
    let is_encrypted = known.is_some_and(|workload| workload.is_encrypted());
    explores_images(workload, seed, if is_encrypted { 150 } else { 400 });
}

fn explores_images(workload: &str, seed: u64, images: u64) {
    let options = Options {
        workload: None,
        seed,
        images,
        qemu_every: 20,
        point: None,
        case: None,
    };
    match explore(workload, &options) {
        Ok(report) => {
            println!("{workload}: {report:?}");
            // Few requests make an image, and QEMU does not open half a one.
            let (images, by_qemu) = if workload == "create" { (40, 0) } else { (100, 5) };
            assert!(report.images > images && report.by_qemu >= by_qemu, "{report:?}");
        }
        Err(text) => panic!("{text}"),
    }
}

macro_rules! workloads {
    ($($test:ident: $name:literal,)*) => {
        $(#[test] fn $test() { explores($name); })*

        #[test]
        fn every_workload_is_explored() {
            let names: Vec<&str> = millpond_tests::crash::workload::all().iter().map(|one| one.name).collect();
            assert_eq!(names, [$($name),*][..names.len()]);
        }
    };
}

workloads! {
    allocating: "allocate",
    growing_refcount_tables: "tables",
    refcounts_of_one_bit: "narrow",
    version_2: "version2",
    lazy_refcounts: "lazy",
    discards: "discard",
    compressed_clusters: "compressed",
    unaligned_writes: "unaligned",
    copy_on_write: "backing",
    version_2_with_a_backing_file: "backing-version2",
    snapshot: "snapshot",
    commit: "commit",
    resize: "resize",
    resize_over_a_backing_file: "resize-backing",
    amend: "amend",
    refcounts_of_other_widths: "widths",
    versions_over_a_backing_file: "versions",
    reopen: "reopen",
    stored_bitmaps: "bitmaps",
    logged_bitmaps: "bitmap-log",
    internal_snapshots: "internal",
    subclusters: "subclusters",
    subclusters_over_a_backing_file: "subclusters-backing",
    internal_snapshots_with_subclusters: "subclusters-internal",
    data_file: "data-file",
    data_file_with_subclusters: "data-file-subclusters",
    raw_data_file: "data-file-raw",
    keys_of_an_encrypted_image: "encrypted",
    keys_of_a_volume: "luks",
    backup: "job-backup",
    stream: "job-stream",
    commit_job: "job-commit",
    commit_of_the_active_image: "job-commit-active",
    mirror: "job-mirror",
    mirror_that_writes_wait_for: "job-mirror-blocking",
    create: "create",
}

/// What was acknowledged before an overlay was put on top, and flushed through the overlay after that, is there.
#[test]
fn a_flush_after_a_snapshot_covers_what_was_written_before_it() {
    explores_seed("snapshot", 2);
    explores_seed("commit", 3);
}

/// What zeroes have hidden since a flush does not come back with a write of which a crash has left the table alone.
#[test]
fn what_zeroes_have_hidden_stays_hidden() {
    explores_images("resize", 1, 2000);
}
