//! The flight record of a graph: what is unanswered, panics, iothreads that are stuck, and files that are damaged.
#![allow(clippy::unwrap_used, reason = "a test ends where something fails")]

use std::time::{Duration, Instant};

use futures_executor::block_on;
use millpond::delay::{Chaos, Delay, DelayRules, Rule};
use millpond::embed::{BlockLayer, BlockLayerConfig};
use millpond::flight::{PATIENCE, Printed};
use millpond::graph::GraphHandle;
use millpond::node::{Client, Mail};
use millpond_messages::graph::{DrainScope, IothreadOptions, RootRequest, RootUser};
use millpond_messages::{Permissions, record};
use proptest::prelude::*;
use serde_json::{Value, json};

fn layer() -> (BlockLayer, Client) {
    let layer = block_on(BlockLayer::start(BlockLayerConfig::default())).unwrap();
    let graph = layer.graph();
    let Value::Object(options) = json!({"driver": "null-co", "node-name": "disk"}) else {
        unreachable!("it is an object")
    };
    block_on(graph.add_node(options)).unwrap();
    let client = block_on(graph.attach(RootRequest::new(
        "disk",
        RootUser::Embedder("test".to_owned()),
        Permissions::CONSISTENT_READ,
    )));
    (layer, client.unwrap())
}

fn text(graph: &GraphHandle) -> String {
    let bytes = block_on(graph.flight_record("a test")).unwrap();
    Printed::read(&bytes).unwrap().to_string()
}

#[test]
fn a_drain_whose_order_is_held_is_unanswered_and_so_is_who_asked() {
    let (layer, client) = layer();
    let graph = layer.graph();
    let rule = Rule {
        kind: Some("quiesce"),
        delay: Delay::Fixed(Duration::from_secs(3600)),
        ..Rule::default()
    };
    block_on(graph.set_chaos(Some(Chaos::new(DelayRules::new(None, vec![rule])))));
    let draining = graph.drain(DrainScope::Node("disk".to_owned()), "test");
    let mut draining = Box::pin(draining);
    assert!(block_on(async {
        futures_util::poll!(&mut draining).is_pending()
    }));
    // Commands are handled in order: the order is on its way.
    block_on(graph.facts()).unwrap();
    let said = text(graph);
    let (open, _) = said.split_once("\nMessages").unwrap();
    assert!(open.contains("order quiesce to 'disk'"), "{said}");
    assert!(open.contains("asked by a user"), "{said}");
    block_on(graph.set_chaos(None));
    drop(block_on(draining).unwrap());
    let said = text(graph);
    let (open, _) = said.split_once("\nMessages").unwrap();
    assert!(!open.contains("quiesce"), "{said}");
    drop(client);
    block_on(layer.shut_down()).unwrap();
}

#[test]
fn an_iothread_that_is_stuck_is_named_within_the_patience() {
    let (layer, client) = layer();
    let graph = layer.graph();
    block_on(graph.add_iothread(IothreadOptions::named("free"))).unwrap();
    let (go, wait) = crossbeam_channel::bounded::<()>(1);
    let stuck = Mail::Run(Box::new(move || wait.recv().unwrap_or(())));
    assert!(client.home().send(stuck).is_ok());
    let begun = Instant::now();
    let said = text(graph);
    assert!(begun.elapsed() >= PATIENCE && begun.elapsed() < 10 * PATIENCE);
    assert!(said.contains("is stuck or has ended"), "{said}");
    go.send(()).unwrap();
    drop(client);
    block_on(layer.shut_down()).unwrap();
}

fn sample() -> Vec<u8> {
    let (layer, client) = layer();
    let read = client.read(0, millpond_ring::buffer::Buffers::zeroed(512));
    block_on(read).0.unwrap();
    let bytes = block_on(layer.graph().flight_record("a test")).unwrap();
    drop(client);
    block_on(layer.shut_down()).unwrap();
    bytes
}

#[test]
fn damaged_files_are_refused_or_printed_and_never_a_panic() {
    let whole = sample();
    assert!(Printed::read(&whole).is_ok());
    for cut in (0..whole.len()).step_by(whole.len() / 200 + 1) {
        assert!(Printed::read(&whole[..cut]).is_err(), "cut at {cut}");
    }
    let mangled = (
        prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
        any::<bool>(),
    );
    proptest!(ProptestConfig::with_cases(500), |((changes, lengthened) in mangled)| {
        let mut bytes = whole.clone();
        for (place, byte) in changes {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        if lengthened {
            bytes.push(0);
            prop_assert!(Printed::read(&bytes).is_err());
        } else if let Ok(read) = Printed::read(&bytes) {
            prop_assert!(!read.to_string().is_empty());
        }
    });
    let mut random = record::FLIGHT_MAGIC.to_vec();
    random.extend(u32::MAX.to_le_bytes());
    assert!(Printed::read(&random).is_err());
}

/// A child process panics: the hook is the process's.
#[test]
fn a_panic_leaves_a_record() {
    if std::env::var_os("MILLPOND_TEST_PANIC").is_some() {
        let (_layer, client) = layer();
        millpond::flight::record_panics();
        let read = client.read(0, millpond_ring::buffer::Buffers::zeroed(512));
        block_on(read).0.unwrap();
        let (done, ended) = crossbeam_channel::bounded::<()>(0);
        let panics = Mail::Run(Box::new(move || {
            let _done = done;
            panic!("as the test wants it");
        }));
        assert!(client.home().send(panics).is_ok());
        // It is disconnected once the panic has unwound, which is after its record.
        assert!(ended.recv().is_err());
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_panic_leaves_a_record", "--nocapture"])
        .env("MILLPOND_TEST_PANIC", "1")
        .env("TMPDIR", folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let files: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
    assert_eq!(files.len(), 1, "{said}");
    let bytes = std::fs::read(files[0].as_ref().unwrap().path()).unwrap();
    let text = Printed::read(&bytes).unwrap().to_string();
    assert!(text.contains("as the test wants it"), "{text}");
    assert!(text.contains("read of 512 bytes at 0"), "{text}");
}
