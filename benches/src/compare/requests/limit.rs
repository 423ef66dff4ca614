//! What `fio` reaches with io_uring on a file with no server between: the limit for the rows on a disk.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::figures::Figures;
use super::rows::Row;
use crate::Outcome;
use crate::compare::tools::Tool;
use crate::load::Kind;

/// Runs `fio` on the file for so many seconds.
pub fn measure(row: &Row, file: &Path, seconds: f64) -> Outcome<Figures> {
    let work = if row.kind == Kind::Write {
        "randwrite"
    } else {
        "randread"
    };
    let output = Command::new(Tool::Fio.program())
        .args([
            "--name=limit",
            "--ioengine=io_uring",
            "--direct=1",
            "--time_based",
        ])
        .args(["--ramp_time=300ms", "--output-format=json", "--thread"])
        .arg(format!("--rw={work}"))
        .arg(format!("--bs={}", row.block))
        .arg(format!("--iodepth={}", row.depth))
        .arg(format!("--runtime={}ms", (seconds * 1000.0).ceil()))
        .arg(format!("--filename={}", file.display()))
        .output()
        .map_err(|error| format!("{error}: {}", Tool::Fio.missing()))?;
    if !output.status.success() {
        return Err(format!("fio: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    parse(&output.stdout, row.kind)
}

/// The figures in what `fio` prints. It has no CPU time of a server: there is none.
fn parse(output: &[u8], kind: Kind) -> Outcome<Figures> {
    // Notes may stand before the JSON.
    let start = output
        .iter()
        .position(|byte| *byte == b'{')
        .ok_or("fio printed no JSON")?;
    let value: Value = serde_json::from_slice(output.get(start..).unwrap_or_default())?;
    let of_kind = if kind == Kind::Write { "write" } else { "read" };
    let work = &value["jobs"][0][of_kind];
    let percentile = |name: &str| work["clat_ns"]["percentile"][name].as_f64().unwrap_or(f64::NAN) / 1000.0;
    Ok(Figures {
        rate: work["iops"].as_f64().ok_or("fio tells no rate")?,
        p50: percentile("50.000000"),
        p99: percentile("99.000000"),
        cpu: f64::NAN,
        calls: f64::NAN,
        instructions: f64::NAN,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_and_times_of_the_kind_are_taken() {
        let output = br#"note: something
            {"jobs": [{"read": {"iops": 77000.5, "clat_ns": {"percentile": {"50.000000": 400000, "99.000000": 900000}}},
                       "write": {"iops": 0}}]}"#;
        let figures = parse(output, Kind::Read).unwrap();
        assert_eq!((figures.rate, figures.p50, figures.p99), (77000.5, 400.0, 900.0));
        assert!(figures.cpu.is_nan());
        assert!(parse(b"{}", Kind::Read).is_err());
        assert!(parse(b"fio: failed", Kind::Write).is_err());
    }
}
