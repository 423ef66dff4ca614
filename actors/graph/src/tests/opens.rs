//! Opening and deleting: names, backing chains, and the texts for what cannot be.

use millpond_drivers::api::BackingLink;
use millpond_messages::graph::{DetachRoot, FindBlockSizes, FindGeometry, Open, OpenHeld, OpenImage};
use serde_json::json;

use super::*;
use crate::ImplicitOpens;

fn link(world: &mut FakeWorld, from: &str, to: &str, format: Option<&str>) {
    let link = BackingLink {
        filename: to.to_owned(),
        format: format.map(str::to_owned),
    };
    world.links.insert(from.to_owned(), link);
}

fn fmt(name: &str, file: &str) -> AddNode {
    add(json!({"driver": "fmt", "node-name": name, "file": {"driver": "file", "filename": file}}))
}

#[test]
fn bad_options_are_told_in_qemus_words() {
    let mut world = FakeWorld::new();
    world.ok(add(json!({"driver": "file", "node-name": "f", "filename": "f"})));
    let cases = [
        (
            json!({"driver": "file"}),
            "'node-name' must be specified for the root node",
        ),
        (json!({"node-name": "x"}), "Parameter 'driver' is missing"),
        (
            json!({"driver": "file", "node-name": "f"}),
            "Duplicate nodes with node-name='f'",
        ),
        (
            json!({"driver": "file", "node-name": "1x"}),
            "Invalid node-name: '1x'",
        ),
        (
            json!({"driver": "foo", "node-name": "x"}),
            "Parameter 'driver' does not accept value 'foo'",
        ),
        (
            json!({"driver": "raw", "node-name": "x"}),
            "Parameter 'file' is missing",
        ),
        (
            json!({"driver": "raw", "node-name": "x", "file": "nope"}),
            "Cannot find device='nope' nor node-name='nope'",
        ),
        (
            json!({"driver": "raw", "node-name": "x", "file": {"driver": "file", "node-name": "x"}}),
            "Duplicate nodes with node-name='x'",
        ),
        (
            json!({"driver": "fmt", "node-name": "x", "file": "f", "backing": "nope"}),
            "Could not open backing file: Cannot find device='nope' nor node-name='nope'",
        ),
        (
            json!({"driver": "raw", "node-name": "x", "file": 7}),
            "Invalid parameter type for 'file', expected: BlockdevRef",
        ),
    ];
    for (options, text) in cases {
        assert_eq!(world.error(add(options)), text);
    }
    assert_eq!(
        world.error(del("nope")),
        "Failed to find node with node-name='nope'"
    );
    assert_eq!(world.facts().nodes.len(), 1);
    world.assert_settled(&[]);
}

#[test]
fn options_nested_without_end_are_refused() {
    let mut world = FakeWorld::new();
    let mut nested = json!({"driver": "file", "filename": "x"});
    for _ in 0..200 {
        nested = json!({"driver": "filter", "file": nested});
    }
    let mut options = options(nested);
    options.insert("node-name".to_owned(), json!("top"));
    let id = world.send(millpond_messages::graph::AddNode(options));
    world.run();
    let error = world.replies.remove(&id).unwrap().unwrap_err().to_string();
    assert_eq!(error, "Options are nested too deeply");
    world.assert_settled(&[]);
}

#[test]
fn nodes_in_use_are_not_deleted() {
    let mut world = FakeWorld::new();
    world.ok(fmt("base", "b"));
    world.ok(add(
        json!({"driver": "fmt", "node-name": "top", "backing": "base",
        "file": {"driver": "file", "filename": "t", "node-name": "tf"}}),
    ));
    assert_eq!(
        world.error(del("base")),
        "Node 'base' is busy: node is used as backing hd of 'top'"
    );
    assert_eq!(world.error(del("tf")), "Node tf is not owned by the monitor");
    let root = world.root(attach("top", READ, ALL));
    assert_eq!(world.error(del("top")), "Node top is in use");
    world.ok(DetachRoot(root));
    world.ok(add(json!({"driver": "raw", "node-name": "raw", "file": "top"})));
    assert_eq!(world.error(del("top")), "Block device top is in use");
    world.ok(del("raw"));
    world.ok(del("top"));
    world.ok(del("base"));
    assert!(world.nodes.is_empty());
}

#[test]
fn backing_files_are_found_beside_their_overlays() {
    let mut world = FakeWorld::new();
    link(&mut world, "/images/top", "middle", Some("fmt"));
    link(&mut world, "/images/middle", "sub/base", None);
    world.heads.insert("/images/sub/base".to_owned(), b"fmt".to_vec());
    world.ok(fmt("top", "/images/top"));
    let drivers: Vec<_> = world
        .facts()
        .nodes
        .into_iter()
        .map(|node| (node.driver, node.read_only))
        .collect();
    let expected = [
        ("file", false),
        ("fmt", false),
        ("file", true),
        ("fmt", true),
        ("file", true),
        ("fmt", true),
    ];
    assert_eq!(drivers, expected.map(|(driver, ro)| (driver.to_owned(), ro)));
    world.assert_settled(&[]);
    world.ok(del("top"));
    assert!(world.nodes.is_empty(), "what was opened with it goes with it");
}

#[test]
fn backing_names_may_be_json() {
    let mut world = FakeWorld::new();
    let name = r#"json:{"driver": "fmt", "file.driver": "file", "file.filename": "/b"}"#;
    link(&mut world, "/t", name, None);
    world.ok(fmt("top", "/t"));
    assert_eq!(world.facts().nodes.len(), 4);
    link(&mut world, "/t2", "json:[", None);
    assert!(
        world
            .error(fmt("bad", "/t2"))
            .starts_with("Could not open backing file: Could not parse the JSON")
    );
    link(&mut world, "/t3", "gopher:hole", None);
    assert_eq!(
        world.error(fmt("bad", "/t3")),
        "Could not open backing file: Unknown protocol 'gopher'"
    );
    link(&mut world, "/t4", "/b", Some("nonsense"));
    assert_eq!(
        world.error(fmt("bad", "/t4")),
        "Could not open backing file: Unknown driver 'nonsense'"
    );
    world.assert_settled(&[]);
}

#[test]
fn loops_and_endless_chains_are_refused() {
    let mut world = FakeWorld::new();
    link(&mut world, "/a", "b", Some("fmt"));
    link(&mut world, "/b", "a", Some("fmt"));
    assert!(world.error(fmt("top", "/a")).contains("creates an infinite loop"));
    link(&mut world, "/self", "self", Some("fmt"));
    assert!(
        world
            .error(fmt("top", "/self"))
            .contains("creates an infinite loop")
    );
    for i in 0..1100 {
        link(&mut world, &format!("/{i}"), &format!("{}", i + 1), Some("fmt"));
    }
    assert!(world.error(fmt("top", "/0")).contains("longer than 1000 images"));
    assert!(world.nodes.is_empty());
    world.links.remove("/990");
    world.ok(fmt("top", "/0"));
    assert_eq!(world.facts().nodes.len(), 2 * 991);
    world.ok(del("top"));
    assert!(world.nodes.is_empty());
}

#[test]
fn names_in_images_are_not_followed_where_that_is_denied() {
    let mut world = FakeWorld::with(ImplicitOpens::Deny);
    link(&mut world, "/top", "/etc/shadow", Some("raw"));
    assert!(world.error(fmt("top", "/top")).contains("is not allowed"));
    assert!(world.nodes.is_empty());
    world.ok(add(json!({"driver": "fmt", "node-name": "top", "backing": null,
        "file": {"driver": "file", "filename": "/top"}})));
    world.ok(add(
        json!({"driver": "fmt", "node-name": "over", "backing": "top",
        "file": {"driver": "file", "filename": "/over"}}),
    ));
}

#[test]
fn snapshots_that_cannot_be_are_refused() {
    let mut world = FakeWorld::new();
    let null = |name: &str| {
        json!({"driver": "fmt", "node-name": name, "backing": null,
        "file": {"driver": "file", "filename": name}})
    };
    for name in ["b", "o", "p"] {
        world.ok(add(null(name)));
    }
    world.ok(add(json!({"driver": "file", "node-name": "n", "filename": "n"})));
    world.ok(add(json!({"driver": "fmt", "node-name": "t", "backing": "b", "file": {"driver": "file", "filename": "t"}})));
    let root = world.root(attach("p", READ, ALL));
    for (node, overlay, text) in [
        ("x", "o", "Cannot find device='x' nor node-name='x'"),
        ("o", "x", "Cannot find device='x' nor node-name='x'"),
        ("b", "o", "Node 'b' is busy: node is used as backing hd of 't'"),
        ("n", "t", "The overlay already has a backing image"),
        ("o", "n", "The overlay does not support backing images"),
        ("t", "b", "Making 't' a backing child of 'b' would create a cycle"),
        ("o", "p", "The overlay is already in use"),
    ] {
        assert_eq!(world.error(snapshot(node, overlay)), text);
    }
    world.ok(snapshot("t", "o"));
    assert!(
        world
            .facts()
            .nodes
            .iter()
            .any(|node| node.name == "t" && node.read_only)
    );
    world.ok(DetachRoot(root));
    world.assert_settled(&[]);
}

#[test]
fn reopens_that_cannot_be_are_refused() {
    let mut world = FakeWorld::new();
    world.ok(fmt("b", "b"));
    world.ok(add(json!({"driver": "fmt", "node-name": "t", "backing": "b",
        "file": {"driver": "file", "filename": "t", "node-name": "tf"}})));
    for (options, text) in [
        (json!({"driver": "fmt"}), "node-name not specified"),
        (
            json!({"driver": "fmt", "node-name": "nope"}),
            "Failed to find node with node-name='nope'",
        ),
        (
            json!({"driver": "raw", "node-name": "t"}),
            "Cannot change the option 'driver'",
        ),
        (
            json!({"driver": "fmt", "node-name": "t", "file": "tf"}),
            "backing is missing for 't'",
        ),
        (
            json!({"driver": "fmt", "node-name": "t", "file": "nope", "backing": null}),
            "Cannot find device='' nor node-name='nope'",
        ),
        (
            json!({"driver": "fmt", "node-name": "t", "file": "tf", "backing": "t"}),
            "Making 't' a backing child of 't' would create a cycle",
        ),
        (
            json!({"driver": "fmt", "node-name": "b", "backing": "t"}),
            "Making 't' a backing child of 'b' would create a cycle",
        ),
    ] {
        assert_eq!(world.error(reopen(options)), text);
    }
    world.assert_settled(&[]);
}

fn open(image: OpenImage) -> Open {
    Open(Box::new(image))
}

#[test]
fn an_opener_without_writeback_has_its_writes_made_durable() {
    let mut world = FakeWorld::new();
    for (cache, durable) in [
        (json!({"cache": {"writeback": false}}), true),
        (json!({"cache.writeback": "off"}), true),
        (json!({"cache.writeback": true}), false),
        (json!({}), false),
    ] {
        let mut all = options(json!({"driver": "file", "filename": "f"}));
        all.extend(options(cache));
        let image = OpenImage {
            options: all,
            flags: millpond_messages::OpenFlags::RDWR,
            ..OpenImage::default()
        };
        let root = world.root(OpenHeld {
            image: Box::new(image),
            holder: RootUser::Embedder("e".to_owned()),
        });
        assert_eq!(world.writethrough.contains(&root), durable);
        world.ok(DetachRoot(root));
    }
    world.assert_settled(&[]);
}

#[test]
fn a_guessed_format_stands_on_the_file_that_was_looked_at() {
    let mut world = FakeWorld::new();
    world.heads.insert("/d".to_owned(), b"fmt".to_vec());
    let image = OpenImage {
        filename: Some("/d".to_owned()),
        options: options(json!({"node-name": "d", "file.node-name": "f"})),
        ..OpenImage::default()
    };
    world.ok(open(image));
    let facts = world.facts();
    let drivers: Vec<_> = facts.nodes.iter().map(|node| node.driver.as_str()).collect();
    assert_eq!(drivers, ["file", "fmt"], "it was opened once");
    assert_eq!(facts.edges.len(), 1);
    world.assert_settled(&[]);
    world.ok(del("d"));
    assert!(world.nodes.is_empty());
}

#[test]
fn a_disks_sectors_and_geometry_are_seen_through_raw_images_and_filters() {
    use super::disk::{DISK, DISK_GEOMETRY, DISK_SECTORS};
    use millpond_messages::graph::GraphReply;
    let mut world = FakeWorld::new();
    world.ok(add(
        json!({"driver": "file", "node-name": "disk", "filename": DISK}),
    ));
    world.ok(add(json!({"driver": "raw", "node-name": "raw", "file": "disk"})));
    world.ok(add(
        json!({"driver": "filter", "node-name": "filter", "file": "raw"}),
    ));
    world.ok(add(
        json!({"driver": "raw", "node-name": "window", "offset": 512, "file": "disk"}),
    ));
    world.ok(add(
        json!({"driver": "fmt", "node-name": "fmt", "backing": null, "file": "disk"}),
    ));
    let sizes = |world: &mut FakeWorld, name: &str| {
        let node_name = name.to_owned();
        match world.request(FindBlockSizes { node_name }) {
            Ok(GraphReply::BlockSizes(sizes)) => Some(sizes),
            Ok(other) => panic!("{other:?}"),
            Err(error) => {
                assert_eq!(error.kind(), millpond_messages::ErrorKind::Unsupported);
                None
            }
        }
    };
    let geometry = |world: &mut FakeWorld, name: &str| {
        let node_name = name.to_owned();
        match world.request(FindGeometry { node_name }) {
            Ok(GraphReply::Geometry(geometry)) => Some(geometry),
            Ok(other) => panic!("{other:?}"),
            Err(error) => {
                assert_eq!(error.kind(), millpond_messages::ErrorKind::Unsupported);
                None
            }
        }
    };
    for name in ["disk", "raw", "filter"] {
        assert_eq!(sizes(&mut world, name), Some(DISK_SECTORS), "{name}");
        assert_eq!(geometry(&mut world, name), Some(DISK_GEOMETRY), "{name}");
    }
    assert_eq!(sizes(&mut world, "window"), Some(DISK_SECTORS));
    assert_eq!(
        geometry(&mut world, "window"),
        None,
        "a part of a disk has another geometry"
    );
    assert_eq!(
        (sizes(&mut world, "fmt"), geometry(&mut world, "fmt")),
        (None, None)
    );
}
