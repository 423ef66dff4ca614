//! Backing chains: what is asked of them, and links that are frozen.

use millpond_drivers::api::BackingLink;
use millpond_messages::graph::{
    ChainContains, ChainUnfrozen, DetachRoot, FindBackingImage, FindOverlay, FreezeChain, GraphReply,
    GraphRequest, NextOwned, Query, UnfreezeChain,
};
use millpond_messages::{RootId, Token};
use serde_json::json;

use super::*;

/// `top` -> `pass` (a filter) -> `mid` -> `base`, each image in a file of its name under `/i`.
pub fn chain() -> FakeWorld {
    let mut world = FakeWorld::new();
    image(&mut world, "base", None);
    image(&mut world, "mid", Some("base"));
    world.ok(add(
        json!({"driver": "filter", "node-name": "pass", "file": "mid"}),
    ));
    image(&mut world, "top", Some("pass"));
    world
}

/// An image in a file of its name, with a node as its backing node.
pub fn image(world: &mut FakeWorld, name: &str, backing: Option<&str>) {
    world.ok(add(
        json!({"driver": "fmt", "node-name": name, "backing": backing,
        "file": {"driver": "file", "filename": format!("/i/{name}")}}),
    ));
}

fn found(world: &mut FakeWorld, query: Query) -> Option<String> {
    match world.ok(query) {
        GraphReply::Found(node) => node.map(|node| node.name),
        other => panic!("no node: {other:?}"),
    }
}

fn overlay_of(world: &mut FakeWorld, active: &str, node: Option<&str>) -> Option<String> {
    let (active, node_name) = (active.to_owned(), node.map(str::to_owned));
    found(world, FindOverlay { active, node_name }.into())
}

fn contains(world: &mut FakeWorld, top: &str, base: &str) -> bool {
    let (top, base) = (top.to_owned(), base.to_owned());
    match world.ok(ChainContains { top, base }) {
        GraphReply::Truth(truth) => truth,
        other => panic!("no truth: {other:?}"),
    }
}

pub fn freeze(top: &str, base: Option<&str>, root: Option<RootId>) -> FreezeChain {
    FreezeChain {
        top: top.to_owned(),
        base: base.map(str::to_owned),
        root,
    }
}

pub fn frozen(world: &mut FakeWorld, request: impl Into<GraphRequest>) -> Token {
    match world.ok(request) {
        GraphReply::Frozen(token) => token,
        other => panic!("not frozen: {other:?}"),
    }
}

fn is_frozen(top: &str, base: Option<&str>) -> ChainUnfrozen {
    ChainUnfrozen {
        top: top.to_owned(),
        base: base.map(str::to_owned),
    }
}

#[test]
fn overlays_and_bases_are_found_through_filters() {
    let mut world = chain();
    for (active, node, overlay) in [
        ("top", Some("base"), Some("mid")),
        ("top", Some("mid"), Some("top")),
        ("top", Some("pass"), Some("top")),
        ("pass", Some("base"), Some("mid")),
        ("mid", Some("top"), None),
        ("top", None, Some("base")),
        ("pass", None, Some("base")),
        ("base", None, Some("base")),
    ] {
        assert_eq!(overlay_of(&mut world, active, node).as_deref(), overlay);
    }
    for (top, base, is) in [
        ("top", "base", true),
        ("top", "pass", true),
        ("top", "top", true),
        ("mid", "top", false),
        ("base", "mid", false),
    ] {
        assert_eq!(contains(&mut world, top, base), is, "{base} in {top}");
    }
}

#[test]
fn backing_images_are_found_by_what_their_overlays_call_them() {
    let mut world = FakeWorld::new();
    let mut link = |from: &str, to: &str| {
        let format = Some("fmt".to_owned());
        let filename = to.to_owned();
        world
            .links
            .insert(from.to_owned(), BackingLink { filename, format });
    };
    link("/i/top", "mid");
    link("/i/mid", "/j/./base");
    world.ok(add(json!({"driver": "fmt", "node-name": "top",
        "file": {"driver": "file", "filename": "/i/top"}})));
    let mut name = |filename: &str| {
        let (top, filename) = ("top".to_owned(), filename.to_owned());
        found(&mut world, FindBackingImage { top, filename }.into())
    };
    let mid = name("/i/mid");
    assert!(mid.is_some());
    for same in ["mid", "../i/mid", "/i/../i/mid"] {
        assert_eq!(name(same), mid);
    }
    let base = name("/j/base");
    assert!(base.is_some() && base != mid);
    // Relative to the overlay of the image that is meant, not to the chain's top.
    assert_eq!(name("../j/base"), base);
    assert_eq!(name("base"), None);
    assert_eq!(name("top"), None);
    // A node that options put behind an overlay is known by its own name only.
    let mut world = chain();
    let mut name = |filename: &str| {
        let (top, filename) = ("top".to_owned(), filename.to_owned());
        found(&mut world, FindBackingImage { top, filename }.into())
    };
    assert_eq!(name("/i/base").as_deref(), Some("base"));
    assert_eq!(name("/i/../i/base"), None);
    assert_eq!(name("base"), None);
}

#[test]
fn nodes_of_users_are_told_one_after_the_other() {
    let mut world = chain();
    let mut names = Vec::new();
    let mut after = None;
    while let Some(name) = found(&mut world, NextOwned { after }.into()) {
        names.push(name.clone());
        after = Some(name);
    }
    assert_eq!(names, ["base", "mid", "pass", "top"]);
    let nobody = Some("nobody".to_owned());
    let error = world.error(NextOwned { after: nobody });
    assert_eq!(error, "Failed to find node with node-name='nobody'");
}

#[test]
fn a_frozen_chain_stays_as_it_is_until_it_is_given_free() {
    let mut world = chain();
    image(&mut world, "other", None);
    let token = frozen(&mut world, freeze("top", Some("base"), None));
    let text = "Cannot change 'backing' link from 'top' to 'pass'";
    assert_eq!(world.error(is_frozen("top", Some("base"))), text);
    assert_eq!(world.error(freeze("top", Some("mid"), None)), text);
    assert_eq!(
        world.error(is_frozen("pass", None)),
        "Cannot change 'file' link from 'pass' to 'mid'"
    );
    let text = "Cannot change frozen 'backing' link from 'top' to 'pass'";
    world.ok(is_frozen("base", None));
    let before = world.facts();
    assert_eq!(world.error(del("top")), text);
    for (options, text) in [
        (
            json!({"driver": "fmt", "node-name": "top", "backing": null}),
            text,
        ),
        (
            json!({"driver": "fmt", "node-name": "top", "backing": "other"}),
            text,
        ),
        (
            json!({"driver": "fmt", "node-name": "mid", "backing": null}),
            "Cannot change frozen 'backing' link from 'mid' to 'base'",
        ),
        (
            json!({"driver": "filter", "node-name": "pass", "file": "other"}),
            "Cannot change frozen 'file' link from 'pass' to 'mid'",
        ),
    ] {
        assert_eq!(world.error(reopen(options)), text);
        assert_eq!(world.facts(), before);
    }
    // Options that leave the links alone may change.
    world.ok(reopen(
        json!({"driver": "fmt", "node-name": "mid", "backing": "base", "read-only": true}),
    ));
    world.ok(UnfreezeChain(token));
    world.ok(is_frozen("top", None));
    assert_eq!(
        world.error(UnfreezeChain(token)),
        format!("There are no links frozen by {token}")
    );
    world.ok(reopen(
        json!({"driver": "fmt", "node-name": "top", "backing": null}),
    ));
    world.assert_settled(&[]);
}

#[test]
fn a_freeze_ends_with_its_user() {
    let mut world = chain();
    let root = world.root(attach("top", READ, ALL));
    frozen(&mut world, freeze("top", None, Some(root)));
    world.error(is_frozen("mid", None));
    world.ok(DetachRoot(root));
    world.ok(is_frozen("top", None));
    assert_eq!(
        world.error(freeze("top", None, Some(root))),
        format!("There is no root edge {root}")
    );
}

#[test]
fn what_cannot_be_frozen_is_told() {
    let mut world = chain();
    assert_eq!(
        world.error(freeze("mid", Some("top"), None)),
        "Node 'top' is not a backing image of 'mid'"
    );
    assert_eq!(
        world.error(freeze("nobody", None, None)),
        "Failed to find node with node-name='nobody'"
    );
    world.ok(add(
        json!({"driver": "fleeting", "node-name": "f", "file": "base"}),
    ));
    image(&mut world, "o", Some("f"));
    assert_eq!(
        world.error(freeze("o", None, None)),
        "Cannot freeze 'backing' link to 'f'"
    );
    world.ok(is_frozen("o", None));
}
