//! How long a drain takes against what is in flight, and against how long that takes.
//!
//! This part runs Millpond inside this process: an embedder's drained section begins while another thread keeps requests
//! in flight on a null node, and what is timed is the wait until the section is still. No monitor, socket or export is
//! in the way.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_executor::block_on;
use futures_util::stream::{FuturesUnordered, StreamExt};
use millpond::embed::{BlockLayer, BlockLayerConfig};
use millpond::node::Client;
use millpond_messages::Permissions;
use millpond_messages::graph::{DrainScope, RootRequest, RootUser, SetIothread};
use millpond_ring::buffer::Buffers;
use millpond_ring::os::process::{Preference, prefer_this_thread};
use serde_json::json;

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

/// How long a section is held: long enough for the client to notice the last answer before it.
const HELD: Duration = Duration::from_micros(300);

const BLOCK: usize = 4096;

/// What the drains at one depth and delay showed, in microseconds.
#[derive(Debug, Clone, PartialEq)]
struct Drains {
    depth: usize,
    delay: u64,
    times: Samples,
    /// How much of it was left when the last request in flight had been answered.
    over: Samples,
}

impl Drains {
    fn part(&self, part: f64) -> f64 {
        self.times.quantile(part).unwrap_or_default()
    }

    fn over(&self, part: f64) -> f64 {
        self.over.quantile(part).unwrap_or_default()
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
    section.lines.push(overhead(&by_depth, &by_delay));
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

/// The worst of the medians is held against the bound.
fn overhead(by_depth: &[Drains], by_delay: &[Drains]) -> Line {
    let all = by_depth.iter().chain(by_delay);
    let most = Samples::new(all.map(|drains| drains.over(0.5))).quantile(1.0);
    Line {
        work: "drain overhead over the slowest request in flight".to_owned(),
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
    let mut text =
        "Drain latency of a null node, in this process, in microseconds. \"Over\" is what was left of the \
                    drain when the last request in flight had been answered.\n\n\
                    | in flight | delay of a request | p50 | p99 | max | over, p50 | over, p99 |\n\
                    | --- | --- | --- | --- | --- | --- | --- |"
            .to_owned();
    for drains in by_depth.iter().chain(by_delay) {
        text.push_str(&format!(
            "\n| {} | {} | {:.0} | {:.0} | {:.0} | {:.0} | {:.0} |",
            drains.depth,
            drains.delay,
            drains.part(0.5),
            drains.part(0.99),
            drains.part(1.0),
            drains.over(0.5),
            drains.over(0.99),
        ));
    }
    text
}

/// Drains a node so often, beneath `depth` reads that take `delay` microseconds each.
fn drains(depth: usize, delay: u64, count: usize) -> Outcome<Drains> {
    // As the control thread is: what is timed is the drain, and not how long this thread waits for a processor after it. Who
    // may not have that is told by the outliers.
    drop(prefer_this_thread(Preference::default()));
    let layer = block_on(BlockLayer::start(BlockLayerConfig::default()))?;
    let client = block_on(node_with_client(&layer, delay))?;
    let clock = Clock {
        began: Instant::now(),
        answered: AtomicU64::new(0),
        stop: AtomicBool::new(false),
    };
    let drained = std::thread::scope(|scope| {
        let thread = scope.spawn(|| block_on(load(&client, depth, &clock)));
        let drained = {
            let _stop = StopWhenDone(&clock.stop);
            block_on(drain_often(&layer, delay, count, &clock))
        };
        thread.join().map_err(|_| "the load panicked")??;
        drained
    });
    let (times, over) = drained?;
    block_on(layer.graph().detach(client.root()))?;
    block_on(layer.shut_down())?;
    Ok(Drains {
        depth,
        delay,
        times,
        over,
    })
}

/// What the load and the drains know of each other.
struct Clock {
    began: Instant,
    /// When the last answer came, in nanoseconds since the beginning.
    answered: AtomicU64,
    stop: AtomicBool,
}

impl Clock {
    fn now(&self) -> u64 {
        self.began.elapsed().as_nanos() as u64
    }
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
    layer.graph().add_node(options).await?;
    layer
        .graph()
        .ask(SetIothread {
            node_name: "disk".to_owned(),
            iothread: Some("io".to_owned()),
            force: false,
        })
        .await?;
    let request = RootRequest::new(
        "disk",
        RootUser::Embedder("bench".to_owned()),
        Permissions::CONSISTENT_READ,
    );
    Ok(layer.graph().attach(request).await?)
}

/// How long each drain took, and how much of that came after the last answer.
async fn drain_often(
    layer: &BlockLayer,
    delay: u64,
    count: usize,
    clock: &Clock,
) -> Outcome<(Samples, Samples)> {
    let (mut times, mut over) = (Vec::with_capacity(count), Vec::with_capacity(count));
    for round in 0..count as u64 {
        // The load fills up again. Requests that were parked together go on together: drains are to begin at any time
        // of theirs.
        let share = if delay == 0 { 0 } else { round * 7919 % delay };
        std::thread::sleep(Duration::from_micros(1500 + delay + share));
        let begun = clock.now();
        let section = layer
            .graph()
            .drain(DrainScope::Node("disk".to_owned()), "bench")
            .await?;
        let still = clock.now();
        // No answer comes while the section is still: the client only has to notice the last one.
        std::thread::sleep(HELD);
        let last = clock.answered.load(Ordering::Acquire).max(begun);
        drop(section);
        times.push((still - begun) as f64 / 1e3);
        over.push(still.saturating_sub(last) as f64 / 1e3);
    }
    Ok((Samples::new(times), Samples::new(over)))
}

/// Keeps `depth` reads in flight until told to stop.
async fn load(client: &Client, depth: usize, clock: &Clock) -> Outcome<()> {
    let read = |buffers: Buffers| client.read(0, buffers);
    let mut in_flight: FuturesUnordered<_> = (0..depth).map(|_| read(Buffers::zeroed(BLOCK))).collect();
    while let Some((result, buffers)) = in_flight.next().await {
        result.map_err(|error| format!("a read failed: {error:?}"))?;
        clock.answered.store(clock.now(), Ordering::Release);
        if !clock.stop.load(Ordering::Relaxed) {
            in_flight.push(read(buffers));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drain_waits_for_what_is_in_flight_and_little_longer() {
        let drains = drains(4, 20_000, 3).unwrap();
        // With the load at its depth some request is always in flight, and drains begin at any time of its way.
        assert!(drains.part(1.0) > 1000.0, "{drains:?}");
        assert!(drains.over(0.0) < drains.part(1.0), "{drains:?}");
    }

    #[test]
    fn the_worst_median_is_held_against_the_bound() {
        let at = |over| Drains {
            depth: DEPTH,
            delay: 0,
            times: Samples::new([1000.0]),
            over: Samples::new([over]),
        };
        let line = overhead(&[at(30.0)], &[at(70.0)]);
        assert_eq!((line.ours.as_str(), &line.verdict), ("70 us", &Verdict::Met));
        let line = overhead(&[at(250.0)], &[at(70.0)]);
        assert_eq!(line.verdict, Verdict::Missed("250 us of 100 us".to_owned()));
    }
}
