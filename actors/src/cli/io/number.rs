//! Numbers in commands: sizes, patterns and milliseconds, each refused in the words of QEMU's tool.

use crate::cli::tool::LARGEST;
use millpond_messages::qapi::{is_size_out_of_range, parse_size};

/// What may stand before a number, as C has it.
const BLANKS: [char; 6] = [' ', '\t', '\n', '\r', '\u{b}', '\u{c}'];

/// A size in bytes, with a suffix or without.
///
/// # Errors
/// The line that is printed.
pub fn size(text: &str) -> Result<u64, String> {
    let wrong =
        || format!("Parsing error: non-numeric argument, or extraneous/unrecognized suffix -- {text}");
    let large = || format!("Parsing error: argument too large -- {text}");
    match parse_size(text) {
        Some(size) if size <= LARGEST => Ok(size),
        Some(_) => Err(large()),
        None if is_size_out_of_range(text) => Err(large()),
        None => Err(wrong()),
    }
}

/// A byte to fill buffers with: a number as C writes it.
///
/// # Errors
/// The line that is printed.
pub fn pattern(text: &str) -> Result<u8, String> {
    let byte = whole(text).and_then(|value| u8::try_from(value).ok());
    byte.ok_or_else(|| format!("{text} is not a valid pattern byte"))
}

/// A time in milliseconds.
///
/// # Errors
/// The line that is printed.
pub fn milliseconds(text: &str) -> Result<u64, String> {
    let time = whole(text).and_then(|value| u64::try_from(value).ok());
    time.ok_or_else(|| format!("{text} is not a valid number"))
}

/// A number with a sign, in the base that its first digits tell.
fn whole(text: &str) -> Option<i64> {
    let text = text.trim_start_matches(BLANKS);
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let (base, digits) = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(digits) => (16, digits),
        None if digits.len() > 1 && digits.starts_with('0') => (8, digits),
        None => (10, digits),
    };
    if !digits.starts_with(|digit: char| digit.is_digit(base)) {
        return None;
    }
    let value = i64::from_str_radix(digits, base).ok()?;
    Some(if negative { -value } else { value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_refused_as_qemu_io_does() {
        for (text, expected) in [
            ("0", 0),
            ("+5", 5),
            ("010", 10),
            ("0x1B", 27),
            ("1b", 1),
            ("1.5k", 1536),
            (".5k", 512),
            ("1.", 1),
            ("1.k", 1024),
            ("1.0", 1),
            ("\t8k", 8192),
            ("1e", 1 << 60),
            ("9223372036854775807", i64::MAX as u64),
        ] {
            assert_eq!(size(text), Ok(expected), "{text}");
        }
        for text in [
            "x", "1z", "1kb", "1,5k", "0.3", "1.5", "1e3", "0x", "0x1k", "-x", "-", "+", "++1", "1.5.5k", "",
            ".",
        ] {
            let refused = size(text).unwrap_err();
            assert!(refused.contains("non-numeric"), "{text}: {refused}");
        }
        for text in [
            "-1",
            "-0",
            "8E",
            "9223372036854775808",
            "99999999999999999999",
            "99999999999999999999k",
            "0x10000000000000000",
        ] {
            let refused = size(text).unwrap_err();
            assert!(refused.contains("too large"), "{text}: {refused}");
        }
    }

    #[test]
    fn patterns_are_bytes_in_c_s_bases() {
        for (text, byte) in [("0", 0), ("0x41", 0x41), ("010", 8), ("+7", 7), ("255", 255)] {
            assert_eq!(pattern(text), Ok(byte), "{text}");
        }
        for text in ["300", "x", "-1", "1z", "0x100", ""] {
            assert_eq!(pattern(text), Err(format!("{text} is not a valid pattern byte")));
        }
    }
}
