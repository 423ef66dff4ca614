//! Adaptive polling: how long to look for work without system calls before sleeping, as QEMU's iothread has it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The properties `poll-max-ns`, `poll-grow` and `poll-shrink` of QEMU's iothread object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PollParams {
    /// The longest polling before a sleep, in nanoseconds; 0 turns polling off.
    pub max_ns: u64,
    /// By what to multiply the polling time when it was a little too short; 0 for 2.
    pub grow: u64,
    /// By what to divide the polling time when it was in vain; 0 to start again from nothing.
    pub shrink: u64,
}

impl Default for PollParams {
    fn default() -> Self {
        Self {
            max_ns: 32768,
            grow: 0,
            shrink: 0,
        }
    }
}

/// The parameters as other threads set them. Each is a number of its own: a turn that sees one new and another old
/// merely polls for an unusual time.
#[derive(Debug)]
pub(crate) struct SharedParams {
    max_ns: AtomicU64,
    grow: AtomicU64,
    shrink: AtomicU64,
}

impl SharedParams {
    pub(crate) fn new(params: PollParams) -> Self {
        Self {
            max_ns: params.max_ns.into(),
            grow: params.grow.into(),
            shrink: params.shrink.into(),
        }
    }

    pub(crate) fn set(&self, params: PollParams) {
        self.max_ns.store(params.max_ns, Ordering::Relaxed);
        self.grow.store(params.grow, Ordering::Relaxed);
        self.shrink.store(params.shrink, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> PollParams {
        PollParams {
            max_ns: self.max_ns.load(Ordering::Relaxed),
            grow: self.grow.load(Ordering::Relaxed),
            shrink: self.shrink.load(Ordering::Relaxed),
        }
    }
}

/// The polling time, adjusted after every wait.
#[derive(Debug, Default)]
pub(crate) struct Adaptive {
    ns: u64,
    /// How many waits in a row were longer than any polling that is allowed.
    too_long: u32,
}

impl Adaptive {
    /// Where growing starts, in nanoseconds: about what a sleep and a wake-up cost.
    const START: u64 = 4000;

    /// After so many waits in a row that no polling would have covered, less is tried. A client that is served all the time
    /// makes the thread wait longer now and then, when the machine is busy: that says nothing of its next request, and to
    /// find the right time anew costs a sleep for each step.
    const TOO_LONG: u32 = 3;

    /// For how long to poll before the next sleep.
    pub(crate) fn time(&self, params: PollParams) -> Duration {
        Duration::from_nanos(self.ns.min(params.max_ns))
    }

    /// Learns from a wait (polling and sleep together) that took this long.
    pub(crate) fn adjust(&mut self, params: PollParams, waited: Duration) {
        let waited = u64::try_from(waited.as_nanos()).unwrap_or(u64::MAX);
        if params.max_ns == 0 {
            self.ns = 0;
        } else if waited > params.max_ns {
            self.too_long = self.too_long.saturating_add(1);
            if self.too_long >= Self::TOO_LONG {
                self.ns = self.ns.checked_div(params.shrink).unwrap_or(0);
            }
        } else {
            self.too_long = 0;
            if self.ns < waited {
                self.ns = self.grown(params, waited);
            }
        }
    }

    /// The next time, by the factor, that would have covered a wait of `waited`.
    fn grown(&self, params: PollParams, waited: u64) -> u64 {
        let factor = if params.grow == 0 { 2 } else { params.grow };
        let mut ns = self.ns.max(Self::START);
        if factor == 1 {
            ns = ns.max(waited);
        }
        while ns < waited {
            ns = ns.saturating_mul(factor);
        }
        ns.min(params.max_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(polling: &mut Adaptive, params: PollParams, waits: &[u64]) -> u128 {
        waits
            .iter()
            .for_each(|&ns| polling.adjust(params, Duration::from_nanos(ns)));
        polling.time(params).as_nanos()
    }

    #[test]
    fn grows_to_what_was_needed_and_falls_to_nothing_by_default() {
        let params = PollParams::default();
        let mut polling = Adaptive::default();
        assert_eq!(after(&mut polling, params, &[3000]), 4000);
        assert_eq!(after(&mut polling, params, &[3999]), 4000, "long enough stays");
        assert_eq!(after(&mut polling, params, &[9000]), 16000, "at once");
        assert_eq!(
            after(&mut polling, params, &[32500]),
            32768,
            "never more than is allowed"
        );
        assert_eq!(after(&mut polling, params, &[32769, 50000, 32769]), 0);
    }

    #[test]
    fn a_long_wait_now_and_then_changes_nothing() {
        let params = PollParams::default();
        let mut polling = Adaptive::default();
        let waits = [20000, 90000, 90000].repeat(10);
        assert_eq!(after(&mut polling, params, &waits), 32000);
        assert_eq!(after(&mut polling, params, &[90000]), 0, "the third in a row");
    }

    #[test]
    fn grows_and_shrinks_by_the_factors_given() {
        let params = PollParams {
            max_ns: 100_000,
            grow: 3,
            shrink: 4,
        };
        let mut polling = Adaptive::default();
        assert_eq!(after(&mut polling, params, &[3000, 5000]), 12_000);
        assert_eq!(after(&mut polling, params, &[1_000_000; 3]), 3000);
    }

    #[test]
    fn a_factor_of_one_ends_too() {
        let params = PollParams {
            max_ns: 8000,
            grow: 1,
            shrink: 0,
        };
        assert_eq!(after(&mut Adaptive::default(), params, &[5000]), 5000);
    }

    #[test]
    fn zero_turns_polling_off() {
        let params = PollParams {
            max_ns: 0,
            ..PollParams::default()
        };
        let mut polling = Adaptive {
            ns: 8000,
            too_long: 0,
        };
        assert_eq!(polling.time(params), Duration::ZERO);
        assert_eq!(after(&mut polling, params, &[10]), 0);
    }
}
