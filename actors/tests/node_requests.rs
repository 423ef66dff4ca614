//! What a user asks of a whole node, and what it is told of it.
#![allow(clippy::unwrap_used, reason = "a test ends where something fails")]

#[path = "support/images.rs"]
mod images;
mod support;

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use images::{attach, run};
use millpond::graph::GraphHandle;
use millpond_messages::graph::{DescribeImage, Options, RootRequest, RootUser};
use millpond_messages::{DriverInfo, Permissions, Range, RequestFlags, StatusFlags};
use serde_json::{Value, json};
use support::with_graph;

const MIB: u64 = 1 << 20;
const WRITER: Permissions = Permissions::CONSISTENT_READ.union(Permissions::WRITE);

fn options(json: Value) -> Options {
    json.as_object().unwrap().clone()
}

async fn add(graph: &GraphHandle, json: Value) {
    graph.add_node(options(json)).await.unwrap();
}

/// A chain of two images of 4 MiB, of which each has data that the other has not.
async fn chain(graph: &GraphHandle, folder: &Path) {
    for (image, command) in [("base", "write -P 1 0 1M"), ("top", "write -P 2 1M 64k")] {
        let path = folder.join(image);
        let path = path.to_str().unwrap();
        run("qemu-img", &["create", "-q", "-f", "qcow2", path, "4M"]);
        run("qemu-io", &["-f", "qcow2", "-c", command, path]);
    }
    let file = |image: &str| json!({"driver": "file", "filename": folder.join(image), "discard": "unmap"});
    let base = json!({"driver": "qcow2", "node-name": "base", "file": file("base")});
    let top = json!({"driver": "qcow2", "node-name": "top", "file": file("top"), "backing": base, "discard": "unmap"});
    add(graph, top).await;
}

#[test]
fn a_whole_node_is_zeroed_but_for_what_is_zero_already() {
    let folder = tempfile::tempdir().unwrap();
    with_graph(|graph| async move {
        chain(&graph, folder.path()).await;
        let top = attach(&graph, "top", WRITER).await;
        top.write_zeroes(2 * MIB, MIB, RequestFlags::empty())
            .await
            .unwrap();
        let before = graph.node("top").await.unwrap().size;
        top.make_zero(RequestFlags::MAY_UNMAP).await.unwrap();
        assert_eq!(before, top.length().await.unwrap());
        let mut bytes = vec![1; usize::try_from(before).unwrap()];
        top.read_at(&mut bytes, 0).await.unwrap();
        assert!(bytes.iter().all(|byte| *byte == 0));
        let status = top.block_status(0, before, false, false).await.unwrap();
        assert_eq!((status.len, status.depth), (before, 1));
        assert!(status.flags.contains(StatusFlags::ZERO));
        graph.detach(top.root()).await.unwrap();
    });
    // A node that has no quick way is written only where it is not zero.
    let folder = tempfile::tempdir().unwrap();
    with_graph(|graph| async move {
        let path = folder.path().join("sparse");
        let file = std::fs::File::create(&path).unwrap();
        file.set_len(64 * MIB).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &[1; 4096], 32 * MIB).unwrap();
        let file = json!({"driver": "file", "filename": path});
        add(&graph, json!({"driver": "raw", "node-name": "raw", "file": file})).await;
        let raw = attach(&graph, "raw", WRITER).await;
        raw.make_zero(RequestFlags::empty()).await.unwrap();
        raw.flush().await.unwrap();
        let status = raw.block_status(0, 64 * MIB, true, false).await.unwrap();
        assert!(status.flags.contains(StatusFlags::ZERO));
        let allocated = std::fs::metadata(&path).unwrap().blocks() * 512;
        assert!(allocated < MIB, "what is a hole stays one: {allocated}");
        assert_eq!(raw.allocated_size().await.unwrap(), allocated);
        graph.detach(raw.root()).await.unwrap();
    });
}

#[test]
fn zeroes_are_known_through_the_chain_without_a_read() {
    let folder = tempfile::tempdir().unwrap();
    with_graph(|graph| async move {
        chain(&graph, folder.path()).await;
        let top = attach(&graph, "top", WRITER).await;
        let here = top.here();
        let is_zero = async |offset, len| {
            let told = top.is_zero_fast(offset, len).await.unwrap();
            assert_eq!(here.is_zero_fast(offset, len).await.unwrap(), told);
            told
        };
        assert!(!is_zero(0, 512).await, "the lower image has data");
        assert!(!is_zero(MIB, 65_536).await, "the upper one has");
        assert!(is_zero(MIB + 65_536, 4 * MIB - MIB - 65_536).await);
        assert!(!is_zero(MIB + 65_024, MIB).await, "not all of it");
        // Several extents, one of the upper image and one that none has.
        top.write_zeroes(0, 2 * MIB, RequestFlags::empty()).await.unwrap();
        assert!(is_zero(0, 4 * MIB).await);
        assert!(is_zero(0, 0).await);
        graph.detach(top.root()).await.unwrap();
    });
}

#[test]
fn a_node_tells_its_sectors_and_what_it_takes_on_its_host() {
    let folder = tempfile::tempdir().unwrap();
    with_graph(|graph| async move {
        let path = folder.path().join("odd");
        std::fs::write(&path, [7; 1000]).unwrap();
        add(
            &graph,
            json!({"driver": "file", "node-name": "odd", "filename": path}),
        )
        .await;
        add(
            &graph,
            json!({"driver": "null-co", "node-name": "null", "size": 1024}),
        )
        .await;
        let reader = Permissions::CONSISTENT_READ;
        let (odd, null) = (
            attach(&graph, "odd", reader).await,
            attach(&graph, "null", reader).await,
        );
        assert_eq!(odd.sectors().await, Ok(2));
        assert_eq!(null.sectors().await, Ok(2));
        let blocks = std::fs::metadata(&path).unwrap().blocks();
        assert_eq!(odd.allocated_size().await, Ok(blocks * 512));
        assert_eq!(null.here().allocated_size().await, Ok(0));
        for client in [odd, null] {
            graph.detach(client.root()).await.unwrap();
        }
        chain(&graph, folder.path()).await;
        let top = attach(&graph, "top", reader).await;
        let image = folder.path().join("top");
        let blocks = std::fs::metadata(image).unwrap().blocks();
        assert_eq!(
            top.allocated_size().await,
            Ok(blocks * 512),
            "without the image below"
        );
        graph.detach(top.root()).await.unwrap();
    });
}

#[test]
fn zeroes_give_space_back_where_all_down_to_the_driver_can_and_may() {
    let folder = tempfile::tempdir().unwrap();
    with_graph(|graph| async move {
        let path = folder.path().join("disk");
        std::fs::write(&path, [0; 4096]).unwrap();
        let file = |name: &str, discard: &str| json!({"driver": "file", "node-name": name, "filename": path, "discard": discard, "locking": "off"});
        chain(&graph, folder.path()).await;
        add(&graph, file("may", "unmap")).await;
        add(&graph, file("may-not", "ignore")).await;
        add(
            &graph,
            json!({"driver": "null-co", "node-name": "null", "discard": "unmap"}),
        )
        .await;
        for (name, below, discard) in [
            ("raw", "may", "unmap"),
            ("raw-ignoring", "may", "ignore"),
            ("raw-above-null", "null", "unmap"),
        ] {
            let raw = json!({"driver": "raw", "node-name": name, "file": below, "discard": discard});
            add(&graph, raw).await;
        }
        let filter = json!({"driver": "copy-on-read", "node-name": "filter", "file": "raw-above-null",
            "discard": "unmap"});
        add(&graph, filter).await;
        let facts = graph.facts().await.unwrap();
        for (node, unmaps) in [
            ("may", true),
            ("may-not", false),
            ("raw", true),
            ("raw-ignoring", false),
            ("null", false),
            ("raw-above-null", false),
            ("filter", false),
            ("top", true),
        ] {
            assert_eq!(graph.node(node).await.unwrap().unmaps_zeroes, unmaps, "{node}");
            let of_all = facts.nodes.iter().find(|facts| facts.name == node).unwrap();
            assert_eq!(of_all.unmaps_zeroes, unmaps, "{node}, told with all");
        }
    });
}

#[test]
fn a_device_has_the_name_that_its_user_has_chosen() {
    with_graph(|graph| async move {
        for name in ["disk", "spare"] {
            add(&graph, json!({"driver": "null-co", "node-name": name})).await;
        }
        add(
            &graph,
            json!({"driver": "raw", "node-name": "raw", "file": "disk"}),
        )
        .await;
        let mut clients = Vec::new();
        for (node, user) in [
            ("raw", RootUser::Export("e".to_owned())),
            ("raw", RootUser::Embedder("virtio0".to_owned())),
            ("raw", RootUser::Embedder("second".to_owned())),
            ("spare", RootUser::Embedder(String::new())),
        ] {
            let request = RootRequest::new(node, user, Permissions::CONSISTENT_READ);
            clients.push(graph.attach(request).await.unwrap());
        }
        let facts = graph.facts().await.unwrap();
        let id = |name: &str| facts.nodes.iter().find(|node| node.name == name).unwrap().id;
        let names = |node| (facts.device_name(node), facts.device_or_node_name(node));
        assert_eq!(names(id("raw")), ("virtio0", "virtio0"));
        assert_eq!(
            names(id("disk")),
            ("", "disk"),
            "it is the user's only through another"
        );
        assert_eq!(names(id("spare")), ("", "spare"));
        for client in clients {
            graph.detach(client.root()).await.unwrap();
        }
        let gone = id("spare");
        graph.delete_node("spare").await.unwrap();
        let facts = graph.facts().await.unwrap();
        assert_eq!(facts.device_or_node_name(gone), "");
    });
}

#[test]
fn ranges_are_widened_to_the_clusters_of_an_image() {
    let folder = tempfile::tempdir().unwrap();
    with_graph(|graph| async move {
        chain(&graph, folder.path()).await;
        let node_name = "top".to_owned();
        let info = graph.ask(DescribeImage { node_name }).await.unwrap();
        let rounded = |start, end| info.round_to_clusters(Range::between(start, end)).unwrap();
        assert_eq!(rounded(1, 2), Range::between(0, 65_536));
        assert_eq!(rounded(65_535, 65_537), Range::between(0, 131_072));
        assert_eq!(rounded(65_536, 131_072), Range::between(65_536, 131_072));
        let none = DriverInfo::default();
        let range = Range::between(1, 2);
        assert_eq!(none.round_to_clusters(range), Ok(range), "there are no clusters");
        assert!(
            info.round_to_clusters(Range::between(u64::MAX - 1, u64::MAX))
                .is_err()
        );
    });
}
