//! A load over time: latencies in slices of time, and what happened to the graph meanwhile.
//!
//! However long a load runs, its slices stay below a bound: when there are too many, neighbours are joined and slices
//! last twice as long from then on.

use std::time::Duration;

use hdrhistogram::Histogram;

use crate::Outcome;

/// The shortest slice, in nanoseconds.
pub(super) const SHORTEST: u64 = 20_000_000;

/// Slices at the most.
const MOST: usize = 600;

/// A latency that counts as this is this or longer: an hour, in nanoseconds.
const LONGEST: u64 = 3_600_000_000_000;

/// An empty histogram of latencies in nanoseconds, to two digits, as slices have it.
pub(super) fn coarse() -> Outcome<Histogram<u32>> {
    Ok(Histogram::new_with_bounds(1, LONGEST, 2)?)
}

/// An empty histogram of latencies in nanoseconds, to three digits.
pub(super) fn fine() -> Outcome<Histogram<u64>> {
    Ok(Histogram::new_with_bounds(1, LONGEST, 3)?)
}

/// What was answered in a slice of time.
#[derive(Debug, Clone)]
pub struct Slice {
    /// Requests answered.
    pub requests: u64,
    /// Bytes moved by them.
    pub bytes: u64,
    /// Their latencies in nanoseconds.
    pub latencies: Histogram<u32>,
}

impl Slice {
    pub(super) fn empty() -> Outcome<Slice> {
        Ok(Slice {
            requests: 0,
            bytes: 0,
            latencies: coarse()?,
        })
    }

    pub(super) fn add(&mut self, other: &Slice) -> Outcome<()> {
        self.requests += other.requests;
        self.bytes += other.bytes;
        self.latencies.add(&other.latencies)?;
        Ok(())
    }

    pub(super) fn clear(&mut self) {
        self.requests = 0;
        self.bytes = 0;
        self.latencies.clear();
    }

    /// A percentile (0 to 100) of the latencies in microseconds.
    pub fn microseconds(&self, percentile: f64) -> f64 {
        self.latencies.value_at_quantile(percentile / 100.0) as f64 / 1000.0
    }
}

/// Something that happened during the load, such as a change of the graph. Times count from when the load's counting
/// began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// What happened.
    pub label: String,
    /// When it was begun.
    pub from: Duration,
    /// When it was done.
    pub until: Duration,
}

/// Slices and marks of a load.
#[derive(Debug, Clone)]
pub struct Timeline {
    width: u64,
    slices: Vec<Slice>,
    marks: Vec<Mark>,
}

impl Timeline {
    pub(super) fn new() -> Timeline {
        Timeline {
            width: SHORTEST,
            slices: Vec::new(),
            marks: Vec::new(),
        }
    }

    /// How long each slice lasts.
    pub fn width(&self) -> Duration {
        Duration::from_nanos(self.width)
    }

    /// The slices in order, from the beginning of counting on.
    pub fn slices(&self) -> &[Slice] {
        &self.slices
    }

    /// What happened, in order of its beginning.
    pub fn marks(&self) -> &[Mark] {
        &self.marks
    }

    /// All that was answered between two times, to a slice's length.
    ///
    /// # Errors
    /// None that is known.
    pub fn between(&self, from: Duration, until: Duration) -> Outcome<Slice> {
        let index =
            |time: Duration| usize::try_from(time.as_nanos() / u128::from(self.width)).unwrap_or(usize::MAX);
        let mut all = Slice::empty()?;
        let slices = self.slices.iter().skip(index(from));
        for slice in slices.take(index(until).saturating_sub(index(from)).max(1)) {
            all.add(slice)?;
        }
        Ok(all)
    }

    pub(super) fn mark(&mut self, mark: Mark) {
        let at = self.marks.partition_point(|other| other.from <= mark.from);
        self.marks.insert(at, mark);
    }

    /// Adds what was answered at a time, in nanoseconds.
    pub(super) fn add(&mut self, at: u64, slice: &Slice) -> Outcome<()> {
        while at / self.width >= MOST as u64 {
            self.halve()?;
        }
        // Bounded just now.
        let index = (at / self.width) as usize;
        while self.slices.len() <= index {
            self.slices.push(Slice::empty()?);
        }
        self.slices[index].add(slice)
    }

    fn halve(&mut self) -> Outcome<()> {
        let mut slices = std::mem::take(&mut self.slices).into_iter();
        while let Some(mut slice) = slices.next() {
            if let Some(next) = slices.next() {
                slice.add(&next)?;
            }
            self.slices.push(slice);
        }
        self.width *= 2;
        Ok(())
    }
}

/// The slowest request of each short time, so that the delay that an event caused can be told afterwards.
#[derive(Debug, Clone)]
pub(super) struct Slowest {
    width: u64,
    /// When it was due and how long it took, in nanoseconds, by when it was answered.
    times: Vec<(u64, u64)>,
}

/// The finest resolution of the slowest requests, in nanoseconds.
const FINEST: u64 = 1_000_000;

/// Times of which the slowest request is kept, at the most.
const MOST_TIMES: u64 = 1 << 16;

impl Slowest {
    pub fn new() -> Slowest {
        Slowest {
            width: FINEST,
            times: Vec::new(),
        }
    }

    /// Notes a request that was due at `due` and answered `latency` later.
    #[inline]
    pub fn note(&mut self, due: u64, latency: u64) {
        let at = due + latency;
        while at / self.width >= MOST_TIMES {
            self.widen();
        }
        let index = (at / self.width) as usize;
        if index >= self.times.len() {
            self.times.resize(index + 1, (0, 0));
        }
        let slot = &mut self.times[index];
        if latency > slot.1 {
            *slot = (due, latency);
        }
    }

    fn widen(&mut self) {
        let longer = |pair: &[(u64, u64)]| pair.iter().copied().max_by_key(|time| time.1).unwrap_or_default();
        self.times = self.times.chunks(2).map(longer).collect();
        self.width *= 2;
    }

    /// Takes those of another connection in.
    pub fn merge(&mut self, other: &Slowest) {
        for (due, latency) in other.times.iter().filter(|time| time.1 > 0) {
            self.note(*due, *latency);
        }
    }

    /// The longest latency among requests that were in flight between two times.
    pub fn between(&self, from: u64, until: u64) -> Option<u64> {
        let first = usize::try_from(from / self.width).ok()?;
        let in_flight = self
            .times
            .get(first..)?
            .iter()
            .filter(|(due, latency)| *latency > 0 && *due <= until && *due + *latency >= from);
        in_flight.map(|time| time.1).max()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_stay_bounded_and_lose_nothing() {
        let mut timeline = Timeline::new();
        let mut one = Slice::empty().unwrap();
        one.requests = 1;
        one.latencies.record(1000).unwrap();
        for index in 0..5000 {
            timeline.add(index * SHORTEST, &one).unwrap();
        }
        assert!(timeline.slices().len() <= MOST);
        assert_eq!(
            timeline.slices().iter().map(|slice| slice.requests).sum::<u64>(),
            5000
        );
        assert_eq!(
            timeline
                .slices()
                .iter()
                .map(|slice| slice.latencies.len())
                .sum::<u64>(),
            5000
        );
        let covered = timeline.width() * timeline.slices().len() as u32;
        assert!(covered >= Duration::from_nanos(4999 * SHORTEST), "{covered:?}");
    }

    #[test]
    fn a_windows_longest_delay_is_that_of_a_request_in_flight_then() {
        let mut slowest = Slowest::new();
        let ms = 1_000_000;
        slowest.note(10 * ms, 2 * ms);
        slowest.note(20 * ms, 15 * ms);
        slowest.note(40 * ms, ms);
        assert_eq!(slowest.between(0, 5 * ms), None);
        assert_eq!(slowest.between(11 * ms, 12 * ms), Some(2 * ms));
        assert_eq!(slowest.between(25 * ms, 26 * ms), Some(15 * ms));
        assert_eq!(slowest.between(36 * ms, 50 * ms), Some(ms));
        slowest.note((MOST_TIMES + 5) * ms, 3 * ms);
        assert_eq!(
            slowest.between(25 * ms, 26 * ms),
            Some(15 * ms),
            "also when times were joined"
        );
    }
}
