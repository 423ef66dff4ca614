//! Exports whose node moves between iothreads under their clients, and iothreads that come and go.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use millpond_tests::daemon::{Builder, daemon, daemon_in, scratch};
use millpond_tests::image;
use millpond_tests::model::Model;
use millpond_tests::nbd::Connect;
use millpond_tests::qmp::Qmp;
use millpond_tests::tool::qemu_io;
use millpond_tests::workload::{Load, Mix, seeded};
use serde_json::{Value, json};

const SIZE: u64 = 1 << 20;

/// A daemon with a disk of two nodes, `disk` over `file`.
fn with_disk() -> Builder {
    let daemon = daemon();
    let path = daemon.dir().join("disk.raw");
    let file = std::fs::File::create(&path).expect("a file");
    file.set_len(SIZE).expect("room");
    daemon
        .monitors(2)
        .nbd_unix()
        .blockdev(json!({ "driver": "file", "node-name": "file", "filename": path }))
        .blockdev(json!({ "driver": "raw", "node-name": "disk", "file": "file" }))
}

fn set_iothread(iothread: Value, force: bool) -> Value {
    json!({ "node-name": "disk", "iothread": iothread, "force": force })
}

/// The iothread that a node lives in, as the drawn graph tells.
fn place(qmp: &mut Qmp, node: &str) -> String {
    let dot = qmp.ok("x-millpond-query-dot", json!({}));
    let label = format!("label=\"{node}\\n");
    let mut lines = dot.as_str().expect("text").lines();
    let line = lines
        .find(|line| line.contains(&label))
        .expect("the node is drawn");
    let (_, place) = line.split_once("iothread ").expect("its iothread");
    place.trim_end_matches("\"];").to_owned()
}

#[test]
fn connections_follow_their_export_under_load_and_every_byte_is_as_written() {
    let daemon = with_disk().export("disk").start();
    let mut qmp = daemon.monitor(1);
    // One that says nothing while its iothreads go away under it.
    let mut silent = daemon.session("disk");
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let session = Connect::default().open(&daemon.address(), "disk");
    let mut load = Load::new(
        session,
        Model::new(SIZE),
        0..SIZE,
        seeded("moves").fork(),
        Mix::NO_TRIM,
        32,
    );
    let client = thread::spawn(move || {
        while !stopped.load(Ordering::Relaxed) {
            load.step().expect("the daemon answers every request");
        }
        load
    });
    for round in 0..30 {
        let id = format!("io{round}");
        qmp.ok("object-add", json!({ "qom-type": "iothread", "id": id }));
        qmp.ok("x-blockdev-set-iothread", set_iothread(json!(id), true));
        assert_eq!(
            (place(&mut qmp, "disk"), place(&mut qmp, "file")),
            (id.clone(), id.clone())
        );
        // The file alone goes ahead, and the rest follows.
        qmp.ok(
            "x-millpond-move-node",
            json!({ "node-name": "file", "iothread": null }),
        );
        assert_eq!(
            (place(&mut qmp, "disk"), place(&mut qmp, "file")),
            (id.clone(), "main".to_owned())
        );
        let error = qmp.refused("object-del", json!({ "id": id }));
        assert_eq!(error.desc, format!("object '{id}' is in use, can not be deleted"));
        qmp.ok("x-blockdev-set-iothread", set_iothread(Value::Null, true));
        qmp.ok("object-del", json!({ "id": id }));
        assert!(!client.is_finished(), "the client has found a fault");
    }
    stop.store(true, Ordering::Relaxed);
    let load = client.join().expect("the client ends well");
    assert!(load.completed() > 0);
    let (model, _session) = load.finish().expect("the daemon answers every request");
    assert_eq!(
        silent.read(0, SIZE),
        model.range(0, SIZE),
        "the silent client has followed too"
    );
    daemon.quit();
}

#[test]
fn moves_that_an_export_does_not_allow_are_refused_with_qemus_words() {
    let daemon = with_disk().option("--object", "iothread,id=io0").start();
    let mut qmp = daemon.monitor(1);
    let fixed = |fixed: bool| {
        json!({
            "type": "nbd", "id": "e", "node-name": "disk", "iothread": "io0", "fixed-iothread": fixed,
        })
    };
    let in_use = "Node disk is associated with a BlockBackend and could be in use (use force=true to override this check)";
    let active = "Cannot change iothread of active block backend";
    for is_fixed in [false, true] {
        qmp.ok("block-export-add", fixed(is_fixed));
        assert_eq!(place(&mut qmp, "disk"), "io0");
        let mut session = daemon.session("disk");
        session.read(0, 4096);
        let error = qmp.refused("x-blockdev-set-iothread", set_iothread(Value::Null, false));
        assert_eq!(error.desc, in_use);
        let dry = json!({ "node-name": "disk", "iothread": null, "joined": true, "dry-run": true });
        if is_fixed {
            let error = qmp.refused("x-blockdev-set-iothread", set_iothread(Value::Null, true));
            assert_eq!(error.desc, active);
            assert_eq!(qmp.refused("x-millpond-move-node", dry).desc, active);
            assert_eq!(place(&mut qmp, "disk"), "io0");
        } else {
            qmp.ok("x-millpond-move-node", dry);
            assert_eq!(place(&mut qmp, "disk"), "io0");
            qmp.ok("x-blockdev-set-iothread", set_iothread(Value::Null, true));
            assert_eq!(place(&mut qmp, "disk"), "main");
        }
        session.read(0, 4096);
        session.disconnect().expect("the daemon still listens");
        qmp.ok("block-export-del", json!({ "id": "e", "mode": "hard" }));
        qmp.wait_event("BLOCK_EXPORT_DELETED");
    }
    // The export was why the node was there: without it the iothread is free, as it is in QEMU.
    assert_eq!(place(&mut qmp, "disk"), "main");
    qmp.ok("object-del", json!({ "id": "io0" }));
    let refused = qmp.refused("block-export-add", fixed(false));
    assert_eq!(refused.desc, "iothread \"io0\" not found");
    daemon.quit();
}

#[test]
fn iothreads_tell_what_they_have_done_and_run_where_they_are_told() {
    let daemon = with_disk()
        .option("--object", "iothread,id=io0,x-millpond-cpu-affinity.0=0")
        .export("disk")
        .start();
    let mut qmp = daemon.monitor(1);
    qmp.ok("x-blockdev-set-iothread", set_iothread(json!("io0"), true));
    let mut session = daemon.session("disk");
    let requests = |qmp: &mut Qmp| {
        let reports = qmp.ok("x-millpond-query-iothreads", json!({}));
        let reports = reports.as_array().expect("a list").clone();
        assert_eq!(reports.len(), 2);
        assert_eq!(
            (&reports[0]["id"], &reports[1]["id"]),
            (&json!("main"), &json!("io0"))
        );
        assert_eq!(
            (&reports[0]["nodes"], &reports[1]["nodes"]),
            (&json!(0), &json!(2))
        );
        assert_eq!(reports[1]["cpu-affinity"], json!([0]));
        reports[1]["requests"].as_u64().expect("a number")
    };
    let before = requests(&mut qmp);
    for _ in 0..10 {
        session.read(0, 4096);
    }
    assert_eq!(requests(&mut qmp) - before, 10);
    let property = json!({ "path": "io0", "property": "x-millpond-cpu-affinity" });
    assert_eq!(qmp.ok("qom-get", property), json!([0]));
    let error = qmp.refused(
        "object-add",
        json!({ "qom-type": "iothread", "id": "io1", "x-millpond-cpu-affinity": [1023] }),
    );
    let text = "Could not start iothread 'io1': there is no processor 1023 that it may run on";
    assert_eq!(error.desc, text);
    daemon.quit();
}

/// Where an export must have its node, an overlay that was opened elsewhere comes to it; two that are held in different
/// places are joined all the same, and only an explicit move of one of them is refused.
#[test]
fn nodes_follow_those_that_are_held_in_place() {
    let dir = scratch();
    let builder = daemon_in(dir.path());
    let (overlay, base) = (dir.path().join("overlay"), dir.path().join("base"));
    image::create(&overlay, "qcow2", "", SIZE);
    image::create(&base, "qcow2", "", SIZE);
    let daemon = builder
        .monitors(2)
        .nbd_unix()
        .option("--object", "iothread,id=io0")
        .option("--object", "iothread,id=io1")
        .blockdev(json!({"driver": "null-co", "node-name": "n", "size": SIZE, "read-zeroes": true}))
        .blockdev(image::file("file", &overlay))
        .blockdev(json!({"driver": "qcow2", "node-name": "overlay", "file": "file", "backing": null}))
        .blockdev(image::file("base-file", &base))
        .blockdev(json!({"driver": "qcow2", "node-name": "base", "file": "base-file", "backing": null}))
        .start();
    let mut qmp = daemon.monitor(1);
    let export = |node: &str, iothread: &str| {
        json!({"type": "nbd", "id": node, "node-name": node, "writable": true, "iothread": iothread,
            "fixed-iothread": true})
    };
    qmp.ok("block-export-add", export("n", "io0"));
    assert_eq!(
        (place(&mut qmp, "n"), place(&mut qmp, "overlay")),
        ("io0".into(), "main".into())
    );
    let mut session = daemon.session("n");
    qmp.ok("blockdev-snapshot", json!({"node": "n", "overlay": "overlay"}));
    for node in ["n", "overlay", "file"] {
        assert_eq!(place(&mut qmp, node), "io0", "{node}");
    }
    session.write(4096, &[7; 4096]);
    let move_to_main = json!({"node-name": "overlay", "iothread": null, "force": true});
    let error = qmp.refused("x-blockdev-set-iothread", move_to_main);
    assert_eq!(error.desc, "Cannot change iothread of active block backend");
    // The other side is held as well: the edge between them crosses iothreads.
    qmp.ok(
        "block-export-add",
        json!({"type": "nbd", "id": "base", "node-name": "base", "iothread": "io1", "fixed-iothread": true}),
    );
    let reopen = json!({"options": [
        {"driver": "qcow2", "node-name": "overlay", "file": "file", "backing": "base"}]});
    qmp.ok("blockdev-reopen", reopen);
    assert_eq!(
        (place(&mut qmp, "overlay"), place(&mut qmp, "base")),
        ("io0".into(), "io1".into())
    );
    assert_eq!(session.read(4096, 4096), vec![7; 4096]);
    assert_eq!(session.read(65536, 4096), vec![0; 4096]);
    session.write(65536, &[8; 512]);
    assert_eq!(session.read(65536, 1024), [vec![8; 512], vec![0; 512]].concat());
    daemon.quit();
    let overlay = overlay.display().to_string();
    qemu_io(
        &["-f", "qcow2", &overlay],
        &["read -P 7 4k 4k", "read -P 8 64k 512"],
    );
    image::assert_clean(overlay.as_ref());
}

/// Requests do not pass from thread to thread after a snapshot; whoever is held elsewhere stays there.
#[test]
fn an_overlay_goes_to_where_its_node_is() {
    for snapshot in ["blockdev-snapshot", "blockdev-snapshot-sync"] {
        let mut daemon = with_disk().export("disk").start();
        let path = daemon.dir().join("overlay.qcow2");
        daemon
            .qmp
            .ok("object-add", json!({"qom-type": "iothread", "id": "io"}));
        daemon
            .qmp
            .ok("x-blockdev-set-iothread", set_iothread(json!("io"), true));
        if snapshot == "blockdev-snapshot" {
            image::create(&path, "qcow2", "", SIZE);
            daemon.qmp.ok("blockdev-add", image::file("overlay-file", &path));
            let mut overlay = image::over("qcow2", "overlay", "overlay-file");
            overlay["backing"] = Value::Null;
            daemon.qmp.ok("blockdev-add", overlay);
            assert_eq!(place(&mut daemon.qmp, "overlay"), "main");
            let data = json!({"node": "disk", "overlay": "overlay"});
            let actions = json!({"actions": [{"type": snapshot, "data": data}]});
            daemon.qmp.ok("transaction", actions);
        } else {
            let data = json!({"node-name": "disk", "snapshot-file": path, "snapshot-node-name": "overlay"});
            daemon.qmp.ok(snapshot, data);
        }
        for node in ["overlay", "disk", "file"] {
            assert_eq!(place(&mut daemon.qmp, node), "io", "{snapshot}: {node}");
        }
        let mut session = daemon.session("disk");
        session.write(0, &[1; 512]);
        daemon.quit();
    }
}
