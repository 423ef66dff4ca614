//! What is shown to people: sizes, lists of snapshots, and values as a tree.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use millpond_messages::qapi::{SnapshotInfo, in_qdict_order};
use serde_json::Value;

/// Units of sizes, each 1024 times the one before.
const UNITS: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];

/// A size in three digits and a unit that keeps it below a thousand.
pub(super) fn size(bytes: u64) -> String {
    let mut unit = 0;
    // As QEMU's, it goes to the next unit from 1000 on, not from 1024: three digits tell it as well.
    let mut limit = 1000_u128;
    while u128::from(bytes) >= limit && unit + 1 < UNITS.len() {
        unit += 1;
        limit *= 1024;
    }
    let value = bytes as f64 / (1_u64 << (10 * unit)) as f64;
    format!("{} {}B", three_digits(value), UNITS.get(unit).unwrap_or(&""))
}

/// A number that is not negative, in three digits, as C's `%.3g` writes it.
pub(super) fn three_digits(value: f64) -> String {
    let scientific = format!("{value:.2e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let trim = |text: &str| match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text.to_owned(),
    };
    if (-4..3).contains(&exponent) {
        let decimals = usize::try_from(2 - exponent).unwrap_or(0);
        return trim(&format!("{value:.decimals$}"));
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{}e{sign}{:02}", trim(digits), exponent.unsigned_abs())
}

/// A table of snapshots inside an image, each line behind `indent`.
pub(super) fn snapshots(list: &[SnapshotInfo], indent: &str) -> String {
    let line = |id: &str, tag: &str, size: &str, date: &str, clock: &str, icount: &str| {
        format!("{indent}{id:<7} {tag:<16} {size:>8} {date:>19} {clock:>15} {icount:>10}\n")
    };
    let mut text = line("ID", "TAG", "VM_SIZE", "DATE", "VM_CLOCK", "ICOUNT");
    for snapshot in list {
        let icount = snapshot.icount.map(|count| count.to_string());
        text.push_str(&line(
            &snapshot.id,
            &snapshot.name,
            &size(snapshot.vm_state_size.cast_unsigned()),
            &date(snapshot.date_sec),
            &clock(snapshot.vm_clock_sec, snapshot.vm_clock_nsec),
            icount.as_deref().unwrap_or("--"),
        ));
    }
    text
}

/// A moment as the user's clock shows it.
fn date(seconds: i64) -> String {
    let moment = Timestamp::from_second(seconds).unwrap_or(Timestamp::UNIX_EPOCH);
    let local = moment.to_zoned(TimeZone::system());
    local.strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// A machine's clock, to the millisecond.
fn clock(seconds: i64, nanoseconds: i64) -> String {
    format!(
        "{:04}:{:02}:{:02}.{:03}",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60,
        nanoseconds / 1_000_000
    )
}

/// The members of an object, a line each behind `indent` levels of four spaces, and what is inside them a level deeper.
pub(super) fn tree(value: &Value, indent: usize) -> String {
    let mut text = String::new();
    match value {
        Value::Object(object) => {
            let members = in_qdict_order(object);
            members.for_each(|(name, value)| branch(&name.replace('-', " "), value, indent, &mut text));
        }
        Value::Array(items) => {
            let items = items.iter().enumerate();
            items.for_each(|(at, value)| branch(&format!("[{at}]"), value, indent, &mut text));
        }
        _ => {}
    }
    text
}

fn branch(name: &str, value: &Value, indent: usize, text: &mut String) {
    let space = " ".repeat(4 * indent);
    match value {
        Value::Object(_) | Value::Array(_) => {
            text.push_str(&format!("{space}{name}:\n{}", tree(value, indent + 1)));
        }
        Value::String(value) => text.push_str(&format!("{space}{name}: {value}\n")),
        value => text.push_str(&format!("{space}{name}: {value}\n")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn sizes_are_told_in_three_digits() {
        for (bytes, told) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "0.977 KiB"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (197_120, "192 KiB"),
            (3_117_056, "2.97 MiB"),
            (1_048_064, "1 MiB"),
            (1 << 40, "1 TiB"),
            (u64::MAX, "16 EiB"),
        ] {
            assert_eq!(size(bytes), told, "{bytes}");
        }
    }

    #[test]
    fn numbers_are_written_as_printf_does() {
        for (value, told) in [
            (0.0, "0"),
            (0.5, "0.5"),
            (192.5, "192"),
            (999.6, "1e+03"),
            (123_456.0, "1.23e+05"),
            (0.000_012_3, "1.23e-05"),
            (10.0, "10"),
        ] {
            assert_eq!(three_digits(value), told, "{value}");
        }
    }

    #[test]
    fn values_are_a_tree() {
        let value = json!({"a-b": {"c": [true, {"d": 1}]}, "e": "f"});
        let told = "e: f\na b:\n    c:\n        [0]: true\n        [1]:\n            d: 1\n";
        let mut lines: Vec<String> = tree(&value, 0).lines().map(str::to_owned).collect();
        let mut expected: Vec<String> = told.lines().map(str::to_owned).collect();
        lines.sort_unstable();
        expected.sort_unstable();
        assert_eq!(lines, expected);
    }
}
