//! What it costs a write to be held against those in flight on its node: how many there are, and whether one of them wants
//! to be alone.
#![allow(missing_docs, reason = "criterion's macro makes a public function")]

#[allow(dead_code, reason = "other benches use other parts of it")]
#[path = "support/meter.rs"]
mod meter;
#[allow(dead_code, reason = "other benches use other parts of it")]
#[path = "support/world.rs"]
mod world;

use criterion::measurement::Measurement;
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use millpond::iothread::{IoThread, Local};
use millpond::node::{Client, Mail, NodeOrder};
use millpond_messages::{DebugOrder, RequestFlags};
use millpond_ring::buffer::Buffers;
use serde_json::json;

use meter::{Meter, meter};
use world::{World, on};

const BLOCK: usize = 4096;
/// Where the writes that are measured go: behind all that are held.
const BEHIND: u64 = 1 << 29;

/// Begins a write that is held for as long as its iothread lives.
fn hold(iothread: &IoThread<Mail>, client: &Client, offset: u64, len: usize) {
    let client = client.clone();
    let job = move || {
        let Some(local) = Local::current() else { return };
        let client = client.here();
        local.spawn(async move {
            let written = client.write(offset, Buffers::zeroed(len), RequestFlags::empty());
            written.await.0.expect("it is held");
        });
    };
    assert!(iothread.send(Mail::Run(Box::new(job))).is_ok());
}

fn tracked(criterion: &mut Criterion<Meter>) {
    let mut group = criterion.benchmark_group("overlap, a write of 4 KiB");
    // A write that is not aligned becomes read-modify-write, which is serialising.
    for (name, first) in [("none serialising", (0, BLOCK)), ("one serialising", (1, 1))] {
        for held in [1, 32, 256] {
            let mut world = World::new();
            let near = world.near.clone();
            let null = world.open(&near, "null-co", None);
            // Blocks of more than a byte have writes tracked; its breakpoints hold them.
            let node = world.open_with(&near, "blkdebug", json!({ "align": 512 }), Some(&null));
            let client = world.client(&node);
            for number in 0..held {
                let breakpoint = DebugOrder::Breakpoint {
                    event: "pwritev".to_owned(),
                    tag: format!("b{number}"),
                };
                let order = NodeOrder::Debug { order: breakpoint }.at(node.node);
                world.order(&near, order);
                let (offset, len) = match number {
                    0 => first,
                    _ => (number * BLOCK as u64, BLOCK),
                };
                hold(&near, &client, offset, len);
                // The next breakpoint would hold this write too, were it not held by now.
                on(&near, || async {});
            }
            group.bench_function(BenchmarkId::new(name, held), |b| {
                b.iter_custom(|count| {
                    let client = client.clone();
                    on(&near, move || async move {
                        let client = client.here();
                        let mut buffers = Buffers::zeroed(BLOCK);
                        let begun = meter().start();
                        for _ in 0..count {
                            let (result, back) = client.write(BEHIND, buffers, RequestFlags::empty()).await;
                            result.expect("nothing holds it");
                            buffers = back;
                        }
                        meter().end(begun)
                    })
                });
            });
        }
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = meter::criterion();
    targets = tracked
}
criterion_main!(benches);
