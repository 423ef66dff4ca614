//! Chains of ten thousand layers: what is asked of them and done with them takes one step a layer, nothing calls itself, and
//! they close.

use millpond_drivers::api::BackingLink;
use millpond_messages::OpenFlags;
use millpond_messages::graph::{CloseAll, DrawGraph, FlushAll, GraphReply, GraphRequest, Reopen, Resize};
use serde_json::json;

use super::chains::image;
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
    assert!(matches!(world.ok(DrawGraph), GraphReply::Text(_)));
    world.ok(FlushAll);
    // The topmost flushes what is below it.
    assert_eq!(world.flushed, [top.id]);
    world.ok(CloseAll { grace: None });
    assert!(world.nodes.is_empty());
}

/// How many nodes the graph has been looked at for.
fn looks(world: &FakeWorld) -> u64 {
    world.policy.world.graph(|graph| graph.looks.get())
}

fn resize(name: &str) -> Resize {
    Resize {
        node_name: name.to_owned(),
        size: 2 << 20,
    }
}

/// What each edit at the top of a chain of so many images costs.
fn costs_on_top(layers: usize) -> Vec<(&'static str, u64)> {
    let mut world = FakeWorld::new();
    image(&mut world, &name(0), None);
    for at in 1..layers {
        image(&mut world, &name(at), Some(&name(at - 1)));
    }
    image(&mut world, "overlay", None);
    world.ok(add(
        json!({"driver": "file", "node-name": "other", "filename": "/i/other"}),
    ));
    let top = name(layers - 1);
    let on_top = |file: &str| json!({"driver": "fmt", "node-name": "new", "backing": top, "file": file});
    let read_only = json!({"driver": "fmt", "node-name": top, "backing": name(layers - 2), "read-only": true,
        "file": {"driver": "file", "filename": format!("/i/{top}")}});
    let edits: [(_, GraphRequest); 5] = [
        ("blockdev-add", add(on_top("other")).into()),
        ("blockdev-del", del("new").into()),
        ("block_resize", resize(&top).into()),
        ("blockdev-reopen", reopen(read_only).into()),
        ("blockdev-snapshot", snapshot(&top, "overlay").into()),
    ];
    let mut costs = Vec::new();
    for (what, edit) in edits {
        let before = looks(&world);
        world.ok(edit);
        costs.push((what, looks(&world) - before));
    }
    costs
}

#[test]
fn an_edit_on_top_looks_at_as_many_nodes_however_deep_the_chain_is() {
    let shallow = costs_on_top(20);
    assert_eq!(costs_on_top(400), shallow);
    assert!(shallow.iter().all(|(_, looks)| *looks > 0), "{shallow:?}");
}

#[test]
fn everything_closes_in_one_step_a_node_however_many_overlays_a_base_has() {
    let cost = |overlays: u64| {
        let mut world = FakeWorld::new();
        image(&mut world, "base", None);
        for at in 0..overlays {
            image(&mut world, &format!("o{at}"), Some("base"));
        }
        let before = looks(&world);
        world.ok(CloseAll { grace: None });
        assert!(world.nodes.is_empty());
        looks(&world) - before
    };
    let (few, many) = (cost(50), cost(500));
    assert!(many <= 11 * few, "{few} looks for 50 overlays, {many} for 500");
}

#[test]
fn an_option_is_inherited_down_hundreds_of_images_opened_by_each_others_names() {
    const IMAGES: usize = 900;
    let mut world = FakeWorld::new();
    for at in 1..IMAGES {
        let link = BackingLink {
            filename: format!("/i/{}", at - 1),
            format: Some("fmt".to_owned()),
        };
        world.links.insert(format!("/i/{at}"), link);
    }
    let top = |direct: bool| {
        json!({"driver": "fmt", "node-name": "top", "cache": {"direct": direct},
            "file": {"driver": "file", "filename": format!("/i/{}", IMAGES - 1)}})
    };
    world.ok(add(top(false)));
    let direct = |world: &mut FakeWorld| {
        let nodes = world.facts().nodes;
        let direct = nodes
            .iter()
            .filter(|node| node.flags.contains(OpenFlags::NOCACHE));
        (nodes.len(), direct.count())
    };
    assert_eq!(direct(&mut world), (2 * IMAGES, 0));
    let mut options = options(top(true));
    let backing = world.facts().nodes[3].name.clone();
    options.insert("backing".to_owned(), backing.into());
    world.ok(Reopen(vec![options]));
    assert_eq!(direct(&mut world), (2 * IMAGES, 2 * IMAGES));
}

#[test]
fn a_flush_that_failed_leaves_nothing_below_unflushed() {
    let mut world = deep(3);
    let ids = [2, 1, 0].map(|at| world.id(&name(at)));
    world.fail_flush = Some(ids[0]);
    world.error(FlushAll);
    assert_eq!(world.flushed, ids);
}
