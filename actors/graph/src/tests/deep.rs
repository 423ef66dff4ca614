//! Chains of ten thousand layers: what is asked of them and done with them takes one step a layer, nothing calls itself, and
//! they close.

use millpond_messages::global_state::{GraphReply, GraphRequest, Query};
use serde_json::{Value, json};

use super::*;

const LAYERS: usize = 10_000;

fn name(at: usize) -> String {
    format!("n{at}")
}

/// Filters on top of each other, and a file below them.
fn deep(layers: usize) -> FakeWorld {
    let mut world = FakeWorld::new();
    world.ok(add(
        json!({"driver": "file", "node-name": name(0), "filename": "/i/bottom"}),
    ));
    for at in 1..layers {
        world.ok(add(
            json!({"driver": "filter", "node-name": name(at), "file": name(at - 1)}),
        ));
    }
    world
}

#[test]
fn ten_thousand_layers_are_asked_about_flushed_and_closed() {
    let mut world = deep(LAYERS);
    let nodes = world.facts().nodes;
    assert_eq!(nodes.len(), LAYERS);
    assert_eq!(nodes[0].filename, "/i/bottom");
    assert_eq!(
        nodes[2].filename,
        r#"json:{"driver": "filter", "file": {"driver": "filter", "file": {"driver": "file", "filename": "/i/bottom"}}}"#
    );
    // As QEMU shows what is longer than it can.
    let top = &nodes[LAYERS - 1];
    assert_eq!(top.filename.len(), 4095);
    assert!(top.filename.ends_with("..."), "{}", top.filename);
    assert!(matches!(
        world.ok(GraphRequest::Query(Query::Dot)),
        GraphReply::Json(Value::String(_))
    ));
    world.ok(GraphRequest::FlushAll);
    // The topmost flushes what is below it.
    assert_eq!(world.flushed, [top.id]);
    world.ok(GraphRequest::CloseAll { grace: None });
    assert!(world.nodes.is_empty());
}

#[test]
fn a_flush_that_failed_leaves_nothing_below_unflushed() {
    let mut world = deep(3);
    let ids = [2, 1, 0].map(|at| world.id(&name(at)));
    world.fail_flush = Some(ids[0]);
    world.error(GraphRequest::FlushAll);
    assert_eq!(world.flushed, ids);
}
