//! The named events: each is told of where QEMU tells of it, so that a rule of `blkdebug` fails the same requests.
//!
//! Left out are those that QEMU never tells of (`reftable_update`, `refblock_update`), those of what is not done here
//! (`vmstate_load`, `vmstate_save`, `cluster_alloc_space`), and those that cannot be reached by a daemon
//! (`empty_image_prepare`). `cor_write` goes to the node that has a backing node, which is never one that listens.

use std::path::Path;

use millpond_tests::daemon::{Daemon, daemon};
use millpond_tests::image;
use millpond_tests::nbd::Request;
use millpond_tests::program::oracle;
use millpond_tests::tool;
use serde_json::{Value, json};

/// One thing that is asked for.
#[derive(Debug, Clone, Copy)]
enum Step {
    Write(u64, usize),
    Zero(u64, u64),
    Trim(u64, u64),
    Read(u64, u64),
    Flush,
    Resize(u64),
}

impl Step {
    /// Whether it fails.
    fn fails(self, daemon: &mut Daemon) -> bool {
        let request = match self {
            Self::Write(offset, len) => Request::write(offset, vec![1; len]),
            Self::Zero(offset, len) => Request::zero(offset, len),
            Self::Trim(offset, len) => Request::trim(offset, len),
            Self::Read(offset, len) => Request::read(offset, len),
            Self::Flush => Request::flush(),
            Self::Resize(size) => {
                // An export does not let others change the length.
                daemon
                    .qmp
                    .ok("block-export-del", json!({"id": "e", "mode": "hard"}));
                daemon.qmp.wait_event("BLOCK_EXPORT_DELETED");
                let arguments = json!({"node-name": "top", "size": size});
                let resized = daemon.qmp.execute("block_resize", arguments);
                export(daemon);
                return resized.is_err();
            }
        };
        // QEMU ends the connection after some errors.
        let answer = daemon.session("top").call(&request);
        answer.map_or(true, |answer| answer.error != 0)
    }
}

/// A graph over one image, and what is asked of it.
struct Work {
    /// Options for `qemu-img create`; none if the image is raw.
    image: Option<&'static str>,
    size: u64,
    /// The graph, with `DEBUG` where the `blkdebug` node belongs.
    graph: fn(Value, &Path) -> Value,
    /// The image has data, and a snapshot that shares it.
    snapshot: bool,
    steps: &'static [Step],
}

const K: u64 = 1 << 10;
const M: u64 = 1 << 20;

fn format(file: Value, _dir: &Path) -> Value {
    json!({"driver": "qcow2", "file": file, "discard": "unmap"})
}

/// A write beside data that is there, a part that is overwritten, and a cluster that goes.
const PLAIN: Work = Work {
    image: Some(""),
    size: 64 * M,
    graph: format,
    snapshot: false,
    steps: &[
        Step::Write(0, 65536),
        Step::Write(4 * K, 4096),
        Step::Read(0, 64 * K),
        Step::Flush,
        Step::Trim(0, 64 * K),
        Step::Flush,
    ],
};

const RAW: Work = Work {
    image: None,
    size: M,
    graph: |file, _| json!({"driver": "raw", "file": file, "discard": "unmap"}),
    snapshot: false,
    steps: &[
        Step::Read(0, 512),
        Step::Write(0, 4096),
        Step::Zero(64 * K, 4096),
        Step::Flush,
    ],
};

/// Blocks of 4 KiB, of which parts are written.
const ALIGNED: Work = Work {
    image: None,
    size: M,
    graph: |mut file, _| {
        file["align"] = json!(4096);
        json!({"driver": "raw", "file": file})
    },
    snapshot: false,
    steps: &[Step::Write(0, 4096), Step::Write(513, 7000), Step::Flush],
};

/// So many clusters that the refcount table has to grow.
const MANY: Work = Work {
    image: Some("cluster_size=512"),
    size: 16 * M,
    graph: format,
    snapshot: false,
    steps: &[
        Step::Write(0, 65536),
        Step::Flush,
        Step::Write(M, 10 << 20),
        Step::Flush,
    ],
};

const RESIZED: Work = Work {
    image: Some("cluster_size=512"),
    size: M,
    graph: format,
    snapshot: false,
    steps: &[
        Step::Write(0, 512),
        Step::Flush,
        Step::Resize(8 * M),
        Step::Write(7 * M, 512),
        Step::Flush,
        Step::Resize(M),
    ],
};

const PACKED: Work = Work {
    image: Some(""),
    size: M,
    graph: |file, dir| json!({"driver": "compress", "file": format(file, dir)}),
    snapshot: false,
    steps: &[Step::Write(0, 65536), Step::Flush, Step::Read(0, 64 * K)],
};

fn backed(file: Value, dir: &Path) -> Value {
    let base = json!({"driver": "file", "filename": dir.join("base")});
    json!({"driver": "qcow2", "file": file, "backing": {"driver": "raw", "file": base}})
}

const BACKED: Work = Work {
    image: Some(""),
    size: M,
    graph: backed,
    snapshot: false,
    steps: &[Step::Read(0, 64 * K), Step::Write(4 * K, 4096), Step::Flush],
};

const SHARED: Work = Work {
    image: Some(""),
    size: M,
    graph: format,
    snapshot: true,
    steps: &[Step::Read(0, 512), Step::Write(0, 512), Step::Flush],
};

fn export(daemon: &mut Daemon) {
    let export = json!({"type": "nbd", "id": "e", "node-name": "top", "writable": true});
    daemon.qmp.ok("block-export-add", export);
}

/// Opens the graph with a rule that fails requests from `event` on, and tells which steps fail. The open fails
/// where there is no list.
fn failures(mut daemon: Daemon, work: &Work, event: &str) -> Option<Vec<bool>> {
    let dir = daemon.dir().to_owned();
    let path = dir.join("disk");
    match work.image {
        None => image::create(&path, "raw", "", work.size),
        Some(options) => image::create(&path, "qcow2", options, work.size),
    }
    std::fs::write(dir.join("base"), vec![5; 1 << 20]).expect("a file can be made");
    if work.snapshot {
        let path = path.to_str().expect("a plain path");
        tool::run("qemu-io", &["-f", "qcow2", "-c", "write 0 64k", path]);
        tool::run("qemu-img", &["snapshot", "-c", "one", path]);
    }
    let rule = json!({"event": event, "immediately": true});
    let debug = json!({"driver": "blkdebug", "image": {"driver": "file", "filename": path},
        "discard": "unmap", "inject-error": [rule]});
    let mut graph = (work.graph)(debug, &dir);
    graph["node-name"] = json!("top");
    daemon.qmp.execute("blockdev-add", graph).ok()?;
    export(&mut daemon);
    let failures = work.steps.iter().map(|step| step.fails(&mut daemon)).collect();
    daemon.kill();
    Some(failures)
}

/// Each event happens, and what fails first after it is what fails first in QEMU.
#[track_caller]
fn same_first_failure(work: &Work, events: &[&str]) {
    for event in events {
        let first = |daemon| failures(daemon, work, event).map(|list| list.iter().position(|failed| *failed));
        let theirs = first(daemon().program(oracle()).nbd_unix().start());
        let ours = first(daemon().nbd_unix().start());
        assert_ne!(theirs, Some(None), "{event} does not happen in QEMU");
        assert_eq!(ours, theirs, "{event}: left is ours, right is QEMU's");
    }
}

/// Each event happens. QEMU writes tables back, or loads them, at another moment.
#[track_caller]
fn some_failure(work: &Work, events: &[&str]) {
    for event in events {
        let fails = |daemon| failures(daemon, work, event).is_none_or(|list| list.contains(&true));
        assert!(
            fails(daemon().program(oracle()).nbd_unix().start()),
            "{event} in QEMU"
        );
        assert!(fails(daemon().nbd_unix().start()), "{event}");
    }
}

#[test]
fn nothing_fails_without_its_event() {
    for work in [&PLAIN, &RAW, &ALIGNED, &MANY, &RESIZED, &PACKED, &BACKED, &SHARED] {
        let list = failures(daemon().nbd_unix().start(), work, "vmstate_load");
        let list = list.expect("the graph is opened");
        assert!(!list.contains(&true), "{list:?}");
    }
}

#[test]
fn a_formats_requests() {
    let events = [
        "reftable_load",
        "none",
        "l2_alloc_write",
        "refblock_load",
        "refblock_alloc",
        "cluster_alloc",
        "cluster_free",
        "read_aio",
        "write_aio",
        "pwritev",
        "pwritev_done",
        "flush_to_os",
        "flush_to_disk",
    ];
    same_first_failure(&PLAIN, &events);
    some_failure(&PLAIN, &["l1_update", "l2_update", "refblock_update_part"]);
}

#[test]
fn a_raw_images_requests() {
    let events = [
        "none",
        "read_aio",
        "write_aio",
        "pwritev",
        "pwritev_zero",
        "pwritev_done",
        "flush_to_os",
        "flush_to_disk",
    ];
    same_first_failure(&RAW, &events);
}

#[test]
fn parts_of_blocks() {
    let events = [
        "pwritev_rmw_head",
        "pwritev_rmw_after_head",
        "pwritev_rmw_tail",
        "pwritev_rmw_after_tail",
        "pwritev",
        "pwritev_done",
    ];
    same_first_failure(&ALIGNED, &events);
}

#[test]
fn growing_refcounts() {
    let events = [
        "reftable_grow",
        "refblock_alloc_hookup",
        "refblock_alloc_write",
        "refblock_alloc_write_blocks",
        "refblock_alloc_write_table",
        "refblock_alloc_switch_table",
        "cluster_free",
    ];
    same_first_failure(&MANY, &events);
}

#[test]
fn changes_of_length() {
    let events = [
        "l1_grow_alloc_table",
        "l1_grow_write_table",
        "l1_grow_activate_table",
        "l1_shrink_write_table",
        "l1_shrink_free_l2_clusters",
    ];
    same_first_failure(&RESIZED, &events);
}

#[test]
fn compressed_clusters() {
    let events = [
        "cluster_alloc",
        "cluster_alloc_bytes",
        "write_compressed",
        "read_compressed",
        "pwritev_done",
    ];
    same_first_failure(&PACKED, &events);
    some_failure(&PACKED, &["l2_update_compressed"]);
}

#[test]
fn what_is_below() {
    same_first_failure(
        &BACKED,
        &["read_backing_aio", "cow_read", "cow_write", "write_aio"],
    );
}

#[test]
fn shared_tables() {
    same_first_failure(&SHARED, &["l2_alloc_cow_read", "l2_alloc_write", "read_aio"]);
    some_failure(&SHARED, &["l2_load"]);
}

/// Nothing was written, so nothing is lost: the daemon ends well, and says nothing.
#[test]
fn a_read_that_failed_leaves_nothing_to_complain_of() {
    let builder = daemon();
    let image = builder.dir().join("disk");
    image::create(&image, "qcow2", "", 1 << 20);
    tool::qemu_io(
        &["-f", "qcow2", &image.display().to_string()],
        &["write -P 1 0 64k"],
    );
    let node = json!({"driver": "qcow2", "node-name": "disk", "file": {
        "driver": "blkdebug", "inject-error": [{"event": "l2_load", "errno": 5}],
        "image": {"driver": "file", "filename": image}}});
    let mut daemon = builder.nbd_unix().blockdev(node).export("disk").start();
    let mut session = daemon.session("disk");
    assert_eq!(session.refused(&Request::read(0, 4096)), 5);
    session.disconnect().expect("the daemon still listens");
    daemon.qmp.quit();
    daemon.expect_clean_exit();
    assert!(!daemon.log().contains("flush"), "{}", daemon.log());
}
