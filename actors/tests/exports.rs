//! Exports as an embedder adds them: the iothreads that they are to be served on.
#![allow(
    clippy::unwrap_used,
    reason = "a test ends at the first thing that is not as it must be"
)]

use actix_rt::System;
use millpond::daemon::Daemon;
use millpond_drivers::builtin::builtin;
use millpond_messages::graph::{AddIothread, AddNode, IothreadOptions};
use millpond_messages::qapi::{BlockExportOptions, NbdServerOptions};
use serde_json::{Value, json};

fn export(id: &str) -> BlockExportOptions {
    serde_json::from_value(json!({"type": "nbd", "id": id, "node-name": "node"})).unwrap()
}

#[test]
fn an_export_takes_as_many_iothreads_as_its_kind_can_use() {
    System::new().block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let daemon = Daemon::start(builtin(), Vec::new()).unwrap();
        for id in ["one", "two"] {
            let iothread = AddIothread(IothreadOptions::named(id));
            daemon.graph(iothread).await.unwrap();
        }
        let node: Value = json!({"driver": "null-co", "node-name": "node", "size": 4096});
        let node = node.as_object().cloned().unwrap();
        daemon.graph(AddNode(node)).await.unwrap();
        let address = json!({"addr": {"type": "unix", "path": folder.path().join("nbd.sock")}});
        let server: NbdServerOptions = serde_json::from_value(address).unwrap();
        let exports = daemon.exports();
        exports.start_server(&server).await.unwrap();

        let on = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let many = exports.add_on(&export("e"), &on(&["one", "two"])).await;
        assert_eq!(
            many.unwrap_err().to_string(),
            "Export 'e' can use 1 iothread, but 2 were given"
        );
        let missing = exports.add_on(&export("e"), &on(&["three"])).await;
        assert_eq!(missing.unwrap_err().to_string(), "iothread \"three\" not found");
        assert!(exports.list().await.is_empty());
        exports.add_on(&export("e"), &on(&["two"])).await.unwrap();
        assert_eq!(exports.list().await.len(), 1);
        daemon.shut_down().await.unwrap();
        assert!(exports.list().await.is_empty());
    });
}
