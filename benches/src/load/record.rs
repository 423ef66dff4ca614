//! What one connection has seen: latencies by kind, and its share of the timeline.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::spec::Kind;
use super::timeline::{SHORTEST, Slice, Slowest, Timeline, fine};
use crate::Outcome;

/// What all threads of a load share. Times are nanoseconds since it began.
#[derive(Debug)]
pub(super) struct Control {
    began: Instant,
    from: u64,
    until: AtomicU64,
    failed: AtomicBool,
    timeline: Mutex<Timeline>,
}

impl Control {
    /// A load that begins now and counts after `warm_up`, for `duration`.
    pub fn new(warm_up: Duration, duration: Duration) -> Control {
        let nanoseconds = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let from = nanoseconds(warm_up);
        Control {
            began: Instant::now(),
            from,
            until: AtomicU64::new(from.saturating_add(nanoseconds(duration))),
            failed: AtomicBool::new(false),
            timeline: Mutex::new(Timeline::new()),
        }
    }

    /// The time.
    #[inline]
    pub fn now(&self) -> u64 {
        self.began.elapsed().as_nanos() as u64
    }

    /// A time as others know it; None if it is too far away.
    pub fn instant(&self, time: u64) -> Option<Instant> {
        self.began.checked_add(Duration::from_nanos(time))
    }

    /// When counting begins.
    pub fn from(&self) -> u64 {
        self.from
    }

    /// When no more requests are to be sent.
    #[inline]
    pub fn until(&self) -> u64 {
        self.until.load(Ordering::Relaxed)
    }

    /// Ends the load now, if it has not ended yet.
    pub fn stop(&self) {
        self.until
            .fetch_min(self.now().max(self.from + 1), Ordering::Relaxed);
    }

    /// Ends the load as failed.
    pub fn fail(&self) {
        self.failed.store(true, Ordering::Relaxed);
        self.stop();
    }

    /// Whether some part of the load has failed.
    #[inline]
    pub fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    /// The timeline so far.
    pub fn timeline(&self) -> MutexGuard<'_, Timeline> {
        // Whoever panicked with it has left whole slices behind.
        self.timeline.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What became of the requests of one kind.
#[derive(Debug, Clone)]
pub struct Tally {
    /// Requests answered in the time that counts.
    pub requests: u64,
    /// Bytes they moved, zeroed or trimmed.
    pub bytes: u64,
    /// Latencies in nanoseconds of the requests that were due in the time that counts, also of those answered after it.
    pub latencies: Histogram<u64>,
}

impl Tally {
    pub(super) fn new() -> Outcome<Tally> {
        Ok(Tally {
            requests: 0,
            bytes: 0,
            latencies: fine()?,
        })
    }

    pub(super) fn add(&mut self, other: &Tally) -> Outcome<()> {
        self.requests += other.requests;
        self.bytes += other.bytes;
        self.latencies.add(&other.latencies)?;
        Ok(())
    }

    /// A percentile (0 to 100) of the latencies in microseconds.
    pub fn microseconds(&self, percentile: f64) -> f64 {
        self.latencies.value_at_quantile(percentile / 100.0) as f64 / 1000.0
    }
}

/// Takes the requests of one connection down.
#[derive(Debug)]
pub(super) struct Recorder {
    control: Arc<Control>,
    /// By the kinds' numbers.
    tallies: Vec<Tally>,
    slowest: Slowest,
    slice: Slice,
    slice_end: u64,
}

impl Recorder {
    pub fn new(control: Arc<Control>) -> Outcome<Recorder> {
        let tallies = Kind::ALL.iter().map(|_| Tally::new());
        Ok(Recorder {
            slice_end: control.from() + SHORTEST,
            control,
            tallies: tallies.collect::<Outcome<_>>()?,
            slowest: Slowest::new(),
            slice: Slice::empty()?,
        })
    }

    /// Notes that a request that was due at `due` has been answered at `now`.
    #[inline]
    pub fn note(&mut self, kind: Kind, bytes: u32, due: u64, now: u64) -> Outcome<()> {
        let (from, until) = (self.control.from(), self.control.until());
        if now < from {
            return Ok(());
        }
        if now >= self.slice_end {
            self.flush(now)?;
        }
        let tally = &mut self.tallies[kind as usize];
        if now <= until {
            tally.requests += 1;
            tally.bytes += u64::from(bytes);
            self.slice.requests += 1;
            self.slice.bytes += u64::from(bytes);
        }
        if due >= from {
            let latency = now.saturating_sub(due);
            tally.latencies.saturating_record(latency);
            self.slice.latencies.saturating_record(latency);
            self.slowest.note(due - from, latency);
        }
        Ok(())
    }

    /// Gives the slice that has ended to the timeline.
    #[cold]
    fn flush(&mut self, now: u64) -> Outcome<()> {
        let from = self.control.from();
        self.control
            .timeline()
            .add(self.slice_end - SHORTEST - from, &self.slice)?;
        self.slice.clear();
        self.slice_end = now - (now - from) % SHORTEST + SHORTEST;
        Ok(())
    }

    /// Ends the recording; the tallies by kind, and the slowest requests.
    pub fn finish(mut self) -> Outcome<(Vec<Tally>, Slowest)> {
        if !self.slice.latencies.is_empty() || self.slice.requests > 0 {
            self.flush(self.slice_end)?;
        }
        Ok((self.tallies, self.slowest))
    }
}
