//! Weighted choices: which of several kinds of request, or of several sizes, comes next.

use std::fmt;
use std::str::FromStr;

use rand::Rng;
use rand::RngExt;

/// Things to choose from, each with a weight.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice<T> {
    /// With the sum of the weights up to and including it; rises strictly.
    items: Vec<(T, u32)>,
}

impl<T: Copy> Choice<T> {
    /// Always the same.
    pub fn only(item: T) -> Choice<T> {
        Choice {
            items: vec![(item, 1)],
        }
    }

    /// Each of these as often as its weight says.
    ///
    /// # Errors
    /// All weights are zero, there are none, or their sum is above 2^32.
    pub fn weighted(items: impl IntoIterator<Item = (T, u32)>) -> Result<Choice<T>, String> {
        let mut sum = 0_u32;
        let mut list = Vec::new();
        for (item, weight) in items {
            if weight > 0 {
                sum = sum.checked_add(weight).ok_or("the weights are too large")?;
                list.push((item, sum));
            }
        }
        if list.is_empty() {
            return Err("there is nothing with a weight above 0".to_owned());
        }
        Ok(Choice { items: list })
    }

    /// What can be chosen.
    pub fn items(&self) -> impl Iterator<Item = T> {
        self.items.iter().map(|(item, _)| *item)
    }

    /// Chooses one.
    pub fn pick(&self, rng: &mut impl Rng) -> T {
        match self.items.as_slice() {
            [(only, _)] => *only,
            items => {
                let sum = items.last().map_or(1, |(_, sum)| *sum);
                let number = rng.random_range(0..sum);
                let at = items.partition_point(|(_, sum)| *sum <= number);
                // The last sum is above every number drawn, so the point lies inside.
                items[at].0
            }
        }
    }
}

impl<T: FromStr<Err = String> + Copy> FromStr for Choice<T> {
    type Err = String;

    /// `ITEM`, or `ITEM:WEIGHT,ITEM:WEIGHT,...`; a weight that is left out is 1.
    fn from_str(text: &str) -> Result<Choice<T>, String> {
        let items = text.split(',').map(|part| {
            let (item, weight) = part.split_once(':').unwrap_or((part, "1"));
            let weight = weight
                .parse()
                .map_err(|_| format!("'{weight}' is no weight: a whole number is"))?;
            Ok((item.parse()?, weight))
        });
        Choice::weighted(items.collect::<Result<Vec<_>, String>>()?)
    }
}

impl<T: fmt::Display + Copy> fmt::Display for Choice<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut before = 0;
        for (index, (item, sum)) in self.items.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            write!(f, "{comma}{item}")?;
            if self.items.len() > 1 {
                write!(f, ":{}", sum - before)?;
            }
            before = *sum;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::*;
    use crate::load::Kind;

    #[test]
    fn each_is_chosen_as_often_as_its_weight_says() {
        let choice: Choice<Kind> = "read:70,flush:0,write:30".parse().unwrap();
        let mut rng = SmallRng::seed_from_u64(1);
        let picks: Vec<_> = (0..10_000).map(|_| choice.pick(&mut rng)).collect();
        let reads = picks.iter().filter(|kind| **kind == Kind::Read).count();
        assert!((6_700..7_300).contains(&reads), "{reads}");
        assert!(!picks.contains(&Kind::Flush));
        assert_eq!(choice.to_string(), "read:70,write:30");
    }

    #[test]
    fn what_is_no_choice_is_refused() {
        for text in ["", "read:x", "read:0", "reed", "read:4294967295,write:1"] {
            assert!(text.parse::<Choice<Kind>>().is_err(), "{text}");
        }
    }
}
