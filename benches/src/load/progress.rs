//! How a load is doing, told once a second on standard error.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use super::running::Running;
use crate::Outcome;

/// How often.
const PERIOD: Duration = Duration::from_secs(1);

/// Shows what was answered each second, until the load is over. On a terminal, each line takes the place of the last.
///
/// # Errors
/// Standard error cannot be written to.
pub(super) fn show(running: &Running) -> Outcome<()> {
    let terminal = io::stderr().is_terminal();
    let mut next = running.counted_from() + PERIOD;
    while running.wait_until(next) {
        let progress = running.progress(PERIOD)?;
        let (lately, seconds) = (&progress.lately, PERIOD.as_secs_f64());
        let line = format!(
            "{:>5.0} s  {:>9.0} requests/s  {:>8.1} MiB/s  latency us: p50 {:.0}, p99 {:.0}, max {:.0}",
            progress.elapsed.as_secs_f64(),
            lately.requests as f64 / seconds,
            lately.bytes as f64 / seconds / f64::from(1 << 20),
            lately.microseconds(50.0),
            lately.microseconds(99.0),
            lately.microseconds(100.0)
        );
        let mut out = io::stderr().lock();
        if terminal {
            write!(out, "\r{line}\x1b[K")?;
        } else {
            writeln!(out, "{line}")?;
        }
        out.flush()?;
        next = (next + PERIOD).max(Instant::now());
    }
    if terminal {
        eprintln!();
    }
    Ok(())
}
