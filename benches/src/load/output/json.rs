//! A report as JSON. Latencies are in microseconds, other times in seconds.

use serde_json::{Map, Value, json};

use super::super::record::Tally;
use super::super::report::Report;
use super::super::timeline::Timeline;
use super::super::usage::Usage;
use super::PERCENTILES;

/// The report as one object.
pub(super) fn value(report: &Report) -> Value {
    let spec = &report.spec;
    let tally = |tally: &Tally| tally_value(tally, report.elapsed.as_secs_f64());
    let kinds: Map<String, Value> = report
        .kinds
        .iter()
        .map(|(kind, of_kind)| (kind.name().to_owned(), tally(of_kind)))
        .collect();
    json!({
        "spec": {
            "target": spec.target.to_string(),
            "mix": spec.mix.to_string(),
            "sizes": spec.sizes.to_string(),
            "pattern": spec.pattern.to_string(),
            "depth": spec.depth,
            "connections": spec.connections,
            "rate": spec.rate,
            "span": spec.span,
            "structured": spec.structured,
            "verify": spec.verify,
            "home": spec.home,
            "seed": spec.seed,
        },
        "seconds": report.elapsed.as_secs_f64(),
        "all": tally(&report.all),
        "kinds": kinds,
        "unsent": report.unsent,
        "client": usage(&report.client),
        "server": report.server.as_ref().map(usage),
        "verified": report.verified.map(|verified| json!({
            "bytes": verified.checked,
            "read-back-bytes": verified.read_back,
        })),
        "timeline": timeline(&report.timeline),
        "marks": marks(report),
    })
}

fn tally_value(tally: &Tally, seconds: f64) -> Value {
    let mut latency: Map<String, Value> = PERCENTILES
        .iter()
        .map(|(name, percentile)| ((*name).to_owned(), json!(tally.microseconds(*percentile))))
        .collect();
    latency.insert("max".to_owned(), json!(tally.microseconds(100.0)));
    latency.insert("mean".to_owned(), json!(tally.latencies.mean() / 1000.0));
    json!({
        "requests": tally.requests,
        "bytes": tally.bytes,
        "requests-per-second": tally.requests as f64 / seconds,
        "bytes-per-second": tally.bytes as f64 / seconds,
        "latency-us": latency,
    })
}

/// What could not be counted is null, and `notes` says why.
fn usage(usage: &Usage) -> Value {
    json!({
        "cpu-seconds": usage.cpu.as_secs_f64(),
        "system-calls": usage.system_calls,
        "voluntary-switches": usage.voluntary_switches,
        "involuntary-switches": usage.involuntary_switches,
        "instructions": usage.instructions,
        "resident-bytes": usage.resident,
        "per-request": {
            "cpu-us": usage.cpu_microseconds(),
            "system-calls": usage.system_calls_each(),
            "voluntary-switches": usage.voluntary_each(),
            "involuntary-switches": usage.involuntary_each(),
            "instructions": usage.instructions_each(),
        },
        "notes": usage.notes,
    })
}

fn timeline(timeline: &Timeline) -> Value {
    let slices = timeline.slices().iter().map(|slice| {
        json!({
            "requests": slice.requests,
            "bytes": slice.bytes,
            "p50": slice.microseconds(50.0),
            "p99": slice.microseconds(99.0),
            "max": slice.microseconds(100.0),
        })
    });
    json!({
        "slice-seconds": timeline.width().as_secs_f64(),
        "slices": slices.collect::<Vec<_>>(),
    })
}

fn marks(report: &Report) -> Value {
    let marks = report.timeline.marks().iter().zip(report.delays());
    let marks = marks.map(|(mark, delay)| {
        json!({
            "label": mark.label,
            "from": mark.from.as_secs_f64(),
            "until": mark.until.as_secs_f64(),
            "longest-delay-us": delay.map(|delay| delay.as_secs_f64() * 1e6),
        })
    });
    marks.collect()
}
