//! The rows about the graph: how fast it is changed and asked, what a node costs, and what a change costs the clients.

mod chain;
mod change;
mod drain;
mod edits;
mod floor;
mod memory;
mod query;

use std::time::{Duration, Instant};

use super::bench::Bench;
use super::statistics::Samples;
use super::table::Section;
use crate::Outcome;

type Rows = fn(&Bench<'_>, &mut Section) -> Outcome<()>;

/// Runs the rows that are asked for.
pub fn section(bench: &Bench<'_>) -> Section {
    let mut section = Section::new("Graph", &["spread peer, ours"]);
    let all: [(&str, Rows); 6] = [
        ("adding and removing nodes", edits::rows),
        ("memory", memory::rows),
        ("queries", query::rows),
        ("changes under load", change::rows),
        ("chains", chain::rows),
        ("drains", drain::rows),
    ];
    for (what, rows) in all {
        let outcome = rows(bench, &mut section);
        section.attempt(what, outcome);
    }
    section
}

/// How long something took, in microseconds.
fn timed(work: impl FnOnce() -> Outcome<()>) -> Outcome<f64> {
    let start = Instant::now();
    work()?;
    Ok(micros(start.elapsed()))
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// The figures of the peer and ours, from runs in that order.
pub(super) fn pair<T>(runs: &[Vec<T>], figure: impl Fn(&T) -> f64) -> (Samples, Samples) {
    let samples = |which: usize| {
        let runs = runs.get(which).map(Vec::as_slice).unwrap_or_default();
        Samples::new(runs.iter().map(&figure))
    };
    (samples(0), samples(1))
}

fn show_micros(figure: f64) -> String {
    if figure < 10_000.0 {
        format!("{figure:.0} us")
    } else {
        format!("{:.1} ms", figure / 1e3)
    }
}

fn show_kib(figure: f64) -> String {
    format!("{figure:.1} KiB")
}
