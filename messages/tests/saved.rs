//! Saved state: records come back as they were, their bytes stay what they are, and what is no record is refused.
//!
//! The files in `tests/saved` are named by kind and version. Where a saved type has changed, its kind needs the next version
//! and a new file: `MILLPOND_GOLDEN=write` writes it.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::fmt::{Debug, Write};
use std::path::PathBuf;

use millpond_messages::graph::{Options, RootUser};
use millpond_messages::saved::*;
use millpond_messages::{
    BitmapId, ChildSlot, DiscardMode, EdgeId, IoThreadId, LatencyHistogram, NodeId, NodeStatistics,
    OpBlocker, OpenFlags, OperationCount, Permissions, Role, RootId, Token,
};
use proptest::prelude::*;
use serde::{Deserialize, Serialize};

fn options(json: serde_json::Value) -> SavedOptions {
    let options: Options = json.as_object().unwrap().clone();
    let saved = SavedOptions::of(&options);
    assert_eq!(saved.options().unwrap(), options);
    saved
}

/// A driver's state, as a driver would have it.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Sample {
    number: u64,
}

impl Saved for Sample {
    const KIND: &'static str = "driver/sample";
    const VERSION: u32 = 7;
}

fn statistics() -> NodeStatistics {
    let count = |n| OperationCount {
        operations: n,
        bytes: n << 9,
        failed: n + 1,
        invalid: n + 2,
        total_time_ns: n + 3,
    };
    let mut statistics = NodeStatistics {
        read: count(1),
        write: count(2),
        write_zeroes: count(3),
        discard: count(4),
        flush: count(5),
        truncate: count(6),
        block_status: count(7),
        highest_write: 1 << 20,
        idle_ns: Some(9),
        driver_discard: count(8),
        ..NodeStatistics::default()
    };
    let mut histogram = LatencyHistogram::new(vec![10, 100]).unwrap();
    histogram.count(50);
    statistics.histograms.write = Some(histogram);
    statistics
}

fn node() -> SavedNode {
    SavedNode {
        id: NodeId(1),
        name: "disk".into(),
        driver: "qcow2".into(),
        iothread: IoThreadId(1),
        options: options(serde_json::json!({"lazy-refcounts": true, "cache-size": 1_048_576})),
        common: SavedCommon {
            read_only: false,
            auto_read_only: true,
            direct: true,
            no_flush: false,
            force_share: false,
            discard: DiscardMode::Unmap,
            detect_zeroes: SavedZeroDetection::On,
            inactive: false,
            copy_on_read: true,
            extra: OpenFlags::NO_IO,
        },
        given: SavedGiven {
            read_only: Some(false),
            detect_zeroes: Some(SavedZeroDetection::On),
            ..SavedGiven::default()
        },
        inherits_from: Some(NodeId(9)),
        flags: OpenFlags::RDWR | OpenFlags::NOCACHE,
        children: vec![(ChildSlot::FILE, EdgeId(3))],
        parents: vec![EdgeId(5)],
        next_numbered: 2,
        taken: Permissions::WRITE | Permissions::CONSISTENT_READ,
        shared: Permissions::all(),
        owned: true,
        implicit_backing: Some(NodeId(8)),
        bitmaps: vec![SavedBitmap {
            id: BitmapId(7),
            name: "since-monday".into(),
            granularity: 65_536,
            is_recording: true,
            is_persistent: true,
            is_inconsistent: false,
            is_read_only: false,
            holder: Some(RootId(4)),
        }],
        cell: Some(SavedCell {
            flags: OpenFlags::RDWR,
            detect_zeroes: SavedZeroDetection::Unmap,
            probed: true,
            size: 1 << 30,
            copy_on_read: 1,
            unflushed: true,
            write_threshold: 4096,
            sections: vec![Token(4)],
            bitmaps: vec![SavedBits {
                bitmap: BitmapId(7),
                granularity: 65_536,
                is_recording: true,
                is_lost: false,
                len: 1 << 30,
                dirty: SavedChunks(vec![(0, 65_536), (131_072, 65_536)]),
            }],
            statistics: statistics(),
            driver: Some(DriverRecord::of(&Sample { number: 600 }).unwrap()),
        }),
    }
}

fn graph() -> SavedGraph {
    let edge = SavedEdge {
        id: EdgeId(3),
        parent: SavedParent::Node(NodeId(1), ChildSlot::FILE),
        child: NodeId(2),
        since: 3,
        name: "file".into(),
        role: Role::IMAGE,
        taken: Permissions::WRITE,
        shared: Permissions::all(),
        frozen: Some(Token(6)),
        suspended: false,
    };
    let rooted = SavedEdge {
        id: EdgeId(5),
        parent: SavedParent::Root(RootId(4)),
        child: NodeId(1),
        name: "root".into(),
        ..edge.clone()
    };
    SavedGraph {
        iothreads: vec![SavedIothread {
            number: IoThreadId(1),
            id: Some("io0".into()),
            poll_max_ns: 32_768,
            poll_grow: 1,
            poll_shrink: 2,
            aio_max_batch: 3,
            thread_pool_min: 4,
            thread_pool_max: 64,
            cpu_affinity: vec![0, 1],
        }],
        main_iothread: IoThreadId(0),
        nodes: vec![node()],
        edges: vec![edge, rooted],
        roots: vec![SavedRoot {
            id: RootId(4),
            user: RootUser::Export("e".into()),
            edge: EdgeId(5),
            wants: Some(IoThreadId(1)),
            pinned: true,
            has_cell: true,
            allows_inactive: false,
            suspended: Some((Permissions::WRITE, Permissions::empty())),
        }],
        blockers: vec![SavedBlocker {
            token: Token(7),
            reason: "block device is in use by block job: mirror".into(),
            root: Some(RootId(4)),
            nodes: vec![(NodeId(1), vec![OpBlocker::Resize, OpBlocker::ALL[0]])],
        }],
        frozen: vec![SavedFreeze {
            token: Token(6),
            root: None,
            node: Some(NodeId(1)),
            edges: vec![EdgeId(3)],
        }],
        sections: vec![
            SavedSection {
                token: Token(4),
                cover: SavedSectionCover::Subtree(vec![NodeId(1)]),
                user: "handover".into(),
            },
            SavedSection {
                token: Token(5),
                cover: SavedSectionCover::All,
                user: "handover".into(),
            },
        ],
        last_id: 9,
        last_name: 2,
        last_section: 5,
    }
}

fn connection(descriptor: u32) -> SavedConnection {
    SavedConnection {
        id: 3,
        descriptor,
        peer: "127.0.0.1:4711".into(),
        replies: SavedReplies::Extended,
        base_allocation: true,
        allocation_depth: false,
        dirty_bitmaps: 0b101,
        standing: SavedStanding::Between {
            received: vec![0x21, 0xe4],
        },
        shutting_down: false,
    }
}

fn daemon() -> SavedDaemon {
    let rate = SavedRate {
        average: 1000,
        max: 2000,
        length: 3,
        level: 1 << 70,
        burst: 5,
    };
    let inside = SavedConnection {
        standing: SavedStanding::Inside,
        shutting_down: true,
        ..connection(2)
    };
    SavedDaemon {
        graph: graph(),
        objects: vec![SavedObject {
            id: "io0".into(),
            kind: "iothread".into(),
            options: options(serde_json::json!({"poll-max-ns": 32768})),
        }],
        nbd_server: Some(SavedNbdServer {
            options: options(serde_json::json!({"addr": {"type": "unix", "path": "/run/nbd"}})),
            descriptors: vec![0],
        }),
        throttle_groups: vec![SavedThrottleGroup {
            name: "limits".into(),
            iops_size: 4096,
            rates: [rate; 6],
        }],
        exports: vec![
            SavedExport {
                id: "e".into(),
                node_name: "disk".into(),
                options: options(serde_json::json!({"name": "disk", "writable": true})),
                root: RootId(4),
                iothreads: vec![IoThreadId(1)],
                shutting_down: false,
                kind: SavedExportKind::Nbd(SavedNbdExport {
                    name: "disk".into(),
                    size: 1 << 30,
                    flags: 0x1ed,
                    request_alignment: 512,
                    max_transfer: 1 << 25,
                    bitmaps: vec![(NodeId(1), BitmapId(7))],
                    connections: vec![connection(1), inside],
                }),
            },
            SavedExport {
                id: "f".into(),
                node_name: "disk".into(),
                options: options(serde_json::json!({"mountpoint": "disk"})),
                root: RootId(5),
                iothreads: Vec::new(),
                shutting_down: true,
                kind: SavedExportKind::Fuse(SavedFuseExport {
                    mountpoint: "/run/disk".into(),
                    descriptor: Some(3),
                    device: 39,
                    allow_other: true,
                    mode: 0o100_600,
                    uid: 1,
                    gid: 2,
                    agreed: Some(SavedFuseAgreement {
                        max_write: 1 << 20,
                        direct: true,
                    }),
                    in_flight: 1,
                }),
            },
            SavedExport {
                id: "v".into(),
                node_name: "disk".into(),
                options: options(serde_json::json!({"name": "disk"})),
                root: RootId(6),
                iothreads: Vec::new(),
                shutting_down: false,
                kind: SavedExportKind::VduseBlk(SavedVduseExport {
                    name: "disk".into(),
                    descriptor: Some(4),
                    in_flight: "/tmp/vduse-blk-disk".into(),
                }),
            },
        ],
        jobs: vec![SavedJob {
            id: "job0".into(),
            kind: "create".into(),
            status: "running".into(),
            options: options(serde_json::json!({})),
            current_progress: 1,
            total_progress: 2,
            error: Some("no".into()),
            speed: 512,
            manual_finalize: true,
            manual_dismiss: false,
            user_paused: true,
            io_status: "nospace".into(),
            retry: Some(SavedRetry {
                most: 60,
                next: 2,
                done: 1,
            }),
            wishes: SavedWishes {
                cancel: false,
                complete: true,
                stop: false,
            },
            group: 3,
            step: SavedStep::Preparing,
            fate: SavedFate::Final,
            roots: vec![RootId(4)],
            work: SavedWork {
                filter: Some("filter".into()),
                made_writable: Some("base".into()),
                copy_mode: Some("background".into()),
                sync: Some("full".into()),
                target_was_zero: true,
                passed_over: 5,
            },
        }],
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.chunks(32).fold(String::new(), |mut text, line| {
        line.iter().for_each(|byte| write!(text, "{byte:02x}").unwrap());
        text + "\n"
    })
}

fn bytes_of(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex
        .chars()
        .filter_map(|digit| digit.to_digit(16))
        .map(|digit| digit as u8)
        .collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

/// The record of a sample is the one in the tree, and each leads to the other.
fn check_golden<T: Saved + PartialEq + Debug>(sample: &T) {
    let record = save(sample).unwrap();
    let name = format!("{}.{}.hex", T::KIND, T::VERSION);
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/saved")
        .join(&name);
    if std::env::var_os("MILLPOND_GOLDEN").is_some_and(|wish| wish == "write") {
        std::fs::write(&path, hex(&record)).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_else(|error| {
        panic!("{name}: {error}; a new version needs a new file: MILLPOND_GOLDEN=write writes it")
    });
    let expected = bytes_of(&golden);
    assert!(
        hex(&record) == golden,
        "the bytes of '{}' are not those of version {} any more: raise its VERSION, and keep the old file",
        T::KIND,
        T::VERSION
    );
    let loaded: T = load(&expected).unwrap();
    assert_eq!(&loaded, sample);
    assert_eq!(
        save(&loaded).unwrap(),
        record,
        "what was read is written as it was"
    );
}

#[test]
fn records_have_the_bytes_of_their_version() {
    check_golden(&graph());
    check_golden(&daemon());
}

#[test]
fn each_version_has_its_file() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/saved");
    let mut seen = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let mut parts = name.split('.');
        let (kind, version) = (
            parts.next().unwrap(),
            parts.next().unwrap().parse::<u32>().unwrap(),
        );
        let known = match kind {
            SavedGraph::KIND => SavedGraph::VERSION,
            SavedDaemon::KIND => SavedDaemon::VERSION,
            other => panic!("nothing has the kind '{other}'"),
        };
        assert!(
            (1..=known).contains(&version),
            "{name} is of a version that is not written yet"
        );
        seen += 1;
    }
    assert_eq!(
        seen,
        SavedGraph::VERSION + SavedDaemon::VERSION,
        "one file for each version"
    );
}

#[test]
fn what_is_no_record_of_that_kind_and_version_is_refused() {
    let record = save(&Sample { number: 600 }).unwrap();
    let text = |bytes: &[u8]| load::<Sample>(bytes).unwrap_err().to_string();
    assert_eq!(text(b"something else"), "this is no saved state of millpond's");
    for cut in 8..record.len() {
        assert!(
            matches!(load::<Sample>(&record[..cut]), Err(SavedError::Short)),
            "{cut}"
        );
    }
    let mut newer = record.clone();
    newer[8 + 1 + 13] = 8;
    assert_eq!(
        text(&newer),
        "saved state of kind 'driver/sample' has version 8; this program reads version 7 only"
    );
    assert_eq!(
        text(&save(&graph()).unwrap()),
        "saved state of kind 'graph' cannot be used as 'driver/sample'"
    );
    let longer = [record.as_slice(), b"xy"].concat();
    assert_eq!(text(&longer), "2 bytes follow the saved state");
    let mut huge = record.clone();
    huge[8 + 1 + 13 + 4..8 + 1 + 13 + 8].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(matches!(load::<Sample>(&huge), Err(SavedError::TooLong(_))));
}

#[test]
fn a_length_that_lies_takes_no_memory() {
    // A list of nodes that claims 2^60 of them.
    let record = save(&graph()).unwrap();
    let start = 8 + 1 + 5 + 4 + 4;
    let mut lying = record[..start].to_vec();
    lying.push(253);
    lying.extend_from_slice(&(1_u64 << 60).to_le_bytes());
    let length = (lying.len() - start) as u32;
    lying[start - 4..start].copy_from_slice(&length.to_le_bytes());
    assert!(matches!(
        load::<SavedGraph>(&lying),
        Err(SavedError::Decode { .. })
    ));
}

proptest! {
    #[test]
    fn damage_is_an_error_or_another_value_and_never_a_panic(at in 0_usize..2000, flip in 1_u8..) {
        let mut record = save(&daemon()).unwrap();
        let at = at % record.len();
        record[at] ^= flip;
        if let Ok(loaded) = load::<SavedDaemon>(&record) {
            let again = load::<SavedDaemon>(&save(&loaded).unwrap()).unwrap();
            prop_assert_eq!(again, loaded);
        }
    }
}
