//! What a request over NBD costs beside hundreds of connections that are idle, and beside thousands of nodes: a ratio to
//! what it costs alone, from daemons that run at once and are asked in turn.
#![allow(missing_docs, reason = "criterion's macro makes a public function")]

#[allow(dead_code, reason = "other benches use other parts of it")]
#[path = "support/meter.rs"]
mod meter;

use std::time::Instant;

use criterion::{Criterion, criterion_group, criterion_main};
use millpond_tests::crowd::{Crowd, Size, gather};
use millpond_tests::daemon::{Daemon, daemon};
use millpond_tests::nbd::Session;
use rustix::thread::{CpuSet, sched_setaffinity};
use serde_json::json;

use meter::Meter;

const CONNECTIONS: usize = 500;
const NODES: usize = 5_000;
const BLOCK: u64 = 4096;

/// Requests to one daemon before it is the other's turn.
const IN_A_ROW: usize = 200;
/// Such turns; the median of their ratios counts.
const TURNS: usize = 51;

/// A daemon, whoever is idle there, and the connection that is not.
struct Place {
    name: String,
    session: Session,
    _crowd: Crowd,
    _daemon: Daemon,
}

impl Place {
    fn new(name: String, size: Size) -> Self {
        let mut daemon = daemon()
            .nbd_unix_with(",max-connections=0")
            .option(
                "--object",
                format!("iothread,id=io,x-millpond-cpu-affinity.0={}", server()),
            )
            .blockdev(json!({ "driver": "null-co", "node-name": "disk", "size": 1 << 20 }))
            .option("--export", "nbd,id=e,node-name=disk,name=disk,iothread=io")
            .start();
        let crowd = gather(&mut daemon, size);
        Self {
            name,
            session: daemon.session("disk"),
            _crowd: crowd,
            _daemon: daemon,
        }
    }

    /// Nanoseconds a request.
    fn turn(&mut self) -> f64 {
        let begun = Instant::now();
        for _ in 0..IN_A_ROW {
            self.session.read(0, BLOCK);
        }
        begun.elapsed().as_nanos() as f64 / IN_A_ROW as f64
    }
}

/// The processor of the iothreads that serve; the client has another where there is one. Where the scheduler puts them would
/// decide about more than what is measured.
fn server() -> usize {
    std::thread::available_parallelism().map_or(0, |processors| 1.min(processors.get() - 1))
}

/// The median of what a request takes at one place, by what it takes at the other just then.
fn ratio(one: &mut Place, other: &mut Place, turns: usize) -> f64 {
    let mut ratios: Vec<f64> = (0..turns).map(|_| one.turn() / other.turn()).collect();
    ratios.sort_by(f64::total_cmp);
    ratios[turns / 2]
}

fn crowds(criterion: &mut Criterion<Meter>) {
    let tried = std::env::args().any(|argument| argument == "--test");
    let (part, turns) = if tried { (50, 1) } else { (1, TURNS) };
    let (connections, nodes) = (CONNECTIONS / part, NODES / part);
    let connected = Size {
        exports: 100.min(connections),
        connections,
        in_iothread: true,
        ..Size::default()
    };
    let wide = Size {
        nodes,
        ..Size::default()
    };
    let mut alone = Place::new("alone".to_owned(), Size::default());
    let mut places = [
        Place::new("alone in another daemon".to_owned(), Size::default()),
        Place::new(format!("beside {connections} idle connections"), connected),
        Place::new(format!("beside {nodes} nodes"), wide),
    ];
    let mut first = CpuSet::new();
    first.set(0);
    sched_setaffinity(None, &first).expect("the first processor is there");
    let mut group = criterion.benchmark_group("crowd, a read of 4 KiB over NBD");
    for place in std::iter::once(&mut alone).chain(&mut places) {
        let name = place.name.clone();
        group.bench_function(name, |b| b.iter(|| place.session.read(0, BLOCK)));
    }
    group.finish();
    for place in &mut places {
        let ratio = ratio(place, &mut alone, turns);
        println!("{}: {ratio:.3} times what it takes alone", place.name);
    }
}

criterion_group! {
    name = benches;
    config = meter::criterion();
    targets = crowds
}
criterion_main!(benches);
