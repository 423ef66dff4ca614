//! The state of a live graph, written down: what is in the record, and that the record reads back as it was written.

mod support;

use millpond::graph::GraphHandle;
use millpond::node::Client;
use millpond_messages::graph::{
    BitmapChange, BitmapEdit, BitmapHold, BitmapName, DrainScope, EditBitmap, HoldBitmaps, Options,
    RootRequest, RootUser, SaveGraph, SetHistograms, ShownBitmap,
};
use millpond_messages::saved::{SavedGraph, SavedNode, SavedParent, SavedSectionCover, load, save};
use millpond_messages::{ErrorKind, IoError, LatencyHistogram, LatencyHistograms, OpBlocker, Permissions};
use serde_json::{Value, json};
use support::with_graph;

fn object(json: Value) -> Options {
    match json {
        Value::Object(options) => options,
        other => panic!("not an object: {other}"),
    }
}

async fn add(graph: &GraphHandle, json: Value) {
    graph.add_node(object(json)).await.expect("the node opens");
}

async fn attach(graph: &GraphHandle, node: &str) -> Client {
    let user = RootUser::Embedder("test".to_owned());
    let permissions = Permissions::CONSISTENT_READ | Permissions::WRITE;
    let request = RootRequest::new(node, user, permissions);
    graph.attach(request).await.expect("the node is free")
}

/// The state as it comes out of its record, which is held to be written again as it was.
async fn saved(graph: &GraphHandle) -> SavedGraph {
    let graph = graph.ask(SaveGraph).await.expect("nothing is being changed");
    let record = save(graph.as_ref()).expect("it can be written");
    let loaded: SavedGraph = load(&record).expect("it can be read");
    assert_eq!(save(&loaded).expect("it can be written again"), record);
    loaded
}

fn node<'a>(saved: &'a SavedGraph, name: &str) -> &'a SavedNode {
    let mut nodes = saved.nodes.iter();
    nodes
        .find(|node| node.name == name)
        .expect("the node is in the record")
}

#[test]
fn a_record_has_nodes_edges_users_and_what_holds_them() {
    with_graph(|graph| async move {
        add(
            &graph,
            json!({"driver": "null-co", "node-name": "data", "size": 1 << 20}),
        )
        .await;
        add(
            &graph,
            json!({"driver": "raw", "node-name": "top", "file": "data", "detect-zeroes": "on", "offset": 4096}),
        )
        .await;
        let client = attach(&graph, "top").await;
        let blocker = graph.op_block("data", &[OpBlocker::Resize], "it is used").await;
        let blocker = blocker.expect("the node is there");
        let drained = graph.drain(DrainScope::Node("top".to_owned()), "a test").await;
        let drained = drained.expect("the node becomes still");
        let saved = saved(&graph).await;
        let (top, data) = (node(&saved, "top"), node(&saved, "data"));
        assert_eq!(
            top.options.options().expect("options"),
            object(json!({"offset": 4096}))
        );
        assert!(top.owned && top.given.detect_zeroes.is_some() && top.cell.is_some());
        let between: Vec<_> = saved.edges.iter().filter(|edge| edge.child == data.id).collect();
        assert_eq!(between.len(), 1);
        assert_eq!(
            top.children,
            [(millpond_messages::ChildSlot::FILE, between[0].id)]
        );
        let root = &saved.roots[0];
        assert_eq!(root.user, RootUser::Embedder("test".to_owned()));
        let held = saved
            .edges
            .iter()
            .find(|edge| edge.id == root.edge)
            .expect("its edge");
        assert_eq!((held.child, held.parent), (top.id, SavedParent::Root(root.id)));
        assert!(held.taken.contains(Permissions::WRITE));
        let [forbidden] = saved.blockers.as_slice() else {
            panic!("one blocker")
        };
        assert_eq!(forbidden.reason, "it is used");
        assert_eq!(forbidden.nodes, [(data.id, vec![OpBlocker::Resize])]);
        let [section] = saved.sections.as_slice() else {
            panic!("one section")
        };
        assert_eq!(section.cover, SavedSectionCover::Nodes(vec![top.id]));
        let cell = top.cell.as_ref().expect("the iothread answered");
        assert_eq!(cell.sections, [section.token]);
        assert_eq!(cell.size, (1 << 20) - 4096);
        assert!(saved.last_id >= saved.edges.iter().map(|edge| edge.id.0).max().unwrap_or(0));
        drop((client, blocker, drained));
    });
}

#[test]
fn a_record_has_what_nodes_have_counted_and_not_flushed() {
    with_graph(|graph| async move {
        add(
            &graph,
            json!({"driver": "null-co", "node-name": "data", "size": 1 << 20}),
        )
        .await;
        let write = LatencyHistogram::new(vec![10, 1000]).expect("boundaries");
        let histograms = LatencyHistograms {
            write: Some(write),
            ..LatencyHistograms::default()
        };
        graph
            .ask(SetHistograms {
                node_name: "data".to_owned(),
                histograms,
            })
            .await
            .expect("the node is there");
        let client = attach(&graph, "data").await;
        client.write_at(&[1; 512], 512).await.expect("the write");
        let before = saved(&graph).await;
        client.flush().await.expect("the flush");
        let after = saved(&graph).await;
        let cell = |saved: &SavedGraph| node(saved, "data").cell.clone().expect("the iothread answered");
        assert_eq!((cell(&before).unflushed, cell(&after).unflushed), (true, false));
        let statistics = cell(&after).statistics;
        assert_eq!((statistics.write.bytes, statistics.highest_write), (512, 1024));
        let bins = statistics.histograms.write.expect("a histogram");
        assert_eq!(bins.bins().iter().sum::<u64>(), 1);
    });
}

#[test]
fn a_record_has_the_dirty_bitmaps_of_nodes_and_what_is_dirty() {
    with_graph(|graph| async move {
        let disk = json!({"driver": "null-co", "node-name": "data", "size": 1 << 20});
        add(&graph, disk).await;
        let edit = |name: &str, change| {
            let (node, name) = ("data".to_owned(), name.to_owned());
            let bitmap = BitmapName { node, name };
            graph.ask(EditBitmap(BitmapEdit { bitmap, change }))
        };
        for name in ["on", "off"] {
            let added = BitmapChange::Add {
                granularity: Some(512),
                persistent: false,
                disabled: false,
            };
            edit(name, added).await.expect("it is new");
        }
        let client = attach(&graph, "data").await;
        client.write_at(&[1; 512], 4096).await.expect("the write");
        edit("off", BitmapChange::Disable).await.expect("it is there");
        client.write_at(&[1; 1024], 8192).await.expect("the write");
        let shown = ShownBitmap::InChain("on".to_owned());
        let hold = BitmapHold {
            root: client.root(),
            bitmaps: vec![shown],
            writable: true,
        };
        graph.ask(HoldBitmaps(hold)).await.expect("nobody else holds it");
        let refused = edit("on", BitmapChange::Clear).await.expect_err("it is held");
        assert_eq!(refused.kind(), ErrorKind::InUse);
        let saved = saved(&graph).await;
        let node = node(&saved, "data");
        let known: Vec<_> = node
            .bitmaps
            .iter()
            .map(|known| (known.name.as_str(), known.is_recording, known.holder))
            .collect();
        assert_eq!(known, [("on", true, Some(client.root())), ("off", false, None)]);
        let cell = node.cell.as_ref().expect("the iothread answered");
        let dirty: Vec<_> = cell
            .bitmaps
            .iter()
            .map(|bits| (bits.bitmap, bits.dirty.0.as_slice()))
            .collect();
        let ids = [node.bitmaps[0].id, node.bitmaps[1].id];
        assert_eq!(
            dirty,
            [
                (ids[0], &[(4096, 512), (8192, 1024)][..]),
                (ids[1], &[(4096, 512)])
            ]
        );
    });
}

#[test]
fn a_record_has_the_state_of_drivers_that_have_any() {
    with_graph(|graph| async move {
        add(
            &graph,
            json!({"driver": "null-co", "node-name": "data", "size": 1 << 20}),
        )
        .await;
        let rule = json!([{"event": "pwritev", "errno": 28, "once": true}]);
        add(
            &graph,
            json!({"driver": "blkdebug", "node-name": "top", "image": "data", "inject-error": rule}),
        )
        .await;
        let before = saved(&graph).await;
        assert!(
            node(&before, "data")
                .cell
                .as_ref()
                .expect("cell")
                .driver
                .is_none()
        );
        let client = attach(&graph, "top").await;
        let record = |saved: &SavedGraph| {
            node(saved, "top")
                .cell
                .clone()
                .expect("cell")
                .driver
                .expect("rules")
        };
        let rules = record(&before);
        let error = client.write_at(&[1; 512], 0).await;
        assert_eq!(
            error,
            Err(IoError::NoSpace),
            "no event has armed the rule before the write"
        );
        let after = record(&saved(&graph).await);
        assert_ne!(rules, after, "a rule that holds once is used up, or armed");
    });
}
