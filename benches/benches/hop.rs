//! What a request costs on its way: from a client to a null node on the same iothread, through one more node, and from
//! another iothread.
#![allow(missing_docs, reason = "criterion's macro makes a public function")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use drivers::buffer::Buffers;
use messages::{NodeId, OpenFlags, Permissions, RootId};
use millpond::iothread::{IoThread, IoThreadConfig, Local};
use millpond::node::{
    Client, Event, Mail, NodeAddress, NodeSettings, OpenOrder, Order, RootHandle, Ticket, serve,
};

/// Bytes of each read.
const BLOCK: usize = 4096;

struct World {
    near: IoThread<Mail>,
    far: IoThread<Mail>,
    events: crossbeam_channel::Receiver<Event>,
}

impl World {
    fn new() -> Self {
        let (tell, events) = crossbeam_channel::unbounded();
        let start = |name: &str| {
            let tell = tell.clone();
            let config = IoThreadConfig {
                name: name.to_owned(),
                ..IoThreadConfig::default()
            };
            let sink: millpond::node::EventSink = Arc::new(move |event| drop(tell.send(event)));
            IoThread::start(config, move |local| serve(local, sink)).expect("an iothread starts")
        };
        Self {
            near: start("near"),
            far: start("far"),
            events,
        }
    }

    fn order(&self, order: Order) {
        assert!(
            self.near
                .send(Mail::Control {
                    ticket: Ticket(0),
                    order
                })
                .is_ok()
        );
        assert!(self.events.recv().is_ok());
    }

    fn open(&self, id: u64, driver: &str, children: Vec<Option<NodeAddress>>) -> NodeId {
        let node = NodeId(id);
        let registry = drivers::builtin::builtin();
        self.order(Order::Open(Box::new(OpenOrder {
            node,
            name: driver.to_owned(),
            kind: Arc::clone(registry.find(driver).expect("a built-in driver")),
            options: messages::global_state::Options::new(),
            flags: OpenFlags::RDWR,
            settings: NodeSettings::default(),
            children,
        })));
        node
    }

    fn client(&self, root: u64, node: NodeId) -> Client {
        let root = RootHandle::new(RootId(root), Permissions::all(), false, self.near.clone());
        let client = Client::new(&root);
        self.order(Order::AttachRoot { root, node });
        client
    }
}

/// Reads `count` times, one after the other, in a task of `iothread`.
fn reads(iothread: &IoThread<Mail>, client: &Client, count: u64) -> Duration {
    let (done, took) = crossbeam_channel::bounded(1);
    let client = client.clone();
    let job = move || {
        let Some(local) = Local::current() else { return };
        let client = client.here();
        local.spawn(async move {
            let mut buffers = Buffers::zeroed(BLOCK);
            let start = Instant::now();
            for _ in 0..count {
                let (result, back) = client.read(0, buffers).await;
                assert!(result.is_ok());
                buffers = back;
            }
            done.send(start.elapsed()).expect("the bench waits for it");
        });
    };
    assert!(iothread.send(Mail::Run(Box::new(job))).is_ok());
    took.recv().expect("the reads end")
}

fn hops(criterion: &mut Criterion) {
    let world = World::new();
    let null = world.open(1, "null-co", Vec::new());
    let file = NodeAddress {
        node: null,
        iothread: world.near.clone(),
    };
    let raw = world.open(2, "raw", vec![Some(file)]);
    let (to_null, to_raw) = (world.client(3, null), world.client(4, raw));
    let mut group = criterion.benchmark_group("hop");
    group.bench_function("client to null node, same iothread", |b| {
        b.iter_custom(|count| reads(&world.near, &to_null, count));
    });
    group.bench_function("client to raw node over null node, same iothread", |b| {
        b.iter_custom(|count| reads(&world.near, &to_raw, count));
    });
    group.bench_function("client to null node, other iothread awake", |b| {
        b.iter_custom(|count| reads(&world.far, &to_null, count));
    });
    group.finish();
}

criterion_group!(benches, hops);
criterion_main!(benches);
