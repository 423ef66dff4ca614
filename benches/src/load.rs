//! Loads one server from one or more connections and sums up what came of it.

use std::time::{Duration, Instant};

use clap::Args;
use hdrhistogram::Histogram;

use crate::Outcome;
use crate::connection::{Connection, Target, Work};
use crate::process;

/// How long requests run before they count: long enough for caches, polling and the allocator to settle.
const WARM_UP: Duration = Duration::from_millis(300);

/// The options of `millpond-bench load`.
#[derive(Debug, Args)]
pub struct LoadArguments {
    /// The export's URI: nbd+unix:///NAME?socket=PATH or nbd://HOST:PORT/NAME
    target: Target,
    /// Write in place of reading
    #[arg(long)]
    write: bool,
    /// Bytes a request
    #[arg(long, default_value_t = 4096)]
    block: u32,
    /// Requests in flight on each connection
    #[arg(long, default_value_t = 32)]
    depth: u16,
    /// Connections, each with a thread of its own
    #[arg(long, default_value_t = 1)]
    connections: u16,
    /// Seconds to measure
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Negotiate structured replies
    #[arg(long)]
    structured: bool,
    /// Visit offsets in order
    #[arg(long)]
    sequential: bool,
    /// Use only this many bytes at the front of the export
    #[arg(long)]
    span: Option<u64>,
    /// The server's process, to tell its CPU time and memory
    #[arg(long)]
    pid: Option<u32>,
}

/// What a load showed.
#[derive(Debug)]
pub struct Report {
    /// Requests answered, of those that were counted.
    pub requests: u64,
    /// How long they were counted.
    pub elapsed: Duration,
    /// Latencies in nanoseconds.
    pub latencies: Histogram<u64>,
    /// The server's CPU time meanwhile, if its process is known.
    pub cpu: Option<Duration>,
}

impl Report {
    /// Requests a second.
    pub fn rate(&self) -> f64 {
        self.requests as f64 / self.elapsed.as_secs_f64()
    }

    /// A percentile of the latencies in microseconds.
    pub fn microseconds(&self, percentile: f64) -> f64 {
        self.latencies.value_at_quantile(percentile / 100.0) as f64 / 1000.0
    }

    /// The server's CPU time a request in microseconds.
    pub fn cpu_microseconds(&self) -> Option<f64> {
        self.cpu
            .map(|cpu| cpu.as_secs_f64() * 1e6 / self.requests.max(1) as f64)
    }
}

/// Loads `target` by `connections` connections for `seconds`.
pub fn run(target: &Target, work: Work, connections: u16, seconds: f64, pid: Option<u32>) -> Outcome<Report> {
    let mut open = Vec::new();
    for seed in 0..connections {
        open.push(Connection::open(target, work, u64::from(seed))?);
    }
    let from = Instant::now() + WARM_UP;
    let until = from + Duration::from_secs_f64(seconds);
    let (mut latencies, mut requests, mut cpu) = (empty()?, 0, None);
    std::thread::scope(|scope| -> Outcome<()> {
        let threads: Vec<_> = open
            .into_iter()
            .map(|mut connection| {
                scope.spawn(move || -> Outcome<_> {
                    let mut latencies = empty()?;
                    let requests = connection.run(from, until, &mut latencies)?;
                    Ok((requests, latencies))
                })
            })
            .collect();
        cpu = pid.map(|pid| cpu_between(pid, from, until)).transpose()?;
        for thread in threads {
            let (count, of_one) = thread.join().map_err(|_| "a connection's thread panicked")??;
            requests += count;
            latencies.add(of_one)?;
        }
        Ok(())
    })?;
    Ok(Report {
        requests,
        elapsed: until - from,
        latencies,
        cpu,
    })
}

/// Counts from a nanosecond to a minute, to three digits.
fn empty() -> Outcome<Histogram<u64>> {
    Ok(Histogram::new_with_bounds(1, 60_000_000_000, 3)?)
}

/// A process's CPU time from one instant to another, both of which this waits for.
fn cpu_between(pid: u32, from: Instant, until: Instant) -> Outcome<Duration> {
    std::thread::sleep(from.saturating_duration_since(Instant::now()));
    let before = process::cpu_time(pid)?;
    std::thread::sleep(until.saturating_duration_since(Instant::now()));
    Ok(process::cpu_time(pid)?.saturating_sub(before))
}

/// Runs `millpond-bench load`.
pub fn main(arguments: &LoadArguments) -> Outcome<()> {
    let work = Work {
        write: arguments.write,
        block: arguments.block,
        depth: arguments.depth,
        structured: arguments.structured,
        sequential: arguments.sequential,
        span: arguments.span,
    };
    let report = run(
        &arguments.target,
        work,
        arguments.connections,
        arguments.seconds,
        arguments.pid,
    )?;
    let bytes = report.rate() * f64::from(arguments.block) / f64::from(1 << 20);
    println!("{:.0} requests/s, {bytes:.0} MiB/s", report.rate());
    println!(
        "latency us: p50 {:.1}, p99 {:.1}, p99.9 {:.1}, max {:.1}",
        report.microseconds(50.0),
        report.microseconds(99.0),
        report.microseconds(99.9),
        report.microseconds(100.0)
    );
    if let (Some(pid), Some(cpu)) = (arguments.pid, report.cpu_microseconds()) {
        println!(
            "server: {cpu:.2} us of CPU a request, {} KiB resident",
            process::resident(pid)? >> 10
        );
    }
    Ok(())
}
