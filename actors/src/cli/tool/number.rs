//! Numbers on a tool's command line, with suffixes.

use super::Failure;
use millpond_messages::qapi::{SIZE_HINT, is_size_out_of_range, parse_size};
use std::ops::RangeInclusive;

/// The largest size that a command line has: lengths are signed numbers of 64 bits in QEMU.
pub const LARGEST: u64 = i64::MAX as u64;

/// Reads the number `text` that is a user's `what`: with suffixes b, k, M, G, T, P or E, and within `range`.
///
/// # Errors
/// It is none, or out of its range.
pub fn number(what: &str, text: &str, range: RangeInclusive<u64>) -> Result<u64, Failure> {
    let (least, most) = (*range.start(), *range.end());
    let out_of_range = || {
        Failure::new(format!(
            "Invalid {what} specified. Must be between {least} and {most}."
        ))
    };
    match parse_size(text) {
        Some(number) if range.contains(&number) => Ok(number),
        Some(_) => Err(out_of_range()),
        None if is_size_out_of_range(text) => Err(out_of_range()),
        None => Err(Failure::new(format!("Invalid {what} specified: '{text}'."))),
    }
}

/// Reads the value of a size that is an option of a list, such as `size=1G`.
///
/// # Errors
/// It is none.
pub fn size_option(name: &str, text: &str) -> Result<u64, Failure> {
    let wrong = || match is_size_out_of_range(text) && !text.starts_with('-') {
        true => Failure::new(format!("Value '{text}' is out of range for parameter '{name}'")),
        false => Failure::new(format!(
            "Parameter '{name}' expects a non-negative number below 2^64"
        ))
        .with_hint(SIZE_HINT),
    };
    parse_size(text).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_and_refused_as_qemus_tools_do() {
        let told = |text: &str, range| match number("image size", text, range) {
            Ok(number) => number.to_string(),
            Err(failure) => failure.to_string(),
        };
        for (text, expected) in [
            ("1", "1"),
            ("0x10", "16"),
            ("1.5k", "1536"),
            ("1b", "1"),
            ("1z", "Invalid image size specified: '1z'."),
            ("1e3", "Invalid image size specified: '1e3'."),
            ("1.5", "Invalid image size specified: '1.5'."),
            ("", "Invalid image size specified: ''."),
            ("-", "Invalid image size specified: '-'."),
            (
                "-1",
                "Invalid image size specified. Must be between 0 and 9223372036854775807.",
            ),
            (
                "9E",
                "Invalid image size specified. Must be between 0 and 9223372036854775807.",
            ),
            (
                "99E",
                "Invalid image size specified. Must be between 0 and 9223372036854775807.",
            ),
        ] {
            assert_eq!(told(text, 0..=LARGEST), expected, "{text}");
        }
        assert_eq!(
            told("0", 1..=8),
            "Invalid image size specified. Must be between 1 and 8."
        );
    }
}
