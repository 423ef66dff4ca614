//! The table of ratios, as Markdown.

use std::fmt::Write;

use super::statistics::Samples;
use crate::Outcome;

/// Which way is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Better {
    /// Rates.
    More,
    /// Times, memory.
    Less,
}

/// What came of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Every target of the row is met.
    Met,
    /// One is not; the text tells how far off it is.
    Missed(String),
    /// It cannot be said; the text tells why.
    Open(String),
    /// The row has no target.
    None,
}

impl Verdict {
    /// From a list of what is not met.
    pub fn from_misses(misses: &[String]) -> Verdict {
        if misses.is_empty() {
            Verdict::Met
        } else {
            Verdict::Missed(misses.join("; "))
        }
    }
}

/// One row.
#[derive(Debug, Clone)]
pub struct Line {
    /// What was done.
    pub work: String,
    /// What the peer reached, with its unit.
    pub peer: String,
    /// What Millpond reached.
    pub ours: String,
    /// How many times better Millpond is.
    pub ratio: String,
    /// What was wanted.
    pub target: String,
    /// Whether it is so.
    pub verdict: Verdict,
    /// One for each further column of the section.
    pub further: Vec<String>,
}

impl Line {
    /// A row for something that one of the programs, or this one, cannot do yet.
    pub fn open(work: &str, target: &str, peer: impl Into<String>, why: &str) -> Line {
        Line {
            work: work.to_owned(),
            peer: peer.into(),
            ours: "-".to_owned(),
            ratio: "-".to_owned(),
            target: target.to_owned(),
            verdict: Verdict::Open(why.to_owned()),
            further: Vec::new(),
        }
    }
}

/// Rows of a kind under a heading.
#[derive(Debug, Clone)]
pub struct Section {
    /// The heading.
    pub title: String,
    /// Columns after those that every section has.
    pub columns: Vec<String>,
    /// The rows.
    pub lines: Vec<Line>,
    /// What is to be said below them, a paragraph each.
    pub notes: Vec<String>,
    /// What could not be measured, and why.
    pub failures: Vec<String>,
}

impl Section {
    /// An empty one.
    pub fn new(title: &str, columns: &[&str]) -> Section {
        Section {
            title: title.to_owned(),
            columns: columns.iter().map(|column| (*column).to_owned()).collect(),
            lines: Vec::new(),
            notes: Vec::new(),
            failures: Vec::new(),
        }
    }

    /// Takes in what came of measuring a row. A failure ends that row only, and is a row itself.
    pub fn attempt(&mut self, work: &str, outcome: Outcome<()>) {
        if let Err(error) = outcome {
            let error = shortened(&error.to_string());
            self.lines
                .push(Line::open(work, "-", "-", &format!("failed: {error}")));
            self.failures.push(format!("{work}: {error}"));
        }
    }

    /// Whether there is nothing to show.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// A row as Markdown, ending in a line break.
    pub fn row(&self, line: &Line) -> String {
        let met = match &line.verdict {
            Verdict::Met => "yes".to_owned(),
            Verdict::Missed(how) => format!("**no**: {how}"),
            Verdict::Open(why) => why.clone(),
            Verdict::None => "-".to_owned(),
        };
        let mut cells = vec![
            line.work.as_str(),
            &line.peer,
            &line.ours,
            &line.ratio,
            &line.target,
            &met,
        ];
        let missing = self.columns.len().saturating_sub(line.further.len());
        cells.extend(line.further.iter().map(String::as_str));
        cells.extend(std::iter::repeat_n("-", missing));
        let mut text = String::new();
        push_row(&mut text, cells.into_iter());
        text
    }

    /// As Markdown, ending in a line break.
    pub fn markdown(&self) -> String {
        let mut text = format!("## {}\n\n", self.title);
        if !self.lines.is_empty() {
            let mut header: Vec<&str> = vec!["work", "peer", "Millpond", "ratio", "target", "met"];
            header.extend(self.columns.iter().map(String::as_str));
            push_row(&mut text, header.iter().copied());
            push_row(&mut text, header.iter().map(|_| "---"));
        }
        for line in &self.lines {
            text.push_str(&self.row(line));
        }
        for note in &self.notes {
            // Writing to a string cannot fail.
            let _ = write!(text, "\n{note}\n");
        }
        text
    }
}

fn push_row<'a>(text: &mut String, cells: impl Iterator<Item = &'a str>) {
    text.push('|');
    for cell in cells {
        text.push(' ');
        // A bar would end the cell, and a line break the table.
        text.push_str(&cell.replace('|', "\\|").replace('\n', " "));
        text.push_str(" |");
    }
    text.push('\n');
}

/// The beginning and the end of a text that is too long for a cell: an error says where at its beginning, and why at its
/// end.
fn shortened(text: &str) -> String {
    const PART: usize = 120;
    let count = text.chars().count();
    if count <= 2 * PART {
        return text.to_owned();
    }
    let begin: String = text.chars().take(PART).collect();
    let end: String = text.chars().skip(count - PART).collect();
    format!("{begin} ... {end}")
}

/// How many times better the second is: its median by the peer's, or the peer's by its own. An error says why that
/// cannot be told.
pub fn ratio(peer: &Samples, ours: &Samples, better: Better) -> Result<f64, String> {
    let Some(theirs) = peer.median() else {
        return Err("no peer".to_owned());
    };
    let Some(our) = ours.median() else {
        return Err("no runs".to_owned());
    };
    if peer.scatter() || ours.scatter() {
        return Err(format!("scatters: {}", spreads(peer, ours)));
    }
    let (over, under) = match better {
        Better::More => (our, theirs),
        Better::Less => (theirs, our),
    };
    if under == 0.0 {
        return Err("nothing to divide by".to_owned());
    }
    Ok(over / under)
}

/// The two spreads in words.
pub fn spreads(peer: &Samples, ours: &Samples) -> String {
    let percent = |samples: &Samples| match samples.spread() {
        Some(spread) => format!("{:.0}%", spread * 100.0),
        None => "-".to_owned(),
    };
    format!("{}, {}", percent(peer), percent(ours))
}

/// A row with one ratio and one bound for it. Without a bound it has no target.
pub fn compared(
    work: &str,
    peer: &Samples,
    ours: &Samples,
    better: Better,
    at_least: Option<f64>,
    show: impl Fn(f64) -> String,
) -> Line {
    let shown = |samples: &Samples| samples.median().map_or_else(|| "-".to_owned(), &show);
    let found = ratio(peer, ours, better);
    let verdict = match (&found, at_least) {
        (Err(why), _) => Verdict::Open(why.clone()),
        (Ok(_), None) => Verdict::None,
        (Ok(ratio), Some(bound)) if *ratio >= bound => Verdict::Met,
        (Ok(ratio), Some(bound)) => Verdict::Missed(format!("{ratio:.2}x of {bound}x")),
    };
    Line {
        work: work.to_owned(),
        peer: shown(peer),
        ours: shown(ours),
        ratio: found.map_or_else(|_| "-".to_owned(), |ratio| format!("{ratio:.2}x")),
        target: at_least.map_or_else(|| "-".to_owned(), |bound| format!("{bound}x")),
        verdict,
        further: vec![spreads(peer, ours)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steady(figure: f64) -> Samples {
        Samples::new([figure; 5])
    }

    fn rate(figure: f64) -> String {
        format!("{figure:.0}/s")
    }

    #[test]
    fn a_ratio_says_how_many_times_better_we_are() {
        assert_eq!(ratio(&steady(10.0), &steady(50.0), Better::More), Ok(5.0));
        assert_eq!(ratio(&steady(10.0), &steady(50.0), Better::Less), Ok(0.2));
    }

    #[test]
    fn no_ratio_is_made_of_runs_that_scatter() {
        let wild = Samples::new([1.0, 2.0, 3.0, 4.0, 5.0]);
        let refusal = "scatters: 67%, 0%".to_owned();
        assert_eq!(ratio(&wild, &steady(9.0), Better::More), Err(refusal.clone()));
        assert!(ratio(&steady(9.0), &wild, Better::More).is_err());
        let line = compared("reads", &wild, &steady(9.0), Better::More, Some(2.0), rate);
        assert_eq!(line.ratio, "-");
        assert_eq!(line.verdict, Verdict::Open(refusal));
    }

    #[test]
    fn a_row_says_whether_its_target_is_met_and_how_far_off_it_is() {
        let met = compared(
            "reads",
            &steady(10.0),
            &steady(30.0),
            Better::More,
            Some(2.0),
            rate,
        );
        assert_eq!(met.verdict, Verdict::Met);
        let missed = compared(
            "reads",
            &steady(10.0),
            &steady(15.0),
            Better::More,
            Some(2.0),
            rate,
        );
        assert_eq!(missed.verdict, Verdict::Missed("1.50x of 2x".to_owned()));
        let none = compared("reads", &steady(10.0), &steady(15.0), Better::More, None, rate);
        assert_eq!(none.verdict, Verdict::None);
    }

    #[test]
    fn a_failure_is_a_row_with_both_ends_of_what_was_said() {
        let mut section = Section::new("Requests", &[]);
        section.attempt("reads", Ok(()));
        assert!(section.is_empty());
        let error = format!("begin {} end", "é".repeat(1000));
        section.attempt("reads", Err(error.into()));
        let text = section.markdown();
        assert!(
            text.contains("failed: begin é") && text.contains("é end |"),
            "{text}"
        );
        assert!(text.chars().count() < 500, "{text}");
        assert_eq!(section.failures.len(), 1);
    }

    #[test]
    fn a_section_is_a_markdown_table_whatever_its_cells_contain() {
        let mut section = Section::new("Requests", &["spread"]);
        section.lines.push(compared(
            "a|b",
            &steady(10.0),
            &steady(30.0),
            Better::More,
            Some(2.0),
            rate,
        ));
        section
            .lines
            .push(Line::open("later", "2x", "8/s", "not built\nyet"));
        section.notes.push("A note.".to_owned());
        assert_eq!(
            section.markdown(),
            "## Requests\n\n\
             | work | peer | Millpond | ratio | target | met | spread |\n\
             | --- | --- | --- | --- | --- | --- | --- |\n\
             | a\\|b | 10/s | 30/s | 3.00x | 2x | yes | 0%, 0% |\n\
             | later | 8/s | - | - | 2x | not built yet | - |\n\
             \nA note.\n"
        );
    }
}
