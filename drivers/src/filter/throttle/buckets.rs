//! The arithmetic of leaky buckets: how long work has to wait, and what it leaves behind.
//!
//! Work fills a bucket and the bucket leaks at its rate. Work may go ahead while the bucket is no fuller than its size,
//! however large the work is: so a request larger than the bucket goes, and those after it wait longer. A long burst
//! fills a second bucket, which leaks at the burst's rate.

use std::time::{Duration, Instant};

use super::limits::{Direction, Limits, Rate};

/// How full the buckets of one rate are.
#[derive(Debug, Clone, Copy, Default)]
struct Level {
    /// The bucket that leaks at the average rate.
    level: u128,
    /// The bucket that leaks at the burst's rate.
    burst: u128,
}

impl Level {
    fn leak(&mut self, rate: &Rate, nanoseconds: u128) {
        let leaked = |rate: u64| u128::from(rate).saturating_mul(nanoseconds);
        self.level = self.level.saturating_sub(leaked(rate.average));
        self.burst = self.burst.saturating_sub(leaked(rate.max));
    }

    /// The nanoseconds until both buckets have leaked enough.
    fn wait(&self, rate: &Rate) -> u128 {
        if rate.average == 0 {
            return 0;
        }
        let until = |level: u128, size: u128, rate: u64| level.saturating_sub(size).div_ceil(rate.into());
        let long = until(self.level, rate.size(), rate.average);
        let burst = rate
            .burst_size()
            .map_or(0, |size| until(self.burst, size, rate.max));
        long.max(burst)
    }

    fn fill(&mut self, cost: u128) {
        self.level = self.level.saturating_add(cost);
        self.burst = self.burst.saturating_add(cost);
    }
}

/// The buckets of a group.
#[derive(Debug, Clone, Default)]
pub(super) struct Buckets {
    limits: Limits,
    levels: [Level; 6],
    /// Up to when the levels have leaked.
    leaked: Option<Instant>,
}

impl Buckets {
    /// Buckets of these sizes, all empty.
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            ..Self::default()
        }
    }

    pub(super) const fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The limits, and how full the buckets are: each rate's own level and that of its bursts.
    pub(super) fn saved(&self) -> (&Limits, [(u128, u128); 6]) {
        (&self.limits, self.levels.map(|level| (level.level, level.burst)))
    }

    /// Buckets as full as this, which leak from their first use on.
    pub(super) fn restored(limits: Limits, levels: [(u128, u128); 6]) -> Self {
        Self {
            limits,
            levels: levels.map(|(level, burst)| Level { level, burst }),
            leaked: None,
        }
    }

    /// Time goes on to `now`. Another thread's clock may be a little ahead: time never goes back.
    pub(super) fn leak(&mut self, now: Instant) {
        let last = self.leaked.unwrap_or(now);
        let passed = now.saturating_duration_since(last).as_nanos();
        for (level, rate) in self.levels.iter_mut().zip(&self.limits.rates) {
            level.leak(rate, passed);
        }
        self.leaked = Some(last.max(now));
    }

    /// How long work has to wait in a direction, from the time of the last leak.
    pub(super) fn wait(&self, direction: Direction) -> Duration {
        let [bytes, requests] = [direction.bytes(), direction.requests()];
        let all = bytes.into_iter().chain(requests);
        let longest = all
            .map(|index| self.levels[index].wait(&self.limits.rates[index]))
            .max()
            .unwrap_or(0);
        Duration::from_nanos(u64::try_from(longest).unwrap_or(u64::MAX))
    }

    /// A request of so many bytes goes ahead.
    pub(super) fn fill(&mut self, direction: Direction, bytes: u64) {
        let (cost, counted) = self.limits.cost(bytes);
        for index in direction.bytes() {
            self.levels[index].fill(cost);
        }
        for index in direction.requests() {
            self.levels[index].fill(counted);
        }
    }
}
