//! Asking for all nodes at once.

use std::time::{Duration, Instant};

use serde_json::json;

use super::edits::null_node;
use super::{pair, show_micros, timed};
use crate::Outcome;
use crate::compare::bench::Bench;
use crate::compare::statistics::{Samples, alternate};
use crate::compare::table::{Better, Section, compared};
use crate::qmp::Monitor;

const NODES: usize = 1000;

/// Queries in one run.
const IN_A_ROW: usize = 5;

/// Adds the row of `query-named-block-nodes`.
pub fn rows(bench: &Bench<'_>, section: &mut Section) -> Outcome<()> {
    let work = format!("query-named-block-nodes flat, {NODES} nodes");
    if !bench.wants(&work) {
        return Ok(());
    }
    let mut monitors = bench.monitors()?;
    for (monitor, _) in monitors.iter_mut() {
        let deadline = Instant::now() + Duration::from_secs(bench.fill_seconds());
        if monitor.run_many(NODES, deadline, |at| null_node(&format!("n{at}")))? < NODES {
            return Err(format!("{work}: no {NODES} nodes in {} seconds", bench.fill_seconds()).into());
        }
        query(monitor)?;
    }
    let runs = alternate(
        bench.runs(),
        monitors.len(),
        monitors.len(),
        |which| {
            let times: Outcome<Vec<f64>> = (0..IN_A_ROW)
                .map(|_| timed(|| query(&mut monitors[which].0)))
                .collect();
            Samples::new(times?).median().ok_or_else(|| "no times".into())
        },
        |figure| [*figure],
    )?;
    let (peer, ours) = pair(&bench.beside_peer(runs), |figure| *figure);
    section.lines.push(compared(
        &work,
        &peer,
        &ours,
        Better::Less,
        Some(5.0),
        show_micros,
    ));
    Ok(())
}

fn query(monitor: &mut Monitor) -> Outcome<()> {
    monitor.execute("query-named-block-nodes", &json!({ "flat": true }))?;
    Ok(())
}
