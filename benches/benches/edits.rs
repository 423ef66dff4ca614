//! What a change of the graph costs beside few nodes and beside many: in the policy alone, and with the actor, the
//! iothread and the driver.
#![allow(missing_docs, reason = "criterion's macro makes a public function")]

#[allow(dead_code, reason = "other benches use other parts of it")]
#[path = "support/meter.rs"]
mod meter;
#[allow(dead_code, reason = "other benches use other parts of it")]
#[path = "support/policy.rs"]
mod policy;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use futures_executor::block_on;
use millpond::embed::{BlockLayer, BlockLayerConfig};
use millpond_messages::graph::{DropFilter, InsertNode};
use serde_json::json;

use meter::Meter;
use policy::{Site, object, sizes};

const SIZES: [usize; 4] = [0, 1_000, 10_000, 100_000];

fn in_the_policy(criterion: &mut Criterion<Meter>) {
    let mut group = criterion.benchmark_group("edit, policy alone, beside so many nodes");
    for nodes in sizes(&SIZES) {
        let mut site = Site::new();
        site.fill(nodes);
        group.bench_function(BenchmarkId::new("null comes and goes", nodes), |b| {
            b.iter(|| {
                site.add(json!({"driver": "null-co", "node-name": "new"}));
                site.del("new");
            });
        });
        group.bench_function(BenchmarkId::new("raw over null comes and goes", nodes), |b| {
            b.iter(|| {
                site.add(json!({"driver": "raw", "node-name": "new", "file": {"driver": "null-co"}}));
                site.del("new");
            });
        });
        site.add(json!({"driver": "null-co", "node-name": "disk"}));
        site.attach("disk");
        group.bench_function(
            BenchmarkId::new("a filter above a node in use comes and goes", nodes),
            |b| {
                b.iter(|| {
                    let filter = json!({"driver": "copy-on-read", "node-name": "filter", "file": "disk"});
                    site.request(InsertNode {
                        node: "disk".to_owned(),
                        options: object(filter),
                    });
                    site.request(DropFilter {
                        node_name: "filter".to_owned(),
                    });
                });
            },
        );
    }
    group.finish();
}

fn with_all(criterion: &mut Criterion<Meter>) {
    let mut group = criterion.benchmark_group("edit, with actor and iothread, beside so many nodes");
    for nodes in sizes(&SIZES) {
        let layer = block_on(BlockLayer::start(BlockLayerConfig::default())).expect("threads start");
        let graph = layer.graph().clone();
        block_on(async {
            for at in 0..nodes {
                let node = json!({"driver": "null-co", "node-name": format!("beside{at}")});
                graph.add_node(object(node)).await.expect("null opens");
            }
        });
        group.bench_function(BenchmarkId::new("null comes and goes", nodes), |b| {
            b.iter(|| {
                block_on(async {
                    let node = json!({"driver": "null-co", "node-name": "new"});
                    graph.add_node(object(node)).await.expect("null opens");
                    graph.delete_node("new").await.expect("nobody holds it");
                });
            });
        });
        block_on(layer.shut_down()).expect("everything closes");
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = meter::criterion();
    targets = in_the_policy, with_all
}
criterion_main!(benches);
