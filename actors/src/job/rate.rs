//! How fast a job has been over the last seconds, as whoever asks for it sees.

use std::collections::VecDeque;
use std::time::Duration;

/// How far back is looked.
const WINDOW: Duration = Duration::from_secs(10);
/// No rate is told that was measured over less.
const LEAST: Duration = Duration::from_secs(1);
/// Looks in shorter order are not kept.
const APART: Duration = Duration::from_millis(500);

/// Looks at how far a job is. They are taken as it is asked for: a job that nobody asks about costs nothing.
#[derive(Debug, Default)]
pub(super) struct Rate {
    looks: VecDeque<(Duration, i64)>,
}

/// How fast a job is, and how long it will take if it stays so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Outlook {
    /// Bytes that are left.
    pub left: i64,
    /// Bytes a second, by the last seconds.
    pub rate: i64,
    /// Seconds until nothing is left.
    pub seconds: i64,
}

impl Rate {
    /// Looks at a job that has `done` so much of `total` at the time `now`. There is no answer before it was looked at for some
    /// time, nor of a job that does not move.
    pub fn look(&mut self, now: Duration, done: i64, total: i64) -> Option<Outlook> {
        let is_old = |(then, _): &(Duration, i64)| now.saturating_sub(*then) > WINDOW;
        while self.looks.len() > 1 && self.looks.front().is_some_and(is_old) {
            self.looks.pop_front();
        }
        let last = self.looks.back();
        if last.is_none_or(|(then, _)| now.saturating_sub(*then) >= APART) {
            self.looks.push_back((now, done));
        }
        let (then, done_then) = *self.looks.front()?;
        let passed = now.saturating_sub(then);
        if passed < LEAST {
            return None;
        }
        let moved = i128::from(done.checked_sub(done_then)?);
        let millis = i128::try_from(passed.as_millis()).ok()?;
        let rate = i64::try_from(moved * 1000 / millis).ok()?;
        let left = total.checked_sub(done)?;
        (rate > 0 && left >= 0).then(|| Outlook {
            left,
            rate,
            seconds: left / rate + i64::from(left % rate > 0),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_that_of_the_last_seconds() {
        let mut rate = Rate::default();
        let at = Duration::from_millis;
        assert_eq!(rate.look(at(0), 0, 1000), None, "looked at once");
        assert_eq!(rate.look(at(999), 50, 1000), None, "too short a time");
        let outlook = rate.look(at(2000), 100, 1000);
        assert_eq!(
            outlook.map(|outlook| (outlook.left, outlook.rate, outlook.seconds)),
            Some((900, 50, 18))
        );
        // It stands still: less and less is left of the old rate, and then none.
        for second in 3..11 {
            assert!(
                rate.look(at(second * 1000), 100, 1000)
                    .is_some_and(|outlook| outlook.rate < 50)
            );
        }
        assert_eq!(rate.look(at(30_000), 100, 1000), None);
        assert!(rate.looks.len() <= 22, "it keeps no more than the window");
    }
}
