//! Chains of ten thousand layers: what is asked of them and done with them takes one step a layer, nothing calls itself, and
//! they close.

use messages::global_state::{GraphReply, GraphRequest, Query};
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

fn json_of(world: &mut FakeWorld, query: Query) -> Value {
    match world.ok(GraphRequest::Query(query)) {
        GraphReply::Json(json) => json,
        other => panic!("no JSON: {other:?}"),
    }
}

#[test]
fn ten_thousand_layers_are_asked_about_flushed_and_closed() {
    let mut world = deep(LAYERS);
    let nodes = json_of(&mut world, Query::NamedNodes { flat: true });
    let nodes = nodes.as_array().expect("a list");
    assert_eq!(nodes.len(), LAYERS);
    let shown = |at: usize| nodes[at]["file"].as_str().expect("a name");
    // As QEMU shows what is longer than it can.
    assert_eq!(shown(0).len(), 4095);
    assert!(shown(0).ends_with("..."), "{}", shown(0));
    assert_eq!(shown(LAYERS - 1), "/i/bottom");
    assert_eq!(
        shown(LAYERS - 3),
        r#"json:{"driver": "filter", "file": {"driver": "filter", "file": {"driver": "file", "filename": "/i/bottom"}}}"#
    );
    let nested = world.error(GraphRequest::Query(Query::NamedNodes { flat: false }));
    assert!(nested.contains("ask with 'flat': true"), "{nested}");
    assert_eq!(world.facts().nodes.len(), LAYERS);
    let statistics = json_of(&mut world, Query::Statistics);
    assert_eq!(statistics.as_array().map(Vec::len), Some(LAYERS));
    assert!(matches!(json_of(&mut world, Query::Dot), Value::String(_)));
    world.ok(GraphRequest::FlushAll);
    // The topmost flushes what is below it.
    let top = world.id(&name(LAYERS - 1));
    assert_eq!(world.flushed, [top]);
    world.ok(GraphRequest::CloseAll { grace: None });
    assert!(world.nodes.is_empty());
}

#[test]
fn what_is_below_each_other_is_described_once_for_each_above_it() {
    let mut world = deep(100);
    let nodes = json_of(&mut world, Query::NamedNodes { flat: false });
    let mut image = &nodes[0]["image"];
    let mut images = 1;
    while let Some(below) = image.get("backing-image") {
        image = below;
        images += 1;
    }
    assert_eq!(images, 100);
    assert_eq!(image["filename"], "/i/bottom");
}

#[test]
fn a_flush_that_failed_leaves_nothing_below_unflushed() {
    let mut world = deep(3);
    let ids = [2, 1, 0].map(|at| world.id(&name(at)));
    world.fail_flush = Some(ids[0]);
    world.error(GraphRequest::FlushAll);
    assert_eq!(world.flushed, ids);
}
