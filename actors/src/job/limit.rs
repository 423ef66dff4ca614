//! How fast a job may be: so many bytes a second, counted in slices of time as QEMU counts them.
//!
//! A slice has a quota. What goes beyond it makes the slice longer, and the job rests to its end; the next slice begins
//! with the next bytes. A change of the speed counts at once, for the slice under way too.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The length of a slice in nanoseconds.
const SLICE_NS: u64 = 100_000_000;
const SLICES_PER_SECOND: u64 = 1_000_000_000 / SLICE_NS;

/// How long a job rests before it tries again what has failed, in nanoseconds: a fault that is known without any storage being
/// asked, as that of a flush after one that failed, would leave its iothread no time for anybody else.
const AGAIN_NS: u64 = 10_000_000;

/// The limit of one job. The speed is set by the registry; the rest is the data half's own.
#[derive(Debug, Default)]
pub(super) struct Limit {
    /// Bytes a second, 0 for no limit.
    speed: AtomicU64,
    slice_start: AtomicU64,
    slice_end: AtomicU64,
    /// Bytes of the slice under way.
    dispatched: AtomicU64,
    /// When what has failed may be tried again.
    again_from: AtomicU64,
}

impl Limit {
    /// Bytes a second, 0 for no limit.
    pub fn speed(&self) -> u64 {
        self.speed.load(Ordering::Acquire)
    }

    pub fn set_speed(&self, speed: u64) {
        self.speed.store(speed, Ordering::Release);
    }

    /// Counts bytes that the job has moved. `now` is a time of any one clock.
    pub fn count(&self, bytes: u64, now: Duration) {
        self.update(bytes, nanoseconds(now));
    }

    /// What has failed is to be tried again.
    pub fn again(&self, now: Duration) {
        let from = nanoseconds(now).saturating_add(AGAIN_NS);
        self.again_from.store(from, Ordering::Relaxed);
    }

    /// How long the job rests before it may move more.
    pub fn delay(&self, now: Duration) -> Duration {
        let now = nanoseconds(now);
        let end = self.update(0, now).max(self.again_from.load(Ordering::Relaxed));
        Duration::from_nanos(end.saturating_sub(now))
    }

    /// Counts bytes; answers when the slice ends, or 0 if its quota is not used up.
    fn update(&self, bytes: u64, now: u64) -> u64 {
        let speed = self.speed();
        if speed == 0 {
            return 0;
        }
        let quota = (speed / SLICES_PER_SECOND).max(1);
        if self.slice_end.load(Ordering::Relaxed) < now {
            self.slice_start.store(now, Ordering::Relaxed);
            self.slice_end
                .store(now.saturating_add(SLICE_NS), Ordering::Relaxed);
            self.dispatched.store(0, Ordering::Relaxed);
        }
        let dispatched = self.dispatched.load(Ordering::Relaxed).saturating_add(bytes);
        self.dispatched.store(dispatched, Ordering::Relaxed);
        if dispatched < quota {
            return 0;
        }
        let long = u128::from(dispatched) * u128::from(SLICE_NS) / u128::from(quota);
        let long = u64::try_from(long).unwrap_or(u64::MAX);
        let end = self.slice_start.load(Ordering::Relaxed).saturating_add(long);
        self.slice_end.store(end, Ordering::Relaxed);
        end
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_job_rests_for_what_it_moved_beyond_the_quota() {
        let limit = Limit::default();
        limit.count(u64::MAX, MS);
        assert_eq!(limit.delay(MS), Duration::ZERO, "there is no limit");
        limit.set_speed(1000);
        limit.count(99, MS);
        assert_eq!(limit.delay(MS), Duration::ZERO, "100 bytes a slice");
        limit.count(151, MS * 2);
        assert_eq!(limit.delay(MS * 2), MS * 249, "250 bytes from 1 ms on");
        assert_eq!(limit.delay(MS * 250), MS);
        assert_eq!(limit.delay(MS * 252), Duration::ZERO, "another slice");
    }

    #[test]
    fn a_job_rests_before_it_tries_again() {
        let limit = Limit::default();
        limit.again(MS);
        assert_eq!([limit.delay(MS), limit.delay(MS * 3)], [MS * 10, MS * 8]);
        assert_eq!(limit.delay(MS * 11), Duration::ZERO);
        limit.set_speed(1000);
        limit.again(MS * 20);
        limit.count(200, MS * 20);
        assert_eq!(limit.delay(MS * 20), MS * 200, "its speed asks for more");
    }

    #[test]
    fn a_change_of_the_speed_counts_at_once() {
        let limit = Limit::default();
        limit.set_speed(10);
        limit.count(1000, MS);
        assert_eq!(limit.delay(MS), MS * 100_000);
        limit.set_speed(1000);
        assert_eq!(limit.delay(MS), MS * 1000);
        limit.set_speed(0);
        assert_eq!(limit.delay(MS), Duration::ZERO);
    }

    #[test]
    fn the_smallest_and_the_largest_speed_are_no_fault() {
        let limit = Limit::default();
        limit.set_speed(1);
        limit.count(u64::MAX, MS);
        assert!(limit.delay(MS) > Duration::from_secs(1 << 30));
        limit.set_speed(u64::MAX);
        limit.count(1, MS);
        assert!(limit.delay(MS) <= MS * 1100);
    }
}
