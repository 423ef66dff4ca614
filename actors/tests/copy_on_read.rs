//! Reads that copy up what they find below, by flag, by option and by filter; and the flags of requests that go with it.
#![allow(clippy::unwrap_used, reason = "a test ends where something fails")]

#[path = "support/images.rs"]
mod images;
mod support;

use std::path::{Path, PathBuf};

use images::{attach, run};
use millpond::graph::GraphHandle;
use millpond::node::Client;
use millpond_drivers::api::transfer;
use millpond_messages::graph::{CopyOnRead, DebugNode, IsSuspended, Options};
use millpond_messages::io::Operation;
use millpond_messages::{ErrorKind, IoError, Permissions, RequestFlags, StatusFlags};
use millpond_ring::buffer::{Buffer, Buffers};
use serde_json::{Value, json};
use support::with_graph;

const PLAIN: RequestFlags = RequestFlags::empty();
const COPY: RequestFlags = RequestFlags::COPY_ON_READ;
const CLUSTER: u64 = 65536;

/// A chain of images: a base with a pattern in its first MiB, one above it with another in the second, and one on top.
struct Chain(tempfile::TempDir);

impl Chain {
    fn new() -> Self {
        let chain = Self(tempfile::tempdir().unwrap());
        let [base, middle, top] = ["base", "middle", "top"].map(|name| chain.path(name));
        let name = |path: &Path| path.to_str().unwrap().to_owned();
        run("qemu-img", &["create", "-q", "-f", "qcow2", &name(&base), "4M"]);
        run("qemu-io", &["-c", "write -P 0x11 0 1M", &name(&base)]);
        for (below, above) in [(&base, &middle), (&middle, &top)] {
            run(
                "qemu-img",
                &[
                    "create",
                    "-q",
                    "-f",
                    "qcow2",
                    "-F",
                    "qcow2",
                    "-b",
                    &name(below),
                    &name(above),
                ],
            );
        }
        run("qemu-io", &["-c", "write -P 0x22 1M 1M", &name(&middle)]);
        chain
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(format!("{name}.qcow2"))
    }

    fn top(&self, more: Value) -> Value {
        let mut options = json!({"driver": "qcow2", "node-name": "top",
            "file": {"driver": "file", "filename": self.path("top")},
            "backing": {"driver": "qcow2", "node-name": "middle",
                "file": {"driver": "file", "filename": self.path("middle")}}});
        let more = more.as_object().unwrap().clone();
        options.as_object_mut().unwrap().extend(more);
        options
    }

    /// The top image is sound and shows what it showed before.
    fn check(&self) {
        let top = self.path("top");
        run("qemu-img", &["check", "-q", top.to_str().unwrap()]);
        let unchanged = Self::new();
        let middle = unchanged.path("middle");
        run(
            "qemu-img",
            &["compare", "-q", top.to_str().unwrap(), middle.to_str().unwrap()],
        );
    }
}

fn options(json: Value) -> Options {
    json.as_object().expect("options are an object").clone()
}

async fn add(graph: &GraphHandle, json: Value) {
    graph.add_node(options(json)).await.unwrap();
}

const WRITER: Permissions = Permissions::CONSISTENT_READ.union(Permissions::WRITE);
const COPIER: Permissions = Permissions::CONSISTENT_READ.union(Permissions::WRITE_UNCHANGED);

/// Reads into buffers that hold 0xEE before.
async fn read(client: &Client, offset: u64, len: usize, flags: RequestFlags) -> Result<Vec<u8>, IoError> {
    let buffers = Buffers::from(Buffer::from_slice(&vec![0xee; len]));
    let read = Operation::Read {
        offset,
        buffers,
        flags,
    };
    let (result, buffers) = transfer(client.request(read).await);
    result.map(|()| buffers.to_vec())
}

/// What the node itself has, not what is below it.
async fn own(client: &Client, offset: u64) -> StatusFlags {
    client
        .block_status(offset, CLUSTER, true, false)
        .await
        .unwrap()
        .flags
}

async fn has(client: &Client, offset: u64) -> bool {
    own(client, offset).await.contains(StatusFlags::ALLOCATED)
}

#[test]
fn a_read_that_asks_for_it_is_copied_up_by_whole_clusters() {
    let chain = Chain::new();
    with_graph(|graph| async move {
        add(&graph, chain.top(json!({}))).await;
        let client = attach(&graph, "top", COPIER).await;
        assert_eq!(
            read(&client, CLUSTER + 100, 50, PLAIN).await.unwrap(),
            vec![0x11; 50]
        );
        assert!(!has(&client, CLUSTER).await);
        let across = read(&client, 2 * CLUSTER - 100, 200, COPY).await.unwrap();
        assert_eq!(across, vec![0x11; 200]);
        let found = [0, 1, 2, 3].map(|cluster| has(&client, cluster * CLUSTER));
        assert_eq!(
            futures_util::future::join_all(found).await,
            [false, true, true, false]
        );
        // Half of it is there already, and the other half comes from another image.
        let mixed = read(&client, (1 << 20) - CLUSTER, 2 * 65536, COPY).await.unwrap();
        assert_eq!(mixed, [[0x11; 65536], [0x22; 65536]].concat());
        graph.detach(client.root()).await.unwrap();
        graph.delete_node("top").await.unwrap();
        chain.check();
    });
}

#[test]
fn what_reads_as_zeroes_below_is_copied_as_zeroes() {
    let chain = Chain::new();
    with_graph(|graph| async move {
        add(&graph, chain.top(json!({}))).await;
        let client = attach(&graph, "top", COPIER).await;
        assert_eq!(read(&client, 3 << 20, 512, COPY).await.unwrap(), vec![0; 512]);
        let status = own(&client, 3 << 20).await;
        assert!(
            status.contains(StatusFlags::ALLOCATED | StatusFlags::ZERO),
            "{status:?}"
        );
        assert!(!status.contains(StatusFlags::DATA), "{status:?}");
        graph.detach(client.root()).await.unwrap();
        graph.delete_node("top").await.unwrap();
        chain.check();
    });
}

#[test]
fn a_prefetch_copies_without_reading() {
    let chain = Chain::new();
    with_graph(|graph| async move {
        add(&graph, chain.top(json!({}))).await;
        let client = attach(&graph, "top", COPIER).await;
        let prefetch = COPY | RequestFlags::PREFETCH;
        for _ in 0..2 {
            assert_eq!(
                read(&client, 0, 65536, prefetch).await.unwrap(),
                vec![0xee; 65536]
            );
            assert!(has(&client, 0).await);
        }
        assert_eq!(read(&client, 0, 65536, PLAIN).await.unwrap(), vec![0x11; 65536]);
        graph.detach(client.root()).await.unwrap();
    });
}

#[test]
fn copying_and_writes_that_change_nothing_need_their_permission_and_no_more() {
    let chain = Chain::new();
    with_graph(|graph| async move {
        add(&graph, chain.top(json!({}))).await;
        let reader = attach(&graph, "top", Permissions::CONSISTENT_READ).await;
        assert_eq!(read(&reader, 0, 512, COPY).await, Err(IoError::NotPermitted));
        assert!(!has(&reader, 0).await);
        let copier = attach(&graph, "top", COPIER).await;
        let same = || Buffers::from(Buffer::from_slice(&[0x11; 512]));
        let unchanged = RequestFlags::WRITE_UNCHANGED;
        assert_eq!(
            reader.write(0, same(), unchanged).await.0,
            Err(IoError::NotPermitted)
        );
        assert_eq!(copier.write(0, same(), PLAIN).await.0, Err(IoError::NotPermitted));
        assert_eq!(
            copier.write_zeroes(3 << 20, 512, PLAIN).await,
            Err(IoError::NotPermitted)
        );
        assert_eq!(copier.write(0, same(), unchanged).await.0, Ok(()));
        assert_eq!(copier.write_zeroes(3 << 20, 512, unchanged).await, Ok(()));
        assert!(has(&copier, 0).await && has(&copier, 3 << 20).await);
        graph.detach(reader.root()).await.unwrap();
        graph.detach(copier.root()).await.unwrap();
        graph.delete_node("top").await.unwrap();
        chain.check();
    });
}

#[test]
fn a_write_of_zeroes_does_not_look_at_its_buffers() {
    let chain = Chain::new();
    with_graph(|graph| async move {
        add(&graph, chain.top(json!({}))).await;
        let client = attach(&graph, "top", WRITER).await;
        let buffers = Buffers::from(Buffer::from_slice(&vec![0x77; 65536]));
        let (result, _) = client.write(CLUSTER, buffers, RequestFlags::ZERO_WRITE).await;
        assert_eq!(result, Ok(()));
        assert_eq!(
            read(&client, CLUSTER, 65536, PLAIN).await.unwrap(),
            vec![0; 65536]
        );
        let status = own(&client, CLUSTER).await;
        assert!(
            !status.contains(StatusFlags::DATA),
            "no zeroes are stored: {status:?}"
        );
        graph.detach(client.root()).await.unwrap();
    });
}

#[test]
fn copy_on_read_is_turned_on_and_off_by_count() {
    let chain = Chain::new();
    with_graph(|graph| async move {
        add(&graph, chain.top(json!({}))).await;
        let client = attach(&graph, "top", COPIER).await;
        graph
            .ask(CopyOnRead {
                node_name: "top".to_owned(),
                on: true,
            })
            .await
            .unwrap();
        graph
            .ask(CopyOnRead {
                node_name: "top".to_owned(),
                on: true,
            })
            .await
            .unwrap();
        read(&client, 0, 512, PLAIN).await.unwrap();
        assert!(has(&client, 0).await);
        graph
            .ask(CopyOnRead {
                node_name: "top".to_owned(),
                on: false,
            })
            .await
            .unwrap();
        read(&client, CLUSTER, 512, PLAIN).await.unwrap();
        assert!(has(&client, CLUSTER).await, "one still asks for it");
        graph
            .ask(CopyOnRead {
                node_name: "top".to_owned(),
                on: false,
            })
            .await
            .unwrap();
        read(&client, 2 * CLUSTER, 512, PLAIN).await.unwrap();
        assert!(!has(&client, 2 * CLUSTER).await);
        let error = graph
            .ask(CopyOnRead {
                node_name: "top".to_owned(),
                on: false,
            })
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        let error = graph
            .ask(CopyOnRead {
                node_name: "middle".to_owned(),
                on: true,
            })
            .await
            .unwrap_err();
        assert_eq!(error.to_string(), "Can't use copy-on-read on read-only device");
        graph.detach(client.root()).await.unwrap();
    });
}

#[test]
fn a_node_may_be_opened_with_copy_on_read_unless_it_is_read_only() {
    let chain = Chain::new();
    with_graph(|graph| async move {
        let on = json!({"copy-on-read": true});
        let refused = chain.top(json!({"copy-on-read": true, "read-only": true}));
        assert_eq!(
            graph.add_node(options(refused)).await.unwrap_err().to_string(),
            "Can't use copy-on-read on read-only device"
        );
        add(&graph, chain.top(on)).await;
        add(
            &graph,
            json!({"driver": "raw", "node-name": "raw", "file": "top"}),
        )
        .await;
        let client = attach(&graph, "raw", WRITER).await;
        read(&client, 0, 512, PLAIN).await.unwrap();
        let below = attach(&graph, "top", COPIER).await;
        assert!(
            has(&below, 0).await && !has(&below, CLUSTER).await,
            "whoever reads over a parent copies too"
        );
        graph.detach(client.root()).await.unwrap();
        graph.detach(below.root()).await.unwrap();
    });
}

#[test]
fn a_guest_write_waits_for_the_copy_of_its_cluster_and_wins() {
    let chain = Chain::new();
    with_graph(|graph| async move {
        let file = json!({"driver": "blkdebug",
            "image": {"driver": "file", "filename": chain.path("top")}});
        add(&graph, chain.top(json!({ "file": file }))).await;
        let client = attach(&graph, "top", WRITER).await;
        graph
            .ask(DebugNode::breakpoint("top", "read_backing_aio", "copy"))
            .await
            .unwrap();
        let copying = actix_rt::spawn({
            let client = client.clone();
            async move { read(&client, 0, 512, COPY).await }
        });
        while !graph.ask(IsSuspended::under("top", "copy")).await.unwrap() {
            actix_rt::task::yield_now().await;
        }
        let writing = actix_rt::spawn({
            let client = client.clone();
            async move {
                let buffers = Buffers::from(Buffer::from_slice(&[0x99; 512]));
                client.write(4096, buffers, PLAIN).await.0
            }
        });
        // What is sent after it and has nothing to do with the cluster has come and gone.
        read(&client, 2 << 20, 512, PLAIN).await.unwrap();
        assert!(!writing.is_finished(), "the cluster is the copy's");
        graph.ask(DebugNode::resume("top", "copy")).await.unwrap();
        assert_eq!(copying.await.unwrap().unwrap(), vec![0x11; 512]);
        writing.await.unwrap().unwrap();
        let expected = [&[0x11; 4096][..], &[0x99; 512], &[0x11; 512]].concat();
        assert_eq!(read(&client, 0, 5120, PLAIN).await.unwrap(), expected);
        graph.detach(client.root()).await.unwrap();
    });
}

#[test]
fn the_filter_copies_all_that_is_read_through_it() {
    let chain = Chain::new();
    with_graph(|graph| async move {
        add(&graph, chain.top(json!({}))).await;
        add(
            &graph,
            json!({"driver": "copy-on-read", "node-name": "cor", "file": "top"}),
        )
        .await;
        let client = attach(&graph, "cor", Permissions::CONSISTENT_READ).await;
        assert_eq!(read(&client, 100, 1000, PLAIN).await.unwrap(), vec![0x11; 1000]);
        assert_eq!(
            read(&client, 1 << 20, 65536, RequestFlags::PREFETCH)
                .await
                .unwrap(),
            vec![0xee; 65536],
            "a prefetch through the filter only copies"
        );
        let below = attach(&graph, "top", COPIER).await;
        assert!(has(&below, 0).await && has(&below, 1 << 20).await && !has(&below, CLUSTER).await);
        graph.detach(client.root()).await.unwrap();
        graph.detach(below.root()).await.unwrap();
        graph.delete_node("cor").await.unwrap();
        graph.delete_node("top").await.unwrap();
        chain.check();
    });
}

#[test]
fn a_filter_with_a_bottom_copies_only_from_above_and_at_it() {
    let chain = Chain::new();
    with_graph(|graph| async move {
        add(&graph, chain.top(json!({}))).await;
        let cor = |bottom: &str| {
            options(json!({"driver": "copy-on-read", "node-name": "cor", "file": "top", "bottom": bottom}))
        };
        let error = graph.add_node(cor("nope")).await.unwrap_err();
        assert_eq!(error.to_string(), "Bottom node 'nope' not found");
        graph.add_node(cor("middle")).await.unwrap();
        let client = attach(&graph, "cor", Permissions::CONSISTENT_READ).await;
        let across = read(&client, (1 << 20) - CLUSTER, 2 * 65536, PLAIN)
            .await
            .unwrap();
        assert_eq!(across, [[0x11; 65536], [0x22; 65536]].concat());
        let skipped = read(&client, 0, 512, RequestFlags::PREFETCH).await.unwrap();
        assert_eq!(
            skipped,
            vec![0xee; 512],
            "what is not copied is not fetched either"
        );
        let below = attach(&graph, "top", COPIER).await;
        assert!(has(&below, 1 << 20).await);
        assert!(!has(&below, (1 << 20) - CLUSTER).await && !has(&below, 0).await);
        graph.detach(client.root()).await.unwrap();
        graph.detach(below.root()).await.unwrap();
    });
}

#[test]
fn compressed_writes_go_to_formats_that_take_them_and_through_filters_that_pass_them_on() {
    let chain = Chain::new();
    with_graph(|graph| async move {
        add(&graph, chain.top(json!({}))).await;
        add(
            &graph,
            json!({"driver": "copy-on-read", "node-name": "cor", "file": "top"}),
        )
        .await;
        add(&graph, json!({"driver": "null-co", "node-name": "null"})).await;
        let client = attach(&graph, "cor", WRITER).await;
        let compressed = RequestFlags::WRITE_COMPRESSED;
        let text = || Buffers::from(Buffer::from_slice(&vec![0x33; 65536]));
        assert_eq!(client.write(2 << 20, text(), compressed).await.0, Ok(()));
        assert_eq!(
            client.write((2 << 20) + 512, text(), compressed).await.0,
            Err(IoError::Invalid)
        );
        assert_eq!(
            read(&client, 2 << 20, 65536, PLAIN).await.unwrap(),
            vec![0x33; 65536]
        );
        let below = attach(&graph, "top", COPIER).await;
        assert!(own(&below, 2 << 20).await.contains(StatusFlags::COMPRESSED));
        let null = attach(&graph, "null", WRITER).await;
        assert_eq!(
            null.write(0, text(), compressed).await.0,
            Err(IoError::NotSupported)
        );
        for client in [client, below, null] {
            graph.detach(client.root()).await.unwrap();
        }
    });
}
