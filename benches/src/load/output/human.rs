//! A report for people.

use std::fmt::Write;
use std::time::Duration;

use super::super::record::Tally;
use super::super::report::Report;
use super::super::target::Target;
use super::super::usage::Usage;
use super::PERCENTILES;
use crate::Outcome;

/// The report as text of several lines.
pub(super) fn text(report: &Report) -> Outcome<String> {
    let mut out = String::new();
    work(&mut out, report)?;
    latencies(&mut out, report)?;
    usage(&mut out, "client", &report.client)?;
    match &report.server {
        Some(server) => usage(&mut out, "server", server)?,
        None if matches!(report.spec.target, Target::Nbd { .. }) => {
            writeln!(out, "server    not measured: --pid tells which process it is")?;
        }
        None => {}
    }
    if let Some(verified) = report.verified {
        writeln!(
            out,
            "verified  {:.1} MiB, {:.1} MiB of them in a last read of everything: all as written",
            mebibytes(verified.checked as f64),
            mebibytes(verified.read_back as f64)
        )?;
    }
    for (mark, delay) in report.timeline.marks().iter().zip(report.delays()) {
        let delay = delay.map_or_else(
            || "no request".to_owned(),
            |delay| format!("requests up to {}", time(delay)),
        );
        let took = time(mark.until.saturating_sub(mark.from));
        writeln!(
            out,
            "at {:.3} s  {} took {took}; {delay} in flight meanwhile",
            mark.from.as_secs_f64(),
            mark.label
        )?;
    }
    Ok(out)
}

fn mebibytes(bytes: f64) -> f64 {
    bytes / f64::from(1 << 20)
}

fn time(time: Duration) -> String {
    format!("{:.3} ms", time.as_secs_f64() * 1e3)
}

fn work(out: &mut String, report: &Report) -> Outcome<()> {
    let spec = &report.spec;
    writeln!(out, "target    {}", spec.target)?;
    let pace = spec
        .rate
        .map_or_else(String::new, |rate| format!(", {rate} due a second"));
    writeln!(
        out,
        "load      {} of {} bytes, {}, {} connections with {} in flight{pace}, seed {}",
        spec.mix, spec.sizes, spec.pattern, spec.connections, spec.depth, spec.seed
    )?;
    writeln!(
        out,
        "answered  {:.0} requests/s, {:.1} MiB/s, for {:.2} s",
        report.rate(),
        mebibytes(report.bytes_a_second()),
        report.elapsed.as_secs_f64()
    )?;
    if report.unsent > 0 {
        writeln!(
            out,
            "unsent    {} requests were due and could not be sent: the target is slower than the rate",
            report.unsent
        )?;
    }
    Ok(())
}

fn latencies(out: &mut String, report: &Report) -> Outcome<()> {
    write!(out, "{:<9} {:>11}", "latency", "requests")?;
    for (name, _) in PERCENTILES {
        write!(out, " {name:>10}")?;
    }
    writeln!(out, " {:>10}  us", "max")?;
    let mut line = |name: &str, tally: &Tally| -> Outcome<()> {
        write!(out, "  {name:<7} {:>11}", tally.requests)?;
        for (_, percentile) in PERCENTILES {
            write!(out, " {:>10.1}", tally.microseconds(percentile))?;
        }
        writeln!(out, " {:>10.1}", tally.microseconds(100.0))?;
        Ok(())
    };
    for (kind, tally) in &report.kinds {
        line(kind.name(), tally)?;
    }
    if report.kinds.len() > 1 {
        line("all", &report.all)?;
    }
    Ok(())
}

fn usage(out: &mut String, whose: &str, usage: &Usage) -> Outcome<()> {
    let count = |count: Option<f64>, digits: usize| {
        count.map_or_else(|| "not available".to_owned(), |count| format!("{count:.digits$}"))
    };
    writeln!(
        out,
        "{whose}    a request: CPU {:.3} us; system calls {}; context switches {:.4} voluntary, {:.4} not; instructions {}",
        usage.cpu_microseconds(),
        count(usage.system_calls_each(), 4),
        usage.voluntary_each(),
        usage.involuntary_each(),
        count(usage.instructions_each(), 0)
    )?;
    if let Some(resident) = usage.resident {
        writeln!(out, "          {} KiB resident", resident >> 10)?;
    }
    for note in &usage.notes {
        writeln!(out, "          {note}")?;
    }
    Ok(())
}
