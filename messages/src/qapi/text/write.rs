//! Writes JSON as QEMU prints it: member order, spacing, escapes and number forms.

use super::in_qdict_order;
use serde_json::{Number, Value};

/// `{"a": 1, "b": [2, 3]}`: one line, a space after each colon and comma.
pub fn to_compact(value: &Value) -> String {
    let mut out = String::new();
    write_value(&mut out, value, None);
    out
}

/// One member a line, four spaces a level; empty objects and arrays take two lines.
pub fn to_pretty(value: &Value) -> String {
    let mut out = String::new();
    write_value(&mut out, value, Some(0));
    out
}

fn write_value(out: &mut String, value: &Value, depth: Option<usize>) {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(true) => out.push_str("true"),
        Value::Bool(false) => out.push_str("false"),
        Value::Number(number) => write_number(out, number),
        Value::String(text) => write_string(out, text),
        Value::Array(items) => {
            let inner = depth.map(|depth| depth + 1);
            write_sequence(out, '[', ']', depth, items.iter(), |out, item| {
                write_value(out, item, inner)
            });
        }
        Value::Object(members) => {
            let inner = depth.map(|depth| depth + 1);
            let ordered = in_qdict_order(members);
            write_sequence(out, '{', '}', depth, ordered, |out, (key, value)| {
                write_string(out, key);
                out.push_str(": ");
                write_value(out, value, inner);
            });
        }
    }
}

fn write_sequence<T>(
    out: &mut String,
    open: char,
    close: char,
    depth: Option<usize>,
    items: impl Iterator<Item = T>,
    mut write_item: impl FnMut(&mut String, T),
) {
    out.push(open);
    for (index, item) in items.enumerate() {
        if index > 0 {
            out.push_str(if depth.is_some() { "," } else { ", " });
        }
        if let Some(depth) = depth {
            new_line(out, depth + 1);
        }
        write_item(out, item);
    }
    if let Some(depth) = depth {
        new_line(out, depth);
    }
    out.push(close);
}

fn new_line(out: &mut String, depth: usize) {
    out.push('\n');
    for _ in 0..depth {
        out.push_str("    ");
    }
}

fn write_number(out: &mut String, number: &Number) {
    match number.as_f64() {
        Some(double) if !number.is_i64() && !number.is_u64() => out.push_str(&seventeen_digits(double)),
        _ => out.push_str(&number.to_string()),
    }
}

/// `double` as C's `%.17g` prints it: what QEMU uses, so that reading it back gives the same number.
fn seventeen_digits(double: f64) -> String {
    if double == 0.0 {
        return if double.is_sign_negative() {
            "-0".into()
        } else {
            "0".into()
        };
    }
    let scientific = format!("{double:.16e}");
    let Some((digits, exponent)) = scientific.split_once('e') else {
        return scientific;
    };
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..17).contains(&exponent) {
        let decimals = usize::try_from(16 - exponent).unwrap_or(0);
        strip_zeros(&format!("{double:.decimals$}"))
    } else {
        let sign = if exponent < 0 { '-' } else { '+' };
        format!("{}e{sign}{:02}", strip_zeros(digits), exponent.unsigned_abs())
    }
}

fn strip_zeros(text: &str) -> String {
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').into()
    } else {
        text.into()
    }
}

fn write_string(out: &mut String, text: &str) {
    out.push('"');
    let is_plain = |byte: u8| matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\';
    if text.bytes().all(is_plain) {
        out.push_str(text);
    } else {
        write_escaped(out, text);
    }
    out.push('"');
}

fn write_escaped(out: &mut String, text: &str) {
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            ' '..='~' => out.push(c),
            _ => {
                let mut units = [0; 2];
                for unit in c.encode_utf16(&mut units) {
                    out.push_str(&format!("\\u{unit:04X}"));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn compact_and_pretty() {
        let value = json!({"b": [1, {}], "a": []});
        assert_eq!(to_compact(&value), r#"{"a": [], "b": [1, {}]}"#);
        assert_eq!(to_pretty(&json!({"a": [], "b": {}})).matches('\n').count(), 5);
        assert_eq!(to_pretty(&json!([])), "[\n]");
    }

    #[test]
    fn doubles_are_printed_with_seventeen_digits() {
        for (double, text) in [
            (0.5, "0.5"),
            (0.1, "0.10000000000000001"),
            (1e300, "1.0000000000000001e+300"),
            (1.0, "1"),
            (1e-5, "1.0000000000000001e-05"),
            (123456789012345680.0, "1.2345678901234568e+17"),
            (-2.5, "-2.5"),
        ] {
            assert_eq!(seventeen_digits(double), text);
        }
    }

    #[test]
    fn what_is_not_plain_ascii_is_escaped() {
        assert_eq!(
            to_compact(&json!("a\"\\\n\u{1}\u{7f}é😀")),
            r#""a\"\\\n\u0001\u007F\u00E9\uD83D\uDE00""#
        );
    }
}
