//! Adding and removing a node beside many others.

use std::time::{Duration, Instant};

use serde_json::json;

use super::{pair, show_micros, timed};
use crate::Outcome;
use crate::compare::bench::Bench;
use crate::compare::statistics::{Samples, alternate};
use crate::compare::table::{Better, Line, Section, Verdict, compared};
use crate::qmp::Monitor;

/// Nodes added and removed in one run.
const IN_A_ROW: usize = 50;

/// Commands before the first that counts: the first ones meet cold caches.
const WARM_UP: usize = 20;

/// How much longer a change may take beside the most nodes than beside none, and still be called flat.
const FLAT: f64 = 1.2;

/// Adds the rows of `blockdev-add` and `blockdev-del`.
pub fn rows(bench: &Bench<'_>, section: &mut Section) -> Outcome<()> {
    let counts = if bench.quick() {
        [0, 100, 1000]
    } else {
        [0, 1000, 100_000]
    };
    let mut columns = Vec::new();
    for count in counts {
        let work = format!("blockdev-add + blockdev-del beside {count} nodes");
        if bench.wants(&work) {
            columns.push(row(bench, section, &work, count)?);
        }
    }
    if let [(none_peer, none_ours), _, (most_peer, most_ours)] = &columns[..] {
        section.lines.push(flatness(
            &format!("same, beside {} nodes against beside none", counts[2]),
            [none_peer, most_peer],
            [none_ours, most_ours],
        ));
    }
    Ok(())
}

fn row(bench: &Bench<'_>, section: &mut Section, work: &str, count: usize) -> Outcome<(Samples, Samples)> {
    let mut monitors = bench.monitors()?;
    let mut reached = Vec::new();
    for (monitor, name) in monitors.iter_mut() {
        let deadline = Instant::now() + Duration::from_secs(bench.fill_seconds());
        let filled = monitor.run_many(count, deadline, |at| null_node(&format!("n{at}")))?;
        if filled < count {
            reached.push(format!(
                "{work}: {name} reached {filled} nodes in {} seconds, so its figure is of that many.",
                bench.fill_seconds()
            ));
        }
        for _ in 0..WARM_UP {
            add_and_delete(monitor)?;
        }
    }
    let runs = alternate(
        bench.runs(),
        monitors.len(),
        monitors.len(),
        |which| median_of_pairs(&mut monitors[which].0),
        |figure| [*figure],
    )?;
    let (peer, ours) = pair(&bench.beside_peer(runs), |figure| *figure);
    section
        .lines
        .push(compared(work, &peer, &ours, Better::Less, Some(5.0), show_micros));
    section.notes.extend(reached);
    Ok((peer, ours))
}

fn median_of_pairs(monitor: &mut Monitor) -> Outcome<f64> {
    let mut times = Vec::with_capacity(IN_A_ROW);
    for _ in 0..IN_A_ROW {
        times.push(timed(|| add_and_delete(monitor))?);
    }
    Samples::new(times).median().ok_or_else(|| "no times".into())
}

fn add_and_delete(monitor: &mut Monitor) -> Outcome<()> {
    monitor.run(&null_node("new"))?;
    monitor.execute("blockdev-del", &json!({ "node-name": "new" }))?;
    Ok(())
}

/// The command that adds a null node.
pub fn null_node(name: &str) -> String {
    json!({
        "execute": "blockdev-add",
        "arguments": { "driver": "null-co", "node-name": name, "size": 1 << 20, "read-zeroes": true },
    })
    .to_string()
}

/// A row about growth: medians beside the most nodes, by those beside none.
fn flatness(work: &str, peer: [&Samples; 2], ours: [&Samples; 2]) -> Line {
    let growth = |[none, most]: [&Samples; 2]| Some(most.median()? / none.median()?);
    let (their, our) = (growth(peer), growth(ours));
    let show = |growth: Option<f64>| growth.map_or_else(|| "-".to_owned(), |growth| format!("{growth:.2}x"));
    let verdict = match our {
        Some(growth) if growth <= FLAT => Verdict::Met,
        Some(growth) => Verdict::Missed(format!("{growth:.2}x of {FLAT}x")),
        None => Verdict::Open("no runs".to_owned()),
    };
    Line {
        work: work.to_owned(),
        peer: show(their),
        ours: show(our),
        ratio: "-".to_owned(),
        target: format!("flat: at most {FLAT}x"),
        verdict,
        further: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_told_from_medians_and_held_against_the_bound() {
        let steady = |figure: f64| Samples::new([figure; 3]);
        let line = flatness(
            "same",
            [&steady(10.0), &steady(30.0)],
            [&steady(10.0), &steady(11.0)],
        );
        assert_eq!((line.peer.as_str(), line.ours.as_str()), ("3.00x", "1.10x"));
        assert_eq!(line.verdict, Verdict::Met);
        let line = flatness(
            "same",
            [&steady(10.0), &steady(10.0)],
            [&steady(10.0), &steady(13.0)],
        );
        assert_eq!(line.verdict, Verdict::Missed("1.30x of 1.2x".to_owned()));
    }
}
