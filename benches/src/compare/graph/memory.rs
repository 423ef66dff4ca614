//! What a node costs in memory.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;

use super::edits::null_node;
use super::show_kib;
use crate::Outcome;
use crate::compare::bench::Bench;
use crate::compare::image;
use crate::compare::statistics::Samples;
use crate::compare::table::{Line, Section, Verdict};
use crate::process::resident;
use crate::qmp::Monitor;

/// Null nodes that share the growth of the process.
const NULLS: usize = 4000;

/// qcow2 nodes that do, each over a file node of its own: files are limited.
const IMAGES: usize = 400;

/// Adds a row a kind of node.
pub fn rows(bench: &Bench<'_>, section: &mut Section) -> Outcome<()> {
    let work = "memory a null node";
    if bench.wants(work) {
        let count = if bench.quick() { NULLS / 4 } else { NULLS };
        let line = row(bench, work, 4.0, |monitor| {
            // What the program has to have for any nodes at all, such as its own code, is no node's memory.
            growth(monitor, count, |at| null_node(&format!("first{at}")))?;
            growth(monitor, count, |at| null_node(&format!("n{at}")))
        })?;
        section.lines.push(line);
    }
    let work = "memory a qcow2 node without its caches";
    if bench.wants(work) {
        let path = bench.dir().join("small.qcow2");
        image::create(&path, "qcow2", "1M", &[])?;
        let line = row(bench, work, 16.0, |monitor| qcow2_growth(monitor, &path))?;
        section.lines.push(line);
        section.notes.push(format!(
            "Memory is the growth of the process's resident memory by {NULLS} null nodes beside as many, and by {IMAGES} \
             qcow2 nodes that read one empty image of 1 MiB, so that caches hold nothing. Their file nodes were added before."
        ));
    }
    Ok(())
}

fn row(
    bench: &Bench<'_>,
    work: &str,
    bound: f64,
    mut growth: impl FnMut(&mut Monitor) -> Outcome<f64>,
) -> Outcome<Line> {
    let mut runs = vec![Vec::new(); bench.programs().len()];
    // Memory does not scatter as times do: three new processes show whether it is the same.
    for _ in 0..bench.runs().min(3) {
        for ((monitor, _), shown) in bench.monitors()?.iter_mut().zip(&mut runs) {
            shown.push(growth(monitor)?);
        }
    }
    let (peer, ours) = super::pair(&bench.beside_peer(runs), |figure| *figure);
    Ok(held_against(work, bound, &peer, &ours))
}

/// The row's target is a figure, not a ratio; the ratio is shown beside it.
fn held_against(work: &str, bound: f64, peer: &Samples, ours: &Samples) -> Line {
    let mut line = crate::compare::table::compared(
        work,
        peer,
        ours,
        crate::compare::table::Better::Less,
        None,
        show_kib,
    );
    line.target = format!("{bound} KiB");
    line.verdict = match ours.median() {
        None => Verdict::Open("no runs".to_owned()),
        Some(figure) if figure <= bound => Verdict::Met,
        Some(figure) => Verdict::Missed(format!("{figure:.1} KiB of {bound} KiB")),
    };
    line
}

/// KiB a node that these commands add.
fn growth(monitor: &mut Monitor, count: usize, command: impl Fn(usize) -> String) -> Outcome<f64> {
    let before = resident(monitor.pid())?;
    let deadline = Instant::now() + Duration::from_secs(120);
    let added = monitor.run_many(count, deadline, command)?;
    let after = resident(monitor.pid())?;
    Ok(after.saturating_sub(before) as f64 / 1024.0 / added.max(1) as f64)
}

fn qcow2_growth(monitor: &mut Monitor, path: &Path) -> Outcome<f64> {
    let file = |at: usize| {
        json!({
            "execute": "blockdev-add",
            "arguments": { "driver": "file", "node-name": format!("f{at}"), "filename": path, "read-only": true },
        })
        .to_string()
    };
    growth(monitor, IMAGES, file)?;
    growth(monitor, IMAGES, |at| {
        json!({
            "execute": "blockdev-add",
            "arguments": {
                "driver": "qcow2", "node-name": format!("n{at}"), "file": format!("f{at}"), "read-only": true,
            },
        })
        .to_string()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_held_against_a_figure_and_not_against_the_peer() {
        let steady = |figure: f64| Samples::new([figure; 3]);
        let line = held_against("null", 4.0, &steady(26.0), &steady(5.2));
        assert_eq!((line.ratio.as_str(), line.target.as_str()), ("5.00x", "4 KiB"));
        assert_eq!(line.verdict, Verdict::Missed("5.2 KiB of 4 KiB".to_owned()));
        assert_eq!(
            held_against("null", 4.0, &steady(1.0), &steady(4.0)).verdict,
            Verdict::Met
        );
    }
}
