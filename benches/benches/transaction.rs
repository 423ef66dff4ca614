//! What a transaction costs: new options for many nodes at once, all or none, in the graph's policy alone.
#![allow(missing_docs, reason = "criterion's macro makes a public function")]

#[allow(dead_code, reason = "other benches use other parts of it")]
#[path = "support/meter.rs"]
mod meter;
#[allow(dead_code, reason = "other benches use other parts of it")]
#[path = "support/policy.rs"]
mod policy;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use millpond_messages::graph::{Options, Reopen};
use serde_json::json;

use meter::Meter;
use policy::{Site, object};

/// The nodes there are beside those that change.
const BESIDE: usize = 1_000;

fn reopen(criterion: &mut Criterion<Meter>) {
    let mut group = criterion.benchmark_group("transaction, so many nodes are reopened");
    for nodes in [1, 16, 128] {
        let mut site = Site::new();
        site.fill(BESIDE);
        for at in 0..nodes {
            site.add(json!({"driver": "null-co", "node-name": format!("n{at}")}));
        }
        let all = |read_only: bool| -> Vec<Options> {
            let node =
                |at| json!({"driver": "null-co", "node-name": format!("n{at}"), "read-only": read_only});
            (0..nodes).map(|at| object(node(at))).collect()
        };
        let (closed, open) = (all(true), all(false));
        group.throughput(Throughput::Elements(2 * nodes));
        group.bench_function(BenchmarkId::from_parameter(nodes), |b| {
            b.iter(|| {
                site.request(Reopen(closed.clone()));
                site.request(Reopen(open.clone()));
            });
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = meter::criterion();
    targets = reopen
}
criterion_main!(benches);
