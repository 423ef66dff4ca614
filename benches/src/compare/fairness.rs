//! The row about a client that asks little beside one that asks much, both on one iothread.

use std::time::Duration;

use super::bench::Bench;
use super::graph::pair;
use super::rates::SIZE;
use super::statistics::alternate;
use super::table::{Better, Section, compared};
use crate::Outcome;
use crate::load::{self, Spec};
use crate::server::{Program, Server};

const NAME: &str = "NBD, null, 4 KiB read, 1 in flight beside a client with 128: the longest that 99% wait";

/// How long requests run before they count.
const WARM_UP: Duration = Duration::from_millis(200);

/// Adds the row, if it is asked for.
pub fn rows(bench: &Bench<'_>, section: &mut Section) {
    if bench.wants(NAME) {
        let outcome = row(bench, section);
        section.attempt(NAME, outcome);
    }
}

fn row(bench: &Bench<'_>, section: &mut Section) -> Outcome<()> {
    let programs = bench.programs();
    let measure = |which: usize| measure(bench, programs[which]);
    let runs = alternate(bench.runs(), programs.len(), programs.len(), measure, |wait| {
        [*wait]
    })?;
    let (peer, ours) = pair(&bench.beside_peer(runs), |wait| *wait);
    let show = |wait: f64| format!("{wait:.0} us");
    let line = compared(NAME, &peer, &ours, Better::Less, None, show);
    section.lines.push(line);
    Ok(())
}

/// Microseconds that all but one in a hundred of the small client's requests take at the most.
fn measure(bench: &Bench<'_>, program: &Program) -> Outcome<f64> {
    let disk = format!("null-co,node-name=disk,size={SIZE}");
    let server = Server::start(program, bench.dir(), "", &[], &[disk])?;
    let spec = |depth: u32, seconds: f64| Spec {
        target: server.target().clone(),
        depth,
        connections: 1,
        warm_up: WARM_UP,
        duration: Duration::from_secs_f64(seconds),
        ..Spec::default()
    };
    let (much, little) = (spec(128, bench.seconds() + 1.0), spec(1, bench.seconds()));
    let greedy = load::start(&much)?;
    let report = load::run(&little)?;
    greedy.finish()?;
    Ok(report.all.microseconds(99.0))
}
