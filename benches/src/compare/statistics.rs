//! What several runs of the same measurement say together: their median, and whether they agree well enough to be
//! compared.

use crate::Outcome;

/// How far the middle half of the runs may lie apart, as a part of their median, before no ratio is made of them.
pub const SCATTER_BOUND: f64 = 0.15;

/// The figures of one program's runs.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Samples(Vec<f64>);

impl Samples {
    /// From figures in any order. Those that are no numbers are left out.
    pub fn new(figures: impl IntoIterator<Item = f64>) -> Samples {
        let mut figures: Vec<f64> = figures.into_iter().filter(|figure| figure.is_finite()).collect();
        figures.sort_by(f64::total_cmp);
        Samples(figures)
    }

    /// The figure below which this part of them lies, from 0 to 1, between two figures in proportion; `None` without
    /// any.
    pub fn quantile(&self, part: f64) -> Option<f64> {
        let at = part.clamp(0.0, 1.0) * (self.0.len().checked_sub(1)? as f64);
        let low = *self.0.get(at.floor() as usize)?;
        let high = *self.0.get(at.ceil() as usize)?;
        Some(low + (high - low) * at.fract())
    }

    /// How many figures there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The one in the middle.
    pub fn median(&self) -> Option<f64> {
        self.quantile(0.5)
    }

    /// The distance between the quartiles, as a part of the median; `None` without figures. Runs that are all zero do
    /// not scatter.
    pub fn spread(&self) -> Option<f64> {
        let between = self.quantile(0.75)? - self.quantile(0.25)?;
        let median = self.median()?.abs();
        Some(if between == 0.0 { 0.0 } else { between / median })
    }

    /// Whether a ratio made of them would mean nothing.
    pub fn scatter(&self) -> bool {
        self.spread().is_none_or(|spread| spread > SCATTER_BOUND)
    }
}

/// Measures contestants in turn (A B A B ...), `runs` times each, and answers what each showed, in the order of
/// contestants. If the runs of one of the first `judged` scatter by one of the figures, all are measured once more with
/// twice as many runs, which then count in place of the first.
pub fn alternate<T, const FIGURES: usize>(
    runs: u32,
    contestants: usize,
    judged: usize,
    mut measure: impl FnMut(usize) -> Outcome<T>,
    figures: impl Fn(&T) -> [f64; FIGURES],
) -> Outcome<Vec<Vec<T>>> {
    let mut all = in_turn(runs, contestants, &mut measure)?;
    let scatters = |shown: &Vec<T>| {
        let figure = |index: usize| Samples::new(shown.iter().map(|run| figures(run)[index]));
        (0..FIGURES).any(|index| figure(index).scatter())
    };
    if runs > 1 && all.iter().take(judged).any(scatters) {
        all = in_turn(runs.saturating_mul(2), contestants, &mut measure)?;
    }
    Ok(all)
}

fn in_turn<T>(
    runs: u32,
    contestants: usize,
    measure: &mut impl FnMut(usize) -> Outcome<T>,
) -> Outcome<Vec<Vec<T>>> {
    let mut all: Vec<Vec<T>> = (0..contestants).map(|_| Vec::new()).collect();
    for _ in 0..runs {
        for (contestant, shown) in all.iter_mut().enumerate() {
            shown.push(measure(contestant)?);
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_one_in_the_middle_whatever_the_order() {
        assert_eq!(Samples::new([5.0, 1.0, 3.0]).median(), Some(3.0));
        assert_eq!(Samples::new([4.0, 1.0, 2.0, 3.0]).median(), Some(2.5));
        assert_eq!(Samples::new([]).median(), None);
    }

    #[test]
    fn figures_that_are_no_numbers_do_not_count() {
        assert_eq!(Samples::new([f64::NAN, 7.0, f64::INFINITY]).median(), Some(7.0));
    }

    #[test]
    fn the_spread_is_the_middle_half_and_leaves_out_one_that_was_disturbed() {
        let samples = Samples::new([100.0, 104.0, 98.0, 102.0, 20.0]);
        assert_eq!(samples.spread(), Some(0.04));
        assert!(!samples.scatter());
    }

    #[test]
    fn runs_that_lie_too_far_apart_scatter() {
        assert!(Samples::new([80.0, 90.0, 100.0, 110.0, 120.0]).scatter());
        assert!(
            !Samples::new([92.5, 92.5, 100.0, 107.5, 107.5]).scatter(),
            "just within the bound"
        );
        assert!(Samples::new([]).scatter(), "nothing is no evidence");
        assert!(!Samples::new([0.0, 0.0, 0.0]).scatter());
        assert!(Samples::new([0.0, 0.0, 0.0, 9.0, 9.0]).scatter());
    }

    #[test]
    fn contestants_take_turns() {
        let mut order = Vec::new();
        let all = alternate(
            3,
            2,
            2,
            |which| {
                order.push(which);
                Ok(which as f64 + 1.0)
            },
            |figure| [*figure],
        )
        .unwrap();
        assert_eq!(order, [0, 1, 0, 1, 0, 1]);
        assert_eq!(all, [vec![1.0; 3], vec![2.0; 3]]);
    }

    #[test]
    fn scattering_runs_are_repeated_once_with_twice_as_many() {
        let mut calls = 0;
        let all = alternate(
            5,
            2,
            2,
            |which| {
                calls += 1;
                // The second contestant settles only after its first five runs.
                Ok(if which == 1 && calls <= 10 {
                    f64::from(calls)
                } else {
                    10.0
                })
            },
            |figure| [*figure],
        )
        .unwrap();
        assert_eq!(calls, 10 + 20);
        assert_eq!(all, [vec![10.0; 10], vec![10.0; 10]]);
    }

    #[test]
    fn a_contestant_that_is_not_judged_repeats_nothing() {
        let mut calls = 0;
        let measure = |which| {
            calls += 1;
            Ok(if which == 1 { f64::from(calls) } else { 1.0 })
        };
        alternate(5, 2, 1, measure, |figure| [*figure]).unwrap();
        assert_eq!(calls, 10);
    }
}
