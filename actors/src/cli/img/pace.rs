//! How fast a command may write (`-r`).

use std::cell::Cell;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// What may pass at once, as a part of a second's worth.
const BURST: f64 = 0.1;

/// Lets so many bytes a second pass.
pub struct CopyPace {
    /// Bytes a second; 0 lets everything pass at once.
    rate: u64,
    /// When all that has passed so far would have passed at that rate.
    paid_until: Cell<Instant>,
}

impl CopyPace {
    /// So many bytes a second; 0 for as many as come.
    pub fn new(rate: u64) -> Self {
        Self {
            rate,
            paid_until: Cell::new(Instant::now()),
        }
    }

    /// Waits until so many bytes may pass.
    pub async fn pass(&self, bytes: u64) {
        if self.rate == 0 {
            return;
        }
        let begin = self.paid_until.get().max(Instant::now());
        let takes = Duration::try_from_secs_f64(bytes as f64 / self.rate as f64).unwrap_or(Duration::MAX);
        let end = begin.checked_add(takes).unwrap_or(begin);
        self.paid_until.set(end);
        let early = Duration::from_secs_f64(BURST);
        sleep_until(begin.checked_sub(early).unwrap_or(begin)).await;
    }
}
