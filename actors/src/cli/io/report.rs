//! Reports of requests: how much, how long, how fast; and dumps of what was read.

use std::fmt::Write;
use std::time::Duration;

/// The units of sizes, the largest first.
const UNITS: [(u32, &str); 6] = [
    (60, "EiB"),
    (50, "PiB"),
    (40, "TiB"),
    (30, "GiB"),
    (20, "MiB"),
    (10, "KiB"),
];
/// Bytes in a line of a dump.
const LINE: usize = 16;

/// What a report tells of a request.
pub struct RequestReport {
    /// What was done, such as `read`.
    pub verb: &'static str,
    /// The first byte of its range.
    pub offset: u64,
    /// How many bytes it was about.
    pub bytes: u64,
    /// How long it took.
    pub time: Duration,
    /// For programs, rather than for people.
    pub is_for_programs: bool,
}

impl RequestReport {
    /// The lines of the report, without the last line's end.
    pub fn lines(&self) -> String {
        let (verb, offset, bytes) = (self.verb, self.offset, self.bytes);
        let seconds = self.time.as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "a rate is told with few digits")]
        let rate = bytes as f64 / seconds;
        if self.is_for_programs {
            let time = duration(self.time, true);
            return format!("{bytes},1,{time},{rate:.3},{:.3}", 1.0 / seconds);
        }
        format!(
            "{verb} {bytes}/{bytes} bytes at offset {offset}\n{}, 1 ops; {} ({}/sec and {:.4} ops/sec)",
            size(bytes),
            duration(self.time, false),
            of_float(rate),
            1.0 / seconds,
        )
    }
}

/// A size in the largest unit that it has one of.
pub fn size(bytes: u64) -> String {
    #[expect(
        clippy::cast_precision_loss,
        reason = "a size in units is told with few digits"
    )]
    of_float(bytes as f64)
}

fn of_float(bytes: f64) -> String {
    for (shift, unit) in UNITS {
        let unit_bytes = (1_u64 << shift) as f64;
        if bytes >= unit_bytes {
            return format!("{} {unit}", trimmed(format!("{:.3}", bytes / unit_bytes)));
        }
    }
    format!("{} bytes", trimmed(format!("{bytes:.6}")))
}

/// A number without a fraction that is all zeroes.
fn trimmed(number: String) -> String {
    match number.split_once('.') {
        Some((whole, fraction)) if fraction.bytes().all(|digit| digit == b'0') => whole.to_owned(),
        _ => number,
    }
}

fn duration(time: Duration, with_hours: bool) -> String {
    let (seconds, hundredths) = (time.as_secs(), time.subsec_millis() / 10);
    let (hours, minutes, rest) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if with_hours || hours > 0 || minutes > 0 {
        format!("{hours}:{minutes:02}:{rest:02}.{hundredths:02}")
    } else {
        format!("{rest:02}.{hundredths:02} sec")
    }
}

/// The lines that show `bytes`, which were read at `offset`.
pub fn dump(offset: u64, bytes: &[u8]) -> String {
    let mut lines = String::with_capacity(bytes.len() * 5);
    for (at, line) in (offset..).step_by(LINE).zip(bytes.chunks(LINE)) {
        // Writing to a string does not fail.
        let _ = write!(lines, "{at:08x}:  ");
        for byte in line {
            let _ = write!(lines, "{byte:02x} ");
        }
        lines.push(' ');
        lines.extend(line.iter().map(|&byte| match byte.is_ascii_alphanumeric() {
            true => char::from(byte),
            false => '.',
        }));
        lines.push('\n');
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_three_decimals_or_none() {
        for (bytes, text) in [
            (0, "0 bytes"),
            (512, "512 bytes"),
            (1536, "1.500 KiB"),
            (0x3fff_0000, "1023.938 MiB"),
            (10 << 30, "10 GiB"),
            (3 << 59, "1.500 EiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
        assert_eq!(of_float(524.802_425), "524.802425 bytes");
    }

    #[test]
    fn reports_are_for_people_or_for_programs() {
        let mut report = RequestReport {
            verb: "read",
            offset: 4096,
            bytes: 65536,
            time: Duration::from_millis(2500),
            is_for_programs: false,
        };
        assert_eq!(
            report.lines(),
            "read 65536/65536 bytes at offset 4096\n64 KiB, 1 ops; 02.50 sec (25.600 KiB/sec and 0.4000 ops/sec)"
        );
        report.is_for_programs = true;
        assert_eq!(report.lines(), "65536,1,0:00:02.50,26214.400,0.400");
    }

    #[test]
    fn a_dump_shows_letters_and_digits() {
        assert_eq!(
            dump(0xff5, b"aZ0 _\xffaaaaaaaaaab"),
            "00000ff5:  61 5a 30 20 5f ff 61 61 61 61 61 61 61 61 61 61  aZ0...aaaaaaaaaa\n00001005:  62  b\n"
        );
    }
}
