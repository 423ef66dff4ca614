//! What is printed of a load: for people, as JSON, or as CSV.

mod comma;
mod human;
mod json;

use std::io::{self, Write};

use clap::ValueEnum;

use super::report::Report;
use crate::Outcome;

/// The percentiles that are shown, besides the maximum.
const PERCENTILES: [(&str, f64); 5] = [
    ("p50", 50.0),
    ("p90", 90.0),
    ("p99", 99.0),
    ("p99.9", 99.9),
    ("p99.99", 99.99),
];

/// A form of output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A table for people
    Human,
    /// One JSON object, with the timeline
    Json,
    /// A line of names, then a line for each kind of request and one for all
    Csv,
}

/// Writes a report to standard output.
///
/// # Errors
/// Standard output cannot be written to.
pub(super) fn print(report: &Report, format: Format) -> Outcome<()> {
    let mut out = io::stdout().lock();
    match format {
        Format::Human => out.write_all(human::text(report)?.as_bytes())?,
        Format::Json => writeln!(out, "{:#}", json::value(report))?,
        Format::Csv => out.write_all(&comma::lines(report)?)?,
    }
    Ok(out.flush()?)
}
