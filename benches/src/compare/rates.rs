//! Rows of how many requests a second there are, and what those about exports have in common.

use super::bench::Bench;
use super::graph::pair;
use super::statistics::{Samples, alternate};
use super::table::{Better, Line, Section, compared};
use crate::Outcome;
use crate::server::Program;

/// Bytes of the disk behind an export.
pub const SIZE: u64 = 1 << 30;
/// Bytes of a request.
pub const BLOCK: usize = 4096;

/// Adds a row with how many requests a second there are of each program, of which the peer's is to be exceeded so many times.
pub fn rates(
    bench: &Bench<'_>,
    name: &str,
    target: f64,
    section: &mut Section,
    measure: impl Fn(&Program) -> Outcome<f64>,
) -> Outcome<()> {
    let programs = bench.programs();
    let measure = |which: usize| measure(programs[which]);
    let runs = alternate(bench.runs(), programs.len(), programs.len(), measure, |rate| {
        [*rate]
    })?;
    let rates = pair(&bench.beside_peer(runs), |rate| *rate);
    section.lines.push(rate_line(name, &rates, target));
    Ok(())
}

/// A row of rates: of what is compared with, and of what is to exceed it so many times.
pub fn rate_line(name: &str, (before, after): &(Samples, Samples), target: f64) -> Line {
    let show = |rate: f64| format!("{:.1}k/s", rate / 1000.0);
    compared(name, before, after, Better::More, Some(target), show)
}
