//! The rows about requests: rates, latencies and what a request costs the machine.

mod contestants;
mod figures;
mod hop;
mod idle;
mod limit;
mod rows;

use super::Group;
use super::bench::Bench;
use super::statistics::{Samples, alternate};
use super::table::{Better, Line, Section, Verdict, ratio, spreads};
use crate::Outcome;
use contestants::{Contestant, Setup, best_setup, measure, prepare};
use figures::{Shown, Standing};
use rows::{COST, Goal, ROWS, Row};

const COLUMNS: &[&str] = &[
    "p50/p99 us: peer, ours",
    "CPU us",
    "system calls",
    "instructions",
    "of ceiling, limit or plain image",
    "spread",
    "peer's set-up",
];

/// Runs the rows of one of the two groups.
pub fn section(bench: &Bench<'_>, group: Group) -> Section {
    let title = if group == Group::Disk {
        "Requests on a disk"
    } else {
        "Requests"
    };
    let mut section = Section::new(title, COLUMNS);
    let mut others = Vec::new();
    for row in ROWS.iter().filter(|row| row.disk.group() == group) {
        if bench.wants(row.name) {
            let before = section.lines.len();
            let outcome = one_row(bench, row, &mut section, &mut others);
            section.attempt(row.name, outcome);
            // The table comes only at the end, minutes later.
            for line in section.lines.iter().skip(before) {
                eprint!("{}", section.row(line));
            }
        }
    }
    if group == Group::Requests {
        hop::rows(bench, &mut section);
        let outcome = idle::rows(bench, &mut section);
        section.attempt("idle", outcome);
    }
    if !others.is_empty() {
        section.notes.push(others_table(&others));
    }
    section
}

/// Another server's figures in a row, beside ours.
struct Other {
    row: &'static Row,
    contestant: Contestant,
    shown: Shown,
    ours: Shown,
}

fn one_row(
    bench: &Bench<'_>,
    row: &'static Row,
    section: &mut Section,
    others: &mut Vec<Other>,
) -> Outcome<()> {
    prepare(bench, row.disk)?;
    let mut contestants = Vec::new();
    let mut setup = None;
    if bench.peer().is_some() {
        let best = best_setup(bench, row)?;
        setup = Some(best);
        contestants.push(Contestant::Peer(best));
    }
    contestants.push(Contestant::Ours);
    // Those that are judged come first.
    contestants.extend(Contestant::others(row));
    let judged = contestants
        .iter()
        .filter(|contestant| contestant.is_judged())
        .count();
    let runs = alternate(
        bench.runs(),
        contestants.len(),
        judged,
        |which| measure(bench, contestants[which], row, bench.seconds()),
        |figures| [figures.rate],
    )?;
    let shown: Vec<(Contestant, Shown)> = contestants
        .into_iter()
        .zip(runs.iter().map(|runs| Shown::new(runs)))
        .collect();
    let of = |wanted: fn(&Contestant) -> bool| shown.iter().find(|(contestant, _)| wanted(contestant));
    let nothing = Shown::default();
    let ours = of(|contestant| *contestant == Contestant::Ours).map_or(&nothing, |found| &found.1);
    let standing = Standing {
        peer: of(|contestant| matches!(contestant, Contestant::Peer(_))).map_or(&nothing, |found| &found.1),
        ours,
        ceiling: of(|contestant| *contestant == Contestant::Ceiling).map(|found| &found.1),
        limit: of(|contestant| *contestant == Contestant::Limit).map(|found| &found.1),
        plain: of(|contestant| *contestant == Contestant::Plain).map(|found| &found.1),
    };
    section.lines.push(line(row, setup, standing));
    if row.name == COST.0 {
        section.lines.push(cost(standing));
    }
    for (contestant, shown) in &shown {
        if !matches!(contestant, Contestant::Peer(_) | Contestant::Ours) {
            others.push(Other {
                row,
                contestant: *contestant,
                shown: shown.clone(),
                ours: ours.clone(),
            });
        }
    }
    Ok(())
}

fn line(row: &Row, setup: Option<Setup>, standing: Standing<'_>) -> Line {
    let Standing { peer, ours, .. } = standing;
    let found = ratio(&peer.rate, &ours.rate, Better::More);
    let times = |shown: &Shown| format!("{}/{}", number(&shown.p50, 0), number(&shown.p99, 0));
    let both = |figure: fn(&Shown) -> &Samples, digits| {
        format!(
            "{}, {}",
            number(figure(peer), digits),
            number(figure(ours), digits)
        )
    };
    Line {
        work: row.name.to_owned(),
        peer: volume(row, &peer.rate),
        ours: volume(row, &ours.rate),
        ratio: found
            .as_ref()
            .map_or_else(|_| "-".to_owned(), |ratio| format!("{ratio:.2}x")),
        target: words(row.goals),
        verdict: match &found {
            // What scatters is said even where nothing is wanted.
            Err(why) if row.goals.is_empty() => Verdict::Open(why.clone()),
            _ => verdict(row.goals, standing),
        },
        further: vec![
            format!("{}, {}", times(peer), times(ours)),
            both(|shown| &shown.cpu, 1),
            both(|shown| &shown.calls, 2),
            both(|shown| &shown.instructions, 0),
            standing
                .ceiling
                .or(standing.limit)
                .or(standing.plain)
                .map_or_else(|| "-".to_owned(), |bound| part_of(bound, ours)),
            spreads(&peer.rate, &ours.rate),
            setup.map_or_else(|| "not installed".to_owned(), Setup::words),
        ],
    }
}

/// The row about what a request costs, made of the figures of another row.
fn cost(standing: Standing<'_>) -> Line {
    let Standing { peer, ours, .. } = standing;
    let costs = |shown: &Shown| {
        format!(
            "{} instructions, {} system calls",
            number(&shown.instructions, 0),
            number(&shown.calls, 2)
        )
    };
    Line {
        work: "instructions and system calls a request, at 32 in flight".to_owned(),
        peer: costs(peer),
        ours: costs(ours),
        ratio: "-".to_owned(),
        target: words(COST.1),
        verdict: verdict(COST.1, standing),
        further: Vec::new(),
    }
}

/// All that is wanted of a row, one after the other.
fn words(goals: &[Goal]) -> String {
    if goals.is_empty() {
        return "-".to_owned();
    }
    let words: Vec<_> = goals.iter().map(|goal| goal.words()).collect();
    words.join("; ")
}

/// A goal that is not met counts more than one of which nothing is known.
fn verdict(goals: &[Goal], standing: Standing<'_>) -> Verdict {
    if goals.is_empty() {
        return Verdict::None;
    }
    let (mut misses, mut unknown) = (Vec::new(), Vec::new());
    for goal in goals {
        match goal.miss(standing) {
            Ok(None) => {}
            Ok(Some(reached)) => misses.push(format!("{reached} (wanted {})", goal.words())),
            Err(why) => unknown.push(why),
        }
    }
    if misses.is_empty() && !unknown.is_empty() {
        Verdict::Open(unknown.join("; "))
    } else {
        misses.extend(unknown);
        Verdict::from_misses(&misses)
    }
}

fn part_of(bound: &Shown, ours: &Shown) -> String {
    match (bound.rate.median(), ours.rate.median()) {
        (Some(bound), Some(ours)) => format!("{:.0}%", ours / bound * 100.0),
        _ => "-".to_owned(),
    }
}

fn number(samples: &Samples, digits: usize) -> String {
    match samples.median() {
        Some(figure) => format!("{figure:.digits$}"),
        None => "-".to_owned(),
    }
}

fn volume(row: &Row, rate: &Samples) -> String {
    match rate.median() {
        Some(rate) if row.block >= 64 << 10 => {
            format!("{:.2} GiB/s", rate * row.block as f64 / f64::from(1 << 30))
        }
        Some(rate) => format!("{:.1}k/s", rate / 1000.0),
        None => "-".to_owned(),
    }
}

/// The other servers, each beside what Millpond reached in the same runs.
fn others_table(others: &[Other]) -> String {
    let mut text = "Others in the same runs:\n\n\
                    | work | who | reached | Millpond by it | p50/p99 us | CPU us | spread |\n\
                    | --- | --- | --- | --- | --- | --- | --- |"
        .to_owned();
    for Other {
        row,
        contestant,
        shown,
        ours,
    } in others
    {
        let by = ratio(&shown.rate, &ours.rate, Better::More);
        text.push_str(&format!(
            "\n| {} | {} | {} | {} | {}/{} | {} | {} |",
            row.name,
            contestant.name(),
            volume(row, &shown.rate),
            by.map_or_else(|why| why, |by| format!("{by:.2}x")),
            number(&shown.p50, 0),
            number(&shown.p99, 0),
            number(&shown.cpu, 1),
            spreads(&shown.rate, &ours.rate),
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::figures::Figures;
    use super::*;

    fn shown(rate: f64, calls: f64) -> Shown {
        Shown::new(
            &[Figures {
                rate,
                p50: 10.0,
                p99: 25.0,
                cpu: 4.0,
                calls,
                instructions: f64::NAN,
            }; 5],
        )
    }

    #[test]
    fn what_is_missed_counts_more_than_what_is_not_known() {
        let (peer, ours) = (shown(1.0, 2.0), shown(5.0, 0.3));
        let standing = Standing {
            peer: &peer,
            ours: &ours,
            ceiling: None,
            limit: None,
            plain: None,
        };
        assert_eq!(verdict(&[Goal::Ratio(2.0)], standing), Verdict::Met);
        assert!(matches!(
            verdict(&[Goal::Ratio(2.0), Goal::Instructions(0.5)], standing),
            Verdict::Open(why) if why.starts_with("instructions cannot be counted")
        ));
        assert!(matches!(
            verdict(COST.1, standing),
            Verdict::Missed(how) if how.starts_with("0.300 system calls") && how.contains("cannot be counted")
        ));
    }

    #[test]
    fn large_requests_are_shown_by_their_bytes() {
        let row = |name: &str| ROWS.iter().find(|row| row.name == name).unwrap();
        let rate = Samples::new([8192.0]);
        assert_eq!(
            volume(row("null, 256 KiB read, 8 in flight"), &rate),
            "2.00 GiB/s"
        );
        assert_eq!(volume(row("null, 4 KiB read, 1 in flight"), &rate), "8.2k/s");
    }
}
