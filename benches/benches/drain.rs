//! How long it takes until a node is still, by how many requests are in flight, and beside a mirror: criterion's figures are means, and below
//! them stand the median and the longest.
//!
//! A request takes at least [`LATENCY`]: that much a drain has to wait, and what is beyond is its own.
#![allow(missing_docs, reason = "criterion's macro makes a public function")]

#[allow(dead_code, reason = "other benches use other parts of it")]
#[path = "support/meter.rs"]
mod meter;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use actix_rt::System;
use criterion::measurement::Measurement;
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use futures_executor::block_on;
use hdrhistogram::Histogram;
use millpond::embed::{BlockLayer, BlockLayerConfig};
use millpond::graph::GraphHandle;
use millpond::iothread::Local;
use millpond::job::{Family, JobOptions, JobOrder, Jobs, MirrorPlan};
use millpond::monitor::EventBus;
use millpond::node::Client;
use millpond_messages::graph::{DrainScope, RootRequest, RootUser};
use millpond_messages::{Permissions, RequestFlags};
use millpond_ring::buffer::Buffers;
use serde_json::{Value, json};

use meter::{Meter, meter};

/// What the null node below takes for each request.
const LATENCY: Duration = Duration::from_micros(100);
const BLOCK: usize = 4096;
/// Bytes of the disk.
const SIZE: u64 = 1 << 30;
/// From a write to the next.
const STEP: u64 = 1 << 20;
/// Writes in flight beside a mirror.
const WRITES: u64 = 64;

/// Requests that follow each other without end, so many side by side.
struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    running: Arc<AtomicU64>,
    depth: u64,
}

/// What requests there are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Requests {
    Reads,
    /// Writes that go through the whole of the disk.
    Writes,
}

impl Load {
    fn start(client: &Client, depth: u64, requests: Requests) -> Self {
        let load = Self {
            stop: Arc::default(),
            done: Arc::default(),
            running: Arc::new(AtomicU64::new(depth)),
            depth,
        };
        for first in 0..depth {
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
                    let mut at = first * SIZE / depth;
                    while !stop.load(Ordering::Relaxed) {
                        let (result, back) = match requests {
                            Requests::Reads => client.read(0, buffers).await,
                            Requests::Writes => client.write(at, buffers, RequestFlags::empty()).await,
                        };
                        at = (at + STEP) % SIZE;
                        result.expect("null takes all");
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

/// A mirror of the disk, with a control thread for it. As long as the disk is written it does not come to an end.
struct Mirror {
    jobs: Jobs,
    system: System,
    thread: JoinHandle<()>,
}

impl Mirror {
    fn start(graph: &GraphHandle, mode: &str) -> Self {
        let copy = json!({"driver": "null-co", "node-name": "copy", "size": SIZE,
            "latency-ns": LATENCY.as_nanos() as u64});
        block_on(add(graph, copy));
        let asked = json!({"job-id": "mirror", "device": "disk", "target": "copy", "sync": "full",
            "copy-mode": mode});
        let graph = graph.clone();
        let (tell, started) = mpsc::channel();
        let thread = thread::spawn(move || {
            let system = System::new();
            let jobs = system.block_on(async move {
                let jobs = Jobs::new(EventBus::default());
                let asked = serde_json::from_value(asked).expect("the arguments are well-formed");
                let plan = MirrorPlan::new(graph, &asked).await.expect("it can be mirrored");
                let begun = jobs.start("mirror", JobOptions::default(), || plan.job()).await;
                begun.expect("the mirror starts");
                jobs
            });
            tell.send((jobs, System::current())).expect("it is waited for");
            system.run().expect("the jobs' thread ends well");
        });
        let (jobs, system) = started.recv().expect("the mirror starts");
        Self { jobs, system, thread }
    }

    fn end(self) {
        let cancel = JobOrder::Cancel { force: true };
        block_on(self.jobs.apply(Family::BlockJob, "mirror", cancel)).expect("the mirror is there");
        while !block_on(self.jobs.list()).is_empty() {
            thread::yield_now();
        }
        self.system.stop();
        self.thread.join().expect("the jobs' thread ends well");
    }
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
            json!({"driver": "null-co", "node-name": "null", "size": SIZE, "latency-ns": latency}),
        )
        .await;
        add(
            &graph,
            json!({"driver": "raw", "node-name": "disk", "file": "null"}),
        )
        .await;
        let user = RootRequest::new(
            "disk",
            RootUser::Embedder("bench".to_owned()),
            Permissions::CONSISTENT_READ | Permissions::WRITE,
        );
        graph.attach(user).await.expect("it is free")
    });
    let mut group = criterion.benchmark_group(format!("drain, requests of {LATENCY:?}"));
    let mut seen = Vec::new();
    for depth in [0, 1, 8, 32, 128] {
        let load = Load::start(&client, depth, Requests::Reads);
        // Nanoseconds up to ten seconds.
        let mut histogram = Histogram::<u64>::new_with_max(10_000_000_000, 3).expect("sensible bounds");
        group.bench_function(BenchmarkId::new("in flight", depth), |b| {
            b.iter_custom(|count| sections(&graph, &load, &mut histogram, count));
        });
        load.end();
        seen.push((format!("{depth:>4}"), histogram));
    }
    for mode in ["background", "write-blocking"] {
        let mirror = Mirror::start(&graph, mode);
        let load = Load::start(&client, WRITES, Requests::Writes);
        let mut histogram = Histogram::<u64>::new_with_max(10_000_000_000, 3).expect("sensible bounds");
        group.bench_function(
            BenchmarkId::new("64 writes and a mirror in full swing", mode),
            |b| {
                b.iter_custom(|count| sections(&graph, &load, &mut histogram, count));
            },
        );
        load.end();
        mirror.end();
        block_on(graph.delete_node("copy")).expect("the mirror has let go of it");
        seen.push((format!("{WRITES:>4} writes and a {mode} mirror"), histogram));
    }
    group.finish();
    for (depth, histogram) in seen.iter().filter(|(_, histogram)| !histogram.is_empty()) {
        let micros = |nanoseconds: u64| nanoseconds as f64 / 1000.0;
        println!(
            "{depth} in flight: p50 {:.0} us, p99 {:.0} us, longest {:.0} us of {} sections",
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
