//! How long a drain takes against what is in flight, and against how long that takes.
//!
//! This part runs Millpond inside this process: an embedder's drained section begins while another thread keeps requests
//! in flight on a null node, and what is timed is the wait until the section is still. No monitor, socket or export is
//! in the way.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use drivers::buffer::Buffers;
use futures_executor::block_on;
use futures_util::stream::{FuturesUnordered, StreamExt};
use messages::Permissions;
use messages::global_state::{DrainScope, RootRequest, RootUser};
use millpond::embed::{BlockLayer, BlockLayerConfig};
use millpond::node::Client;
use serde_json::json;

use super::micros;
use crate::Outcome;
use crate::compare::bench::Bench;
use crate::compare::plot::{Labels, Series, draw};
use crate::compare::statistics::Samples;
use crate::compare::table::{Line, Section, Verdict};

const DEPTHS: [usize; 8] = [1, 2, 4, 8, 16, 32, 64, 128];

/// Microseconds that a request takes when it is the delay that is varied.
const DELAYS: [u64; 6] = [0, 100, 300, 1000, 3000, 10_000];

/// Requests in flight when it is the delay that is varied.
const DEPTH: usize = 32;

/// The bound for what a drain adds to the slowest request in flight, in microseconds.
const OVERHEAD: f64 = 100.0;

/// From here on a request's delay is long beside the pauses that a thread may suffer: what a drain adds can be told.
const LONG: u64 = 1000;

const BLOCK: usize = 4096;

/// What the drains at one depth and delay showed, in microseconds.
#[derive(Debug, Clone, PartialEq)]
struct Drains {
    depth: usize,
    delay: u64,
    times: Samples,
    /// What a request took that met no drain: the slowest in flight takes as long.
    request: f64,
}

impl Drains {
    fn part(&self, part: f64) -> f64 {
        self.times.quantile(part).unwrap_or_default()
    }

    fn over(&self) -> f64 {
        self.part(0.5) - self.request
    }
}

/// Adds the rows about drains, and their tables and plots.
pub fn rows(bench: &Bench<'_>, section: &mut Section) -> Outcome<()> {
    let work = "drain latency against queue depth and injected delay";
    if !bench.wants(work) {
        return Ok(());
    }
    let count = if bench.quick() { 20 } else { 300 };
    let by_depth = DEPTHS.map(|depth| (depth, 0));
    let by_delay = DELAYS.map(|delay| (DEPTH, delay));
    let measure = |points: &[(usize, u64)]| -> Outcome<Vec<Drains>> {
        points
            .iter()
            .map(|(depth, delay)| drains(*depth, *delay, count))
            .collect()
    };
    let (by_depth, by_delay) = (measure(&by_depth)?, measure(&by_delay)?);
    section.lines.push(Line {
        work: work.to_owned(),
        peer: "nobody publishes it".to_owned(),
        ours: "see below".to_owned(),
        ratio: "-".to_owned(),
        target: "published".to_owned(),
        verdict: Verdict::Met,
        further: Vec::new(),
    });
    section.lines.push(overhead(&by_delay));
    section.notes.push(table(&by_depth, &by_delay));
    for (name, title, across, drains, x) in [
        (
            "drain-depth",
            "Drain of a null node under load",
            "requests in flight",
            &by_depth,
            (|drains| drains.depth as f64) as fn(&Drains) -> f64,
        ),
        (
            "drain-delay",
            "Drain of a null node with 32 requests in flight",
            "delay of a request, microseconds",
            &by_delay,
            |drains| drains.delay as f64,
        ),
    ] {
        if let Some((path, link)) = bench.plot(name) {
            let labels = Labels {
                title,
                across,
                up: "drain, microseconds",
            };
            draw(&path, labels, &series(drains, x))?;
            section.notes.push(format!("![{title}]({link})"));
        }
    }
    Ok(())
}

fn overhead(by_delay: &[Drains]) -> Line {
    let long = by_delay.iter().filter(|drains| drains.delay >= LONG);
    let over = Samples::new(long.map(Drains::over));
    let most = over.quantile(1.0);
    Line {
        work: format!("drain overhead over the slowest request in flight, {DEPTH} in flight"),
        peer: "-".to_owned(),
        ours: most.map_or_else(|| "-".to_owned(), |most| format!("{most:.0} us")),
        ratio: "-".to_owned(),
        target: format!("under {OVERHEAD} us"),
        verdict: match most {
            Some(most) if most < OVERHEAD => Verdict::Met,
            Some(most) => Verdict::Missed(format!("{most:.0} us of {OVERHEAD} us")),
            None => Verdict::Open("no runs".to_owned()),
        },
        further: Vec::new(),
    }
}

fn series(drains: &[Drains], x: fn(&Drains) -> f64) -> Vec<Series> {
    [("p50", 0.5), ("p99", 0.99), ("max", 1.0)]
        .map(|(name, part)| Series {
            name: name.to_owned(),
            points: drains
                .iter()
                .map(|drains| (x(drains), drains.part(part)))
                .collect(),
        })
        .into()
}

fn table(by_depth: &[Drains], by_delay: &[Drains]) -> String {
    let mut text = "Drain latency of a null node, in this process, in microseconds. \"Over\" is the median less what a \
                    request takes that meets no drain.\n\n\
                    | in flight | delay of a request | p50 | p99 | max | over |\n\
                    | --- | --- | --- | --- | --- | --- |"
        .to_owned();
    for drains in by_depth.iter().chain(by_delay) {
        text.push_str(&format!(
            "\n| {} | {} | {:.0} | {:.0} | {:.0} | {} |",
            drains.depth,
            drains.delay,
            drains.part(0.5),
            drains.part(0.99),
            drains.part(1.0),
            if drains.delay >= LONG {
                format!("{:.0}", drains.over())
            } else {
                "-".to_owned()
            },
        ));
    }
    text
}

/// Drains a node so often, beneath `depth` reads that take `delay` microseconds each.
fn drains(depth: usize, delay: u64, count: usize) -> Outcome<Drains> {
    let layer = block_on(BlockLayer::start(BlockLayerConfig::default()))?;
    let client = block_on(node_with_client(&layer, delay))?;
    let stop = AtomicBool::new(false);
    let (times, request) = std::thread::scope(|scope| {
        let thread = scope.spawn(|| block_on(load(&client, depth, &stop)));
        let times = {
            let _stop = StopWhenDone(&stop);
            block_on(drain_often(&layer, delay, count))
        };
        let latencies = thread.join().map_err(|_| "the load panicked")??;
        Outcome::Ok((times?, latencies.median().unwrap_or_default()))
    })?;
    block_on(layer.graph().detach(client.root()))?;
    block_on(layer.shut_down())?;
    Ok(Drains {
        depth,
        delay,
        times,
        request,
    })
}

/// Ends the load however its scope ends: a load that goes on would be waited for for ever.
struct StopWhenDone<'a>(&'a AtomicBool);

impl Drop for StopWhenDone<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

async fn node_with_client(layer: &BlockLayer, delay: u64) -> Outcome<Client> {
    let iothread = serde_json::from_value(json!({ "id": "io" }))?;
    layer.graph().add_iothread(iothread).await?;
    let node = json!({ "driver": "null-co", "node-name": "disk", "latency-ns": delay * 1000 });
    let options = node.as_object().cloned().ok_or("options are an object")?;
    layer.graph().blockdev_add(options).await?;
    layer
        .graph()
        .set_iothread("disk", Some("io".to_owned()), false)
        .await?;
    let request = RootRequest {
        node: "disk".to_owned(),
        user: RootUser::Embedder("bench".to_owned()),
        permissions: Permissions::CONSISTENT_READ,
        shared: Permissions::all(),
        iothread: None,
        iothread_required: false,
        writethrough: false,
    };
    Ok(layer.graph().attach(request).await?)
}

async fn drain_often(layer: &BlockLayer, delay: u64, count: usize) -> Outcome<Samples> {
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        // The load fills up again, and settles, before it is drained next.
        std::thread::sleep(Duration::from_micros(1500 + 2 * delay));
        let begun = Instant::now();
        let section = layer
            .graph()
            .drain(DrainScope::Node("disk".to_owned()), "bench")
            .await?;
        times.push(micros(begun.elapsed()));
        drop(section);
    }
    Ok(Samples::new(times))
}

/// Keeps `depth` reads in flight until told to stop; their times.
async fn load(client: &Client, depth: usize, stop: &AtomicBool) -> Outcome<Samples> {
    let read = |buffers: Buffers| async {
        let begun = Instant::now();
        let (result, buffers) = client.read(0, buffers).await;
        (result, buffers, micros(begun.elapsed()))
    };
    let mut in_flight: FuturesUnordered<_> = (0..depth).map(|_| read(Buffers::zeroed(BLOCK))).collect();
    let mut times = Vec::new();
    while let Some((result, buffers, time)) = in_flight.next().await {
        result.map_err(|error| format!("a read failed: {error:?}"))?;
        // A million tell the median as well as all do.
        if times.len() < 1_000_000 {
            times.push(time);
        }
        if !stop.load(Ordering::Relaxed) {
            in_flight.push(read(buffers));
        }
    }
    Ok(Samples::new(times))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drain_waits_for_what_is_in_flight_and_little_longer() {
        let drains = drains(4, 20_000, 3).unwrap();
        assert_eq!(drains.times.len(), 3);
        assert!(drains.request >= 20_000.0, "{drains:?}");
        assert!(drains.part(1.0) > 0.0, "{drains:?}");
    }

    #[test]
    fn the_worst_of_the_long_delays_is_held_against_the_bound() {
        let at = |delay, time| Drains {
            depth: DEPTH,
            delay,
            times: Samples::new([time]),
            request: delay as f64,
        };
        let line = overhead(&[at(0, 500.0), at(1000, 1030.0), at(3000, 3070.0)]);
        assert_eq!((line.ours.as_str(), &line.verdict), ("70 us", &Verdict::Met));
        let line = overhead(&[at(1000, 1250.0)]);
        assert_eq!(line.verdict, Verdict::Missed("250 us of 100 us".to_owned()));
    }
}
