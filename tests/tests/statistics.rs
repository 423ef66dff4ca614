//! `query-blockstats` of nodes that clients use.

use millpond_tests::daemon::{Daemon, daemon};
use millpond_tests::{beside, image, tool};
use serde_json::{Value, json};

/// The entry of a node.
fn node(daemon: &mut Daemon, name: &str) -> Value {
    let nodes = daemon.qmp.ok("query-blockstats", json!({"query-nodes": true}));
    let nodes = nodes.as_array().expect("a list").clone();
    let found = nodes.into_iter().find(|node| node["node-name"] == name);
    found.unwrap_or_else(|| panic!("{name} has no statistics"))
}

/// A writable export of a raw image, whose file takes discards or does not.
fn serve(daemon: &mut Daemon, discard: &str) -> String {
    let path = daemon.path("disk.raw");
    std::fs::write(&path, vec![7; 4 << 20]).expect("there is room");
    let mut file = image::file("file", path.as_ref());
    file["discard"] = json!(discard);
    daemon.qmp.ok("blockdev-add", file);
    let mut disk = image::over("raw", "disk", "file");
    disk["discard"] = json!(discard);
    daemon.qmp.ok("blockdev-add", disk);
    let export = json!({"type": "nbd", "id": "e", "node-name": "disk", "writable": true});
    daemon.qmp.ok("block-export-add", export);
    daemon.uri("disk")
}

/// What QEMU's daemon counts at nodes too.
#[test]
fn discards_and_the_highest_write_are_counted_as_qemu_does() {
    for discard in ["unmap", "ignore"] {
        beside::beside_qemu(|mut daemon| {
            let uri = serve(&mut daemon, discard);
            let commands = [
                "write 64k 64k",
                "discard 1M 128k",
                "write -z 2M 64k",
                "discard 3M 64k",
            ];
            tool::qemu_io(&["-f", "raw", &uri], &commands);
            let (disk, file) = (node(&mut daemon, "disk"), node(&mut daemon, "file"));
            (
                disk["stats"]["wr_highest_offset"].clone(),
                file["stats"]["wr_highest_offset"].clone(),
                file["driver-specific"].clone(),
                disk["parent"]["driver-specific"].clone(),
            )
        });
    }
}

#[test]
fn what_clients_ask_is_shown_at_each_node_by_its_kind() {
    let mut daemon = daemon().nbd_unix().start();
    let uri = serve(&mut daemon, "unmap");
    assert!(node(&mut daemon, "disk")["stats"].get("idle_time_ns").is_none());
    // Without the client's cache each command is a request.
    let commands = [
        "read 0 4k",
        "read 1M 8k",
        "write 64k 64k",
        "write -z 2M 32k",
        "discard 3M 128k",
        "flush",
    ];
    tool::qemu_io(&["-f", "raw", "-t", "none", &uri], &commands);
    for name in ["disk", "file"] {
        let stats = node(&mut daemon, name)["stats"].clone();
        let shown = |key: &str| {
            stats[key]
                .as_u64()
                .unwrap_or_else(|| panic!("{key} of {name}: {stats}"))
        };
        // The client may read a block more as it opens its disk.
        assert!(
            shown("rd_operations") >= 2 && shown("rd_bytes") >= 12 << 10,
            "{stats}"
        );
        assert_eq!((shown("wr_operations"), shown("wr_bytes")), (2, 96 << 10));
        assert_eq!((shown("unmap_operations"), shown("unmap_bytes")), (1, 128 << 10));
        assert!(shown("flush_operations") >= 1);
        // A file is read by the kernel: that takes time, and so does a flush.
        for kind in ["rd", "wr", "flush", "unmap"] {
            assert!(shown(&format!("{kind}_total_time_ns")) > 0, "{kind}: {stats}");
            assert_eq!(shown(&format!("failed_{kind}_operations")), 0);
        }
        assert!(shown("idle_time_ns") > 0);
        assert_eq!(
            (&stats["account_failed"], &stats["account_invalid"]),
            (&json!(true), &json!(true))
        );
        for absent in ["rd", "wr", "flush"] {
            assert!(stats.get(format!("{absent}_latency_histogram")).is_none());
        }
    }
}

#[test]
fn histograms_are_shown_where_they_are_asked_for() {
    let mut daemon = daemon().nbd_unix().start();
    let uri = serve(&mut daemon, "unmap");
    let set = "x-millpond-latency-histogram-set";
    let boundaries =
        json!({"node-name": "file", "boundaries": [10, 3_600_000_000_000_u64], "boundaries-flush": []});
    daemon.qmp.ok(set, boundaries);
    tool::qemu_io(
        &["-f", "raw", "-t", "none", &uri],
        &["write 0 4k", "write 8k 4k", "flush"],
    );
    let stats = node(&mut daemon, "file")["stats"].clone();
    let writes = &stats["wr_latency_histogram"];
    assert_eq!(writes["boundaries"], json!([10, 3_600_000_000_000_u64]));
    assert_eq!(writes["bins"], json!([0, 2, 0]));
    assert_eq!(stats["flush_latency_histogram"]["boundaries"], json!([]));
    assert_eq!(
        stats["flush_latency_histogram"]["bins"][0],
        stats["flush_operations"]
    );
    assert!(
        node(&mut daemon, "disk")["stats"]
            .get("wr_latency_histogram")
            .is_none()
    );
    daemon.qmp.ok(set, json!({"node-name": "file"}));
    assert!(
        node(&mut daemon, "file")["stats"]
            .get("wr_latency_histogram")
            .is_none()
    );

    let refused = daemon
        .qmp
        .refused(set, json!({"node-name": "file", "boundaries-read": [5, 5]}));
    let text = "The boundaries of a latency histogram ascend from above 0: 5 follows 5";
    assert_eq!(refused.desc, text);
    let many: Vec<u64> = (1..=257).collect();
    let refused = daemon
        .qmp
        .refused(set, json!({"node-name": "file", "boundaries": many}));
    assert_eq!(refused.desc, "A latency histogram has at most 256 boundaries");
    let refused = daemon
        .qmp
        .refused(set, json!({"node-name": "none", "boundaries": [1]}));
    assert_eq!(refused.desc, "Failed to find node with node-name='none'");
    for wrong in [json!([0]), json!(["1"]), json!([1.5])] {
        daemon
            .qmp
            .refused(set, json!({"node-name": "file", "boundaries": wrong}));
    }
}
