//! How requests are reported and checked: the options that reads, writes and discards have in common.

use std::time::Instant;

use super::number;
use super::report::RequestReport;

/// How a request is reported, and what it is checked for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Shown {
    /// For programs, rather than for people.
    pub is_for_programs: bool,
    /// Nothing is reported of success.
    pub quiet: bool,
    /// What was read is shown.
    pub dump: bool,
    /// What was read must be this everywhere.
    pub pattern: Option<u8>,
}

impl Shown {
    /// Takes an option that reads, writes and discards have in common; whether it was one.
    ///
    /// # Errors
    /// The line that is printed: the pattern is none.
    pub fn take(&mut self, option: char, value: &str) -> Result<bool, String> {
        match option {
            'C' => self.is_for_programs = true,
            'q' => self.quiet = true,
            'v' => self.dump = true,
            'P' => self.pattern = Some(number::pattern(value)?),
            // The kernel is told of no buffer beforehand, which nobody could see.
            'p' | 'r' => {}
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// The report of a request that began at `since`, unless none is wanted.
    pub fn report(&self, verb: &'static str, range: (u64, u64), since: Instant) -> Option<String> {
        let report = RequestReport {
            verb,
            offset: range.0,
            bytes: range.1,
            time: since.elapsed(),
            is_for_programs: self.is_for_programs,
        };
        (!self.quiet).then(|| report.lines())
    }
}
