//! What `fio` reaches with io_uring on a file with no server between: the limit for the rows on a disk.

use std::path::Path;

use super::figures::Figures;
use super::rows::Row;
use crate::Outcome;
use crate::compare::fio::{self, Load};
use crate::load::Kind;

/// Runs `fio` on the file for so many seconds.
pub fn measure(row: &Row, file: &Path, seconds: f64) -> Outcome<Figures> {
    let work = if row.kind == Kind::Write {
        "randwrite"
    } else {
        "randread"
    };
    let output = fio::run(&Load {
        engine: "io_uring",
        work,
        block: row.block,
        depth: row.depth,
        jobs: 1,
        seconds,
        file,
    })?;
    parse(&output, row.kind)
}

/// The figures in what `fio` prints. It has no CPU time of a server: there is none.
fn parse(output: &[u8], kind: Kind) -> Outcome<Figures> {
    let work = fio::figures(output, if kind == Kind::Write { "write" } else { "read" })?;
    let percentile = |name: &str| work["clat_ns"]["percentile"][name].as_f64().unwrap_or(f64::NAN) / 1000.0;
    Ok(Figures {
        rate: fio::rate(&work)?,
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
