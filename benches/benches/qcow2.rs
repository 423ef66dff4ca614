//! What qcow2's tables cost on their own, over a file in memory: finding where a range is, giving room to a write, and
//! writing back what that changed.
#![allow(missing_docs, reason = "criterion's macro makes a public function")]

#[allow(dead_code, reason = "other benches use other parts of it")]
#[path = "support/memory.rs"]
mod memory;
#[allow(dead_code, reason = "other benches use other parts of it")]
#[path = "support/meter.rs"]
mod meter;
#[allow(dead_code, reason = "other benches use other parts of it")]
#[path = "support/world.rs"]
mod world;

use std::rc::Rc;

use criterion::measurement::Measurement;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use millpond::iothread::{IoThread, Local};
use millpond::node::Mail;
use millpond_drivers::api::{CreateRequest, Driver, DriverKind, Notices, OpenRequest, Purpose};
use millpond_drivers::format::qcow2::Qcow2Kind;
use millpond_messages::{OpenFlags, Range, RequestFlags};
use serde_json::{Value, json};

use memory::{Memory, nothing};
use meter::{Meter, meter};
use world::{World, on};

const CLUSTER: u64 = 64 << 10;
/// Bytes whose entries are in one slice of the L2 cache.
const PER_SLICE: u64 = 512 * CLUSTER;
/// Slices that are used in turn, so that a cache of the least size (16 slices) has the next one never.
const SLICES: u64 = 64;
const SIZE: u64 = 64 << 30;

fn object(json: Value) -> millpond_messages::graph::Options {
    match json {
        Value::Object(options) => options,
        other => panic!("not an object: {other}"),
    }
}

/// A new image in memory, opened on the iothread that this is.
async fn image(options: Value) -> Rc<dyn Driver> {
    let ring = Local::current().expect("on an iothread").ring().clone();
    let file = Memory::child();
    let created = Qcow2Kind::default().create(CreateRequest {
        data_file: None,
        header: None,
        options: object(json!({ "size": SIZE })),
        file: Some(file.clone()),
        ring: ring.clone(),
    });
    created.await.expect("an image is made");
    let opened = Qcow2Kind::default().open(OpenRequest {
        node_name: "image".to_owned(),
        options: object(options),
        flags: OpenFlags::RDWR,
        children: vec![file, nothing(), nothing()],
        ring,
        notices: Notices::new(|_| {}),
    });
    opened.await.expect("it opens").driver
}

fn range(offset: u64, len: u64) -> Range {
    Range::new(offset, len).expect("a range that there is")
}

/// Gives room to a write of `len` bytes, which needs not be written here.
async fn allocate(image: &Rc<dyn Driver>, offset: u64, len: u64) {
    let placed = image.place(range(offset, len), RequestFlags::empty()).await;
    let placed = placed.expect("there is room");
    assert_eq!(placed.len, len);
    if let Some(ticket) = placed.ticket {
        image.settle(ticket, Ok(())).await.expect("it is recorded");
    }
}

async fn find(image: &Rc<dyn Driver>, offset: u64) {
    let found = image.locate(Purpose::Read, range(offset, 4096)).await;
    std::hint::black_box(found.expect("it is there"));
}

fn lookup(criterion: &mut Criterion<Meter>) {
    let world = World::new();
    let near = &world.near;
    let mut group = criterion.benchmark_group("qcow2 lookup");
    group.bench_function("slice in the cache", |b| {
        b.iter_custom(|count| {
            on(near, move || async move {
                let image = image(json!({})).await;
                allocate(&image, 0, 16 * CLUSTER).await;
                let begun = meter().start();
                for at in 0..count {
                    find(&image, at % 256 * 4096).await;
                }
                meter().end(begun)
            })
        });
    });
    group.bench_function("not allocated, slice in the cache", |b| {
        b.iter_custom(|count| {
            on(near, move || async move {
                let image = image(json!({})).await;
                allocate(&image, 0, CLUSTER).await;
                let begun = meter().start();
                for at in 0..count {
                    find(&image, CLUSTER + at % 256 * 4096).await;
                }
                meter().end(begun)
            })
        });
    });
    group.bench_function("slice to be loaded", |b| {
        b.iter_custom(|count| {
            on(near, move || async move {
                let image = image(json!({ "l2-cache-size": 16 * 4096 })).await;
                for slice in 0..SLICES {
                    allocate(&image, slice * PER_SLICE, CLUSTER).await;
                }
                image.flush().await.expect("memory takes all");
                let begun = meter().start();
                for at in 0..count {
                    find(&image, at % SLICES * PER_SLICE).await;
                }
                meter().end(begun)
            })
        });
    });
    group.finish();
}

/// Which part of a round is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Allocation,
    WriteBack,
}

/// Rounds of `batch` writes to clusters of a new image, each round followed by a write-back of what it changed.
fn rounds(near: &IoThread<Mail>, part: Part, batch: u64, len: u64, count: u64) -> u64 {
    on(near, move || async move {
        let mut total = 0;
        for _ in 0..count {
            let image = image(json!({})).await;
            let begun = meter().start();
            for at in 0..batch {
                allocate(&image, at * CLUSTER, len).await;
            }
            let allocated = meter().end(begun);
            let begun = meter().start();
            image.flush().await.expect("memory takes all");
            let written = meter().end(begun);
            total += match part {
                Part::Allocation => allocated,
                Part::WriteBack => written,
            };
        }
        total
    })
}

fn allocation(criterion: &mut Criterion<Meter>) {
    let world = World::new();
    let near = &world.near;
    let mut group = criterion.benchmark_group("qcow2 allocation");
    for (name, len) in [("whole clusters", CLUSTER), ("4 KiB of each cluster", 4096)] {
        let batch = 512;
        group.throughput(Throughput::Elements(batch));
        group.bench_function(format!("place and settle, {name}"), |b| {
            b.iter_custom(|count| rounds(near, Part::Allocation, batch, len, count));
        });
    }
    for batch in [1, 32, 512] {
        group.throughput(Throughput::Elements(batch));
        group.bench_function(BenchmarkId::new("write-back, clusters", batch), |b| {
            b.iter_custom(|count| rounds(near, Part::WriteBack, batch, CLUSTER, count));
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = meter::criterion();
    targets = lookup, allocation
}
criterion_main!(benches);
