//! Groups written down: their limits and how full their buckets are. Members come with their nodes.

use millpond_messages::saved::{SavedRate, SavedThrottleGroup};
use millpond_messages::{Error, ErrorKind, Result};

use super::buckets::Buckets;
use super::group::Groups;
use super::limits::{Limits, Rate};

impl Groups {
    /// All groups, in the order of their names.
    #[must_use]
    pub fn save(&self) -> Vec<SavedThrottleGroup> {
        let groups = self.all();
        let saved = groups.iter().map(|(name, group)| {
            let buckets = group.buckets();
            let (limits, levels) = buckets.saved();
            let mut rates = [SavedRate::default(); 6];
            for ((saved, rate), (level, burst)) in rates.iter_mut().zip(&limits.rates).zip(levels) {
                *saved = SavedRate {
                    average: rate.average,
                    max: rate.max,
                    length: rate.length,
                    level,
                    burst,
                };
            }
            SavedThrottleGroup {
                name: name.clone(),
                iops_size: limits.iops_size,
                rates,
            }
        });
        saved.collect()
    }

    /// Makes a group that was saved, its buckets as full as they were.
    ///
    /// # Errors
    /// The limits cannot hold together, or there is a group of that name.
    pub fn restore(&self, saved: &SavedThrottleGroup) -> Result<()> {
        let limits = Limits {
            rates: saved.rates.map(|rate| Rate {
                average: rate.average,
                max: rate.max,
                length: rate.length,
            }),
            iops_size: saved.iops_size,
        };
        self.add(&saved.name, limits)?;
        let levels = saved.rates.map(|rate| (rate.level, rate.burst));
        let missing = || Error::new(ErrorKind::NotFound, "The group was removed at once");
        let group = self.find(&saved.name).ok_or_else(missing)?;
        group.set_buckets(&Buckets::restored(limits, levels));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::filter::throttle::limits::Direction;

    #[test]
    fn a_group_is_as_full_again_as_it_was() {
        let groups = Groups::default();
        let limits = Limits::default().with("bps-total", 1000).with("iops-size", 0);
        groups.add("g", limits).unwrap();
        let group = groups.find("g").unwrap();
        group.force(Direction::Write, 5000, Instant::now());
        let saved = groups.save();
        assert_eq!(saved[0].rates[0].level, 5000 * 1_000_000_000);
        let others = Groups::default();
        others.restore(&saved[0]).unwrap();
        assert_eq!(others.save(), saved);
        assert!(others.restore(&saved[0]).is_err(), "there is such a group now");
    }

    #[test]
    fn limits_that_cannot_hold_are_refused() {
        let groups = Groups::default();
        groups.add("g", Limits::default()).unwrap();
        let mut saved = groups.save().remove(0);
        saved.name = "other".to_owned();
        saved.rates[0].length = 0;
        assert!(groups.restore(&saved).is_err());
        assert!(groups.find("other").is_none());
    }
}
