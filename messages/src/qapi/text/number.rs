//! Numbers written as text: C's integer syntax and sizes with suffixes.

/// What C's functions pass over before a number.
const BLANKS: [char; 6] = [' ', '\t', '\n', '\r', '\u{b}', '\u{c}'];

/// `text` as C's `strtoll` with base 0 reads all of it: blanks first, a sign, `0x` or `0` for the base.
///
/// The value is given as 128 bits, so that the caller can check the range it wants.
fn whole(text: &str) -> Option<i128> {
    let text = text.trim_start_matches(BLANKS);
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let (base, digits) = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(hexadecimal) => (16, hexadecimal),
        None if digits.len() > 1 && digits.starts_with('0') => (8, digits),
        None => (10, digits),
    };
    // `from_str_radix` would take a second sign.
    if !digits.starts_with(|c: char| c.is_digit(base)) {
        return None;
    }
    let value = i128::from_str_radix(digits, base).ok()?;
    Some(if negative { value.checked_neg()? } else { value })
}

/// `text` as 64 bits with sign.
pub fn signed(text: &str) -> Option<i64> {
    whole(text)?.try_into().ok()
}

/// `text` as 64 bits; a negative number wraps around, as `strtoull` has it.
pub fn unsigned(text: &str) -> Option<u64> {
    let value = whole(text)?;
    if let Ok(value) = u64::try_from(value) {
        return Some(value);
    }
    let magnitude = u64::try_from(value.checked_neg()?).ok()?;
    Some(magnitude.wrapping_neg())
}

/// The advice below an error about a size.
pub const SIZE_HINT: &str = "Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\n\
    and exabytes, respectively.";

/// A size in bytes: a number, perhaps with a fraction, and a suffix of `B`, `K`, `M`, `G`, `T`, `P` or `E`
/// in either case. A fraction that is not zero needs a suffix other than `B`.
pub fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim_start_matches(BLANKS);
    let text = text.strip_prefix('+').unwrap_or(text);
    if let Some(digits) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        // A suffix would be ambiguous with digits.
        let digits_only = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        return if digits_only {
            u64::from_str_radix(digits, 16).ok()
        } else {
            None
        };
    }
    let split = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(split);
    let shift: u32 = match suffix {
        "" | "B" | "b" => 0,
        "K" | "k" => 10,
        "M" | "m" => 20,
        "G" | "g" => 30,
        "T" | "t" => 40,
        "P" | "p" => 50,
        "E" | "e" => 60,
        _ => return None,
    };
    let (integer, fraction) = number.split_once('.').unwrap_or((number, ""));
    let unit = 1_u64.checked_shl(shift)?;
    let bytes = match integer {
        "" if !fraction.is_empty() => 0,
        integer => integer.parse::<u64>().ok()?.checked_mul(unit)?,
    };
    bytes.checked_add(fraction_of(fraction, unit, shift)?)
}

/// Whether a text that is no size would be one if its sign or its magnitude were not: `-1`, `99E`.
pub fn is_size_out_of_range(text: &str) -> bool {
    let text = text.trim_start_matches(BLANKS);
    let (unsigned, is_negative) = match text.strip_prefix('-') {
        Some(rest) => (rest, true),
        None => (text, false),
    };
    let hexadecimal = unsigned
        .strip_prefix("0x")
        .or_else(|| unsigned.strip_prefix("0X"));
    if let Some(digits) = hexadecimal {
        let is_readable = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        return is_readable && (is_negative || parse_size(unsigned).is_none());
    }
    let digits = unsigned.trim_start_matches(|c: char| c.is_ascii_digit());
    if digits.len() == unsigned.len() {
        return false;
    }
    // Whether it can be read at all is asked of a number that is small whatever its suffix makes of it.
    let is_readable = parse_size(&format!("1{digits}")).is_some();
    is_readable && (is_negative || parse_size(unsigned).is_none())
}

/// The bytes of a decimal fraction of `unit`, rounded down.
fn fraction_of(digits: &str, unit: u64, shift: u32) -> Option<u64> {
    if digits.is_empty() {
        return Some(0);
    }
    let is_nothing = digits.bytes().all(|byte| byte == b'0');
    if (shift == 0 && !is_nothing) || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    // Eighteen digits tell more than the largest unit can.
    let digits = digits.get(..18).unwrap_or(digits);
    let scale = 10_u128.checked_pow(u32::try_from(digits.len()).ok()?)?;
    let scaled = digits.parse::<u128>().ok()?.checked_mul(u128::from(unit))?;
    u64::try_from(scaled / scale).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_numbers_as_in_c() {
        for (text, value) in [
            ("10", Some(10)),
            ("-5", Some(-5)),
            ("+5", Some(5)),
            (" 7", Some(7)),
            ("0x1f", Some(31)),
            ("010", Some(8)),
            ("08", None),
            ("0", Some(0)),
            ("", None),
            ("5 ", None),
            ("--5", None),
            ("0x", None),
            ("0x-5", None),
            ("99999999999999999999999999999999999999999999", None),
        ] {
            assert_eq!(whole(text), value, "{text:?}");
        }
        assert_eq!(unsigned("-1"), Some(u64::MAX));
        assert_eq!(unsigned("18446744073709551616"), None);
        assert_eq!(signed("9223372036854775808"), None);
    }

    #[test]
    fn sizes() {
        for (text, value) in [
            ("1", Some(1)),
            ("1B", Some(1)),
            ("1.5k", Some(1536)),
            ("10G", Some(10 << 30)),
            ("0x10", Some(16)),
            ("0x1k", None),
            ("1e3", None),
            ("1.5", None),
            ("-1", None),
            ("", None),
            ("K", None),
            ("1Q", None),
            ("16E", None),
            ("15E", Some(15 << 60)),
            ("99999999999999999999", None),
            (" +1k", Some(1024)),
            ("+-1", None),
            (".5k", Some(512)),
            ("1024.0", Some(1024)),
            ("1024.0b", Some(1024)),
            ("1.k", Some(1024)),
            (".k", None),
            ("+0x10", Some(16)),
        ] {
            assert_eq!(parse_size(text), value, "{text:?}");
        }
    }

    #[test]
    fn sizes_that_are_too_large_or_negative_are_told_from_what_is_no_size() {
        for (text, is_out) in [
            ("-1", true),
            ("99E", true),
            ("18446744073709551616", true),
            ("1", false),
            ("x", false),
            ("-", false),
            ("1Y", false),
            ("-1Y", false),
        ] {
            assert_eq!(is_size_out_of_range(text), is_out, "{text:?}");
        }
    }
}
