//! Write thresholds beside QEMU's daemon: which requests pass them, by how much, and that each is told once.

use millpond_tests::beside::beside_qemu;
use millpond_tests::daemon::{Daemon, daemon};
use millpond_tests::image;
use millpond_tests::nbd::{Request, Session};
use serde_json::{Value, json};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// The nodes of these tests: two chains, both exported.
const NODES: [&str; 5] = ["raw", "throttled", "rawfile", "disk", "file"];

/// Opens a raw image below a filter, and a qcow2 image. `discard` is the option of all nodes.
fn open(daemon: &mut Daemon, discard: &str) {
    let group = json!({"qom-type": "throttle-group", "id": "group"});
    daemon.qmp.ok("object-add", group);
    let dir = daemon.dir().to_owned();
    image::create(&dir.join("raw"), "raw", "", 8 * MIB);
    image::create(&dir.join("qcow2"), "qcow2", "", 8 * MIB);
    let mut throttled = image::over("throttle", "throttled", "rawfile");
    throttled["throttle-group"] = json!("group");
    for mut options in [
        image::file("rawfile", &dir.join("raw")),
        throttled,
        image::over("raw", "raw", "throttled"),
        image::file("file", &dir.join("qcow2")),
        image::over("qcow2", "disk", "file"),
    ] {
        options["discard"] = json!(discard);
        daemon.qmp.ok("blockdev-add", options);
    }
    for node in ["raw", "disk"] {
        let export = json!({"type": "nbd", "id": node, "node-name": node, "writable": true});
        daemon.qmp.ok("block-export-add", export);
    }
}

/// The threshold that each node has now.
fn thresholds(daemon: &mut Daemon) -> Vec<i64> {
    let nodes = daemon.qmp.ok("query-named-block-nodes", json!({"flat": true}));
    let nodes = nodes.as_array().expect("a list of nodes");
    let of = |name: &&str| nodes.iter().find(|node| node["node-name"] == **name);
    let of = |name| {
        of(name).expect("the node is there")["write_threshold"]
            .as_i64()
            .expect("a number")
    };
    NODES.iter().map(of).collect()
}

/// Sets the threshold of all nodes, makes a request, and answers what was told of it, by node: null for nothing.
fn passed(daemon: &mut Daemon, threshold: u64, request: impl FnOnce(&mut Daemon)) -> Vec<Value> {
    for node in NODES {
        let arguments = json!({"node-name": node, "write-threshold": threshold});
        daemon.qmp.ok("block-set-write-threshold", arguments);
    }
    request(daemon);
    let left = thresholds(daemon);
    let mut told = Vec::new();
    for (node, left) in NODES.iter().zip(left) {
        told.push(match left {
            0 => daemon
                .qmp
                .wait_event_where("BLOCK_WRITE_THRESHOLD", |data| data["node-name"] == *node),
            left => json!(left),
        });
    }
    told
}

fn zero(session: &mut Session, offset: u64, length: u64) {
    session.ok(&Request::zero(offset, length));
}

fn trim(session: &mut Session, offset: u64, length: u64) {
    session.ok(&Request::trim(offset, length));
}

/// What becomes of requests at an image whose nodes pass discards on, or do not.
fn requests(daemon: &mut Daemon, export: &str) -> Vec<Vec<Value>> {
    let mut session: Session = daemon.session(export);
    let bytes = vec![7; 300 * 1024];
    let end = 300 * KIB;
    let mut seen = Vec::new();
    for threshold in [end, end - 1, 4 * KIB, MIB] {
        seen.push(passed(daemon, threshold, |_| session.write(0, &bytes)));
        seen.push(passed(daemon, threshold, |_| zero(&mut session, 0, end)));
        seen.push(passed(daemon, threshold, |_| trim(&mut session, 0, end)));
        seen.push(passed(daemon, threshold, |_| session.flush()));
        seen.push(passed(daemon, threshold, |_| drop(session.read(0, end))));
    }
    // Within a block, and within a cluster.
    seen.push(passed(daemon, end, |_| session.write(end - 100, &bytes[..101])));
    seen.push(passed(daemon, end, |_| zero(&mut session, end - 100, 101)));
    seen.push(passed(daemon, end, |_| trim(&mut session, end - 100, 101)));
    seen
}

#[test]
fn writes_zero_writes_and_discards_pass_a_threshold_where_qemus_do() {
    for discard in ["unmap", "ignore"] {
        beside_qemu(|mut daemon| {
            open(&mut daemon, discard);
            requests(&mut daemon, "raw")
        });
    }
}

#[test]
fn a_format_counts_what_its_users_write_and_its_file_what_the_format_does() {
    beside_qemu(|mut daemon| {
        open(&mut daemon, "unmap");
        let requests = requests(&mut daemon, "disk").into_iter();
        // Where in its file a format puts what, and in which order, is its own matter.
        let of_format = requests.map(|told| told.into_iter().take(4).collect::<Vec<_>>());
        of_format.collect::<Vec<_>>()
    });
    let mut daemon = daemon().nbd_unix().start();
    open(&mut daemon, "unmap");
    let mut session = daemon.session("disk");
    let told = passed(&mut daemon, 4 * MIB, |_| session.write(0, &[1; 4096]));
    assert_eq!(told, [4 * MIB; 5], "the image's file is short still");
    let bytes = vec![2; 5 << 20];
    let told = passed(&mut daemon, 4 * MIB, |_| session.write(MIB, &bytes));
    assert_eq!(told[3]["amount-exceeded"], 2 * MIB);
    let beyond = told[4]["amount-exceeded"]
        .as_u64()
        .expect("the file has passed it too");
    assert!(
        (1..=2 * MIB).contains(&beyond),
        "the data is up to there: {beyond}"
    );
}

#[test]
fn a_threshold_is_told_once_and_can_be_changed_and_taken_back() {
    beside_qemu(|mut daemon| {
        open(&mut daemon, "unmap");
        let mut session = daemon.session("raw");
        let mut seen = Vec::new();
        let mut set = |daemon: &mut Daemon, threshold: Value| {
            let arguments = json!({"node-name": "raw", "write-threshold": threshold});
            match daemon.qmp.execute("block-set-write-threshold", arguments) {
                Ok(value) => seen.push(value),
                Err(error) => seen.push(json!([error.class, error.desc])),
            }
            seen.push(json!(thresholds(daemon)));
        };
        for threshold in [
            json!(4096),
            json!(MIB),
            json!(0),
            json!("x"),
            json!(u64::MAX >> 1),
        ] {
            set(&mut daemon, threshold);
        }
        set(&mut daemon, json!(0));
        session.write(4 * MIB, &[1; 4096]);
        set(&mut daemon, json!(MIB));
        for offset in [4 * MIB, 5 * MIB, 6 * MIB] {
            session.write(offset, &[1; 4096]);
        }
        set(&mut daemon, json!(6 * MIB));
        session.write(6 * MIB, &[1; 512]);
        for (threshold, beyond) in [(MIB, 3 * MIB + 4096), (6 * MIB, 512)] {
            let told = daemon.qmp.wait_event("BLOCK_WRITE_THRESHOLD");
            let expected =
                json!({"node-name": "raw", "amount-exceeded": beyond, "write-threshold": threshold});
            assert_eq!(told, expected);
        }
        seen.push(json!(thresholds(&mut daemon)));
        let nobody = json!({"node-name": "nobody", "write-threshold": 1});
        let refused = daemon.qmp.refused("block-set-write-threshold", nobody);
        seen.push(json!([refused.class, refused.desc]));
        assert_eq!(
            daemon.qmp.take_events(),
            Vec::<Value>::new(),
            "nothing is told twice"
        );
        seen
    });
}

#[test]
fn a_threshold_goes_along_with_its_node_to_another_iothread() {
    let mut daemon = daemon().nbd_unix().start();
    open(&mut daemon, "unmap");
    let iothread = json!({"qom-type": "iothread", "id": "other"});
    daemon.qmp.ok("object-add", iothread);
    let mut session = daemon.session("raw");
    let told = passed(&mut daemon, 2 * MIB, |daemon| {
        let there = json!({"node-name": "raw", "iothread": "other", "force": true});
        daemon.qmp.ok("x-blockdev-set-iothread", there);
        session.write(2 * MIB, &[1; 512]);
    });
    let of = |node| json!({"node-name": node, "amount-exceeded": 512, "write-threshold": 2 * MIB});
    let expected = [
        of("raw"),
        of("throttled"),
        of("rawfile"),
        json!(2 * MIB),
        json!(2 * MIB),
    ];
    assert_eq!(told, expected);
}
