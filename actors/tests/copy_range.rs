//! Copies from file to file of the host, without a buffer: which can be made, what they copy, and that nothing moves the bytes
//! meanwhile.
#![allow(clippy::unwrap_used, reason = "a test ends where something fails")]

#[path = "support/images.rs"]
mod images;
mod support;

use std::path::{Path, PathBuf};

use futures_util::FutureExt;
use futures_util::future::join;
use images::{attach, run};
use millpond::node::Client;
use millpond_drivers::api::transfer;
use millpond_messages::graph::{DrainScope, Options};
use millpond_messages::io::{CopyFault, CopyRequest, Operation};
use millpond_messages::{IoError, Permissions, Range, RequestFlags, lending};
use millpond_ring::buffer::Buffers;
use serde_json::{Value, json};
use support::with_graph;

const MIB: u64 = 1 << 20;
const CLUSTER: u64 = 65_536;
const READER: Permissions = Permissions::CONSISTENT_READ;
const WRITER: Permissions = Permissions::CONSISTENT_READ.union(Permissions::WRITE);
const SOURCE: CopyFault = CopyFault::Source(IoError::NotSupported);
const TARGET: CopyFault = CopyFault::Target(IoError::NotSupported);

fn name(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Images in a folder of their own.
struct Images(tempfile::TempDir);

impl Images {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, image: &str) -> PathBuf {
        self.0.path().join(image)
    }

    fn create(&self, image: &str, more: &[&str]) -> &Self {
        let format = image.rsplit('.').next().unwrap();
        let path = self.path(image);
        let fixed = ["create", "-q", "-f", format];
        run("qemu-img", &[&fixed, more, &[name(&path), "4M"]].concat());
        self
    }

    fn io(&self, image: &str, command: &str) -> &Self {
        let format = image.rsplit('.').next().unwrap();
        run("qemu-io", &["-f", format, "-c", command, name(&self.path(image))]);
        self
    }

    /// The node of an image, which is called as its file.
    fn node(&self, image: &str, more: Value) -> Options {
        let format = image.rsplit('.').next().unwrap();
        let file = json!({"driver": "file", "filename": self.path(image)});
        let mut node = json!({"driver": format, "node-name": image, "file": file});
        let more = more.as_object().unwrap().clone();
        node.as_object_mut().unwrap().extend(more);
        node.as_object().unwrap().clone()
    }
}

/// Copies the start of a range; answers how many bytes.
async fn copy(source: &Client, target: &Client, range: Range) -> Result<u64, CopyFault> {
    let (lender, loan) = lending(range);
    let lent = source.request(Operation::Copy(CopyRequest::Out(lender)));
    let copied = async {
        let loan = loan.await.map_err(|_| SOURCE)?;
        let request = CopyRequest::In {
            range: range.first(loan.len),
            source: loan.source.clone(),
            flags: RequestFlags::empty(),
        };
        let done = target.request(Operation::Copy(request)).await.into_done();
        done.map(|()| loan.len).map_err(CopyFault::Target)
    };
    let (lent, copied) = join(lent, copied).await;
    lent.into_done().map_err(CopyFault::Source)?;
    copied
}

async fn read(client: &Client, range: Range) -> Vec<u8> {
    let read = Operation::Read {
        offset: range.offset(),
        buffers: Buffers::zeroed(usize::try_from(range.len()).unwrap()),
        flags: RequestFlags::empty(),
    };
    let (result, buffers) = transfer(client.request(read).await);
    result.unwrap();
    buffers.to_vec()
}

#[test]
fn bytes_go_through_formats_and_chains() {
    let images = Images::new();
    images
        .create("base.qcow2", &[])
        .io("base.qcow2", "write -P 1 0 1M");
    images
        .create("top.qcow2", &[])
        .io("top.qcow2", "write -P 2 1M 1M");
    images.create("from.raw", &[]).io("from.raw", "write -P 3 0 4M");
    images.create("to.qcow2", &[]).create("to.raw", &[]);
    with_graph(|graph| async move {
        let base = images.node("base.qcow2", json!({}));
        graph
            .add_node(images.node("top.qcow2", json!({"backing": base})))
            .await
            .unwrap();
        for image in ["from.raw", "to.qcow2", "to.raw"] {
            graph.add_node(images.node(image, json!({}))).await.unwrap();
        }
        for target in ["to.qcow2", "to.raw"] {
            let to = attach(&graph, target, WRITER).await;
            for (source, at, expected) in [("top.qcow2", 0, 1), ("top.qcow2", MIB, 2), ("from.raw", 0, 3)] {
                let from = attach(&graph, source, READER).await;
                let range = Range::between(at, at + MIB);
                assert_eq!(copy(&from, &to, range).await, Ok(MIB), "{source} to {target}");
                assert_eq!(
                    read(&to, range).await,
                    vec![expected; 1 << 20],
                    "{source} to {target}"
                );
                graph.detach(from.root()).await.unwrap();
            }
            to.request(Operation::Flush).await.into_done().unwrap();
            graph.detach(to.root()).await.unwrap();
        }
        graph.close_all().await.unwrap();
        run("qemu-img", &["check", "-q", name(&images.path("to.qcow2"))]);
        run(
            "qemu-img",
            &[
                "compare",
                "-q",
                name(&images.path("to.qcow2")),
                name(&images.path("to.raw")),
            ],
        );
    });
}

#[test]
fn what_no_file_has_as_it_is_is_not_lent() {
    let images = Images::new();
    images
        .create("from.qcow2", &[])
        .io("from.qcow2", "write -c -P 1 0 64k")
        .io("from.qcow2", "write -P 2 64k 64k");
    images.create("to.raw", &[]);
    with_graph(|graph| async move {
        for image in ["from.qcow2", "to.raw"] {
            graph.add_node(images.node(image, json!({}))).await.unwrap();
        }
        let from = attach(&graph, "from.qcow2", READER).await;
        let to = attach(&graph, "to.raw", WRITER).await;
        let packed = Range::between(0, CLUSTER);
        assert_eq!(copy(&from, &to, packed).await, Err(SOURCE));
        // What is lent ends where the file has something else.
        let plain = Range::between(CLUSTER, 4 * CLUSTER);
        assert_eq!(copy(&from, &to, plain).await, Ok(CLUSTER));
        let hole = Range::between(2 * CLUSTER, 3 * CLUSTER);
        assert_eq!(copy(&from, &to, hole).await, Err(SOURCE));
        let beyond = copy(&from, &to, Range::between(4 * MIB - 512, 4 * MIB + 512)).await;
        assert_eq!(beyond, Err(CopyFault::Source(IoError::OutOfRange)));
        assert_eq!(read(&to, packed).await, vec![0; 65_536]);
        for client in [from, to] {
            graph.detach(client.root()).await.unwrap();
        }
    });
}

#[test]
fn a_target_that_has_to_see_the_bytes_refuses_and_keeps_nothing_allocated() {
    let images = Images::new();
    images.create("from.raw", &[]).io("from.raw", "write -P 1 0 4M");
    images
        .create("base.qcow2", &[])
        .io("base.qcow2", "write -P 2 0 4M");
    images
        .create("over.qcow2", &[])
        .create("zeroes.raw", &[])
        .create("watched.raw", &[])
        .create("fixed.raw", &[]);
    with_graph(|graph| async move {
        graph.add_node(images.node("from.raw", json!({}))).await.unwrap();
        let base = images.node("base.qcow2", json!({}));
        graph
            .add_node(images.node("over.qcow2", json!({"backing": base})))
            .await
            .unwrap();
        let watched = json!({"driver": "blkdebug", "image": {"driver": "file", "filename": images.path("watched.raw")},
            "inject-error": [{"event": "none", "iotype": "write", "once": false}]});
        let nodes = [
            images.node("zeroes.raw", json!({"detect-zeroes": "on"})),
            images.node("watched.raw", json!({"file": watched})),
            images.node("fixed.raw", json!({"read-only": true})),
        ];
        for node in nodes {
            graph.add_node(node).await.unwrap();
        }
        let from = attach(&graph, "from.raw", READER).await;
        let whole = Range::between(0, CLUSTER);
        // The rest of the cluster would have to be copied along.
        for (target, range) in [
            ("over.qcow2", Range::between(0, 512)),
            ("zeroes.raw", whole),
            ("watched.raw", whole),
        ] {
            let to = attach(&graph, target, WRITER).await;
            assert_eq!(copy(&from, &to, range).await, Err(TARGET), "{target}");
            graph.detach(to.root()).await.unwrap();
        }
        let over = attach(&graph, "over.qcow2", WRITER).await;
        let status = over.block_status(0, CLUSTER, true, false).await.unwrap();
        assert!(!status.flags.contains(millpond_messages::StatusFlags::ALLOCATED));
        assert_eq!(copy(&from, &over, whole).await, Ok(CLUSTER));
        assert_eq!(read(&over, whole).await, vec![1; 65_536]);
        let reader = attach(&graph, "zeroes.raw", READER).await;
        assert_eq!(
            copy(&from, &reader, whole).await,
            Err(CopyFault::Target(IoError::NotPermitted))
        );
        for client in [from, over, reader] {
            graph.detach(client.root()).await.unwrap();
        }
        graph.close_all().await.unwrap();
        run("qemu-img", &["check", "-q", name(&images.path("over.qcow2"))]);
    });
}

#[test]
fn a_node_is_not_quiet_before_what_it_has_lent_is_given_back() {
    let images = Images::new();
    images.create("from.raw", &[]).io("from.raw", "write -P 1 0 4M");
    images.create("other.raw", &[]);
    with_graph(|graph| async move {
        for image in ["from.raw", "other.raw"] {
            graph.add_node(images.node(image, json!({}))).await.unwrap();
        }
        let from = attach(&graph, "from.raw", READER).await;
        let other = attach(&graph, "other.raw", READER).await;
        let (lender, loan) = lending(Range::between(0, CLUSTER));
        let mut lent = Box::pin(from.request(Operation::Copy(CopyRequest::Out(lender))));
        let loan = futures_util::select_biased! {
            _ = lent.as_mut().fuse() => panic!("the node did not wait"),
            loan = loan.fuse() => loan.unwrap(),
        };
        let mut draining = Box::pin(graph.drain(DrainScope::Node("from.raw".to_owned()), "test"));
        assert!(draining.as_mut().now_or_never().is_none());
        // The order has got to the iothread and an answer back before these.
        graph.facts().await.unwrap();
        other.request(Operation::Length).await.into_bytes().unwrap();
        graph.facts().await.unwrap();
        assert!(draining.as_mut().now_or_never().is_none());
        drop(loan);
        lent.await.into_done().unwrap();
        drop(draining.await.unwrap());
        for client in [from, other] {
            graph.detach(client.root()).await.unwrap();
        }
    });
}
