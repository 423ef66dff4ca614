//! What checking permissions costs: a writer that comes and goes, by how many nodes it concerns.
#![allow(missing_docs, reason = "criterion's macro makes a public function")]

#[allow(dead_code, reason = "other benches use other parts of it")]
#[path = "support/meter.rs"]
mod meter;
#[allow(dead_code, reason = "other benches use other parts of it")]
#[path = "support/policy.rs"]
mod policy;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use millpond_messages::Permissions;
use millpond_messages::graph::{DetachRoot, SetRootPermissions};

use meter::Meter;
use policy::{Site, sizes};

fn chain(criterion: &mut Criterion<Meter>) {
    let mut group = criterion.benchmark_group("permissions, a writer comes and goes on top of so many nodes");
    for nodes in [1, 10, 100, 400] {
        let mut site = Site::new();
        let top = site.chain(nodes);
        group.throughput(Throughput::Elements(nodes));
        group.bench_function(BenchmarkId::from_parameter(nodes), |b| {
            b.iter(|| {
                let root = site.attach(&top);
                site.request(DetachRoot(root));
            });
        });
    }
    group.finish();
}

/// So many users of one node, each of which shares everything.
fn parents(criterion: &mut Criterion<Meter>) {
    let mut group = criterion.benchmark_group("permissions, one user of so many changes what it does");
    for users in sizes(&[1, 100, 1_000, 10_000]) {
        let mut site = Site::new();
        let node = site.chain(1);
        let roots: Vec<_> = (0..users).map(|_| site.attach(&node)).collect();
        group.bench_function(BenchmarkId::from_parameter(users), |b| {
            b.iter(|| {
                for permissions in [Permissions::CONSISTENT_READ, Permissions::WRITE] {
                    site.request(SetRootPermissions {
                        root: roots[0],
                        permissions,
                        shared: Permissions::all(),
                    });
                }
            });
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = meter::criterion();
    targets = chain, parents
}
criterion_main!(benches);
