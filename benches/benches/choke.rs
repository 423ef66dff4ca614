//! What a request costs at the choke point of one node: everything between a user on the node's iothread and the driver,
//! which does nothing.
#![allow(missing_docs, reason = "criterion's macro makes a public function")]

#[allow(dead_code, reason = "other benches use other parts of it")]
#[path = "support/meter.rs"]
mod meter;
#[allow(dead_code, reason = "other benches use other parts of it")]
#[path = "support/world.rs"]
mod world;

use criterion::measurement::Measurement;
use criterion::{Criterion, criterion_group, criterion_main};
use millpond::iothread::IoThread;
use millpond::node::{BitmapOrder, Client, HomeClient, Mail, NewBitmap, NodeOrder};
use millpond_messages::{BitmapId, RequestFlags};
use millpond_ring::buffer::Buffers;
use serde_json::json;

use meter::{Meter, meter};
use world::{World, on};

const BLOCK: usize = 4096;

#[derive(Debug, Clone, Copy)]
enum Kind {
    Read(u64),
    Write(u64),
    WriteZeroes,
    Discard,
    Flush,
    BlockStatus,
}

impl Kind {
    async fn request(self, client: &HomeClient, buffers: Buffers) -> Buffers {
        let flags = RequestFlags::empty();
        let (result, buffers) = match self {
            Self::Read(offset) => client.read(offset, buffers).await,
            Self::Write(offset) => client.write(offset, buffers, flags).await,
            Self::WriteZeroes => (client.write_zeroes(0, BLOCK as u64, flags).await, buffers),
            Self::Discard => (client.discard(0, BLOCK as u64).await, buffers),
            Self::Flush => (client.flush().await, buffers),
            Self::BlockStatus => {
                let status = client.block_status(0, BLOCK as u64, true, true).await;
                (status.map(drop), buffers)
            }
        };
        result.expect("null takes everything");
        buffers
    }
}

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

/// A node that does nothing, with so many dirty bitmaps that record its writes.
fn watched(world: &mut World, count: u64) -> Client {
    let near = world.near.clone();
    let node = world.open(&near, "null-co", None);
    for bitmap in (1..=count).map(BitmapId) {
        let order = BitmapOrder::Add(NewBitmap {
            granularity: 65_536,
            is_recording: true,
            stored_as: None,
        });
        world.order(&near, NodeOrder::Bitmap { bitmap, order }.at(node.node));
    }
    world.client(&node)
}

fn choke(criterion: &mut Criterion<Meter>) {
    let mut world = World::new();
    let near = world.near.clone();
    let null = world.open(&near, "null-co", None);
    let blocks = world.open_with(&near, "blkdebug", json!({ "align": 512 }), Some(&null));
    let (plain, blocks) = (world.client(&null), world.client(&blocks));
    let [one, four] = [1, 4].map(|count| watched(&mut world, count));
    let mut group = criterion.benchmark_group("choke point");
    let cases = [
        ("read", &plain, Kind::Read(0)),
        ("write", &plain, Kind::Write(0)),
        ("write zeroes", &plain, Kind::WriteZeroes),
        ("discard", &plain, Kind::Discard),
        ("flush", &plain, Kind::Flush),
        ("block status", &plain, Kind::BlockStatus),
        ("write with a dirty bitmap", &one, Kind::Write(0)),
        ("write with four dirty bitmaps", &four, Kind::Write(0)),
        ("blocks of 512: read", &blocks, Kind::Read(0)),
        ("blocks of 512: unaligned read", &blocks, Kind::Read(1)),
        ("blocks of 512: write", &blocks, Kind::Write(0)),
        ("blocks of 512: unaligned write", &blocks, Kind::Write(1)),
    ];
    for (name, client, kind) in cases {
        group.bench_function(name, |b| {
            b.iter_custom(|count| requests(&near, client, kind, count));
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = meter::criterion();
    targets = choke
}
criterion_main!(benches);
