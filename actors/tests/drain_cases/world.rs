//! A whole block layer on threads of its own, with drivers that the test holds and lets go.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded};
use millpond::delay::DelayRules;
use millpond::embed::{BlockLayer, BlockLayerConfig};
use millpond::graph::{DrainGuard, GraphHandle};
use millpond::iothread::Local;
use millpond::node::{Client, Mail};
use millpond_drivers::api::Registry;
use millpond_messages::graph::{
    DrainScope, EdgeParent, FindRoot, IothreadOptions, ListDrains, NamedNodes, Options, Reopen, RootRequest,
    RootUser, SetIothread,
};
use millpond_messages::io::OperationKind;
use millpond_messages::{IoResult, IoThreadId, Permissions, RequestFlags};
use millpond_ring::buffer::{Buffer, Buffers};
use serde_json::{Value, json};

use super::driver::{Control, Fails, Held, Shape, Step, TestKind};

/// Far beyond what any step takes: reaching it is a failure, never a way to wait.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Bytes of every node that has some of its own.
pub const SIZE: usize = 1 << 16;

pub const READ_WRITE: Permissions = Permissions::CONSISTENT_READ.union(Permissions::WRITE);

/// A request that is on its way.
pub type Sent<T> = Pin<Box<dyn Future<Output = T> + Send>>;

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Waits for a future's end, and fails the test if that does not come.
pub fn wait<F: Future>(future: F) -> F::Output {
    let mut future = std::pin::pin!(future);
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    let end = Instant::now() + DEADLINE;
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
        let left = end.saturating_duration_since(Instant::now());
        assert!(!left.is_zero(), "what was waited for did not end");
        std::thread::park_timeout(left);
    }
}

/// Sends a request, so that it is in its mailbox when this returns; waiting for the rest gives its end.
pub fn sent<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> Sent<T> {
    let mut future: Sent<T> = Box::pin(future);
    is_ready(&mut future);
    future
}

/// Whether a future has ended by now. Its output is still to be had.
pub fn is_ready<T: Send + 'static>(future: &mut Sent<T>) -> bool {
    let mut context = Context::from_waker(Waker::noop());
    match future.as_mut().poll(&mut context) {
        Poll::Ready(output) => {
            *future = Box::pin(std::future::ready(output));
            true
        }
        Poll::Pending => false,
    }
}

pub fn bytes(fill: u8, len: usize) -> Buffers {
    Buffers::from(Buffer::from_slice(&vec![fill; len]))
}

/// A node's driver as the test sees it.
pub struct Node {
    pub control: Arc<Control>,
    pub held: Receiver<Held>,
}

impl Node {
    pub fn hold(&self, hold: bool) {
        self.control.hold.store(hold, Ordering::SeqCst);
    }

    pub fn hold_quiesce(&self, hold: bool) {
        self.control.hold_quiesce.store(hold, Ordering::SeqCst);
    }

    pub fn hold_open(&self, hold: bool) {
        self.control.hold_open.store(hold, Ordering::SeqCst);
    }

    /// From now on, or not any more.
    pub fn fails(&self, what: Fails, fails: bool) {
        let bits = &self.control.fails;
        match fails {
            true => bits.fetch_or(what as u32, Ordering::SeqCst),
            false => bits.fetch_and(!(what as u32), Ordering::SeqCst),
        };
    }

    pub fn pieces(&self, pieces: u32) {
        self.control.pieces.store(pieces, Ordering::SeqCst);
    }

    /// The next step that the driver is held at.
    pub fn held(&self, step: Step) -> Held {
        let held = self
            .held
            .recv_timeout(DEADLINE)
            .expect("the driver comes to a step");
        assert_eq!(held.step, step);
        held
    }

    pub fn held_read(&self) -> Held {
        self.held(Step::Request(OperationKind::Read))
    }

    pub fn is_idle(&self) -> bool {
        self.held.is_empty()
    }

    /// How often drained-begin and drained-end were called.
    pub fn callbacks(&self) -> (u32, u32) {
        let control = &self.control;
        (
            control.quiesced.load(Ordering::SeqCst),
            control.resumed.load(Ordering::SeqCst),
        )
    }

    pub fn is_quiesced(&self) -> bool {
        self.control.is_quiesced.load(Ordering::SeqCst)
    }

    pub fn transfers(&self) -> u32 {
        self.control.transfers.load(Ordering::SeqCst)
    }

    pub fn closed(&self) -> u32 {
        self.control.closed.load(Ordering::SeqCst)
    }
}

/// A still section. What the test says it covers must not see a request until this is dropped.
#[must_use]
pub struct Section {
    /// Given up after what it covers may see requests again.
    _guard: DrainGuard,
    still: Vec<Arc<Control>>,
}

impl Section {
    /// From here on, a transfer that reaches one of these nodes is a fault.
    pub fn covers(mut self, world: &World, nodes: &[&str]) -> Self {
        for name in nodes {
            let control = &world.node(name).control;
            assert!(world.node(name).is_quiesced(), "the section covers '{name}'");
            control.still.fetch_add(1, Ordering::SeqCst);
            self.still.push(Arc::clone(control));
        }
        self
    }
}

impl Drop for Section {
    fn drop(&mut self) {
        for control in &self.still {
            control.still.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

pub struct World {
    layer: Option<BlockLayer>,
    pub graph: GraphHandle,
    nodes: HashMap<String, Node>,
}

impl World {
    /// A block layer without nodes. `names` are those that its nodes will have.
    pub fn new(names: &[&str]) -> Self {
        Self::under(names, None)
    }

    /// The same with delay rules in force from the start.
    pub fn under(names: &[&str], chaos: Option<DelayRules>) -> Self {
        Self::of(registry(names), chaos)
    }

    /// A block layer whose nodes have so many bytes.
    pub fn sized(names: &[&str], size: usize) -> Self {
        Self::of(registry_of(names, size), None)
    }

    fn of((registry, nodes): (Registry, HashMap<String, Node>), chaos: Option<DelayRules>) -> Self {
        let config = BlockLayerConfig {
            registry,
            chaos,
            ..BlockLayerConfig::default()
        };
        let layer = wait(BlockLayer::start(config)).expect("threads can be started");
        let graph = layer.graph().clone();
        Self {
            layer: Some(layer),
            graph,
            nodes,
        }
    }

    pub fn node(&self, name: &str) -> &Node {
        self.nodes.get(name).expect("the test named it")
    }

    pub fn add(&self, options: Value) {
        wait(self.adding(options)).expect("the node is added");
    }

    pub fn adding(
        &self,
        options: Value,
    ) -> impl Future<Output = millpond_messages::Result<()>> + Send + use<> {
        let graph = self.graph.clone();
        let options = object(options);
        async move { graph.add_node(options).await }
    }

    pub fn memory(&self, name: &str) {
        self.add(json!({"driver": "test-memory", "node-name": name}));
    }

    pub fn overlay(&self, name: &str, backing: &str) {
        self.add(json!({"driver": "test-overlay", "node-name": name, "backing": backing}));
    }

    pub fn filter(&self, name: &str, file: &str) {
        self.add(json!({"driver": "test-filter", "node-name": name, "file": file}));
    }

    pub fn reopening(
        &self,
        options: Value,
    ) -> impl Future<Output = millpond_messages::Result<()>> + Send + use<> {
        let graph = self.graph.clone();
        let options = object(options);
        async move { graph.ask(Reopen(vec![options])).await }
    }

    pub fn iothread(&self, id: &str) {
        wait(self.graph.add_iothread(IothreadOptions::named(id))).expect("a thread can be started");
    }

    pub fn move_to(&self, node: &str, iothread: Option<&str>) {
        wait(self.moving_to(node, iothread)).expect("the node moves");
    }

    pub fn moving_to(&self, node: &str, iothread: Option<&str>) -> Sent<millpond_messages::Result<()>> {
        let graph = self.graph.clone();
        let request = SetIothread {
            node_name: node.to_owned(),
            iothread: iothread.map(ToOwned::to_owned),
            force: true,
        };
        sent(async move { graph.ask(request).await })
    }

    /// Where a node lives.
    pub fn home(&self, node: &str) -> IoThreadId {
        let facts = wait(self.graph.facts()).expect("questions are answered");
        let node = facts.nodes.iter().find(|fact| fact.name == node);
        node.expect("the test named it").iothread
    }

    pub fn client(&self, node: &str) -> Client {
        self.client_with(node, READ_WRITE)
    }

    pub fn reader(&self, node: &str) -> Client {
        self.client_with(node, Permissions::CONSISTENT_READ)
    }

    pub fn client_with(&self, node: &str, permissions: Permissions) -> Client {
        wait(self.graph.attach(root(node, permissions))).expect("the node can be held")
    }

    /// Asks for a client, without waiting for it.
    pub fn client_asked(&self, node: &str) -> Sent<millpond_messages::Result<Client>> {
        let (graph, request) = (self.graph.clone(), root(node, READ_WRITE));
        sent(async move { graph.attach(request).await })
    }

    /// Begins a section, and waits until it is still.
    pub fn drain(&self, scope: DrainScope) -> Section {
        finish(self.draining(scope))
    }

    /// Begins a section. It is known to the graph when this returns.
    pub fn draining(&self, scope: DrainScope) -> Sent<millpond_messages::Result<DrainGuard>> {
        let graph = self.graph.clone();
        sent(async move { graph.drain(scope, "test").await })
    }

    /// How many sections are not still, once all nodes have carried out what they were told before.
    pub fn waiting(&self) -> usize {
        wait(self.graph.ask(ListDrains))
            .expect("questions are answered")
            .len()
    }

    /// Waits until the graph, and every node, has done what it was told before.
    pub fn settle(&self) {
        wait(self.graph.ask(NamedNodes { flat: true })).expect("questions are answered");
    }

    /// The edges from nodes to nodes, as `parent:name:child`, in alphabetical order.
    pub fn edges(&self) -> Vec<String> {
        let facts = wait(self.graph.facts()).expect("questions are answered");
        let name = |id| {
            let node = facts.nodes.iter().find(|node| node.id == id);
            node.map_or("", |node| node.name.as_str())
        };
        let mut edges: Vec<String> = facts
            .edges
            .iter()
            .filter_map(|edge| match edge.parent {
                EdgeParent::Node(parent) => {
                    Some(format!("{}:{}:{}", name(parent), edge.name, name(edge.child)))
                }
                EdgeParent::Root(..) => None,
            })
            .collect();
        edges.sort();
        edges
    }

    /// The name of the node that a client's edge leads to.
    pub fn behind(&self, client: &Client) -> String {
        let facts = wait(self.graph.ask(FindRoot(client.root())));
        facts.expect("the root edge leads to a node").name
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        for (name, node) in &self.nodes {
            let faults = node.control.faults.load(Ordering::SeqCst);
            assert_eq!(faults, 0, "requests reached '{name}' inside of a still section");
        }
        for node in self.nodes.values() {
            node.hold(false);
            node.hold_quiesce(false);
            node.hold_open(false);
            node.held.try_iter().for_each(drop);
        }
        if let Some(layer) = self.layer.take() {
            // A test may have closed everything already.
            let closed = wait(layer.shut_down()).map_err(|error| error.kind());
            assert!(
                matches!(closed, Ok(()) | Err(millpond_messages::ErrorKind::Closed)),
                "{closed:?}"
            );
        }
    }
}

/// The built-in drivers and those of the tests, for nodes of these names.
pub fn registry(names: &[&str]) -> (Registry, HashMap<String, Node>) {
    registry_of(names, SIZE)
}

fn registry_of(names: &[&str], size: usize) -> (Registry, HashMap<String, Node>) {
    let (mut nodes, mut controls) = (HashMap::new(), HashMap::new());
    for name in names {
        let (control, held) = Control::new();
        controls.insert((*name).to_owned(), Arc::clone(&control));
        nodes.insert((*name).to_owned(), Node { control, held });
    }
    let mut registry = millpond_drivers::builtin::builtin();
    for shape in [Shape::Memory, Shape::Overlay, Shape::Filter, Shape::Pair] {
        let kind = TestKind {
            shape,
            size,
            controls: controls.clone(),
            control: Control::new().0,
        };
        registry.register(Arc::new(kind)).expect("the name is new");
    }
    (registry, nodes)
}

/// Waits until a section is still.
pub fn finish(draining: Sent<millpond_messages::Result<DrainGuard>>) -> Section {
    Section {
        _guard: wait(draining).expect("the section begins"),
        still: Vec::new(),
    }
}

pub fn node(name: &str) -> DrainScope {
    DrainScope::Node(name.to_owned())
}

pub fn subtree(name: &str) -> DrainScope {
    DrainScope::Subtree(name.to_owned())
}

pub fn root(node: &str, permissions: Permissions) -> RootRequest {
    RootRequest {
        node: node.to_owned(),
        user: RootUser::Embedder("test".to_owned()),
        permissions,
        shared: Permissions::all(),
        iothread: None,
        iothread_required: false,
        writethrough: false,
    }
}

pub fn object(json: Value) -> Options {
    let Value::Object(options) = json else {
        panic!("not an object: {json}")
    };
    options
}

/// Runs a task on the iothread where a client's node lives; gives what it gives.
pub fn on_home<T, F>(client: &Client, task: impl FnOnce() -> F + Send + 'static) -> Sent<T>
where
    T: Send + 'static,
    F: Future<Output = T> + 'static,
{
    let (done, output) = futures_channel::oneshot::channel();
    let run = Mail::Run(Box::new(move || {
        let local = Local::current().expect("mail is handled on an iothread");
        let task = task();
        local.spawn(async move { drop(done.send(task.await)) });
    }));
    assert!(client.home().send(run).is_ok());
    Box::pin(async move { output.await.expect("the task ends") })
}

/// Does something while the iothread of a client's node looks at nothing.
pub fn while_busy<T>(client: &Client, act: impl FnOnce() -> T) -> T {
    let (go, wait) = bounded::<()>(1);
    let busy = Mail::Run(Box::new(move || {
        wait.recv_timeout(DEADLINE).expect("the test goes on")
    }));
    assert!(client.home().send(busy).is_ok());
    let done = act();
    go.send(()).expect("the iothread waits");
    done
}

/// Sends a read of a sector.
pub fn reading(client: &Client, offset: u64) -> Sent<IoResult<Vec<u8>>> {
    let client = client.clone();
    sent(async move {
        let (result, buffers) = client.read(offset, Buffers::zeroed(512)).await;
        result.map(|()| buffers.to_vec())
    })
}

/// Sends a write of a sector.
pub fn writing(client: &Client, offset: u64, fill: u8) -> Sent<IoResult<()>> {
    let client = client.clone();
    sent(async move {
        let (result, _) = client
            .write(offset, bytes(fill, 512), RequestFlags::empty())
            .await;
        result
    })
}

pub fn read(client: &Client, offset: u64) -> Vec<u8> {
    wait(reading(client, offset)).expect("the read succeeds")
}

pub fn write(client: &Client, offset: u64, fill: u8) {
    wait(writing(client, offset, fill)).expect("the write succeeds");
}
