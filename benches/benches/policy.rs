//! What a change of the graph costs in the graph's policy alone: without actor, threads or drivers, beside few nodes and
//! beside many.
#![allow(missing_docs, reason = "criterion's macro makes a public function")]

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use drivers::driver::Abilities;
use messages::global_state::{GraphReply, GraphRequest, Options, RootRequest, RootUser};
use messages::{IoThreadId, Limits, OpenFlags, Permissions, RootId};
use millpond::graph::ImplicitOpens;
use millpond::graph::policy::{Effect, Event, Order, Policy, Reply, RequestId};
use millpond::node::{self, OpenFacts, OrderOutcome};
use serde_json::{Value, json};

/// The policy, and nodes that do at once whatever they are told.
struct World {
    policy: Policy,
    last: u64,
}

impl World {
    fn new() -> Self {
        let registry = drivers::builtin::builtin();
        Self {
            policy: Policy::new(registry, ImplicitOpens::Allow, IoThreadId(1), 0),
            last: 0,
        }
    }

    fn request(&mut self, request: GraphRequest) -> GraphReply<RootId> {
        self.last += 1;
        let mut effects = self.policy.request(RequestId(self.last), request, Duration::ZERO);
        let mut answer: Option<Reply> = None;
        while !effects.is_empty() {
            let mut events = Vec::new();
            for effect in effects.drain(..) {
                match effect {
                    Effect::Send { ticket, order, .. } => events.extend(obey(ticket, order)),
                    Effect::Reply { result, .. } => answer = Some(result),
                    _ => {}
                }
            }
            for event in events {
                effects.extend(self.policy.event(Event::Node(event), Duration::ZERO));
            }
        }
        answer.expect("every request is answered").expect("none fails")
    }

    fn add(&mut self, json: Value) {
        let Value::Object(options) = json else { return };
        let options: Options = options;
        self.request(GraphRequest::BlockdevAdd(options));
    }

    fn del(&mut self, name: &str) {
        let node_name = name.to_owned();
        self.request(GraphRequest::BlockdevDel { node_name });
    }
}

fn obey(ticket: node::Ticket, order: Order) -> Option<node::Event> {
    let outcome = match order {
        Order::Open(open) => OrderOutcome::Opened(Ok(OpenFacts {
            flags: open.flags | OpenFlags::RDWR,
            backing: None,
            size: 1 << 20,
            abilities: Abilities::default(),
            limits: Limits::default(),
            filename: None,
        })),
        Order::Quiesce(node, token) => return Some(node::Event::Quiesced(node, token)),
        Order::Resume(..) => return None,
        _ => OrderOutcome::Done(Ok(())),
    };
    Some(node::Event::Ended(ticket, outcome))
}

fn beside(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("add and delete, beside so many nodes");
    for nodes in [0, 1_000, 100_000] {
        let mut world = World::new();
        for at in 0..nodes {
            world.add(json!({"driver": "null-co", "node-name": format!("n{at}")}));
        }
        group.bench_function(BenchmarkId::new("null", nodes), |b| {
            b.iter(|| {
                world.add(json!({"driver": "null-co", "node-name": "new"}));
                world.del("new");
            });
        });
        group.bench_function(BenchmarkId::new("raw over null", nodes), |b| {
            b.iter(|| {
                world.add(json!({"driver": "raw", "node-name": "new", "file": {"driver": "null-co"}}));
                world.del("new");
            });
        });
    }
    group.finish();
}

fn chain(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("a writer comes and goes on top of so many nodes");
    for nodes in [100_u64, 200, 400] {
        let mut world = World::new();
        world.add(json!({"driver": "null-co", "node-name": "n0"}));
        for at in 1..nodes {
            let file = format!("n{}", at - 1);
            world.add(json!({"driver": "raw", "node-name": format!("n{at}"), "file": file}));
        }
        let top = format!("n{}", nodes - 1);
        group.throughput(criterion::Throughput::Elements(nodes));
        group.bench_function(BenchmarkId::from_parameter(nodes), |b| {
            b.iter(|| {
                let attached = world.request(GraphRequest::AttachRoot(RootRequest {
                    node: top.clone(),
                    user: RootUser::Embedder("bench".to_owned()),
                    permissions: Permissions::CONSISTENT_READ | Permissions::WRITE,
                    shared: Permissions::all(),
                    iothread: None,
                    iothread_required: false,
                    writethrough: false,
                }));
                if let GraphReply::Root(root) = attached {
                    world.request(GraphRequest::DetachRoot(root));
                }
            });
        });
    }
    group.finish();
}

criterion_group!(benches, beside, chain);
criterion_main!(benches);
