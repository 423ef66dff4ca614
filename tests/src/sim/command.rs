//! Seeds by the dozen: run on all processors, counted, and told how to be run again where they fail.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use clap::Args;

use super::run::{Report, run_seed};

/// Which seeds to run, and what to tell.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// How many seeds to run.
    #[arg(long, default_value_t = 100)]
    pub seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 1)]
    pub first: u64,
    /// Run this seed alone.
    #[arg(long, conflicts_with_all = ["seeds", "first"])]
    pub seed: Option<u64>,
    /// Print the trace of every run, line by line.
    #[arg(long)]
    pub trace: bool,
    /// Run each seed twice, and compare the hashes of the traces.
    #[arg(long)]
    pub twice: bool,
    /// Threads; each runs a seed at a time.
    #[arg(long, default_value_t = std::thread::available_parallelism().map_or(1, usize::from))]
    pub jobs: usize,
    /// Go on after a seed has failed.
    #[arg(long)]
    pub keep_going: bool,
}

/// How a number of runs ended.
#[derive(Debug, Default)]
pub struct Summary {
    /// Seeds that were run.
    pub runs: u64,
    /// Those that failed.
    pub failed: Vec<Report>,
    /// Lines of all traces.
    pub lines: u64,
    /// Real time.
    pub took: Duration,
}

/// Runs what `options` ask for, and tells how it went.
pub fn run(options: &Options) -> ExitCode {
    let summary = run_seeds(options);
    let seconds = summary.took.as_secs_f64();
    println!(
        "{} seeds, {} failed, {} lines of trace, {:.1} s: {:.1} seeds a second",
        summary.runs,
        summary.failed.len(),
        summary.lines,
        seconds,
        summary.runs as f64 / seconds.max(1e-9),
    );
    if summary.failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Runs seeds, printing those that fail.
#[must_use]
pub fn run_seeds(options: &Options) -> Summary {
    let (first, count) = options
        .seed
        .map_or((options.first, options.seeds), |seed| (seed, 1));
    let begun = Instant::now();
    let (next, stop) = (AtomicU64::new(first), AtomicBool::new(false));
    let (send, reports) = mpsc::channel();
    let mut summary = Summary::default();
    std::thread::scope(|scope| {
        for _ in 0..options
            .jobs
            .clamp(1, usize::try_from(count).unwrap_or(usize::MAX).max(1))
        {
            let send = send.clone();
            let (next, stop) = (&next, &stop);
            scope.spawn(move || {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed - first >= count || stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let report = report(seed, options);
                    if report.failure.is_some() && !options.keep_going {
                        stop.store(true, Ordering::Relaxed);
                    }
                    // Nobody listens any more only when all is over.
                    let _ = send.send(report);
                }
            });
        }
        drop(send);
        for report in reports {
            summary.runs += 1;
            summary.lines += report.lines;
            if let Some(failure) = &report.failure {
                tell(&report, failure);
                summary.failed.push(report);
            } else if options.seed.is_some() {
                println!(
                    "seed {}: {}\n    passed, {} lines, trace {:016x}",
                    report.seed, report.swarm, report.lines, report.hash
                );
            }
        }
    });
    summary.took = begun.elapsed();
    summary
}

/// Runs a seed on a thread of its own, so that nothing is left of one run to the next.
fn report(seed: u64, options: &Options) -> Report {
    let run = |shown| {
        let one = move || {
            catch_unwind(AssertUnwindSafe(|| run_seed(seed, shown))).unwrap_or_else(|panic| {
                let text = panic.downcast_ref::<String>().cloned();
                let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
                Ok(failed(seed, format!("a panic: {}", text.unwrap_or_default())))
            })
        };
        match std::thread::spawn(one).join() {
            Ok(Ok(report)) => report,
            Ok(Err(error)) => failed(seed, format!("the run cannot be made: {error}")),
            Err(_) => failed(seed, "the run's thread panicked at its end".to_owned()),
        }
    };
    let mut report = run(options.trace);
    if options.twice {
        let again = run(false);
        if (again.hash, again.lines) != (report.hash, report.lines) && report.failure.is_none() {
            let text = format!(
                "two runs differ: {:016x} of {} lines, and {:016x} of {}",
                report.hash, report.lines, again.hash, again.lines
            );
            report.failure = Some(text);
        }
    }
    report
}

fn failed(seed: u64, text: String) -> Report {
    Report {
        seed,
        swarm: String::new(),
        hash: 0,
        lines: 0,
        failure: Some(text),
        last: Vec::new(),
    }
}

fn tell(report: &Report, failure: &str) {
    println!("seed {} failed: {}", report.seed, report.swarm);
    for line in report.last.iter().rev().take(30).rev() {
        println!("    {line}");
    }
    println!("    {failure}");
    println!(
        "  again: cargo run -p millpond-tests -- sim --trace --seed {}",
        report.seed
    );
}
