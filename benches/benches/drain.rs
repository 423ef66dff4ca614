//! How long it takes until a node is still, by how many requests are in flight: criterion's figures are means, and below
//! them stand the median and the longest.
//!
//! A request takes at least [`LATENCY`]: that much a drain has to wait, and what is beyond is its own.
#![allow(missing_docs, reason = "criterion's macro makes a public function")]

#[allow(dead_code, reason = "other benches use other parts of it")]
#[path = "support/meter.rs"]
mod meter;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use criterion::measurement::Measurement;
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use futures_executor::block_on;
use hdrhistogram::Histogram;
use millpond::embed::{BlockLayer, BlockLayerConfig};
use millpond::graph::GraphHandle;
use millpond::iothread::Local;
use millpond::node::Client;
use millpond_messages::Permissions;
use millpond_messages::graph::{DrainScope, RootRequest, RootUser};
use millpond_ring::buffer::Buffers;
use serde_json::{Value, json};

use meter::{Meter, meter};

/// What the null node below takes for each request.
const LATENCY: Duration = Duration::from_micros(100);
const BLOCK: usize = 4096;

/// Requests that follow each other without end, so many side by side.
struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    running: Arc<AtomicU64>,
    depth: u64,
}

impl Load {
    fn start(client: &Client, depth: u64) -> Self {
        let load = Self {
            stop: Arc::default(),
            done: Arc::default(),
            running: Arc::new(AtomicU64::new(depth)),
            depth,
        };
        for _ in 0..depth {
            let (stop, done, running) = (
                Arc::clone(&load.stop),
                Arc::clone(&load.done),
                Arc::clone(&load.running),
            );
            let here = client.clone();
            let task = move || {
                let Some(local) = Local::current() else { return };
                local.spawn(async move {
                    let client = here.here();
                    let mut buffers = Buffers::zeroed(BLOCK);
                    while !stop.load(Ordering::Relaxed) {
                        let (result, back) = client.read(0, buffers).await;
                        result.expect("null is read");
                        buffers = back;
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                    running.fetch_sub(1, Ordering::Release);
                });
            };
            assert!(client.run_at_home(task));
        }
        load
    }

    /// Waits until as many requests have ended as are side by side: by then as many have begun again.
    fn flow(&self) {
        let before = self.done.load(Ordering::Relaxed);
        while self.done.load(Ordering::Relaxed) < before + 2 * self.depth {
            thread::yield_now();
        }
    }

    fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        while self.running.load(Ordering::Acquire) > 0 {
            thread::yield_now();
        }
    }
}

async fn add(graph: &GraphHandle, options: Value) {
    let Value::Object(options) = options else {
        panic!("not an object: {options}")
    };
    graph.add_node(options).await.expect("it opens");
}

/// Drains and lets go so often; what passed from asking for the section until it was still.
fn sections(graph: &GraphHandle, load: &Load, seen: &mut Histogram<u64>, count: u64) -> u64 {
    let mut total = 0;
    for _ in 0..count {
        load.flow();
        let (begun, asked) = (meter().start(), Instant::now());
        let section = block_on(graph.drain(DrainScope::Node("disk".to_owned()), "bench"));
        let took = asked.elapsed();
        total += meter().end(begun);
        // No drain takes longer than the histogram goes.
        seen.saturating_record(took.as_nanos() as u64);
        drop(section.expect("there is such a node"));
    }
    total
}

fn drain(criterion: &mut Criterion<Meter>) {
    let layer = block_on(BlockLayer::start(BlockLayerConfig::default())).expect("threads start");
    let graph = layer.graph().clone();
    let client = block_on(async {
        let latency = LATENCY.as_nanos() as u64;
        add(
            &graph,
            json!({"driver": "null-co", "node-name": "null", "latency-ns": latency}),
        )
        .await;
        add(
            &graph,
            json!({"driver": "raw", "node-name": "disk", "file": "null"}),
        )
        .await;
        let user = RootRequest {
            node: "disk".to_owned(),
            user: RootUser::Embedder("bench".to_owned()),
            permissions: Permissions::CONSISTENT_READ,
            shared: Permissions::all(),
            iothread: None,
            iothread_required: false,
            writethrough: false,
        };
        graph.attach(user).await.expect("it is free")
    });
    let mut group = criterion.benchmark_group(format!("drain, requests of {LATENCY:?}"));
    let mut seen = Vec::new();
    for depth in [0, 1, 8, 32, 128] {
        let load = Load::start(&client, depth);
        // Nanoseconds up to ten seconds.
        let mut histogram = Histogram::<u64>::new_with_max(10_000_000_000, 3).expect("sensible bounds");
        group.bench_function(BenchmarkId::new("in flight", depth), |b| {
            b.iter_custom(|count| sections(&graph, &load, &mut histogram, count));
        });
        load.end();
        seen.push((depth, histogram));
    }
    group.finish();
    for (depth, histogram) in seen.iter().filter(|(_, histogram)| !histogram.is_empty()) {
        let micros = |nanoseconds: u64| nanoseconds as f64 / 1000.0;
        println!(
            "{depth:>4} in flight: p50 {:.0} us, p99 {:.0} us, longest {:.0} us of {} sections",
            micros(histogram.value_at_quantile(0.5)),
            micros(histogram.value_at_quantile(0.99)),
            micros(histogram.max()),
            histogram.len(),
        );
    }
    block_on(async {
        graph.detach(client.root()).await.expect("it was attached");
        layer.shut_down().await.expect("everything closes");
    });
}

criterion_group! {
    name = benches;
    config = meter::criterion();
    targets = drain
}
criterion_main!(benches);
