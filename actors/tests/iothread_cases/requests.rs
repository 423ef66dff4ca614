//! Requests to a node in an iothread, called from elsewhere.

use std::future::Future;
use std::sync::Arc;

use futures_channel::oneshot;
use millpond::graph::GraphHandle;
use millpond::iothread::{IoThread, Local};
use millpond::node::{Client, Entry, Mail, RemoteRequest};
use millpond_drivers::api::{Notices, OpenRequest, Repair};
use millpond_drivers::builtin::builtin;
use millpond_messages::error::errno;
use millpond_messages::graph::{MakeImage, Options, SetActive};
use millpond_messages::io::{Operation, Outcome, Preallocation, Value as Answer};
use millpond_messages::{
    BlockStatus, IoError, NodeId, OpenFlags, Permissions, Range, RequestFlags, StatusFlags,
};
use millpond_ring::buffer::{Buffer, Buffers};
use serde_json::json;

use super::{USE, add, add_null, attach, move_to, options, with_graph};

/// A request to a node in an iothread, called from this thread: over a root edge, and as a parent node elsewhere sends.
struct Called {
    client: Client,
    node: NodeId,
}

impl Called {
    async fn new(graph: &GraphHandle, node: &str, permissions: Permissions) -> Called {
        let client = attach(graph, node, permissions).await;
        move_to(graph, node, "io").await;
        let facts = graph.node(node).await.expect("it is there");
        assert_eq!(client.iothread(), facts.iothread);
        assert_ne!(Local::current_id(), Some(facts.iothread), "called from elsewhere");
        Called {
            client,
            node: facts.id,
        }
    }

    async fn over_edge(&self, operation: Operation<Buffers>) -> Outcome<Buffers> {
        let (reply, answer) = oneshot::channel();
        let entry = Entry::Node(self.node);
        let request = RemoteRequest {
            unwanted: None,
            entry,
            operation,
            reply,
        };
        assert!(self.client.home().send(Mail::Request(request)).is_ok());
        answer.await.expect("every request is answered")
    }

    /// The same request both ways; both must answer alike.
    async fn both(&self, operation: impl Fn() -> Operation<Buffers>) -> Result<Answer, IoError> {
        let client = self.client.request(operation()).await.result;
        let edge = self.over_edge(operation()).await.result;
        assert_eq!(client, edge, "{:?}", operation());
        client
    }

    async fn succeeds(&self, operation: impl Fn() -> Operation<Buffers>) {
        assert_eq!(self.both(operation).await, Ok(Answer::Done));
    }

    async fn fails(&self, code: i32, operation: impl Fn() -> Operation<Buffers>) {
        let error = self.both(operation).await.expect_err("it must fail");
        assert_eq!(error.errno(), code, "{error:?}");
    }

    async fn end(self, graph: &GraphHandle) {
        graph.detach(self.client.root()).await.expect("it was attached");
    }
}

/// What `-1` is as an offset.
const NEGATIVE: u64 = u64::MAX;

/// A range from an offset on. The last that there is has its end there instead.
fn range(offset: u64, len: u64) -> Range {
    Range::new(offset, len).unwrap_or_else(|_| Range::between(offset - len, offset))
}

/// Buffers of one piece of this length, or of two.
fn data(pieces: usize) -> Buffers {
    let mut buffers = Buffers::new();
    for _ in 0..pieces {
        buffers.append(Buffers::from(Buffer::zeroed(512 / pieces)));
    }
    buffers
}

fn read(offset: u64, pieces: usize) -> impl Fn() -> Operation<Buffers> {
    move || Operation::Read {
        offset,
        buffers: data(pieces),
        flags: RequestFlags::empty(),
    }
}

fn write(offset: u64, pieces: usize, flags: RequestFlags) -> impl Fn() -> Operation<Buffers> {
    move || Operation::Write {
        offset,
        buffers: data(pieces),
        flags,
    }
}

/// drain-cases: `/sync-op/pread`, `/sync-op/preadv`, `/sync-op/preadv_part`
#[test]
fn reads_of_a_node_in_an_iothread_succeed_from_elsewhere_and_a_negative_offset_fails() {
    with_graph(|graph| async move {
        add_null(&graph, "n").await;
        let called = Called::new(&graph, "n", USE).await;
        for pieces in [1, 2] {
            called.succeeds(read(0, pieces)).await;
            called.fails(errno::EIO, read(NEGATIVE, pieces)).await;
        }
        // A part of a longer list of buffers is a list of its own.
        let mut longer = data(2);
        let part = longer.split_to(300);
        let (result, part) = called.client.read(0, part).await;
        assert_eq!((result, part.len(), longer.len()), (Ok(()), 300, 212));
        called.end(&graph).await;
    });
}

/// drain-cases: `/sync-op/pwrite`, `/sync-op/pwritev`, `/sync-op/pwritev_part`
#[test]
fn writes_to_a_node_in_an_iothread_succeed_from_elsewhere_and_a_negative_offset_fails() {
    with_graph(|graph| async move {
        add_null(&graph, "n").await;
        let called = Called::new(&graph, "n", USE).await;
        let plain = RequestFlags::empty();
        for pieces in [1, 2] {
            called.succeeds(write(0, pieces, plain)).await;
            called.fails(errno::EIO, write(NEGATIVE, pieces, plain)).await;
        }
        let mut longer = data(2);
        let part = longer.split_to(300);
        let (result, part) = called.client.write(0, part, plain).await;
        assert_eq!((result, part.len(), longer.len()), (Ok(()), 300, 212));
        called.end(&graph).await;
    });
}

/// drain-cases: `/sync-op/pwrite_compressed`
#[test]
fn a_compressed_write_is_not_supported_by_a_driver_that_cannot() {
    with_graph(|graph| async move {
        add_null(&graph, "n").await;
        let called = Called::new(&graph, "n", USE).await;
        let compressed = RequestFlags::WRITE_COMPRESSED;
        called.fails(errno::ENOTSUP, write(0, 1, compressed)).await;
        called.fails(errno::EIO, write(NEGATIVE, 1, compressed)).await;
        called.end(&graph).await;
    });
}

/// drain-cases: `/sync-op/pwrite_zeroes`
#[test]
fn zero_writes_to_a_node_in_an_iothread_succeed_from_elsewhere() {
    with_graph(|graph| async move {
        add_null(&graph, "n").await;
        let called = Called::new(&graph, "n", USE).await;
        let zeroes = |offset| {
            move || Operation::WriteZeroes {
                range: range(offset, 512),
                flags: RequestFlags::empty(),
            }
        };
        called.succeeds(zeroes(0)).await;
        called.fails(errno::EIO, zeroes(NEGATIVE)).await;
        called.end(&graph).await;
    });
}

/// drain-cases: `/sync-op/pdiscard`
#[test]
fn discards_succeed_whether_they_are_passed_on_or_ignored() {
    with_graph(|graph| async move {
        for discard in ["unmap", "ignore"] {
            let file = tempfile::NamedTempFile::new().expect("a file");
            file.as_file().set_len(1 << 20).expect("room");
            add(
                &graph,
                json!({"driver": "file", "node-name": "f", "filename": file.path(), "discard": discard}),
            )
            .await;
            let called = Called::new(&graph, "f", USE).await;
            let discard = |offset| {
                move || Operation::Discard {
                    range: range(offset, 4096),
                }
            };
            called.succeeds(discard(0)).await;
            called.fails(errno::EIO, discard(NEGATIVE)).await;
            called.end(&graph).await;
            graph.delete_node("f").await.expect("nobody uses it");
        }
    });
}

/// drain-cases: `/sync-op/truncate`
#[test]
fn truncates_succeed_and_refuse_negative_sizes_and_read_only_nodes() {
    with_graph(|graph| async move {
        let file = tempfile::NamedTempFile::new().expect("a file");
        file.as_file().set_len(1 << 20).expect("room");
        let truncate = |size| {
            move || Operation::Truncate {
                size,
                exact: false,
                preallocation: Preallocation::Off,
                flags: RequestFlags::empty(),
            }
        };
        for read_only in [false, true] {
            let node =
                json!({"driver": "file", "node-name": "f", "filename": file.path(), "read-only": read_only});
            add(&graph, node).await;
            let permissions = if read_only {
                Permissions::CONSISTENT_READ | Permissions::RESIZE
            } else {
                USE
            };
            let called = Called::new(&graph, "f", permissions).await;
            if read_only {
                called.fails(errno::EACCES, truncate(65536)).await;
            } else {
                called.succeeds(truncate(65536)).await;
                called.fails(errno::EINVAL, truncate(NEGATIVE)).await;
            }
            assert_eq!(called.client.length().await, Ok(65536));
            called.end(&graph).await;
            graph.delete_node("f").await.expect("nobody uses it");
        }
    });
}

/// drain-cases: `/sync-op/block_status`
#[test]
fn block_status_tells_allocated_from_not_and_nothing_of_nothing() {
    with_graph(|graph| async move {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("image");
        std::fs::File::create(&path).expect("a file");
        add(
            &graph,
            json!({"driver": "file", "node-name": "f", "filename": path}),
        )
        .await;
        let image = json!({"driver": "qcow2", "file": "f", "size": 1 << 20});
        graph.ask(MakeImage(options(image))).await.expect("an image");
        add(&graph, json!({"driver": "qcow2", "node-name": "q", "file": "f"})).await;
        add_null(&graph, "n").await;
        let asks = |offset, len| {
            move || Operation::BlockStatus {
                range: range(offset, len),
                want_zero: false,
                whole_chain: false,
                base: None,
            }
        };
        let ask = async |called: &Called, offset, len| -> BlockStatus {
            match called.both(asks(offset, len)).await {
                Ok(Answer::Status(status)) => status,
                other => panic!("{other:?}"),
            }
        };
        // A driver that says so; and one that has a word for every range, since there is no driver without.
        for (node, allocated) in [("q", false), ("n", true)] {
            let called = Called::new(&graph, node, USE).await;
            let whole = ask(&called, 0, 4096).await;
            assert_eq!(
                whole.flags.contains(StatusFlags::ALLOCATED),
                allocated,
                "{node}: {whole:?}"
            );
            assert_eq!(whole.len, 4096);
            for (offset, len) in [(0, 0), (1 << 20, 4096), (2 << 20, 4096)] {
                let none = ask(&called, offset, len).await;
                assert!(!none.flags.contains(StatusFlags::ALLOCATED), "{none:?}");
                assert_eq!(none.len, 0);
            }
            called.end(&graph).await;
        }
    });
}

/// drain-cases: `/sync-op/flush`
#[test]
fn flushes_succeed_also_on_a_read_only_node() {
    with_graph(|graph| async move {
        let file = tempfile::NamedTempFile::new().expect("a file");
        for read_only in [false, true] {
            let node =
                json!({"driver": "file", "node-name": "f", "filename": file.path(), "read-only": read_only});
            add(&graph, node).await;
            let called = Called::new(&graph, "f", Permissions::CONSISTENT_READ).await;
            called.succeeds(|| Operation::Flush).await;
            called.end(&graph).await;
            graph.delete_node("f").await.expect("nobody uses it");
        }
    });
}

/// Runs code of a test on an iothread.
async fn run_at<T, F>(iothread: &IoThread<Mail>, code: impl FnOnce() -> F + Send + 'static) -> T
where
    T: Send + 'static,
    F: Future<Output = T> + 'static,
{
    let (send, answer) = oneshot::channel();
    let job = move || {
        let local = Local::current().expect("an iothread");
        local.spawn(async move { drop(send.send(code().await)) });
    };
    assert!(iothread.send(Mail::Run(Box::new(job))).is_ok());
    answer.await.expect("the iothread runs it")
}

/// drain-cases: `/sync-op/check`. Nobody checks an image in a graph: the driver itself is asked, on an iothread.
#[test]
fn a_check_is_not_supported_by_a_driver_that_cannot() {
    with_graph(|graph| async move {
        add_null(&graph, "n").await;
        let called = Called::new(&graph, "n", USE).await;
        let code = run_at(&called.client.home(), || async {
            let kind = Arc::clone(builtin().find("null-co").expect("a built-in driver"));
            let ring = Local::current().expect("an iothread").ring().clone();
            let request = OpenRequest {
                node_name: "checked".to_owned(),
                options: Options::new(),
                flags: OpenFlags::RDWR,
                children: Vec::new(),
                ring,
                notices: Notices::nowhere(),
            };
            let opened = kind.open(request).await;
            let driver = opened.expect("null opens").driver;
            let error = driver
                .image()
                .check(Repair::default())
                .await
                .expect_err("null has nothing to check");
            error.errno()
        })
        .await;
        assert_eq!(code, errno::ENOTSUP);
        called.end(&graph).await;
    });
}

/// drain-cases: `/sync-op/load_vmstate`, `/sync-op/save_vmstate`. There is no such request: what QEMU answers for a
/// driver without snapshots cannot be asked.
#[test]
fn there_is_no_request_for_the_state_of_a_machine() {
    let is_known = |operation: &Operation<Buffers>| match operation {
        Operation::Read { .. }
        | Operation::Write { .. }
        | Operation::WriteZeroes { .. }
        | Operation::Discard { .. }
        | Operation::Flush
        | Operation::Truncate { .. }
        | Operation::BlockStatus { .. }
        | Operation::Map { .. }
        | Operation::Snapshot(_)
        | Operation::Mirror(_)
        | Operation::Copy(_)
        | Operation::Length
        | Operation::AllocatedSize => true,
    };
    assert!(
        is_known(&Operation::Flush),
        "a new request makes this test fail to compile"
    );
    let names = millpond_messages::qapi::schema::COMMANDS
        .iter()
        .map(|command| command.name);
    assert!(
        !names
            .into_iter()
            .any(|name| name.contains("vmstate") || name.starts_with("snapshot-"))
    );
}

/// drain-cases: `/sync-op/activate`
#[test]
fn activating_an_active_node_does_nothing() {
    with_graph(|graph| async move {
        add_null(&graph, "n").await;
        let called = Called::new(&graph, "n", USE).await;
        graph
            .ask(SetActive {
                node_name: Some("n".to_owned()),
                active: true,
            })
            .await
            .expect("it is active");
        called.succeeds(write(0, 1, RequestFlags::empty())).await;
        called.end(&graph).await;
    });
}
