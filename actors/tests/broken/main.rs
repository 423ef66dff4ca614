//! An embedder's driver that panics: its node is broken, and nothing else. One row for each place where a driver's code
//! runs, while other nodes on the same iothread and on another serve requests.

mod driver;
mod medium;
mod rows;

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use driver::{Entry, FragileKind, HANGS, Trap, When};
use futures_channel::mpsc;
use futures_util::StreamExt;
use millpond::graph::{Announcement, Graph, GraphConfig, GraphHandle, ImplicitOpens, system_iothreads};
use millpond::node::Client;
use millpond_drivers::builtin::builtin;
use millpond_messages::error::errno::EIO;
use millpond_messages::graph::{
    DebugNode, DrainScope, IothreadOptions, IsSuspended, MakeImage, MoveNode, NamedNodes, OpenImage, Options,
    Reopen, RootRequest, RootUser,
};
use millpond_messages::qapi::QmpEvent;
use millpond_messages::{IoError, Permissions, RequestFlags};
use millpond_ring::Engine;
use millpond_ring::buffer::{Buffer, Buffers};
use rows::{Ends, ONCE, Row, Scene, leave, orders, questions, requests, row};
use serde_json::{Value, json};

/// Whoever waits longer waits for ever.
const PATIENCE: Duration = Duration::from_secs(20);

async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    let ended = tokio::time::timeout(PATIENCE, future).await;
    ended.unwrap_or_else(|_| panic!("{what} does not end"))
}

fn options(json: Value) -> Options {
    let Value::Object(options) = json else {
        panic!("not an object: {json}")
    };
    options
}

fn hold(node: &str) -> RootRequest {
    RootRequest::new(
        node,
        RootUser::Embedder("test".to_owned()),
        Permissions::CONSISTENT_READ | Permissions::WRITE,
    )
}

/// Requests to a node that nothing happens to, and how many were answered well.
fn load(client: Client) -> Rc<Cell<u64>> {
    let answered = Rc::new(Cell::new(0));
    let count = Rc::clone(&answered);
    actix_rt::spawn(async move {
        for turn in 0_u64.. {
            let at = turn % 64 * 512;
            let byte = u8::try_from(turn % 251).expect("it fits");
            let buffers = Buffers::from(Buffer::from_slice(&[byte; 512]));
            let written = client.write(at, buffers, RequestFlags::empty()).await.0;
            let (read, buffers) = client.read(at, Buffers::zeroed(512)).await;
            match (written, read) {
                (Ok(()), Ok(())) => assert_eq!(buffers.to_vec(), [byte; 512]),
                (Err(IoError::NoMedium), _) | (_, Err(IoError::NoMedium)) => return,
                failed => panic!("a node that is whole fails: {failed:?}"),
            }
            count.set(turn + 1);
        }
    });
    answered
}

/// What all rows share.
struct Stage {
    graph: GraphHandle,
    trap: Arc<Trap>,
    events: mpsc::Receiver<Announcement>,
    loads: [Rc<Cell<u64>>; 2],
}

fn on_stage<F: Future<Output = ()>>(test: impl FnOnce(Stage) -> F) {
    let dir = tempfile::tempdir().expect("a folder");
    actix_rt::System::new().block_on(async {
        let trap = Arc::new(Trap::default());
        let mut registry = builtin();
        let kind = FragileKind(Arc::clone(&trap));
        registry.register(Arc::new(kind)).expect("a new name");
        let config = GraphConfig {
            registry,
            implicit: ImplicitOpens::Allow,
            iothreads: system_iothreads(Engine::Auto),
            main: IothreadOptions::named("main"),
        };
        let (_, graph) = Graph::start(config).expect("an iothread can be started");
        let events = graph.listen();
        graph
            .add_iothread(IothreadOptions::named("io"))
            .await
            .expect("a thread");
        let mut clients = Vec::new();
        for name in ["here", "there"] {
            let path = dir.path().join(name);
            std::fs::write(&path, vec![0; 1 << 16]).expect("it can be written");
            let node =
                json!({"driver": "raw", "node-name": name, "file": {"driver": "file", "filename": path}});
            graph.add_node(options(node)).await.expect("it opens");
            clients.push(graph.attach(hold(name)).await.expect("it is free"));
        }
        graph
            .ask(MoveNode {
                node_name: "there".to_owned(),
                iothread: Some("io".to_owned()),
            })
            .await
            .expect("it moves");
        let loads = [load(clients[0].clone()), load(clients[1].clone())];
        let base = json!({"driver": "null-co", "node-name": "base", "size": 1 << 20, "read-zeroes": true});
        graph.add_node(options(base)).await.expect("it opens");
        test(Stage {
            graph: graph.clone(),
            trap,
            events,
            loads,
        })
        .await;
        for client in clients {
            graph.detach(client.root()).await.expect("it was attached");
        }
        graph.close_all().await.expect("everything closes");
    });
}

impl Stage {
    /// Both loads go on.
    async fn loads_go_on(&self, what: &str) {
        for load in &self.loads {
            let before = load.get();
            in_time(what, async {
                while load.get() < before + 3 {
                    tokio::task::yield_now().await;
                }
            })
            .await;
        }
    }

    async fn scene(&self, row: &Row) -> Scene {
        let file = json!({"driver": "null-co", "node-name": "f-file", "size": 1 << 20, "read-zeroes": true});
        self.graph.add_node(options(file)).await.expect("it opens");
        let mut node = options(json!({
            "driver": "fragile", "node-name": "f", "file": "f-file", "discard": "unmap",
        }));
        node.extend(options(row.options.clone()));
        self.graph.add_node(node).await.expect("it opens");
        Scene {
            graph: self.graph.clone(),
            client: self.graph.attach(hold("f")).await.expect("it is free"),
            trap: Arc::clone(&self.trap),
        }
    }

    async fn told(&mut self, what: &str, entry: Entry) {
        let expected = QmpEvent::BlockNodeBroken {
            node_name: "f".to_owned(),
            driver: "fragile".to_owned(),
            msg: format!("{entry:?} panics"),
        };
        let told = in_time(what, self.events.next()).await;
        assert_eq!(told, Some(Announcement::Event(expected)), "{what}");
        assert!(self.events.try_recv().is_err(), "{what}: once");
    }

    async fn play(&mut self, row: &Row, when: When) {
        let what = format!("{:?} ({when:?})", row.entry);
        let scene = self.scene(row).await;
        let hung = row.reads.then(|| {
            let client = scene.client.clone();
            actix_rt::spawn(async move { client.read(HANGS, Buffers::zeroed(512)).await.0 })
        });
        in_time(&what, async {
            while row.reads && self.trap.hanging.load(Ordering::SeqCst) == 0 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        self.trap.hanging.store(0, Ordering::SeqCst);
        self.trap.set(row.entry, when);
        let ended = in_time(&what, (row.provoke)(scene.clone())).await;
        // Some orders are not waited for.
        in_time(
            &format!("{what}: the driver is not asked, {ended:?}: it"),
            async {
                while self.trap.is_set() {
                    tokio::task::yield_now().await;
                }
            },
        )
        .await;
        self.told(&what, row.entry).await;
        if row.ends == Ends::Failing {
            let error = ended.expect_err(&what);
            assert_eq!(error.errno(), EIO, "{what}: {error}");
        }
        if let Some(hung) = hung {
            let ended = in_time(&what, hung).await.expect("a task");
            assert_eq!(ended, Err(IoError::Os(EIO)), "{what}");
        }
        if row.ends != Ends::Gone {
            self.is_broken(&what, &scene).await;
        }
        for below in ["g", "f-file"] {
            // Only some rows have a node in between.
            let deleted = self.graph.delete_node(below).await;
            assert!(deleted.is_ok() || below == "g", "{what}: {deleted:?}");
        }
        self.loads_go_on(&what).await;
    }

    /// Nothing can be had of the node, nothing waits for it, and it can be deleted.
    async fn is_broken(&self, what: &str, scene: &Scene) {
        let eio = IoError::Os(EIO);
        let (result, _) = in_time(what, scene.client.read(0, Buffers::zeroed(512))).await;
        assert_eq!(result, Err(eio), "{what}");
        let section = in_time(what, self.graph.drain(DrainScope::All, "test")).await;
        drop(section.expect("it becomes still"));
        in_time(what, self.graph.ask(NamedNodes { flat: false }))
            .await
            .expect("the rest is described");
        let left = in_time(what, leave(scene)).await;
        left.unwrap_or_else(|error| panic!("{what}: it cannot be deleted: {error}"));
    }
}

#[test]
fn a_driver_that_panics_breaks_its_node_and_nothing_else() {
    on_stage(|mut stage| async move {
        for row in requests().iter().chain(&orders()).chain(&questions()) {
            for when in row.when {
                stage.play(row, *when).await;
            }
        }
    });
}

#[test]
fn a_node_above_a_broken_one_is_whole() {
    on_stage(|mut stage| async move {
        let scene = stage
            .scene(&row(Entry::Read, ONCE, Ends::Failing, |_| async { Ok(()) }))
            .await;
        let top = json!({"driver": "raw", "node-name": "top", "file": "f"});
        stage.graph.add_node(options(top)).await.expect("it opens");
        let client = stage.graph.attach(hold("top")).await.expect("it is free");
        stage.trap.set(Entry::Read, When::Later);
        let (result, _) = in_time("a read", client.read(0, Buffers::zeroed(512))).await;
        assert_eq!(result, Err(IoError::Os(EIO)));
        stage.told("a read", Entry::Read).await;
        // It is what is below it that fails: with another child it works.
        let other = json!({"driver": "raw", "node-name": "top", "file": "base"});
        stage
            .graph
            .detach(scene.client.root())
            .await
            .expect("it was attached");
        stage
            .graph
            .ask(Reopen(vec![options(other)]))
            .await
            .expect("it is whole");
        let (result, buffers) = client.read(0, Buffers::zeroed(512)).await;
        assert_eq!((result, buffers.to_vec()), (Ok(()), vec![0; 512]));
        stage.graph.delete_node("f").await.expect("nobody uses it");
        stage.graph.detach(client.root()).await.expect("it was attached");
        stage.graph.delete_node("top").await.expect("nobody uses it");
        stage.graph.delete_node("f-file").await.expect("nobody uses it");
    });
}

/// A driver below a broken one is not left half-way: what it was asked goes on, so that whoever else asks it is served.
#[test]
fn what_a_broken_driver_had_asked_of_its_child_runs_to_its_end() {
    on_stage(|mut stage| async move {
        let mut nodes = row(Entry::Write, ONCE, Ends::Failing, |_| async { Ok(()) });
        nodes = nodes.with(json!({"file": {
            "driver": "blkdebug", "node-name": "g", "image": "f-file",
            "inject-error": [],
        }}));
        let scene = stage.scene(&nodes).await;
        let below = stage.graph.attach(hold("g")).await.expect("it is shared");
        stage
            .graph
            .ask(DebugNode::breakpoint("g", "pwritev", "held"))
            .await
            .expect("it listens");
        let writer = scene.clone();
        let held = actix_rt::spawn(async move { writer.write().await });
        in_time("the breakpoint", async {
            while !stage
                .graph
                .ask(IsSuspended::under("g", "held"))
                .await
                .expect("it is there")
            {}
        })
        .await;
        stage.trap.set(Entry::Read, When::AtOnce);
        assert_eq!(scene.read().await.expect_err("it panics").errno(), EIO);
        let ended = in_time("the write", held).await.expect("a task");
        assert_eq!(ended.expect_err("its driver is gone").errno(), EIO);
        stage.told("a read", Entry::Read).await;
        // The child's own request is held still: its end is waited for.
        assert!(
            stage
                .graph
                .ask(IsSuspended::under("g", "held"))
                .await
                .expect("it is there")
        );
        stage
            .graph
            .ask(DebugNode::resume("g", "held"))
            .await
            .expect("it is held");
        let drained = in_time("a drain", stage.graph.drain(DrainScope::All, "test")).await;
        drop(drained.expect("it becomes still"));
        in_time(
            "a write",
            below.write(0, Buffers::zeroed(512), RequestFlags::empty()),
        )
        .await
        .0
        .expect("it is whole");
        stage.graph.detach(below.root()).await.expect("it was attached");
        leave(&scene).await.expect("it can be deleted");
        stage.graph.delete_node("f-file").await.expect("nobody uses it");
    });
}

#[test]
fn what_panics_before_there_is_a_node_is_an_error_for_whoever_asked() {
    on_stage(|mut stage| async move {
        let (graph, trap) = (stage.graph.clone(), Arc::clone(&stage.trap));
        let add = || {
            let file = json!({"driver": "null-co", "size": 512});
            let node = json!({"driver": "fragile", "node-name": "f", "file": file});
            graph.add_node(options(node))
        };
        let create = || graph.ask(MakeImage(options(json!({"driver": "fragile", "file": "base"}))));
        let open = |filename: &str| {
            graph.open(OpenImage {
                filename: Some(filename.to_owned()),
                ..OpenImage::default()
            })
        };
        for (entry, when) in [
            (Entry::CheckOptions, When::AtOnce),
            (Entry::Open, When::AtOnce),
            (Entry::Open, When::Later),
            (Entry::Create, When::AtOnce),
            (Entry::Create, When::Later),
            (Entry::ParseFilename, When::AtOnce),
        ] {
            let what = format!("{entry:?} ({when:?})");
            trap.set(entry, when);
            let error = match entry {
                Entry::Create => in_time(&what, create()).await.err(),
                Entry::ParseFilename => in_time(&what, open("fragile:file")).await.err(),
                _ => in_time(&what, add()).await.err(),
            };
            let error = error.unwrap_or_else(|| panic!("{what} succeeds")).to_string();
            assert!(error.contains("Driver 'fragile' panicked"), "{what}: {error}");
            assert!(!trap.is_set(), "{what}");
            stage.loads_go_on(&what).await;
        }
        // An image is guessed to be of another format; edges get what their roles stand for.
        trap.set(Entry::Probe, When::AtOnce);
        let image = tempfile::NamedTempFile::new().expect("a file");
        let name = in_time("a probe", open(&image.path().to_string_lossy()))
            .await
            .expect("it is raw");
        graph.delete_node(name).await.expect("nobody uses it");
        trap.set(Entry::ChildPermissions, When::AtOnce);
        in_time("an open", add())
            .await
            .expect("permissions are those of the role");
        assert!(!trap.is_set());
        graph.delete_node("f").await.expect("nobody uses it");
        create().await.expect("the kind is whole");
        assert!(stage.events.try_recv().is_err(), "no node was broken");
    });
}
