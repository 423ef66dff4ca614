//! Numbers in commands: sizes, patterns and milliseconds, each refused in the words of QEMU's tool.

use crate::cli::tool::LARGEST;
use millpond_messages::qapi::{is_size_out_of_range, parse_signed, parse_size};

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
    let byte = parse_signed(text).and_then(|value| u8::try_from(value).ok());
    byte.ok_or_else(|| format!("{text} is not a valid pattern byte"))
}

/// A time in milliseconds.
///
/// # Errors
/// The line that is printed.
pub fn milliseconds(text: &str) -> Result<u64, String> {
    let time = parse_signed(text).and_then(|value| u64::try_from(value).ok());
    time.ok_or_else(|| format!("{text} is not a valid number"))
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
