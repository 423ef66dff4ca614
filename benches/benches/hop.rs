//! What a request pays for each node that it passes: on the same iothread, and to another one that is awake or asleep.
//!
//! A hop is the way down and back up again.
#![allow(missing_docs, reason = "criterion's macro makes a public function")]

#[path = "support/meter.rs"]
mod meter;
#[allow(dead_code, reason = "other benches use other parts of it")]
#[path = "support/world.rs"]
mod world;

use criterion::measurement::Measurement;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use futures_util::future::join_all;
use millpond::iothread::{IoThread, PollParams};
use millpond::node::{Client, HomeClient, Mail};
use millpond_messages::RequestFlags;
use millpond_ring::buffer::Buffers;

use meter::{Meter, meter};
use world::{ASLEEP, AWAKE, World, on};

/// Bytes of each request.
const BLOCK: usize = 4096;

/// The longest chain of nodes, from which the price of one node is computed.
const DEEPEST: usize = 8;

#[derive(Debug, Clone, Copy)]
enum Kind {
    Read,
    Write,
}

impl Kind {
    async fn request(self, client: &HomeClient, buffers: Buffers) -> Buffers {
        let (result, buffers) = match self {
            Self::Read => client.read(0, buffers).await,
            Self::Write => client.write(0, buffers, RequestFlags::empty()).await,
        };
        result.expect("null takes everything");
        buffers
    }
}

/// Sends `count` requests from a task of `iothread`, one after the other.
fn requests(iothread: &IoThread<Mail>, client: &Client, kind: Kind, count: u64) -> u64 {
    let client = client.clone();
    on(iothread, move || async move {
        let client = client.here();
        let mut buffers = Buffers::zeroed(BLOCK);
        let begun = meter().start();
        for _ in 0..count {
            buffers = kind.request(&client, buffers).await;
        }
        meter().end(begun)
    })
}

/// The same, with `depth` of them on their way at a time.
fn side_by_side(iothread: &IoThread<Mail>, client: &Client, count: u64, depth: u64) -> u64 {
    let client = client.clone();
    on(iothread, move || async move {
        let begun = meter().start();
        let streams = (0..depth).map(|_| async {
            let client = client.here();
            let mut buffers = Buffers::zeroed(BLOCK);
            for _ in 0..count.div_ceil(depth) {
                buffers = Kind::Read.request(&client, buffers).await;
            }
        });
        join_all(streams).await;
        meter().end(begun)
    })
}

fn same_iothread(criterion: &mut Criterion<Meter>) {
    let mut world = World::new();
    let near = world.near.clone();
    let null = world.open(&near, "null-co", None);
    let shallow = world.client(&null);
    let mut group = criterion.benchmark_group("hop, same iothread");
    for driver in ["raw", "copy-on-read"] {
        for length in [0, 1, 2, 4, DEEPEST] {
            let top = world.chain(driver, length, &null);
            let client = world.client(&top);
            for kind in [Kind::Read, Kind::Write] {
                let name = format!("{kind:?} through {driver}");
                group.bench_function(BenchmarkId::new(name, length), |b| {
                    b.iter_custom(|count| requests(&near, &client, kind, count));
                });
            }
        }
    }
    for driver in ["raw", "copy-on-read"] {
        let top = world.chain(driver, DEEPEST, &null);
        let deep = world.client(&top);
        for kind in [Kind::Read, Kind::Write] {
            group.bench_function(format!("{kind:?}: one {driver} node more"), |b| {
                b.iter_custom(|count| {
                    let more = requests(&near, &deep, kind, count);
                    let less = requests(&near, &shallow, kind, count);
                    Meter::part(more, less, DEEPEST as u64)
                });
            });
        }
    }
    group.finish();
}

/// Who asks, and how long they and the iothread that is asked look for work before they sleep.
const NEIGHBOURS: [(&str, PollParams, PollParams); 3] = [
    ("both awake", AWAKE, AWAKE),
    ("receiver asleep", AWAKE, ASLEEP),
    ("both asleep", ASLEEP, ASLEEP),
];

fn other_iothread(criterion: &mut Criterion<Meter>) {
    let mut world = World::new();
    let (near, far) = (world.near.clone(), world.far.clone());
    let null = world.open(&near, "null-co", None);
    let raw = world.open(&far, "raw", Some(&null));
    let (to_null, to_raw) = (world.client(&null), world.client(&raw));
    let mut group = criterion.benchmark_group("hop, other iothread");
    for (name, asking, asked) in NEIGHBOURS {
        if meter().counts() && (asking, asked) != (ASLEEP, ASLEEP) {
            continue;
        }
        far.set_poll(asking);
        near.set_poll(asked);
        group.bench_function(format!("client to node, {name}"), |b| {
            b.iter_custom(|count| requests(&far, &to_null, Kind::Read, count));
        });
        group.bench_function(format!("node to node, {name}"), |b| {
            b.iter_custom(|count| requests(&far, &to_raw, Kind::Read, count));
        });
        let depth = 32;
        group.throughput(Throughput::Elements(1));
        group.bench_function(format!("client to node, {name}, {depth} in flight"), |b| {
            b.iter_custom(|count| side_by_side(&far, &to_null, count, depth));
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = meter::criterion();
    targets = same_iothread, other_iothread
}
criterion_main!(benches);
