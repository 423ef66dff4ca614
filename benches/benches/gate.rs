//! What admission costs: a request that passes an open gate, and one that is parked at a closed one and let go.
//!
//! The request is the least there is, for a node's length: almost all of it is the way in and out.
#![allow(missing_docs, reason = "criterion's macro makes a public function")]

#[allow(dead_code, reason = "other benches use other parts of it")]
#[path = "support/meter.rs"]
mod meter;
#[allow(dead_code, reason = "other benches use other parts of it")]
#[path = "support/world.rs"]
mod world;

use criterion::measurement::Measurement;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use futures_util::future::join_all;
use millpond::node::{Mail, NodeOrder, OrderId};

use meter::{Meter, meter};
use world::{World, on};

fn open(criterion: &mut Criterion<Meter>) {
    let mut world = World::new();
    let near = world.near.clone();
    let null = world.open(&near, "null-co", None);
    let client = world.client(&null);
    let mut group = criterion.benchmark_group("gate");
    group.bench_function("open", |b| {
        b.iter_custom(|count| {
            let client = client.clone();
            on(&near, move || async move {
                let client = client.here();
                let begun = meter().start();
                for _ in 0..count {
                    client.length().await.expect("null has a length");
                }
                meter().end(begun)
            })
        });
    });
    for waiting in [1, 32, 128] {
        group.throughput(Throughput::Elements(waiting));
        group.bench_function(BenchmarkId::new("closed, parked and let go", waiting), |b| {
            b.iter_custom(|count| {
                let mut total = 0;
                for _ in 0..count {
                    let section = world.quiesce(&null);
                    let (client, home, node) = (client.clone(), near.clone(), null.node);
                    total += on(&near, move || async move {
                        let client = client.here();
                        let begun = meter().start();
                        let mut parked = join_all((0..waiting).map(|_| client.length()));
                        assert!(futures_util::poll!(&mut parked).is_pending());
                        let order = NodeOrder::Resume(section).at(node);
                        let order_id = OrderId(0);
                        assert!(home.send(Mail::Control { order_id, order }).is_ok());
                        parked.await;
                        meter().end(begun)
                    });
                }
                total
            });
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = meter::criterion();
    targets = open
}
criterion_main!(benches);
