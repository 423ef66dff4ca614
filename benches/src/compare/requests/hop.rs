//! What a hop between nodes costs, as the criterion bench `hop` has measured it.
//!
//! A hop is too short to be seen from outside a process. The bench measures it inside one and leaves its estimates in
//! files; this part reads them.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::compare::bench::Bench;
use crate::compare::table::{Line, Section, Verdict};

/// A row of the targets: how the bench that tells calls itself, and the bound in nanoseconds.
struct Hop {
    work: &'static str,
    bench: &'static str,
    bound: f64,
}

const HOPS: [Hop; 2] = [
    Hop {
        work: "one hop between nodes, same iothread",
        bench: "hop, same iothread/Read: one raw node more",
        bound: 40.0,
    },
    Hop {
        work: "one hop between nodes, other iothread, both awake",
        bench: "hop, other iothread/node to node, both awake",
        bound: 1500.0,
    },
];

/// Adds the rows about hops.
pub fn rows(bench: &Bench<'_>, section: &mut Section) {
    for hop in &HOPS {
        if bench.wants(hop.work) {
            section
                .lines
                .push(line(hop, estimate(bench.criterion(), hop.bench)));
        }
    }
}

fn line(hop: &Hop, nanoseconds: Option<f64>) -> Line {
    Line {
        work: hop.work.to_owned(),
        peer: "-".to_owned(),
        ours: nanoseconds.map_or_else(|| "-".to_owned(), |time| format!("{time:.0} ns")),
        ratio: "-".to_owned(),
        target: format!("under {} ns", hop.bound),
        verdict: match nanoseconds {
            None => Verdict::Open("run cargo bench -p millpond-bench --bench hop first".to_owned()),
            Some(time) if time < hop.bound => Verdict::Met,
            Some(time) => Verdict::Missed(format!("{time:.0} ns of {} ns", hop.bound)),
        },
        further: Vec::new(),
    }
}

/// The median that criterion has kept for the bench of this name, in nanoseconds.
fn estimate(results: &Path, bench: &str) -> Option<f64> {
    let read = |path: &Path| -> Option<Value> { serde_json::from_slice(&fs::read(path).ok()?).ok() };
    let mut folders = vec![results.to_owned()];
    // Criterion makes the names of its folders from those of benches in a way of its own: the names are in the files.
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if !path.is_dir() {
                continue;
            }
            if entry.file_name() == "new" {
                let told = read(&path.join("benchmark.json"));
                if told.is_some_and(|told| told["full_id"] == bench) {
                    return read(&path.join("estimates.json"))?["median"]["point_estimate"].as_f64();
                }
            } else {
                folders.push(path);
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_found_by_the_benchs_name() {
        let dir = std::env::temp_dir().join(format!("millpond-hop-{}", std::process::id()));
        for (folder, name, time) in [("a", "hop/other", 7.0), ("b", HOPS[0].bench, 33.5)] {
            let new = dir.join("hop").join(folder).join("new");
            fs::create_dir_all(&new).unwrap();
            let benchmark = serde_json::json!({ "full_id": name });
            fs::write(new.join("benchmark.json"), benchmark.to_string()).unwrap();
            let estimates = serde_json::json!({ "median": { "point_estimate": time } });
            fs::write(new.join("estimates.json"), estimates.to_string()).unwrap();
        }
        let found = [estimate(&dir, HOPS[0].bench), estimate(&dir, "hop/none")];
        fs::remove_dir_all(&dir).unwrap();
        assert_eq!(found, [Some(33.5), None]);
        assert_eq!(line(&HOPS[0], found[0]).verdict, Verdict::Met);
        assert!(matches!(line(&HOPS[0], None).verdict, Verdict::Open(_)));
    }
}
