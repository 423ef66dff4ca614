//! Requests that nobody waits for: what is known of one, and the report when it has ended.

use std::time::Instant;

use millpond_messages::IoError;
use millpond_messages::io::Outcome;
use millpond_ring::buffer::Buffers;

use super::memory;
use super::report::dump;
use super::shown::Shown;
use crate::cli::tool::HeldOutput;

/// A request that has ended.
pub struct Finished {
    /// What was known of it.
    pub request: Begun,
    /// How it has ended.
    pub outcome: Outcome<Buffers>,
}

/// What is known of a request while it is in flight.
pub struct Begun {
    /// How it is reported and checked.
    pub shown: Shown,
    /// It is a read, rather than a write.
    pub is_read: bool,
    /// The first byte of its range.
    pub offset: u64,
    /// How many bytes it is about.
    pub len: u64,
    /// When it was begun.
    pub since: Instant,
}

impl Finished {
    /// Prints how it has ended.
    pub fn report(self, out: &mut HeldOutput) {
        let Self { request, outcome } = self;
        let (offset, len, shown) = (request.offset, request.len, &request.shown);
        let (result, buffers) = outcome.into_parts();
        let verb = if request.is_read { "read" } else { "wrote" };
        let report = shown.report(verb, (offset, len), request.since);
        let read = match (request.is_read, result, buffers) {
            (true, Ok(()), Some(buffers)) => Some(buffers),
            (true, Ok(()), None) => return out.line(&format!("readv failed: {}", IoError::NoMedium)),
            (true, Err(error), _) => return out.line(&format!("readv failed: {error}")),
            (false, Err(error), _) => return out.line(&format!("aio_write failed: {error}")),
            (false, Ok(()), _) => None,
        };
        if let (Some(bytes), Some(pattern)) = (&read, shown.pattern)
            && !memory::is_all(bytes, (0, len), pattern)
        {
            out.line(&format!(
                "Pattern verification failed at offset {offset}, {len} bytes"
            ));
        }
        if let Some(report) = report {
            if let (Some(bytes), true) = (&read, shown.dump) {
                out.text(&dump(offset, &bytes.to_vec()));
            }
            out.line(&report);
        }
    }
}
