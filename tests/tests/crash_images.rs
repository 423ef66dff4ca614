//! Every image that a crash can leave opens, is not corrupt, and holds what was flushed.

use millpond_tests::crash::{Options, explore};

fn explores(workload: &str) {
    let options = Options {
        workload: None,
        seed: 1,
        images: 400,
        qemu_every: 20,
        point: None,
        case: None,
    };
    match explore(workload, &options) {
        Ok(report) => {
            println!("{workload}: {report:?}");
            assert!(
                report.images > 100 && (report.by_qemu > 4 || workload == "create"),
                "{report:?}"
            );
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
    reopen: "reopen",
    create: "create",
}
