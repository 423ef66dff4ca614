//! Exports as an embedder adds them: the iothreads that they are to be served on.
#![allow(
    clippy::unwrap_used,
    reason = "a test ends at the first thing that is not as it must be"
)]

#[path = "support/nbd_client.rs"]
mod nbd_client;

use std::time::Duration;

use actix_rt::System;
use millpond::daemon::Daemon;
use millpond::graph::{GraphConfig, ImplicitOpens, system_iothreads};
use millpond_drivers::builtin::builtin;
use millpond_messages::graph::{AddIothread, AddNode, DelIothread, DrainScope, IothreadOptions};
use millpond_messages::qapi::{BlockExportOptions, BlockExportRemoveMode, NbdServerOptions};
use millpond_messages::saved::{SavedExportKind, SavedStanding};
use millpond_ring::Engine;
use nbd_client::{Client, READ, WRITE, request};
use serde_json::{Value, json};

fn export(id: &str, more: Value) -> BlockExportOptions {
    let mut options = json!({"type": "nbd", "id": id, "node-name": "node"});
    let more = more.as_object().cloned().unwrap();
    options.as_object_mut().unwrap().extend(more);
    serde_json::from_value(options).unwrap()
}

#[test]
fn an_export_is_added_on_iothreads_that_there_are_and_holds_them() {
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
        let refused = async |more: Value| {
            let added = exports.add(&export("e", more)).await;
            assert!(exports.list().await.is_empty());
            added.unwrap_err().to_string()
        };

        let none = refused(json!({"iothread": []})).await;
        assert_eq!(none, "The set of I/O threads must not be empty");
        let missing = refused(json!({"iothread": ["one", "three"]})).await;
        assert_eq!(missing, "iothread \"three\" not found");
        let fixed = refused(json!({"iothread": ["one"], "fixed-iothread": true})).await;
        assert_eq!(fixed, "Cannot use fixed-iothread for a multi-threaded export");
        let many = export("e", json!({"iothread": ["one", "two"], "fixed-iothread": false}));
        exports.add(&many).await.unwrap();
        for id in ["one", "two"] {
            let id = id.to_owned();
            let text = format!("object '{id}' is in use, can not be deleted");
            let refused = daemon.graph(DelIothread { id }).await.unwrap_err();
            assert_eq!(refused.to_string(), text);
        }
        exports.delete("e", BlockExportRemoveMode::Safe).await.unwrap();
        for id in ["one", "two"] {
            let id = id.to_owned();
            daemon.graph(DelIothread { id }).await.unwrap();
        }
        daemon.shut_down().await.unwrap();
    });
}

/// Where the clients of the only export stand once all that they have sent is looked at as this says.
async fn standing_when(daemon: &Daemon, stand: impl Fn(&[SavedStanding]) -> bool) {
    let wait = async {
        loop {
            let state = daemon.save().await.unwrap();
            let SavedExportKind::Nbd(export) = &state.daemon.exports[0].kind else {
                panic!("an export on the NBD server was saved as another kind");
            };
            let connections = export.connections.iter();
            let standing: Vec<_> = connections.map(|client| client.standing.clone()).collect();
            if stand(&standing) {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    let stood = tokio::time::timeout(Duration::from_secs(60), wait).await;
    stood.expect("the clients stand as they should in time");
}

/// What comes while the node is drained waits unread at each connection, wherever that is served, and is answered once.
#[test]
fn a_drained_section_holds_clients_on_all_iothreads_of_their_export() {
    System::new().block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("nbd.sock");
        let (daemon, graph) = Daemon::start_with(
            GraphConfig {
                registry: builtin(),
                implicit: ImplicitOpens::Allow,
                iothreads: system_iothreads(Engine::Auto),
                main: IothreadOptions::named("main"),
            },
            Vec::new(),
        )
        .unwrap();
        for id in ["one", "two"] {
            let iothread = AddIothread(IothreadOptions::named(id));
            daemon.graph(iothread).await.unwrap();
        }
        let node = json!({"driver": "null-co", "node-name": "node", "size": 1 << 20, "read-zeroes": true});
        daemon
            .graph(AddNode(node.as_object().cloned().unwrap()))
            .await
            .unwrap();
        let address = json!({"addr": {"type": "unix", "path": path}});
        let server: NbdServerOptions = serde_json::from_value(address).unwrap();
        daemon.exports().start_server(&server).await.unwrap();
        let more = json!({"name": "disk", "writable": true, "iothread": ["one", "two"]});
        daemon.exports().add(&export("e", more)).await.unwrap();
        let mut clients = Vec::new();
        for _ in 0..3 {
            clients.push(Client::connect(&path, &[]).await);
        }
        for _ in 0..20 {
            let drained = graph.drain(DrainScope::Node("node".to_owned()), "a test");
            let drained = drained.await.unwrap();
            for client in &mut clients {
                client.send(&request(READ)).await;
            }
            let received = request(READ);
            standing_when(&daemon, |all| {
                let unread = |standing: &SavedStanding| {
                    *standing
                        == SavedStanding::Between {
                            received: received.clone(),
                        }
                };
                all.len() == 3 && all.iter().all(unread)
            })
            .await;
            drop(drained);
            for client in &mut clients {
                assert_eq!(client.take(16).await[4..8], [0; 4]);
                assert_eq!(client.take(1000).await, [0; 1000]);
                client.send(&[request(WRITE), vec![1; 1000]].concat()).await;
                assert_eq!(client.take(16).await[4..8], [0; 4]);
            }
        }
        drop(clients);
        daemon.shut_down().await.unwrap();
    });
}
