//! A report as comma-separated values: for spreadsheets, and to be collected from many runs.

use super::super::record::Tally;
use super::super::report::Report;
use super::super::usage::Usage;
use super::PERCENTILES;
use crate::Outcome;

/// What is told of client and server, by request. A field is empty where something could not be counted.
const COSTS: [&str; 5] = [
    "cpu_us",
    "system_calls",
    "voluntary_switches",
    "involuntary_switches",
    "instructions",
];

/// The lines, the first of which has the names. Those of a load's usage are the same on each line.
pub(super) fn lines(report: &Report) -> Outcome<Vec<u8>> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    let mut names: Vec<String> = [
        "kind",
        "requests",
        "bytes",
        "seconds",
        "requests_per_second",
        "bytes_per_second",
    ]
    .map(str::to_owned)
    .into();
    names.extend(PERCENTILES.iter().map(|(name, _)| format!("{name}_us")));
    names.push("max_us".to_owned());
    for whose in ["client", "server"] {
        names.extend(COSTS.iter().map(|cost| format!("{whose}_{cost}")));
    }
    names.push("seed".to_owned());
    writer.write_record(&names)?;
    for (kind, tally) in &report.kinds {
        writer.write_record(line(kind.name(), tally, report))?;
    }
    writer.write_record(line("all", &report.all, report))?;
    Ok(writer.into_inner().map_err(|error| error.to_string())?)
}

fn line(name: &str, tally: &Tally, report: &Report) -> Vec<String> {
    let seconds = report.elapsed.as_secs_f64();
    let mut fields = vec![
        name.to_owned(),
        tally.requests.to_string(),
        tally.bytes.to_string(),
        seconds.to_string(),
        (tally.requests as f64 / seconds).to_string(),
        (tally.bytes as f64 / seconds).to_string(),
    ];
    let percentiles = PERCENTILES
        .iter()
        .map(|(_, percentile)| *percentile)
        .chain([100.0]);
    fields.extend(percentiles.map(|percentile| tally.microseconds(percentile).to_string()));
    fields.extend(costs(Some(&report.client)));
    fields.extend(costs(report.server.as_ref()));
    fields.push(report.spec.seed.to_string());
    fields
}

fn costs(usage: Option<&Usage>) -> [String; COSTS.len()] {
    let costs = usage.map_or([None; COSTS.len()], |usage| {
        [
            Some(usage.cpu_microseconds()),
            usage.system_calls_each(),
            Some(usage.voluntary_each()),
            Some(usage.involuntary_each()),
            usage.instructions_each(),
        ]
    });
    costs.map(|cost| cost.map_or_else(String::new, |cost| cost.to_string()))
}
