//! Few combinations of many choices, in which any two choices that go together meet at least once.

use std::collections::BTreeSet;

/// One choice: the number of what is chosen about, and the number of what was chosen.
pub type Choice = (usize, usize);

/// A combination: what is chosen about each thing.
pub type Row = Vec<usize>;

/// Whether two choices go together.
fn go_together(forbidden: &[(Choice, Choice)], one: Choice, other: Choice) -> bool {
    !forbidden.contains(&(one, other)) && !forbidden.contains(&(other, one))
}

/// Combinations in which each pair of choices meets that is not `forbidden`, and none that is. `counts` says how many choices there
/// are about each thing; the first of each must go together with everything.
pub fn cover(counts: &[usize], forbidden: &[(Choice, Choice)]) -> Vec<Row> {
    let choices = |about: usize| (0..counts[about]).map(move |choice| (about, choice));
    let mut left: BTreeSet<(Choice, Choice)> = BTreeSet::new();
    for (about, later) in pairs(counts.len()) {
        for one in choices(about) {
            let fits = choices(later).filter(|other| go_together(forbidden, one, *other));
            left.extend(fits.map(|other| (one, other)));
        }
    }
    let mut rows = Vec::new();
    while let Some(&(one, other)) = left.iter().next() {
        let mut row: Vec<Option<usize>> = vec![None; counts.len()];
        (row[one.0], row[other.0]) = (Some(one.1), Some(other.1));
        for about in 0..counts.len() {
            if row[about].is_some() {
                continue;
            }
            let chosen: Vec<Choice> = (0..)
                .zip(&row)
                .filter_map(|(at, choice)| Some((at, (*choice)?)))
                .collect();
            let fits =
                choices(about).filter(|new| chosen.iter().all(|old| go_together(forbidden, *new, *old)));
            let gain = |new: &Choice| {
                let met = chosen.iter().filter(|old| left.contains(&ordered(**old, *new)));
                // What is still to meet most of the rest comes first, and of the same the one chosen last.
                (
                    met.count(),
                    left.iter().filter(|(a, b)| a == new || b == new).count(),
                )
            };
            row[about] = fits.max_by_key(gain).map(|(_, choice)| choice);
        }
        let row: Row = row.into_iter().map(Option::unwrap_or_default).collect();
        for (about, later) in pairs(counts.len()) {
            left.remove(&((about, row[about]), (later, row[later])));
        }
        rows.push(row);
    }
    rows
}

fn ordered(one: Choice, other: Choice) -> (Choice, Choice) {
    (one.min(other), one.max(other))
}

/// The numbers of any two things.
fn pairs(count: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..count).flat_map(move |about| (about + 1..count).map(move |later| (about, later)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_two_choices_meet_that_may_and_no_others() {
        let counts = [4, 4, 2, 2, 3, 2, 3];
        let forbidden = [((0, 1), (1, 2)), ((2, 1), (4, 2)), ((4, 1), (2, 1))];
        let rows = cover(&counts, &forbidden);
        for (about, later) in pairs(counts.len()) {
            for one in 0..counts[about] {
                for other in 0..counts[later] {
                    let meet = rows.iter().any(|row| row[about] == one && row[later] == other);
                    let may = go_together(&forbidden, (about, one), (later, other));
                    assert_eq!(meet, may, "{about}={one} and {later}={other}");
                }
            }
        }
        let all: usize = counts.iter().product();
        assert!(rows.len() <= 24, "{} of {all} combinations", rows.len());
    }
}
