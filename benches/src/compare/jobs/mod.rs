//! The rows about jobs that copy: how long each takes and what it costs, beside the peer and beside a bare copy of as many
//! bytes; and what a guest feels of it.

mod copies;
mod delay;
mod limit;
mod load;

use std::path::Path;

use super::bench::Bench;
use super::statistics::{Samples, alternate};
use super::table::{Better, Line, Section, Verdict, ratio, spreads};
use crate::Outcome;
use crate::server::Program;
use copies::{COPIES, Copied, Copy};

const COLUMNS: &[&str] = &["limit", "of the limit", "CPU s: peer, ours", "spread"];

/// Bytes that jobs copy, but for the commits, which copy half as many.
const SIZE: u64 = 1 << 30;

/// Where jobs run, and on how much.
pub(super) struct Place<'a> {
    /// The folder of the images.
    dir: &'a Path,
    /// Bytes of the large image's data.
    size: u64,
    ours: &'a Program,
}

impl<'a> Place<'a> {
    fn new(bench: &'a Bench<'_>, dir: &'a Path) -> Self {
        Self {
            dir,
            size: if bench.quick() { SIZE / 64 } else { SIZE },
            ours: bench.ours(),
        }
    }

    /// The image of this name.
    fn image(&self, name: &str) -> std::path::PathBuf {
        self.dir.join(format!("{name}.qcow2"))
    }
}

/// The rows that are asked for.
pub fn section(bench: &Bench<'_>) -> Section {
    let mut section = Section::new("Jobs", COLUMNS);
    for copy in &COPIES {
        if bench.wants(copy.work) {
            let outcome = one_copy(bench, copy, &mut section);
            section.attempt(copy.work, outcome);
        }
    }
    load::rows(bench, &mut section);
    delay::rows(bench, &mut section);
    section
}

/// Whose turn it is.
#[derive(Clone, Copy)]
enum Turn<'a> {
    Program(&'a Program),
    Limit,
}

fn one_copy(bench: &Bench<'_>, copy: &Copy, section: &mut Section) -> Outcome<()> {
    let dir = if copy.on_disk {
        bench.disk_dir()
    } else {
        bench.dir()
    };
    let place = Place::new(bench, dir);
    copies::make(&place, copy)?;
    let mut turns: Vec<Turn<'_>> = bench.peer().into_iter().map(Turn::Program).collect();
    turns.push(Turn::Program(bench.ours()));
    let judged = turns.len();
    turns.push(Turn::Limit);
    let measure = |which: usize| match turns[which] {
        Turn::Program(program) => (copy.run)(&place, program),
        Turn::Limit => Ok(Copied::taking((copy.limit)(&place)?)),
    };
    let runs = alternate(bench.runs(), turns.len(), judged, measure, |copied| {
        [copied.seconds]
    })?;
    copies::remove(&place)?;
    let mut shown = runs.iter().map(|runs| Shown::new(runs));
    let peer = bench.peer().and_then(|_| shown.next()).unwrap_or_default();
    let [ours, limit] = [shown.next(), shown.next()].map(Option::unwrap_or_default);
    section.lines.push(line(copy, &peer, &ours, &limit));
    Ok(())
}

/// All runs of one program.
#[derive(Default)]
struct Shown {
    seconds: Samples,
    cpu: Samples,
    allocated: Samples,
}

impl Shown {
    fn new(runs: &[Copied]) -> Self {
        let samples = |figure: fn(&Copied) -> f64| Samples::new(runs.iter().map(figure));
        Self {
            seconds: samples(|copied| copied.seconds),
            cpu: samples(|copied| copied.cpu),
            allocated: samples(|copied| copied.allocated),
        }
    }
}

impl Copy {
    /// What is wanted of the row.
    fn words(&self) -> String {
        let mut words = vec![format!(
            "{:.0}% of the {}",
            self.of_limit * 100.0,
            self.limit_name
        )];
        words.extend(self.times.map(|times| format!("{times}x")));
        words.extend(
            self.cpu
                .map(|part| format!("{:.0}% of the peer's CPU", part * 100.0)),
        );
        if self.stays_sparse {
            words.push("as sparse as before".to_owned());
        }
        words.join("; ")
    }
}

fn line(copy: &Copy, peer: &Shown, ours: &Shown, limit: &Shown) -> Line {
    let found = ratio(&peer.seconds, &ours.seconds, Better::Less);
    let part = |one: &Samples, other: &Samples| Some(one.median()? / other.median()?);
    let percent =
        |part: Option<f64>| part.map_or_else(|| "-".to_owned(), |part| format!("{:.0}%", part * 100.0));
    let of_limit = part(&limit.seconds, &ours.seconds);
    let of_cpu = part(&ours.cpu, &peer.cpu);
    let mut misses = Vec::new();
    if of_limit.is_none_or(|part| part < copy.of_limit) {
        misses.push(format!("{} of the {}", percent(of_limit), copy.limit_name));
    }
    if let (Ok(found), Some(times)) = (&found, copy.times)
        && *found < times
    {
        misses.push(format!("{found:.2}x of {times}x"));
    }
    if let (Some(reached), Some(wanted)) = (of_cpu, copy.cpu)
        && reached > wanted
    {
        misses.push(format!("{} of the peer's CPU", percent(of_cpu)));
    }
    let holds = ours.allocated.median().unwrap_or_default();
    if copy.stays_sparse && holds > 1.0 {
        misses.push(format!("the target holds {holds:.2} times what the source holds"));
    }
    let verdict = match &found {
        // What scatters tells nothing, whether the rest is met or not.
        Err(why) if copy.times.is_some() => Verdict::Open(why.clone()),
        _ => Verdict::from_misses(&misses),
    };
    Line {
        work: copy.work.to_owned(),
        peer: seconds(&peer.seconds),
        ours: seconds(&ours.seconds),
        ratio: found.map_or_else(|_| "-".to_owned(), |ratio| format!("{ratio:.2}x")),
        target: copy.words(),
        verdict,
        further: vec![
            format!("{}: {}", copy.limit_name, seconds(&limit.seconds)),
            percent(of_limit),
            format!("{}, {}", number(&peer.cpu), number(&ours.cpu)),
            spreads(&peer.seconds, &ours.seconds),
        ],
    }
}

fn seconds(samples: &Samples) -> String {
    match samples.median() {
        Some(_) => format!("{} s", number(samples)),
        None => "-".to_owned(),
    }
}

fn number(samples: &Samples) -> String {
    let figure = samples.median();
    figure.map_or_else(|| "-".to_owned(), |figure| format!("{figure:.2}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(seconds: f64, cpu: f64) -> Shown {
        let allocated = 1.0;
        Shown::new(
            &[Copied {
                seconds,
                cpu,
                allocated,
            }; 5],
        )
    }

    #[test]
    fn a_row_names_each_goal_that_is_missed() {
        let copy = &COPIES[0];
        let (peer, limit) = (shown(2.0, 1.0), shown(0.9, 0.9));
        assert_eq!(line(copy, &peer, &shown(1.0, 0.5), &limit).verdict, Verdict::Met);
        let missed = line(copy, &peer, &shown(1.8, 0.6), &limit).verdict;
        let all = "50% of the limit; 1.11x of 1.3x; 60% of the peer's CPU";
        assert_eq!(missed, Verdict::Missed(all.to_owned()));
        let unknown = line(copy, &Shown::default(), &shown(1.0, 0.5), &limit).verdict;
        assert_eq!(unknown, Verdict::Open("no peer".to_owned()));
    }
}
