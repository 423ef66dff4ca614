//! `transaction`: several changes, all or none, in one drained section.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use millpond_tests::beside::{Command, GRAPH, same_answers};
use millpond_tests::daemon::{daemon, scratch};
use millpond_tests::image;
use millpond_tests::model::Model;
use millpond_tests::nbd::Connect;
use millpond_tests::workload::{Load, Mix, seeded};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

/// An empty image and the options of a node over it; its file is called `NAME-file`.
fn image(dir: &std::path::Path, name: &str) -> Value {
    let path = dir.join(name);
    image::create(&path, "qcow2", "", MIB);
    let mut node = image::over("qcow2", name, "");
    node["file"] = image::file(&format!("{name}-file"), &path);
    node["backing"] = Value::Null;
    node
}

fn abort() -> Value {
    json!({"type": "abort", "data": {}})
}

fn over(node: &str, overlay: &str) -> Value {
    json!({"type": "blockdev-snapshot", "data": {"node": node, "overlay": overlay}})
}

fn together(actions: impl Into<Value>) -> Command {
    let actions: Value = actions.into();
    ("transaction", json!({ "actions": actions }))
}

fn with(actions: Value, properties: Value) -> Command {
    (
        "transaction",
        json!({"actions": actions, "properties": properties}),
    )
}

#[test]
fn every_answer_and_the_graph_after_it_are_qemus() {
    let dir = scratch();
    let mut commands: Vec<Command> = ["a", "b", "c", "d"]
        .map(|name| ("blockdev-add", image(dir.path(), name)))
        .into();
    let data = json!({"type": "blockdev-snapshot", "data": {"node": "a"}});
    let more = json!({"type": "blockdev-snapshot", "data": {"node": "a", "overlay": "b", "x": 1}});
    let transactions = [
        ("transaction", json!({})),
        together(json!([])),
        together(json!("x")),
        together(json!(["x"])),
        together(json!([{"data": {}}])),
        together(json!([{"type": 5, "data": {}}])),
        together(json!([{"type": "nothing", "data": {}}])),
        together(json!([{"type": "abort"}])),
        together(json!([{"type": "abort", "data": {"x": 1}}])),
        together(json!([{"type": "abort", "data": {}, "y": 1}])),
        together(json!([{"type": "blockdev-snapshot"}])),
        together(json!([data])),
        together(json!([more])),
        together(json!([abort()])),
        together(json!([abort(), over("a", "b")])),
        together(json!([over("a", "b"), abort()])),
        together(json!([over("a", "b"), over("a", "c")])),
        together(json!([over("a", "b"), over("a", "b")])),
        together(json!([over("a", "b"), over("missing", "c")])),
        together(json!([over("a", "b"), over("c", "missing")])),
        together(json!([over("a", "b"), over("b", "a")])),
        with(json!([]), json!({})),
        with(json!([]), json!({"completion-mode": "individual"})),
        with(json!([]), json!({"completion-mode": "grouped"})),
        with(json!([]), json!({"completion-mode": "x"})),
        with(json!([]), json!({"x": 1})),
        with(json!([abort()]), json!({"completion-mode": "grouped"})),
        with(
            json!([over("a", "b"), abort()]),
            json!({"completion-mode": "grouped"}),
        ),
        with(json!([abort()]), json!({"completion-mode": "individual"})),
        together(json!([over("a", "b"), over("b", "c")])),
        with(json!([over("c", "d")]), json!({"completion-mode": "individual"})),
    ];
    for transaction in transactions {
        commands.extend([transaction, (GRAPH, json!({}))]);
    }
    same_answers(&commands);
}

/// A client that keeps requests in flight and checks every byte, on a thread of its own.
struct Client {
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<Load>,
}

impl Client {
    fn start(address: &millpond_tests::nbd::Address, export: &str, rng: fastrand::Rng) -> Client {
        let session = Connect::default().open(address, export);
        let mut load = Load::new(session, Model::new(MIB), 0..MIB, rng, Mix::NO_TRIM, 32);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                load.step().expect("the daemon answers every request");
            }
            load
        });
        Client { stop, thread }
    }

    fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        let load = self.thread.join().expect("a client ends well");
        let (model, mut session) = load.finish().expect("the daemon answers every request");
        assert_eq!(session.read_all(), model.range(0, MIB), "nothing is lost");
    }
}

/// Two disks in use get their overlays at the same moment, and others do not when one action fails.
#[test]
fn disks_in_use_are_snapshotted_together_and_nothing_is_lost() {
    let mut rng = seeded("snapshots together");
    let mut daemon = daemon().nbd_unix().start();
    let dir = daemon.dir().to_owned();
    for disk in ["one", "two"] {
        daemon.qmp.ok("blockdev-add", image(&dir, disk));
        let export = json!({"type": "nbd", "id": disk, "node-name": disk, "name": disk, "writable": true});
        daemon.qmp.ok("block-export-add", export);
    }
    let address = daemon.address();
    let clients = ["one", "two"].map(|disk| Client::start(&address, disk, rng.fork()));
    let mut tops = ["one", "two"].map(str::to_owned);
    for round in 0..20 {
        let overlays = ["one", "two"].map(|disk| format!("{disk}-{round}"));
        for overlay in &overlays {
            daemon.qmp.ok("blockdev-add", image(&dir, overlay));
        }
        let actions = [over(&tops[0], &overlays[0]), over(&tops[1], &overlays[1])];
        let mut failing = actions.to_vec();
        failing.push(abort());
        let error = daemon.qmp.refused("transaction", json!({ "actions": failing }));
        assert_eq!(error.desc, "Transaction aborted using Abort action");
        daemon.qmp.ok("transaction", json!({ "actions": actions }));
        tops = overlays;
        assert!(
            clients.iter().all(|client| !client.thread.is_finished()),
            "a client has stopped"
        );
    }
    clients.into_iter().for_each(Client::finish);
    daemon.quit();
}
